"""Slow and simple goodness of fit: the bootstrap value by value, the log-normal by direct maximisation.

Neither shares a formula with the package: the samples are drawn one value at a time, the fit tries one
candidate after the other, and the likelihood of the log-normal's tail is integrated numerically.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import mpmath
import numpy as np

_mp = mpmath.mp.clone()
_mp.dps = 30


def least_distance(x: np.ndarray) -> tuple[float, float, float]:
    """D, xmin and alpha of the Clauset-Shalizi-Newman fit; infinite D where there is none."""
    x = np.sort(x[x > 0])
    best = (math.inf, math.nan, math.nan)
    for xmin in np.unique(x)[:-1]:
        tail = x[x >= xmin]
        alpha = 1 + len(tail) / np.log(tail / xmin).sum()
        apart = np.abs(1 - (tail / xmin) ** (1 - alpha) - np.arange(len(tail)) / len(tail))
        best = min(best, (float(apart.max()), float(xmin), float(alpha)))
    return best


def sample(x: np.ndarray, xmin: float, alpha: float, rng: np.random.Generator) -> np.ndarray:
    """One synthetic spectrum: Clauset, Shalizi and Newman's section 4.1 to the letter."""
    below, n_tail = x[x < xmin], int((x >= xmin).sum())
    out = []
    for _ in range(len(x)):
        if rng.random() < n_tail / len(x):
            out.append(xmin * (1 - rng.random()) ** (-1 / (alpha - 1)))
        else:
            out.append(below[rng.integers(len(below))])
    return np.array(out)


def bootstrap(x: np.ndarray, n_samples: int, rng: np.random.Generator) -> float:
    """Share of synthetic spectra with at least the distance of x, a spectrum without zeros."""
    distance, xmin, alpha = least_distance(x)
    drawn = (least_distance(sample(x, xmin, alpha, rng))[0] for _ in range(n_samples))
    return sum(d >= distance for d in drawn) / n_samples


class LogNormal(NamedTuple):
    mu: float
    sigma: float
    log_ratio: float
    """R, the sum of ln p(x) - ln q(x): power law p, log-normal q"""
    ratio: float
    """R / (s sqrt(m))"""


def lognormal(x: np.ndarray, xmin: float) -> LogNormal:
    """The log-normal on x >= xmin that is most likely, and Vuong's ratio of the power law to it.

    In t = ln(x / xmin) / mean the density is exp(a t + b t^2) / Z(a, b), t >= 0, b < 0: an exponential
    family, whose log-likelihood is concave, so that the only point where it is stationary is its maximum.
    Newton's method with halved steps finds it, with Z and its derivatives, the moments, by quadrature.
    """
    y = [_mp.log(_mp.mpf(float(v)) / _mp.mpf(xmin)) for v in x if v >= xmin]
    m, mean = len(y), _mp.fsum(y) / len(y)
    t = [v / mean for v in y]
    wanted = (_mp.mpf(1), _mp.fsum(v * v for v in t) / m)
    assert wanted[1] < 2, "no log-normal is the most likely one"

    def moments(a: mpmath.mpf, b: mpmath.mpf) -> list[mpmath.mpf]:
        peak = max(_mp.mpf(0), -a / (2 * b))
        top = a * peak + b * peak**2
        width = min(1 / _mp.sqrt(-2 * b), 1 / max(-a, _mp.mpf("1e-30")))
        ends = sorted(
            {_mp.mpf(0), peak, *(peak + s * width for s in (-8, -3, 3, 8, 20, 80) if peak + s * width > 0)}
        )

        def integral(power: int) -> mpmath.mpf:
            return _mp.quad(lambda s: s**power * _mp.exp(a * s + b * s * s - top), ends)

        z, *rest = (integral(power) for power in range(5))
        return [_mp.log(z) + top, *(r / z for r in rest)]

    def likelihood(a: mpmath.mpf, b: mpmath.mpf, found: list[mpmath.mpf]) -> mpmath.mpf:
        return a * wanted[0] + b * wanted[1] - found[0]

    spread = wanted[1] - 1
    a, b = 1 / spread, -1 / (2 * spread)  # a normal law that is not cut
    found = moments(a, b)
    for _ in range(200):
        off = (wanted[0] - found[1], wanted[1] - found[2])
        if max(abs(v) for v in off) < _mp.mpf("1e-22"):
            break
        caa, cab, cbb = (
            found[2] - found[1] ** 2,
            found[3] - found[1] * found[2],
            found[4] - found[2] ** 2,
        )
        det = caa * cbb - cab**2
        da, db = (cbb * off[0] - cab * off[1]) / det, (caa * off[1] - cab * off[0]) / det
        step = _mp.mpf(1)
        while True:
            if b + step * db < 0:
                tried = moments(a + step * da, b + step * db)
                gained = likelihood(a + step * da, b + step * db, tried) - likelihood(a, b, found)
                if gained >= 0 or step < _mp.mpf("1e-6"):
                    break
            step /= 2
        a, b, found = a + step * da, b + step * db, tried
    else:
        raise AssertionError("Newton's method did not converge")

    differences = [-v - (a * v + b * v * v - found[0]) for v in t]  # the power law's ln density is -t
    total = _mp.fsum(differences)
    s = _mp.sqrt(_mp.fsum((d - total / m) ** 2 for d in differences) / m)
    sigma = mean / _mp.sqrt(-2 * b)
    mu = _mp.log(_mp.mpf(xmin)) + mean * a / (-2 * b)
    return LogNormal(float(mu), float(sigma), float(total), float(total / (s * _mp.sqrt(m))))
