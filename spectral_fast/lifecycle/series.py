"""Autocorrelated series: what one run's looks, taken a few steps apart, can tell.

Looks of one run are no independent sample. Their noise is modelled as first-order autoregression,

    x_t = mu + rho (x_{t-1} - mu) + e_t,   Var x = Var e / (1 - rho^2),   0 <= rho <= RHO_MAX,

a random walk that is drawn back to its mean. Arrays hold time on the first axis.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import chdtri, stdtr, stdtrit

Floats = NDArray[np.float64]

# A phenomenon is claimed where its p-value is at most this. Of 1000 runs without it, a test at exactly 0.05
# would claim more than 50 half of the time; one at 0.03 does so for one set of 1000 in 5000.
CLAIM = 0.03

# The strongest autocorrelation from look to look that is allowed for. Beyond it a mean is not defined by any
# number of looks that a run has: at 0.98 the memory is 50 looks long.
RHO_MAX = 0.98
# Values of rho that a series speaks against this strongly are left out; what is left over is added to each
# p-value (Berger and Boos 1994), so that the test holds whichever rho is true.
_LEFT_OUT = 0.01
_RHOS = np.tanh(np.linspace(0, np.arctanh(RHO_MAX), 33))


def effective_size(n: int, rho: float | Floats) -> Floats:
    """How many independent values have a mean as certain as n values of a first-order autoregression.

    n^2 / (1' R 1) with R_ij = rho^|i-j|: n at rho = 0, 1 at rho = 1. Shape of rho.
    """
    rho = np.asarray(rho, dtype=np.float64)
    lags = np.arange(1, n)
    total = n + 2 * (rho[..., None] ** lags * (n - lags)).sum(-1)
    return np.asarray(n**2 / total)


@dataclass(frozen=True)
class Estimate:
    """A number, its 95 % interval and the p-value against zero, two-sided unless said otherwise.

    NaN stands for what the run cannot tell.
    """

    value: float
    interval: tuple[float, float]
    p_value: float


def not_claimed(p_value: float) -> str:
    """Why a phenomenon of this p-value is not claimed, "" where it is."""
    return "" if p_value <= CLAIM else f"p = {p_value:.3g} is above {CLAIM}"


@dataclass(frozen=True, eq=False)
class SeriesMean:
    """The mean of each series and what it is worth; fields of the shape of one look.

    Attributes:
        mean: over the looks.
        error: the largest standard error that any plausible autocorrelation gives the mean.
        degrees: of freedom of Student's t for mean / error.
        rho: most plausible autocorrelation (restricted maximum likelihood).
    """

    mean: Floats
    error: Floats
    degrees: int
    rho: Floats

    def p_greater(self) -> Floats:
        """One-sided p-value against mean <= 0."""
        return np.minimum(1.0, stdtr(self.degrees, -self._t()) + _LEFT_OUT)

    def p_less(self) -> Floats:
        """One-sided p-value against mean >= 0."""
        return np.minimum(1.0, stdtr(self.degrees, self._t()) + _LEFT_OUT)

    def p_value(self) -> Floats:
        """Two-sided p-value against mean = 0."""
        return np.minimum(1.0, 2 * stdtr(self.degrees, -np.abs(self._t())) + _LEFT_OUT)

    def half_width(self, level: float = 0.95) -> Floats:
        """Half of the width of the interval that holds the true mean with this probability at least."""
        return np.asarray(self.error * stdtrit(self.degrees, (1 + level + _LEFT_OUT) / 2))

    def _t(self) -> Floats:
        # A series without any noise has that of rounding; the smallest number keeps 0 / 0 at 0.
        least = np.finfo(np.float64).eps * np.abs(self.mean) + np.finfo(np.float64).tiny
        return np.asarray(self.mean / np.maximum(self.error, least))


def mean_of_series(series: Floats, alike: Floats | None = None) -> SeriesMean:
    """The means of stationary autocorrelated series, with an error that allows for every plausible rho.

    For a given rho the innovations' variance is estimated from the whitened residuals about the
    generalized-least-squares mean, with n - 1 degrees of freedom. Plausible is each rho of [0, RHO_MAX] that
    the restricted likelihood ratio does not reject at the level 0.01; that ratio keeps its level close to
    rho = 1, where plain estimates of rho are far too low (Chen and Deo 2009). Few looks reject few values. A
    drift of the series looks like a long memory and widens the error.

    Args:
        series: (n, ...) looks first, n >= 3.
        alike: (n, K) series of the same rho, independent of one another, which then say together what is
            plausible; what a series of its own finds likeliest stays so. None: each for itself.

    Raises:
        ValueError: fewer than 3 looks, or NaN among them.
    """
    n = len(series)
    if n < 3:
        raise ValueError(f"mean_of_series: {n} looks cannot tell an autocorrelation; 3 are the least")
    if np.isnan(series).any():
        raise ValueError("mean_of_series: NaN in the series; leave those looks out")
    rhos = _RHOS.reshape(-1, *[1] * (series.ndim - 1))
    deviance, residual = _restricted_deviance(series, rhos)
    likeliest = deviance == deviance.min(axis=0)
    if alike is None:
        plausible = deviance - deviance.min(axis=0) <= chdtri(1, _LEFT_OUT)
    else:
        together = _restricted_deviance(alike, _RHOS[:, None])[0].sum(axis=1).reshape(rhos.shape)
        plausible = likeliest | (together - together.min() <= chdtri(1, _LEFT_OUT))
    stationary = residual / (n - 1) / (1 - rhos**2)
    error = np.sqrt(stationary / effective_size(n, rhos))
    return SeriesMean(
        mean=series.mean(axis=0),
        error=np.where(plausible, error, 0.0).max(axis=0),
        degrees=n - 1,
        rho=_RHOS[deviance.argmin(axis=0)],
    )


def _restricted_deviance(series: Floats, rhos: Floats) -> tuple[Floats, Floats]:
    """-2 log restricted likelihood, but for a constant, and residual sum of squares; (rhos, ...)."""
    n = len(series)
    centred = series - series.mean(axis=0)
    # Sums of squares and products from which those of the whitened series follow for every rho at once.
    first, last, total = centred[0], centred[-1], (centred**2).sum(axis=0)
    lagged = (centred[1:] * centred[:-1]).sum(axis=0)
    squares = total - 2 * rhos * lagged + rhos**2 * (total - first**2 - last**2)
    ones = (1 - rhos) * (1 + rhos + (n - 1) * (1 - rhos))
    # sum of centred is 0, so that of the whitened series with the whitened ones is what its ends leave.
    cross = (1 - rhos) * rhos * (first + last)
    residual = np.maximum(squares - cross**2 / ones, np.finfo(np.float64).tiny)
    return (n - 1) * np.log(residual) - np.log1p(-(rhos**2)) + np.log(ones), residual
