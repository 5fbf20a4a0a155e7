"""The leading singular values of a matrix that has moved a little, from one product with A^T A.

V (n x s) spans nearly the leading right singular vectors of an earlier A, Z = A^T A V. With S = V^T V, T =
V^T Z = L L^T and w_i, mu_i the eigenvectors and eigenvalues of L^{-1} Z^T Z L^{-T}:

    u_i = A V L^{-T} w_i          orthonormal: the best left singular vectors in the span of A V
    mu_i = |A^T u_i|^2            Ritz values, lower bounds of lambda_i = sigma_i^2 (Courant-Fischer)
    v_i = A^T u_i / sqrt(mu_i)    the next V: Z L^{-T} w_i / sqrt(mu_i)
    theta_i = 1 / |V L^{-T} w_i|^2  the Rayleigh quotient of A^T A half an iteration earlier, of V L^{-T} w_i

The squared sine of the angle to the i-th singular vector shrinks by c_i = lambda_{s+1} / lambda_i in half an
iteration (Rutishauser 1969), and so does the error of the value: lambda_i - mu_i is about
(mu_i - theta_i) c_i / (1 - c_i), with mu_{s-1} in the place of lambda_{s+1}.

A product costs 4 m n s flops and one read of A; the rest is O(n s^2).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

# Where a spectrum has no gap at all, the estimate of the remaining error must not divide by zero.
_SMALLEST_GAP = 0.01


class Ritz(NamedTuple):
    """What one product tells of the leading values; B matrices, s vectors.

    Attributes:
        squares: (B, s) float64, descending, lower bounds of the squared singular values.
        pending: (B, s) float64, about what is missing from each value sigma_i, relative to it.
        vectors: (B, n, s), for the next product; as handed in where the matrix is not finite.
        traces: (B, 2) float64, of V^T Z and Z^T Z, the last vector left out.
    """

    squares: Tensor
    pending: Tensor
    vectors: Tensor
    traces: Tensor


def ritz(V: Tensor, Z: Tensor) -> Ritz:
    """Ritz values and the next vectors from V (B, n, s) and Z = A^T A V; NaN values where Z is not finite."""
    T, G, S = ((X.mT @ Y).to(torch.float64) for X, Y in ((V, Z), (Z, Z), (V, V)))
    T = (T + T.mT) / 2
    traces = torch.stack([X.diagonal(dim1=-2, dim2=-1)[..., :-1].sum(-1) for X in (T, G)], -1)
    broken = ~(T + G).isfinite().all(-1).all(-1)
    if bool(broken.any()):
        # One matrix must not keep the others from LAPACK.
        unit = torch.eye(T.shape[-1], dtype=T.dtype, device=T.device)
        T, G = (torch.where(broken[:, None, None], unit, X) for X in (T, G))
    whiten = _inverse_root(T, torch.finfo(Z.dtype).eps)
    inner = whiten.mT @ G @ whiten
    mu, W = torch.linalg.eigh((inner + inner.mT) / 2)
    mu, turn = mu.flip(-1).clamp_min(0), whiten @ W.flip(-1)

    tiny = torch.finfo(mu.dtype).tiny
    earlier = (turn * (S @ turn)).sum(-2)
    kept = (earlier > 0) & (mu > 0)
    theta = torch.where(kept, 1 / earlier.clamp_min(tiny), 0)
    vectors = Z @ (turn * mu.clamp_min(tiny).rsqrt().unsqueeze(-2)).to(Z.dtype)
    if bool(broken.any()):
        vectors = torch.where(broken[:, None, None], V, vectors)
    if not bool((kept | broken[:, None]).all()):
        # Fewer than s directions (a zero before the first step, say): the others stay to be found.
        vectors = torch.linalg.qr(torch.where((kept | broken[:, None]).unsqueeze(-2), vectors, V)).Q

    # The last vector may be a random one (tracker.py): the one before it says what comes next.
    contraction = (mu[:, -2:-1] / mu.clamp_min(tiny)).clamp_max(1 - _SMALLEST_GAP)
    pending = (mu - theta).clamp_min(0) / mu.clamp_min(tiny) / 2 * contraction / (1 - contraction)
    unknown = torch.where(broken, torch.nan, 0.0).to(mu.dtype)[:, None]
    return Ritz(mu + unknown, pending + unknown, vectors, traces)


def _inverse_root(T: Tensor, eps: float) -> Tensor:
    """R with R^T T R = I: L^{-T} of T = L L^T. If there is no L, zero for what is as small as rounding."""
    L, info = torch.linalg.cholesky_ex(T)
    if not bool(info.any()):
        unit = torch.eye(T.shape[-1], dtype=T.dtype, device=T.device)
        return torch.linalg.solve_triangular(L.mT, unit.expand_as(T), upper=True)
    values, Q = torch.linalg.eigh(T)
    least = values[:, -1:].clamp_min(0) * (T.shape[-1] * eps)
    return Q * torch.where(values > least, values.clamp_min(torch.finfo(T.dtype).tiny).rsqrt(), 0).unsqueeze(
        -2
    )
