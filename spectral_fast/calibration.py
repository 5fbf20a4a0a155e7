"""What exact looks teach a tracker about its errors.

At an exact look the tracker says first what it would have said. Every sum below begins with what other runs
taught, weighs as many observations, and forgets a fifth at each look.

    the leading values    which share of what the iteration still has to gain is really missing: mean, spread
    the exponents         how large the errors of following and of holding are against those to be expected
                          beforehand; for each matrix, with the mean over the matrices as its prior
"""

from __future__ import annotations

import torch
from torch import Tensor

EXPONENTS = ("alpha_hill", "alpha", "alpha_ranksize")
_FORGET = 0.8
# Of a 4-layer GPT, AdamW 1e-3, 600 steps (docs/tracking.md); the prior weighs as much as that many values.
_GAIN, _GAIN_SPREAD, _GAIN_WEIGHT = 0.42, 0.3, 256.0
# One jump must not decide for the rest of a run: (error / expected error)^2 counts no more than this.
_LARGEST = 100.0
# Matrices' worth of looks that the expected errors weigh; of its own a matrix must have as many to count as
# much.
_ERROR_WEIGHT = 8.0


class Calibration:
    """Of the matrices of one tracker."""

    def __init__(self) -> None:
        moments = [1.0, _GAIN, _GAIN**2 + _GAIN_SPREAD**2]
        self._prior = torch.tensor(moments, dtype=torch.float64, device="cpu") * _GAIN_WEIGHT
        self._gain = self._prior
        self._exponents = {name: _Exponent() for name in EXPONENTS}

    @property
    def gain(self) -> float:
        """Of what the iteration has to gain, the share that is missing."""
        return float(self._gain[1] / self._gain[0])

    @property
    def gain_error(self) -> float:
        """The standard error of that share: times pending, of values that gain times pending was added to."""
        weight, total, squares = self._gain.tolist()
        return float((squares / weight - (total / weight) ** 2) ** 0.5)

    def learn_gain(self, squares: Tensor, pending: Tensor, S: Tensor) -> None:
        """From the Ritz values of a look and what was pending (B, s), and the exact values S (B, n)."""
        values = S[:, : squares.shape[-1]].to(torch.float64)
        missing = values / squares.sqrt() - 1
        # Where rounding is a tenth of what is missing it tells nothing.
        use = pending > 10 * torch.finfo(torch.float32).eps * values[:, :1] / values
        share = (missing / pending)[use].clamp(-1, 4)
        new = [float(len(share)), float(share.sum()), float(share.square().sum())]
        seen = torch.tensor(new, dtype=torch.float64, device="cpu")
        self._gain = self._prior + _FORGET * (self._gain - self._prior) + seen

    def exponent(
        self, name: str, followed: Tensor, last: Tensor, expected: Tensor
    ) -> tuple[Tensor, Tensor, bool]:
        """The exponent to report, its standard error, and whether it is the last exact one, held."""
        return self._exponents[name].report(followed, last, expected)

    def learn_exponents(
        self,
        followed: dict[str, Tensor],
        last: dict[str, Tensor],
        exact: dict[str, Tensor],
        expected: dict[str, Tensor],
    ) -> None:
        """From what a look followed, the exact looks before it and at it, and the errors expected."""
        for name, of in self._exponents.items():
            of.learn(followed[name], last[name], exact[name], expected[name])


class _Exponent:
    """One exponent: for each matrix the sums of (error / expected error)^2, of following and of holding."""

    def __init__(self) -> None:
        self._count: Tensor | None = None
        self._followed: Tensor | None = None
        self._held: Tensor | None = None

    def report(self, followed: Tensor, last: Tensor, expected: Tensor) -> tuple[Tensor, Tensor, bool]:
        if self._count is None or self._followed is None or self._held is None:
            return followed, expected, False
        hold = bool(self._held.sum() < self._followed.sum())
        squares = self._held if hold else self._followed
        pooled = (_ERROR_WEIGHT + squares.sum()) / (_ERROR_WEIGHT + self._count.sum())
        scale = ((_ERROR_WEIGHT * pooled + squares) / (_ERROR_WEIGHT + self._count)).sqrt()
        return (last if hold else followed), expected * scale, hold

    def learn(self, followed: Tensor, last: Tensor, exact: Tensor, expected: Tensor) -> None:
        error = ((followed - exact) / expected).square()
        held = ((last - exact) / expected).square()
        known = error.isfinite() & held.isfinite()
        new = [torch.where(known, x.clamp_max(_LARGEST), 0) for x in (torch.ones_like(error), error, held)]
        if self._count is not None and self._followed is not None and self._held is not None:
            old = (self._count, self._followed, self._held)
            new = [_FORGET * before + now for before, now in zip(old, new, strict=True)]
        self._count, self._followed, self._held = new
