"""The whole spectrum of A^T A, estimated from a few products with a random block.

Block Lanczos. From an orthonormal random V_1 (n, s), q products M V_j with M = A^T A build an orthonormal
basis Q = [V_1 ... V_q] of span{V_1, M V_1, ..., M^(q-1) V_1} and the block tridiagonal T = Q^T M Q. With
T = S diag(theta) S^T this gives at once

- Rayleigh-Ritz: theta_i approximates lambda_i from below, at the top first; its residual is
  |R_q S_(last rows, i)|, R_q the block that the next step would have put under T;
- block Gauss quadrature: sum_i w_i f(theta_i) ~ tr f(M), with w_i = n/s |S_(first s rows, i)|^2, exact for
  the trace that these s probes see wherever f is a polynomial of degree 2 q - 1 (Golub and Meurant 1994).

Three steps make a spectrum of it.

1. Deflation for nothing. Where a Ritz vector has converged its weight, random with mean 1, becomes 1. Only
   the rest, the bulk, is estimated, and its weights are scaled to the count that is left and tilted to the
   sum that is left: tr M = |A|_F^2 is known exactly. Separate tridiagonals, one a probe, would need a block
   iteration of their own for this.
2. Block nodes come in clumps of s, and a count over them is a staircase whose steps move the median by the
   phase of the clump: up to 15 % in alpha (docs/tail.md). The measure of all probes together has a Jacobi
   matrix of its own, whose first q rows are those of the trace. Its Gauss nodes are spread evenly, and the
   count at a node is the sum of the weights before it and half of its own, corrected for how the weights grow
   (_knots).
3. A monotone cubic (Fritsch and Carlson 1980) through ln lambda against the rank, over the converged values
   and those counts, is read at the ranks 1/2, 3/2, ...: n estimated eigenvalues. Every statistic is then that
   of the exact path, of these.

Cost: q products of s vectors, 4 m n s q flops, which is all of it for large m n; about 3 n (s q)^2 for the
basis, and the eigenvalues and vectors of T.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from spectral_fast import _ops

# A Ritz vector counts as converged where its residual is below this part of the distance to the next value.
# From 0.1 to 0.3 the rms error of alpha_hill over 14 spectra does not change (0.9 %); at 1 it is 1.0 %.
_CONVERGED = 0.3
# The weight of a simple eigenvalue is chi^2_s / s. What weighs more is one of higher multiplicity than the
# block has vectors.
_ONE_VALUE = 6.0
# A Ritz value is taken for an eigenvalue where its predicted error is below this part of that distance.
_SEPARATE = 0.1


@dataclass(frozen=True, eq=False)
class Krylov:
    """What q steps of block Lanczos leave of a batch of b matrices, float64.

    T: (b, s q, s q). below: R_q (b, s, s). energy: (b) sum of squares of A.
    """

    T: Tensor
    below: Tensor
    energy: Tensor


@dataclass(frozen=True, eq=False)
class Spectrum:
    """Estimated eigenvalues of A^T A, (b, n) float64, descending; zeros for a matrix that is not ``valid``.

    values: the estimate. chords: the same with straight lines for cubics: how far the two are apart says
        what the interpolation may be wrong by. hard: the same with another guess of what no product sees,
        the end of the spectrum.
    bounds: (b, s q) Ritz values: the i-th is at most the i-th eigenvalue, but for rounding. shift: (b, s q)
    how far
        above it is by its residual.
    converged: (b) leading values whose vectors are known: the sampling error is in the others.
    leading: (b) leading values that are Ritz values with their shift; the others are read off the curve.
    seen: (b) the least node of the quadrature: what is below is extrapolated.
    energy: (b) sum of squares of A. valid: (b) whether everything is finite.
    """

    values: Tensor
    chords: Tensor
    hard: Tensor
    bounds: Tensor
    shift: Tensor
    converged: Tensor
    leading: Tensor
    seen: Tensor
    energy: Tensor
    valid: Tensor


def block_lanczos(A: Tensor, probes: Tensor, n_steps: int) -> Krylov:
    """n_steps of block Lanczos on A^T A for A (b, m, n), m >= n, from the columns of probes (n, s).

    On a CPU a thread takes a matrix through all steps, with a basis of s q / m of its size.
    """
    V = torch.linalg.qr(probes.to(A.device, _ops.compute_dtype(A.dtype))).Q
    along, first, second, energy = _ops.block_lanczos(A, V, n_steps)
    below = second @ first
    b, s = A.shape[0], V.shape[-1]
    T = along.new_zeros(b, n_steps, s, n_steps, s)
    at = torch.arange(n_steps, device=A.device)
    T[:, at, :, at] = ((along + along.mT) / 2).movedim(1, 0)
    T[:, at[1:], :, at[:-1]] = below[:, :-1].movedim(1, 0)
    T[:, at[:-1], :, at[1:]] = below[:, :-1].mT.movedim(1, 0)
    return Krylov(T.reshape(b, s * n_steps, s * n_steps), below[:, -1], energy)


def estimate_spectrum(krylov: Krylov, n: int, n_steps: int, arithmetic: torch.finfo) -> Spectrum:
    """The spectrum of A^T A, n values, from block Lanczos in this arithmetic."""
    eps, smallest = arithmetic.eps, arithmetic.tiny / arithmetic.eps
    size = krylov.T.shape[-1]
    s = size // n_steps
    # LAPACK would not return from a NaN, and one matrix must not spoil the others.
    valid = krylov.T.isfinite().all(-1).all(-1) & krylov.below.isfinite().all(-1).all(-1)
    valid &= krylov.energy.isfinite() & ((krylov.energy == 0) | (krylov.energy > smallest))
    T = torch.where(valid[:, None, None], krylov.T, 0)
    below = torch.where(valid[:, None, None], krylov.below, 0)
    energy = torch.where(valid, krylov.energy, 0)

    theta, S = torch.linalg.eigh(T)
    theta, S = theta.flip(-1).clamp_min(0), S.flip(-1)
    coupling = (below @ S[:, -s:]).mT
    residual = torch.linalg.vector_norm(coupling, dim=-1)
    gap = theta[:, :-1] - theta[:, 1:]
    weight = n / s * S[:, :s].square().sum(1)
    known = (residual[:, :-1] < _CONVERGED * gap) & (weight[:, :-1] < _ONE_VALUE)
    converged = known.to(torch.int64).cumprod(-1).sum(-1).clamp_max(size - n_steps)
    weight = _weights(theta, weight, converged, energy, n)
    first, shift = _predicted_shift(theta, coupling, converged)
    separate = (shift[:, :-1] < _SEPARATE * gap).to(torch.int64).cumprod(-1).sum(-1)
    leading = torch.maximum(separate.clamp_max(size - n_steps), converged).clamp_min(1)

    bulk = torch.arange(size, device=theta.device) >= converged[:, None]
    nodes, share = _gauss(theta, torch.where(bulk, weight, 0), n_steps)
    # What lambda_1 eps leaves of a small value is rounding.
    floor = (eps**2 * theta[:, :1]).clamp_min(torch.finfo(torch.float64).tiny)
    ranks, logs, hard_logs = _knots(
        (theta + shift).maximum(floor).log(), leading, nodes.maximum(floor).log(), share, converged, n
    )
    smooth, straight = _read(ranks, logs, n)
    hard = _read(ranks, hard_logs, n)[0]
    alive = (theta[:, :1] > 0) & valid[:, None]
    return Spectrum(
        values=torch.where(alive, smooth.exp(), 0),
        chords=torch.where(alive, straight.exp(), 0),
        hard=torch.where(alive, hard.exp(), 0),
        bounds=theta,
        shift=first.maximum(shift),
        converged=converged,
        leading=leading,
        seen=torch.where(share > 1e-6 / n, nodes, theta[:, :1]).amin(-1),
        energy=energy,
        valid=valid,
    )


def _weights(theta: Tensor, weight: Tensor, converged: Tensor, energy: Tensor, n: int) -> Tensor:
    """Weights with 1 for what converged, and the right count and sum over the bulk."""
    bulk = torch.arange(theta.shape[-1], device=theta.device) >= converged[:, None]
    weight = torch.where(bulk, weight, 0)
    count = n - converged[:, None]
    weight = weight * (count / weight.sum(-1, keepdim=True).clamp_min(torch.finfo(weight.dtype).tiny))
    rest = energy - torch.where(bulk, 0, theta).sum(-1)
    mean = (weight * theta).sum(-1, keepdim=True) / count
    away = theta - mean
    spread = (weight * away.square()).sum(-1, keepdim=True)
    missing = rest[:, None] - (weight * theta).sum(-1, keepdim=True)
    tilt = 1 + away * torch.where(spread > 0, missing / spread, 0)
    # A tilt past zero would mean that the probes saw nothing of the bulk: leave it then.
    usable = torch.where(bulk, tilt, 1).amin(-1, keepdim=True) > 0
    weight = torch.where(usable, weight * tilt, weight)
    return torch.where(bulk, weight, 1)


def _predicted_shift(theta: Tensor, coupling: Tensor, converged: Tensor) -> tuple[Tensor, Tensor]:
    """How far above theta_i the eigenvalue is, from the rows c_i of coupling: to first order, and better.

    First |c_i|^2 g(theta_i).

    g is the Green's function that ends a Lanczos chain whose coefficients have settled for a band [0, e]
    (Haydock's square-root terminator): 2 / (z - e / 2 + sqrt(z (z - e))), from 4 / e at the edge to 1 / z far
    above it. e: the first value that has not converged. Then what each pair of Ritz values does to one
    another through (c_i . c_j) g, as an isolated pair would.
    """
    edge = theta.gather(-1, converged[:, None])
    z = theta.maximum(edge)
    under = z - edge / 2 + (z * (z - edge)).sqrt()
    green = 2 / under.clamp_min(torch.finfo(theta.dtype).tiny)
    square = coupling.square().sum(-1)
    first = square * green
    mixed = green[..., None] * (coupling @ coupling.mT)
    apart = (theta + first)[..., None] - theta[:, None] - green[..., None] * square[:, None]
    pushed = (torch.hypot(apart, 2 * mixed) - apart.abs()) / 2
    # The upper one of a pair goes up, the lower one down.
    return first, (first + pushed.triu(1).sum(-1) - pushed.tril(-1).sum(-1)).clamp_min(0)


def _gauss(theta: Tensor, weight: Tensor, n_nodes: int) -> tuple[Tensor, Tensor]:
    """Gauss nodes, descending, and their shares (sum 1) of the measure with this weight at each theta.

    Scalar Lanczos on diag(theta), orthogonalized in full. A measure with fewer points ends in nodes without a
    share.
    """
    total = weight.sum(-1, keepdim=True).clamp_min(torch.finfo(weight.dtype).tiny)
    basis = theta.new_empty(theta.shape[0], n_nodes, theta.shape[1])
    basis[:, 0] = (weight / total).sqrt()
    smallest = 1e-10 * theta[:, :1, None]
    diagonal, off = [], []
    for step in range(n_nodes):
        known = basis[:, : step + 1]
        z = theta[:, None] * known[:, step:]
        part = z @ known.mT
        diagonal.append(part[:, 0, step])
        if step + 1 == n_nodes:
            break
        z = torch.baddbmm(z, part, known, alpha=-1)
        z = torch.baddbmm(z, z @ known.mT, known, alpha=-1)
        norm = torch.linalg.vector_norm(z, dim=-1, keepdim=True)
        alive = norm > smallest
        basis[:, step + 1 : step + 2] = torch.where(alive, z / norm, 0)
        off.append(torch.where(alive, norm, 0)[:, 0, 0])
    jacobi = torch.diag_embed(torch.stack(diagonal, -1))
    if off:
        side = torch.diag_embed(torch.stack(off, -1), 1)
        jacobi = jacobi + side + side.mT
    nodes, vectors = torch.linalg.eigh(jacobi)
    return nodes.flip(-1), vectors[:, 0].square().flip(-1)


def _knots(
    lead: Tensor, leading: Tensor, node: Tensor, share: Tensor, converged: Tensor, n: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Ranks of everything known, ascending, ln lambda there, and ln lambda where the spectrum ends in a hard
    edge.

    The i-th value, from 0, has the rank i + 1/2.
    """
    index = torch.arange(lead.shape[-1], device=lead.device)
    lead_rank = (index + 0.5).expand_as(lead)
    # As a function P of the node's number, counted from the middle between two, the count has P' = share at
    # the nodes, and by Euler and Maclaurin P = sum before + share / 2 - P'' / 12. At an end the shares go on
    # in a line down to 0 where they rise from it, as at the edge of a semicircle (where P'' / 12 is a sixth
    # of the share), and stay where they do not, as at a hard edge. A bend of more than a quarter is no
    # series.
    ends = [
        (2 * a - b).clamp_min(0).minimum(a)
        for a, b in ((share[:, :1], share[:, 1:2]), (share[:, -1:], share[:, -2:-1]))
    ]
    around = torch.cat([ends[0], share, ends[1]], -1)
    bend = ((around[:, 2:] - around[:, :-2]) / 24).clamp(-share / 4, share / 4)
    middle = share.cumsum(-1) - share / 2 - bend
    node_rank = converged[:, None] + (n - converged[:, None]) * middle
    # Too near to a leading value the slope between the two would be noise.
    used_node = (share * n > 1e-6) & (node_rank > leading[:, None] + 0.5)
    used = torch.cat([index < leading[:, None], used_node], -1)
    rank = torch.cat([lead_rank, node_rank], -1)
    log = torch.cat([lead, node], -1)
    rank = torch.where(used, rank, torch.inf)
    rank, order = rank.sort(dim=-1, stable=True)
    log = log.gather(-1, order).cummin(-1).values
    # Below the last node nothing is seen. There the slope p = d ln lambda / d ln D, D the distance to the
    # last rank, goes on as it changed over the last three knots: constant, 2, at the hard edge of a square
    # matrix, and falling with D where the spectrum ends above zero. Constant in any case is the other guess.
    count = used.sum(-1, keepdim=True)
    at = (count - torch.arange(1, 4, device=rank.device)).clamp_min(0)
    distance, level = (n - rank.gather(-1, at)).log(), log.gather(-1, at)
    middle, run = (distance[:, 1:] + distance[:, :-1]) / 2, distance.diff(dim=-1).clamp_min(1e-3)
    p = level.diff(dim=-1) / run
    change = (p[:, :1] / p[:, 1:]).log() / (middle[:, :1] - middle[:, 1:])
    change = torch.where((p > 0).all(-1, keepdim=True), change, 1).clamp(0, 2)
    step = torch.arange(rank.shape[-1], device=rank.device) - count + 1
    halved = distance[:, :1] - math.log(2) * step
    rank = torch.where(step > 0, n - halved.exp(), rank)
    fall = p[:, :1] * math.log(2)
    falls = (fall * (change * (halved + math.log(2) / 2 - middle[:, :1])).exp(), fall.expand_as(log))
    ended, hard = (
        torch.where(step > 0, level[:, :1] - torch.where(step > 0, each, 0).cumsum(-1), log) for each in falls
    )
    return rank, ended, hard


def _read(rank: Tensor, log: Tensor, n: int) -> tuple[Tensor, Tensor]:
    """ln lambda at the ranks 1/2, 3/2, ... < n: by monotone cubics, and by straight lines."""
    h = rank.diff(dim=-1)
    secant = log.diff(dim=-1) / h
    before, after = secant[:, :-1], secant[:, 1:]
    # Fritsch and Butland's weighted harmonic mean: 0 where one side is flat, else between the two.
    w1, w2 = 2 * h[:, 1:] + h[:, :-1], h[:, 1:] + 2 * h[:, :-1]
    flat = (before == 0) | (after == 0)
    inner = torch.where(flat, 0, (w1 + w2) / (w1 / before + w2 / after))
    slope = torch.cat([secant[:, :1], inner, secant[:, -1:]], -1)

    at = torch.arange(n, dtype=rank.dtype, device=rank.device).add(0.5).expand(rank.shape[0], n)
    i = (torch.searchsorted(rank, at.contiguous(), right=True) - 1).clamp(0, h.shape[-1] - 1)
    width = h.gather(-1, i)
    t = (at - rank.gather(-1, i)) / width
    left, right = log.gather(-1, i), log.gather(-1, i + 1)
    straight = left + t * (right - left)
    d0, d1 = width * slope.gather(-1, i), width * slope.gather(-1, i + 1)
    rise = right - left
    smooth = left + t * (d0 + t * ((3 * rise - 2 * d0 - d1) + t * (d0 + d1 - 2 * rise)))
    return smooth, straight
