"""What is followed of the values behind the leading ones: their sums, and how far they have drifted.

A tracked look (spectral_fast.look) estimates the sum of lambda^2 and the drift of A^T A. The sum is known at
the last exact look, where the same probes were used: only its change is estimated. The exponents follow from
that, the energy and the leading values, by influence functions (spectral_fast.influence).

Twelve probes for the trace and four for the drift: their noise is below the jitter (docs/tracking.md).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from spectral_fast.influence import Influence, influence
from spectral_fast.look import Probes, outside, sum_of_squares
from spectral_fast.subspace import ritz

_TRACE_PROBES = 12
_DRIFT_PROBES = 4
PROBES = _TRACE_PROBES + _DRIFT_PROBES


@dataclass(frozen=True, eq=False)
class Followed:
    """EXPONENTS of a tracked look (3, B), the errors to be expected of them, and the drift (B,); float64.

    errors: the whole, and what of it has grown with the drift. followable: whether they mean anything, given
    the spectrum of the exact look. jumped: bool, the energy is another one by more than a tenth.
    """

    exponents: Tensor
    errors: tuple[Tensor, Tensor]
    drift: Tensor
    followable: Tensor
    jumped: Tensor


@dataclass(frozen=True, eq=False)
class Bulk:
    """The bulk at an exact look; B matrices of n columns.

    Attributes:
        probes: of every look.
        squares, estimate: (B,) sum lambda^2, exact and as the probes have it.
        energy: (B,) sum lambda.
        followable: (B,) bool: not where values are zero, which have no logarithm, or all behind V rounding.
        influence: of the exponents.
    """

    probes: Probes
    squares: Tensor
    estimate: Tensor
    energy: Tensor
    followable: Tensor
    influence: Influence

    def follow(self, energy: Tensor, estimate: Tensor, drift: Tensor, leading: Tensor) -> Followed:
        """From a look: the energy |A|_F^2, sum lambda^2 as the probes have it, the drift, all (B,), and the
        leading values (B, lead), squared.
        """
        squares = self.squares + estimate - self.estimate
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
    values: Callable[[Tensor, Tensor], Tensor],
) -> Bulk:
    """The bulk of matrices with singular values S (B, n), followed from here.

    xmin: (B,) of the CSN fit. lead: how many values are followed one by one. V: (B, n, s) leading vectors.
    probes: (B, n, PROBES) standard normal. products: X to (M X, |A|_F^2). values: the leading values that a
    tracked look says, from Ritz values and what is pending. What they miss is missing later, too: against the
    exact ones a change would be seen where there is none.
    """
    lam, n = S.to(torch.float64).square(), S.shape[-1]
    split = V.shape[-1]
    projected = outside(V[..., :-1], probes)
    probes = torch.cat([probes[..., :_TRACE_PROBES], projected[..., _TRACE_PROBES:]], -1)
    X = torch.cat([V, projected], -1)
    Z, energy = products(X)
    line = _line_through_squares(lam[:, split - 1 :])
    kept = Probes(probes, Z[..., -_DRIFT_PROBES:].clone(), line)
    found = ritz(V, Z[..., :split])
    leading, squares = values(found.squares, found.pending)[:, :lead].square(), lam.square().sum(-1)
    sums = torch.stack([energy - leading.sum(-1), squares - leading.square().sum(-1)], -1)
    return Bulk(
        probes=kept,
        squares=squares,
        estimate=sum_of_squares(X, Z, kept, energy, found.traces),
        energy=energy,
        followable=(S[:, -1] > 0) & (S[:, lead] > n * torch.finfo(V.dtype).eps * S[:, 0]),
        influence=dataclasses.replace(influence(S, xmin, lead), leading=leading, sums=sums),
    )


def _line_through_squares(lam: Tensor) -> Tensor:
    """(B, 2): slope and constant of the line nearest to lambda^2 over lambda (B, n)."""
    mean = lam.mean(-1, keepdim=True)
    spread = (lam - mean).square().mean(-1).clamp_min(torch.finfo(lam.dtype).tiny)
    slope = ((lam - mean) * lam.square()).mean(-1) / spread
    return torch.stack([slope, lam.square().mean(-1) - slope * mean[:, 0]], -1)
