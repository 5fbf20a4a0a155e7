"""What is followed of the values behind the leading ones: their sums, and how far they have drifted.

With M = A^T A, V the leading vectors of now and P the projection that takes the separate ones of them out,
the product M [V, P Omega] of a tracked look gives

    sum lambda^2    tr M^2 = |M V|_F^2 (of those) + tr P M^2 P, the last the mean of |M P omega|^2 (Hutchinson
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
# lambda over that of the last but one in V, from which on a direction counts as separate: at an exact look,
# and in between, where each change of sides is noise.
_SEPARATE, _SEPARATED = 2.0, 3.0


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

    def columns(self, V: Tensor, separate: Tensor) -> Tensor:
        """[V, P Omega], what M is to be multiplied with; V (B, n, s). P takes out the `separate` of them."""
        return torch.cat([V, self.probes - V @ _overlap(V, separate, self.probes)], -1)

    def follow(
        self, X: Tensor, Z: Tensor, energy: Tensor, moments: Tensor, separate: Tensor, leading: Tensor
    ) -> Followed:
        """From Z = M X, X = [V, P Omega], the energy |A|_F^2, and the leading values of now, squared.

        moments: (B, 2, s), the diagonals of V^T M V and V^T M^2 V.
        """
        split = X.shape[-1] - PROBES
        V = X[..., :split]
        # The probes of the drift as they are kept: what P took out of them comes back.
        overlap = _overlap(V, separate, self.probes[..., -_DRIFT_PROBES:])
        image = Z[..., -_DRIFT_PROBES:] + Z[..., :split] @ overlap
        change, bulk = _outside(V, torch.cat([image - self.reference, image], -1)).chunk(2, -1)
        drift = (_energy(change) / _energy(bulk)).sqrt()

        squares = self.squares + _sum_of_squares(X, Z, energy, moments, separate, self.line) - self.estimate
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
    probes = torch.cat([probes[..., :_TRACE_PROBES], _outside(V, probes[..., _TRACE_PROBES:])], -1)
    separate = separate_ones(lam[:, :split])
    X = torch.cat([V, probes - V @ _overlap(V, separate, probes)], -1)
    Z, energy = products(X)
    line = _line_through_squares(lam, torch.nn.functional.pad(separate, (0, n - split)))
    found = ritz(V, Z[..., :split])
    leading, squares = values(found)[:, :lead].square(), lam.square().sum(-1)
    sums = torch.stack([energy - leading.sum(-1), squares - leading.square().sum(-1)], -1)
    return Bulk(
        probes=probes,
        reference=Z[..., -_DRIFT_PROBES:].clone(),
        line=line,
        squares=squares,
        estimate=_sum_of_squares(X, Z, energy, found.moments, separate, line),
        energy=energy,
        followable=(S[:, -1] > 0) & (S[:, lead] > n * torch.finfo(V.dtype).eps * S[:, 0]),
        influence=dataclasses.replace(influence(S, xmin, lead), leading=leading, sums=sums),
    )


def separate_ones(squares: Tensor, before: Tensor | None = None) -> Tensor:
    """(B, s) bool, of squared leading values (B, s): those far above the bulk, and those that were `before`.

    Directions at its edge turn with every look, and what they exchange with the probes would be noise: Hill's
    alpha of a Gaussian matrix that stands still was 1e-3 off with all of them taken out, 3e-5 with the
    separate ones.
    """
    edge = squares[:, -2:-1]
    return squares > _SEPARATE * edge if before is None else before | (squares > _SEPARATED * edge)


def _overlap(V: Tensor, separate: Tensor, probes: Tensor) -> Tensor:
    return torch.where(separate.unsqueeze(-1), V.mT @ probes, 0)


def _outside(V: Tensor, X: Tensor) -> Tensor:
    return X - V @ (V.mT @ X)


def _energy(X: Tensor) -> Tensor:
    return X.square().sum((-1, -2), dtype=torch.float64)


def _sum_of_squares(
    X: Tensor, Z: Tensor, energy: Tensor, moments: Tensor, separate: Tensor, line: Tensor
) -> Tensor:
    """sum lambda^2 as the probes have it: see the top of the file."""
    split = X.shape[-1] - PROBES
    probes, images = (Y[..., split:-_DRIFT_PROBES] for Y in (X, Z))
    inside, directions = torch.where(separate.unsqueeze(-2), moments, 0).sum(-1).unbind(-1)
    off_trace = (probes * images).sum((-1, -2), dtype=torch.float64) / _TRACE_PROBES - (energy - inside)
    off_size = _energy(probes) / _TRACE_PROBES - (X.shape[-2] - separate.sum(-1))
    return directions + _energy(images) / _TRACE_PROBES - line[:, 0] * off_trace - line[:, 1] * off_size


def _line_through_squares(lam: Tensor, without: Tensor) -> Tensor:
    """(B, 2): slope and constant of the line nearest to lambda^2 over the lambda (B, n) not in `without`."""
    weight = 1 - without.to(lam.dtype)
    weight = weight / weight.sum(-1, keepdim=True)
    mean = (weight * lam).sum(-1, keepdim=True)
    spread = (weight * (lam - mean).square()).sum(-1).clamp_min(torch.finfo(lam.dtype).tiny)
    slope = (weight * (lam - mean) * lam.square()).sum(-1) / spread
    return torch.stack([slope, (weight * lam.square()).sum(-1) - slope * mean[:, 0]], -1)
