"""What is followed of the values behind the leading ones: their sums, and how far they have drifted.

With M = A^T A, V the leading vectors of now and P = I - V V^T (without the last of them, which is drawn anew
for every look: spectral_fast.tracker), the product M [V, P Omega] of a tracked look gives

    sum lambda^2    tr M^2 = |M V|_F^2 + tr P M^2 P, the last the mean of |M P omega|^2 (Hutchinson
                    1990). It is known at the last exact look, where the same probes were used: only the
                    change is estimated. And of that only what a line cannot explain: tr P M P is known from
                    the energy, tr P too, and lambda^2 ~ a lambda + b over the bulk takes most of the
                    variance along (control variates)
    drift           |P (M - M_0) omega| / |P M omega|, M_0 of the exact look, for probes without its leading
                    directions
    exponents       from the two sums and the leading values, by influence functions (spectral_fast.influence)

Twelve probes for the trace and four for the drift: their noise is below the jitter (docs/tracking.md).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from spectral_fast.influence import Influence, influence
from spectral_fast.subspace import Ritz, ritz

_TRACE_PROBES = 12
_DRIFT_PROBES = 4
PROBES = _TRACE_PROBES + _DRIFT_PROBES


@dataclass(frozen=True, eq=False)
class Followed:
    """The exponents of a tracked look, the errors to be expected of them, and the drift; float64 (B,).

    errors: the whole, and what of it has grown with the drift. followable: whether they mean anything, given
    the spectrum of the exact look. jumped: bool, the energy is another one by more than a tenth.
    """

    exponents: dict[str, Tensor]
    errors: dict[str, tuple[Tensor, Tensor]]
    drift: Tensor
    followable: Tensor
    jumped: Tensor


@dataclass(frozen=True, eq=False)
class Bulk:
    """The bulk at an exact look; B matrices of n columns.

    Attributes:
        probes: (B, n, PROBES), the last of them for the drift.
        reference: (B, n, _DRIFT_PROBES), M_0 times those.
        line: (B, 2), a and b.
        squares, estimate: (B,) sum lambda^2, exact and as the probes have it.
        energy: (B,) sum lambda.
        followable: (B,) bool: not where values are zero, which have no logarithm, or all behind V rounding.
        influence: of the exponents.
    """

    probes: Tensor
    reference: Tensor
    line: Tensor
    squares: Tensor
    estimate: Tensor
    energy: Tensor
    followable: Tensor
    influence: Influence

    def columns(self, V: Tensor) -> Tensor:
        """[V, P Omega], what M is to be multiplied with; V (B, n, s)."""
        return torch.cat([V, _outside(V[..., :-1], self.probes)], -1)

    def follow(self, X: Tensor, Z: Tensor, energy: Tensor, traces: Tensor, leading: Tensor) -> Followed:
        """From Z = M X, X = [V, P Omega], the energy |A|_F^2, and the leading values of now, squared.

        traces: (B, 2), of V^T M V and V^T M^2 V without the last vector.
        """
        taken = X.shape[-1] - PROBES - 1
        V = X[..., :taken]
        # The probes of the drift as they are kept: what P took out of them comes back.
        overlap = V.mT @ self.probes[..., -_DRIFT_PROBES:]
        image = Z[..., -_DRIFT_PROBES:] + Z[..., :taken] @ overlap
        change, bulk = _outside(V, torch.cat([image - self.reference, image], -1)).chunk(2, -1)
        drift = (_energy(change) / _energy(bulk)).sqrt()

        squares = self.squares + _sum_of_squares(X, Z, energy, traces, self.line) - self.estimate
        sums = torch.stack([energy - leading.sum(-1), squares - leading.square().sum(-1)], -1)
        return Followed(
            exponents=self.influence.exponents(leading, sums, drift),
            errors=self.influence.errors(drift),
            drift=drift,
            followable=self.followable,
            jumped=~((energy - self.energy).abs() <= 0.1 * self.energy),
        )


def at_exact_look(
    S: Tensor,
    xmin: Tensor,
    lead: int,
    V: Tensor,
    probes: Tensor,
    products: Callable[[Tensor], tuple[Tensor, Tensor]],
    values: Callable[[Ritz], Tensor],
) -> Bulk:
    """The bulk of matrices with singular values S (B, n), followed from here.

    xmin: (B,) of the CSN fit. lead: how many values are followed one by one. V: (B, n, s) leading vectors.
    probes: (B, n, PROBES) standard normal. products: X to (M X, |A|_F^2). values: the leading values that a
    tracked look says. What they miss is missing later, too: against the exact ones a change would be seen
    where there is none.
    """
    lam, n = S.to(torch.float64).square(), S.shape[-1]
    split = V.shape[-1]
    outside = _outside(V[..., :-1], probes)
    probes = torch.cat([probes[..., :_TRACE_PROBES], outside[..., _TRACE_PROBES:]], -1)
    X = torch.cat([V, outside], -1)
    Z, energy = products(X)
    line = _line_through_squares(lam[:, split - 1 :])
    found = ritz(V, Z[..., :split])
    leading, squares = values(found)[:, :lead].square(), lam.square().sum(-1)
    sums = torch.stack([energy - leading.sum(-1), squares - leading.square().sum(-1)], -1)
    return Bulk(
        probes=probes,
        reference=Z[..., -_DRIFT_PROBES:].clone(),
        line=line,
        squares=squares,
        estimate=_sum_of_squares(X, Z, energy, found.traces, line),
        energy=energy,
        followable=(S[:, -1] > 0) & (S[:, lead] > n * torch.finfo(V.dtype).eps * S[:, 0]),
        influence=dataclasses.replace(influence(S, xmin, lead), leading=leading, sums=sums),
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
    off_size = _energy(probes) / _TRACE_PROBES - (X.shape[-2] - split + 1)
    return directions + _energy(images) / _TRACE_PROBES - line[:, 0] * off_trace - line[:, 1] * off_size


def _line_through_squares(lam: Tensor) -> Tensor:
    """(B, 2): slope and constant of the line nearest to lambda^2 over lambda (B, n)."""
    mean = lam.mean(-1, keepdim=True)
    spread = (lam - mean).square().mean(-1).clamp_min(torch.finfo(lam.dtype).tiny)
    slope = ((lam - mean) * lam.square()).mean(-1) / spread
    return torch.stack([slope, lam.square().mean(-1) - slope * mean[:, 0]], -1)
