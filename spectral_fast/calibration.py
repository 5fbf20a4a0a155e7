"""What exact looks teach a tracker about its errors.

At an exact look the tracker says first what it would have said. Every sum below begins with what other runs
taught, weighs as many observations, and forgets a fifth at each look.

    the leading values    which share of what the iteration still has to gain is really missing: mean, spread
    the exponents         how large the errors of following and of holding are against those to be expected
                          beforehand; for each matrix, with the mean over the matrices as its prior
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

_FORGET = 0.8
# Of a 4-layer GPT, AdamW 1e-3, 600 steps (docs/tracking.md); the prior weighs as much as that many values.
_GAIN, _GAIN_SPREAD, _GAIN_WEIGHT = 0.42, 0.3, 256.0
_PRIOR = tuple(_GAIN_WEIGHT * moment for moment in (1.0, _GAIN, _GAIN**2 + _GAIN_SPREAD**2))
# One jump must not decide for the rest of a run: (error / expected error)^2 counts no more than this.
_LARGEST = 100.0
# Matrices' worth of looks that the expected errors weigh; of its own a matrix must have as many to count as
# much.
_ERROR_WEIGHT = 8.0


class Calibration:
    """Of the matrices of one tracker."""

    def __init__(self) -> None:
        self._gain = _PRIOR  # count, sum and sum of squares of what was seen
        # Of each exponent and matrix (3, B): how many looks, and the sums of (error / expected error)^2, of
        # following and of holding.
        self._squares: tuple[Tensor, Tensor, Tensor] | None = None

    @property
    def gain(self) -> float:
        """Of what the iteration has to gain, the share that is missing."""
        return self._gain[1] / self._gain[0]

    @property
    def gain_error(self) -> float:
        """The standard error of that share: times pending, of values that gain times pending was added to."""
        weight, total, squares = self._gain
        return math.sqrt(squares / weight - (total / weight) ** 2)

    def learn_gain(self, squares: Tensor, pending: Tensor, S: Tensor) -> None:
        """From the Ritz values of a look and what was pending (B, s), and the exact values S (B, n)."""
        values = S[:, : squares.shape[-1]].to(torch.float64)
        missing = values / squares.sqrt() - 1
        # Where rounding is a tenth of what is missing it tells nothing.
        use = pending > 10 * torch.finfo(torch.float32).eps * values[:, :1] / values
        share = (missing / pending)[use].clamp(-1, 4)
        seen = (float(len(share)), float(share.sum()), float(share.square().sum()))
        self._gain = tuple(
            prior + _FORGET * (before - prior) + now
            for prior, before, now in zip(_PRIOR, self._gain, seen, strict=True)
        )

    def exponents(self, followed: Tensor, last: Tensor, expected: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The exponents to report, their standard errors (3, B), and which are held, bool (3,).

        From what a look followed, the last exact look, and the errors expected; (3, B) each.
        """
        if self._squares is None:
            return followed, expected, torch.zeros(len(followed), dtype=torch.bool, device="cpu")
        count, of_followed, of_held = self._squares
        hold = (of_held.sum(-1) < of_followed.sum(-1))[:, None]
        squares = torch.where(hold, of_held, of_followed)
        pooled = (_ERROR_WEIGHT + squares.sum(-1)) / (_ERROR_WEIGHT + count.sum(-1))
        scale = ((_ERROR_WEIGHT * pooled[:, None] + squares) / (_ERROR_WEIGHT + count)).sqrt()
        return torch.where(hold, last, followed), expected * scale, hold[:, 0]

    def learn_exponents(self, followed: Tensor, last: Tensor, exact: Tensor, expected: Tensor) -> None:
        """From what a look followed, the exact looks before it and at it, and the errors expected; (3, B)."""
        error = ((followed - exact) / expected).square()
        held = ((last - exact) / expected).square()
        known = error.isfinite() & held.isfinite()
        new = [torch.where(known, x.clamp_max(_LARGEST), 0) for x in (torch.ones_like(error), error, held)]
        if self._squares is not None:
            new = [_FORGET * before + now for before, now in zip(self._squares, new, strict=True)]
        self._squares = new[0], new[1], new[2]
