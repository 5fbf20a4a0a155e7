"""The gate of the statistics: power-law fits in extended precision, and every field in 50 digits.

The scan is written from the definition, one candidate at a time, and shares no code with the package:
with x ascending, of every tail x >= xmin

    alpha = 1 + m / sum ln(x_j / xmin)    D = max_j |1 - (x_j / xmin)^(1 - alpha) - j/m|, j = 0 .. m - 1
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from spectral_fast import PowerLawFit, SpectralStats
from tests.oracles import stats_oracle
from tests.oracles.stats_oracle import EPS, TIE, Fit

# alpha is good to 1e-12 of itself: its sum has n positive terms, so (n + 8) eps relative at most.
ALPHA_TOLERANCE = 1e-12

# Of every field, relative: what docs/statistics.md claims. Up to n = 2048 and |ln(lambda / lambda_1)| = 22,
# sums in any order err by (n + 8) eps 22 = 1e-11 at most. A logarithm near 0 keeps the error of its argument.
FIELD_TOLERANCE = 1e-10
LOGARITHMS = ("log_norm", "alpha_weighted", "log_alpha_norm")

WIDER = bool(np.finfo(np.longdouble).eps < EPS / 100)
NOT_WIDER = "the gate needs a long double wider than float64 (x86-64, or Linux on ARM), and here it is not"


def ks_tolerance(distance: float) -> float:
    """How far two right D may be apart: 1e-12 of D, or 2 eps, what differences of numbers below 1 carry."""
    return max(1e-12 * distance, 2 * EPS)


@dataclass(frozen=True)
class Scan:
    """alpha, D and size of the tail of every candidate for xmin, ascending."""

    xmin: NDArray[np.float64]
    alpha: NDArray[Any]
    distance: NDArray[Any]
    n_tail: NDArray[np.int64]

    def right(self) -> list[Fit]:
        """The best candidate first, then those whose D ties with its."""
        near = np.flatnonzero(self.distance <= self.distance.min() + TIE)
        near = near[np.argsort(self.distance[near], kind="stable")]
        return [self.fit(int(index)) for index in near]

    def fit(self, index: int) -> Fit:
        alpha, m = self.alpha[index], int(self.n_tail[index])
        return Fit(
            float(alpha),
            float((alpha - 1) / np.sqrt(alpha.dtype.type(m))),
            float(self.xmin[index]),
            float(self.distance[index]),
            m,
        )

    def index(self, xmin: float) -> int | None:
        found = np.flatnonzero(self.xmin == xmin)
        return int(found[0]) if len(found) else None


def scan(evals: NDArray[np.float64], dtype: Any = np.longdouble) -> Scan:
    """All candidates: every distinct positive value but the largest."""
    x = np.sort(evals[evals > 0])
    wide = x.astype(dtype)
    n = len(x)
    starts = [i for i in range(n - 1) if (i == 0 or x[i] > x[i - 1]) and x[i] < x[-1]]
    rank = np.arange(n, dtype=dtype)
    alphas, distances = np.empty(len(starts), dtype), np.empty(len(starts), dtype)
    for place, i in enumerate(starts):
        logs, m = np.log(wide[i:] / wide[i]), n - i
        slope = m / logs.sum()
        alphas[place] = 1 + slope
        distances[place] = np.abs(1 - np.exp(-slope * logs) - rank[:m] / m).max()
    return Scan(x[starts], alphas, distances, n - np.array(starts, dtype=np.int64))


@dataclass(frozen=True)
class FitCheck:
    """A fit against the scan. Errors are those of the worst spectrum; empty ``failure`` where all hold."""

    alpha_error: float  # relative
    ks_error: float  # absolute, as D is: a difference of two probabilities
    ties: int  # of other xmins that are as right, the most
    failure: str = ""

    @property
    def holds(self) -> bool:
        return not self.failure


def check_fits(got: PowerLawFit, scans: list[Scan]) -> FitCheck:
    """Judge the fits of a batch, one scan for each."""
    alpha_error, ks_error, ties = 0.0, 0.0, 0
    columns = [getattr(got, name).reshape(-1).tolist() for name in Fit._fields]
    if any(len(column) != len(scans) for column in columns):
        return FitCheck(0, 0, 0, f"{len(columns[0])} fits for {len(scans)} spectra")
    for number, (values, found) in enumerate(zip(zip(*columns, strict=True), scans, strict=True)):
        fit, right = Fit(*values), found.right()
        at = next((one for one in right if one.xmin == fit.xmin), None)
        if at is None:
            error = (
                f"xmin {fit.xmin:.17g} with D {fit.ks_distance:.17g}, "
                f"right is {right[0].xmin:.17g} with {right[0].ks_distance:.17g}"
            )
        else:
            error = fit_error(fit, at)
            alpha_error = max(alpha_error, abs(fit.alpha / at.alpha - 1))
            ks_error = max(ks_error, abs(fit.ks_distance - at.ks_distance))
            ties = max(ties, len(right) - 1)
        if error:
            return FitCheck(alpha_error, ks_error, ties, f"spectrum {number}: {error}")
    return FitCheck(alpha_error, ks_error, ties)


def fit_error(got: Fit, right: Fit) -> str:
    """What of a fit with the right xmin is wrong; empty where nothing is. NaN is wrong."""
    stderr = 2 * ALPHA_TOLERANCE * right.alpha / math.sqrt(right.n_tail)  # of alpha - 1 over sqrt(m)
    for name, allowed in (
        ("n_tail", 0.0),
        ("alpha", ALPHA_TOLERANCE * right.alpha),
        ("alpha_stderr", stderr),
        ("ks_distance", ks_tolerance(right.ks_distance)),
    ):
        value, expected = getattr(got, name), getattr(right, name)
        if not abs(value - expected) <= allowed:
            return f"{name} {value:.17g} at xmin {right.xmin:.17g}, right is {expected:.17g}"
    return ""


def check_fields(got: SpectralStats, S: Tensor, shape: tuple[int, int], number: int) -> str:
    """What is wrong with the statistics of matrix `number` of a batch, with values S; empty if nothing is."""
    sigma = S[number].to(torch.float64).numpy()
    right = scan(sigma**2).right()
    n_tail = int(got.n_tail[number])
    fit = next((one for one in right if one.n_tail == n_tail), None)
    if fit is None:
        return f"matrix {number}: n_tail is {n_tail}, right is {right[0].n_tail}"
    for name, expected in stats_oracle.stats(sigma.tolist(), shape, fit).items():
        value = float(getattr(got, name)[number])
        size = max(1, abs(expected)) if name in LOGARITHMS else abs(expected)
        if not abs(value - expected) <= FIELD_TOLERANCE * size:
            return f"matrix {number}: {name} is {value:.17g}, right is {expected:.17g}"
    return ""
