"""What is followed of the values behind the leading ones: their sums, and how far they have drifted.

With M = A^T A, V the leading vectors of now and P = I - V V^T, the product M [V, P Omega] of a tracked look
gives

    sum lambda^2    tr M^2 = |M V|_F^2 + tr P M^2 P, the last the mean of |M P omega|^2 (Hutchinson 1990). It
                    is known at the last exact look, where the same probes were used: only the change is
                    estimated. And of that only what a line cannot explain: tr P M P is known from the
                    energy, tr P is n - s, and lambda^2 ~ a lambda + b over the bulk takes most of the
                    variance along (control variates)
    drift           |P (M - M_0) omega| / |P M omega|, M_0 of the exact look, for probes without its leading
                    directions
    exponents       from the two sums and the leading values, by influence functions (spectral_fast.influence)

Twelve probes for the trace and four for the drift: their noise is below the jitter (docs/tracking.md).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from spectral_fast.influence import Influence, influence
from spectral_fast.subspace import ritz

_TRACE_PROBES = 12
_DRIFT_PROBES = 4
PROBES = _TRACE_PROBES + _DRIFT_PROBES


@dataclass(frozen=True, eq=False)
class Followed:
    """The exponents of a tracked look, the errors to be expected of them, and the drift; float64 (B,).

    errors: the whole, and what of it has grown with the drift.
    """

    exponents: dict[str, Tensor]
    errors: dict[str, tuple[Tensor, Tensor]]
    drift: Tensor


@dataclass(frozen=True, eq=False)
class Bulk:
    """The bulk at an exact look; B matrices of n columns.

    Attributes:
        probes: (B, n, PROBES), the last of them for the drift.
        reference: (B, n, _DRIFT_PROBES), M_0 times those.
        line: (B, 2), a and b.
        squares, estimate: (B,) sum lambda^2, exact and as the probes have it.
        influence: of the exponents.
    """

    probes: Tensor
    reference: Tensor
    line: Tensor
    squares: Tensor
    estimate: Tensor
    influence: Influence

    def columns(self, V: Tensor) -> Tensor:
        """[V, P Omega], what M is to be multiplied with; V (B, n, s)."""
        return torch.cat([V, _outside(V, self.probes)], -1)

    def follow(self, X: Tensor, Z: Tensor, energy: Tensor, traces: Tensor, leading: Tensor) -> Followed:
        """From Z = M X, X = [V, P Omega], the energy |A|_F^2, and the leading values of now, squared.

        traces: (B, 2), of V^T M V and V^T M^2 V.
        """
        split = X.shape[-1] - PROBES
        V = X[..., :split]
        # The probes of the drift as they are kept: what P took out of them comes back.
        overlap = V.mT @ self.probes[..., -_DRIFT_PROBES:]
        image = Z[..., -_DRIFT_PROBES:] + Z[..., :split] @ overlap
        change, bulk = _outside(V, torch.cat([image - self.reference, image], -1)).chunk(2, -1)
        drift = (_energy(change) / _energy(bulk)).sqrt()

        squares = self.squares + _sum_of_squares(X, Z, energy, traces, self.line) - self.estimate
        sums = torch.stack([energy - leading.sum(-1), squares - leading.square().sum(-1)], -1)
        return Followed(self.influence.exponents(leading, sums, drift), self.influence.errors(drift), drift)


def at_exact_look(
    S: Tensor,
    xmin: Tensor,
    lead: int,
    V: Tensor,
    probes: Tensor,
    products: Callable[[Tensor], tuple[Tensor, Tensor]],
) -> Bulk:
    """The bulk of matrices with singular values S (B, n), followed from here.

    xmin: (B,) of the CSN fit. lead: how many values are followed one by one. V: (B, n, s) leading vectors.
    probes: (B, n, PROBES) standard normal. products: X to (M X, |A|_F^2).
    """
    lam = S.to(torch.float64).square()
    outside = _outside(V, probes)
    probes = torch.cat([probes[..., :_TRACE_PROBES], outside[..., _TRACE_PROBES:]], -1)
    X = torch.cat([V, outside], -1)
    Z, energy = products(X)
    line = _line_through_squares(lam[:, V.shape[-1] :])
    return Bulk(
        probes=probes,
        reference=Z[..., -_DRIFT_PROBES:].clone(),
        line=line,
        squares=lam.square().sum(-1),
        estimate=_sum_of_squares(X, Z, energy, ritz(V, Z[..., : V.shape[-1]]).traces, line),
        influence=influence(S, xmin, lead),
    )


def _outside(V: Tensor, X: Tensor) -> Tensor:
    return X - V @ (V.mT @ X)


def _energy(X: Tensor) -> Tensor:
    return X.square().sum((-1, -2), dtype=torch.float64)


def _sum_of_squares(X: Tensor, Z: Tensor, energy: Tensor, traces: Tensor, line: Tensor) -> Tensor:
    """sum lambda^2 as the probes have it: see the top of the file."""
    split = X.shape[-1] - PROBES
    probes, images = (Y[..., split:-_DRIFT_PROBES] for Y in (X, Z))
    inside, directions = traces.unbind(-1)
    off_trace = (probes * images).sum((-1, -2), dtype=torch.float64) / _TRACE_PROBES - (energy - inside)
    off_size = _energy(probes) / _TRACE_PROBES - (X.shape[-2] - split)
    return directions + _energy(images) / _TRACE_PROBES - line[:, 0] * off_trace - line[:, 1] * off_size


def _line_through_squares(lam: Tensor) -> Tensor:
    """(B, 2): slope and constant of the line nearest to lambda^2 over lambda (B, n)."""
    mean = lam.mean(-1, keepdim=True)
    spread = (lam - mean).square().mean(-1).clamp_min(torch.finfo(lam.dtype).tiny)
    slope = ((lam - mean) * lam.square()).mean(-1) / spread
    return torch.stack([slope, lam.square().mean(-1) - slope * mean[:, 0]], -1)
