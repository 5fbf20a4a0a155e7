"""The depth gradient: a statistic over relative depth, its curvature, and how long it has held.

The paper finds that alpha keeps a gradient over depth to the end of training, in deeper models an inverted
U. Its definitions were not available; these are ours. With x = layer / (depth - 1) - 1/2 and y_l the mean of
layer l over the last looks,

    y = a + b x + c x^2 + scatter,

b is the slope (in units of the statistic from the first layer to the last), c the curvature, and
x = -b / 2c the peak. Everything is a contrast w . y of the layers, and chance comes from two sides:

layers   they scatter about the curve: Student's t of least squares, depth - 3 degrees of freedom. Exact
         for independent normal scatter, whatever the looks do; what all layers share drops out.
looks    w . y_t is one series over the looks, whose mean has an error of its own
         (`spectral_fast.lifecycle.series.mean_of_series`), whatever layers have to do with one another.

An effect has to stand against both: the p-value is the larger, the interval reaches as far as either.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import stdtr, stdtrit

from spectral_fast.lifecycle.series import Estimate, Floats, SeriesMean, mean_of_series, not_claimed
from spectral_fast.lifecycle.trajectories import Trajectories, Whole

# A parabola through fewer leaves less than two degrees of freedom, and its intervals say nothing.
LEAST_DEPTH = 5
# Two lines, each through at least three layers, and two degrees of freedom left over.
LEAST_DEPTH_OF_U = 6
_LEAST_LOOKS = 5
_SIDE = 3
_PEAKS = np.linspace(-0.5, 0.5, 101)
_UNKNOWN = Estimate(np.nan, (np.nan, np.nan), np.nan)


@dataclass(frozen=True)
class InvertedU:
    """Whether the statistic rises over the first layers and falls over the last.

    Attributes:
        detected: p_value is at most `CLAIM`, 0.03.
        reason: why nothing is claimed, "" where it is.
        p_value: the largest of four one-sided ones, each against both layers and looks: that the parabola
            rises at the first layer and falls at the last (Lind and Mehlum 2010), and that of two separate
            lines, broken near the peak, the first rises and the second falls (after Simonsohn 2018). The
            parabola alone takes a rise that levels off for a U.
        rise, fall: slopes of the two lines, in units of the statistic from the first layer to the last;
            p-values one-sided.
        peak: relative depth of the parabola's peak, 0 the first layer, 1 the last; NaN where it is outside.
        peak_interval: 95 %: the depths at which the parabola's slope is not told from zero, of a valley too;
            NaN where it is told at all of them, and there is no peak.
    """

    detected: bool
    reason: str
    p_value: float
    rise: Estimate
    fall: Estimate
    peak: float
    peak_interval: tuple[float, float]


@dataclass(frozen=True, eq=False)
class Gradient:
    """A statistic over relative depth.

    Attributes:
        statistic, depth: which, and the number of layers.
        detected: p_value is at most `CLAIM`, 0.03.
        reason: why nothing is claimed, "" where it is.
        p_value: that of `slope`.
        slope: from the first layer to the last, in units of the statistic.
        curvature: c, in units of the statistic; the middle lies c / 4 below both ends, c < 0 above.
        inverted_u: see :class:`InvertedU`.
        persistence: share of all looks whose slope has the sign of `slope`.
        since: step from which on it has had that sign; -1 if not at the last look.
        window: first and last step of the looks that `slope`, `curvature` and `inverted_u` are of.
        looks: how many those are.
        steps: (T,) int64, those of all looks.
        slopes: (T,) slope at each look.
        slope_intervals: (T, 2) their 95 % intervals, from the scatter of the layers alone; NaN below five
            layers.
        profile: (depth,) mean of each layer over the window.
    """

    statistic: str
    depth: int
    detected: bool
    reason: str
    p_value: float
    slope: Estimate
    curvature: Estimate
    inverted_u: InvertedU
    persistence: float
    since: int
    window: tuple[int, int]
    looks: int
    steps: Whole
    slopes: Floats
    slope_intervals: Floats
    profile: Floats


def measure_gradient(
    run: Trajectories, statistic: str = "alpha", *, roles: Sequence[str] | None = None, last: float = 0.5
) -> Gradient:
    """Measure the depth gradient of a statistic over the last part of a run, and its course.

    Args:
        run: the run. Looks that lack the statistic in a layer are left out.
        statistic: any field of SpectralStats, such as "alpha", "alpha_hill" or "alpha_ranksize".
        roles: those whose mean a layer's value is; None: all matrices of the layer.
        last: the share of the looks, from the end, that the gradient is of.

    Raises:
        ValueError: `last` is not in (0, 1], the run has one layer, or a layer never has the statistic.
    """
    if not 0 < last <= 1:
        raise ValueError(f"measure_gradient: last must be in (0, 1], got {last}")
    steps, values = run.complete(statistic, roles)
    depth = values.shape[1]
    if depth < 2:
        raise ValueError("measure_gradient: one layer has no depth")
    x = np.linspace(-0.5, 0.5, depth)
    slopes = values @ (x / (x @ x))
    window = values[-max(1, round(last * len(values))) :]
    profile = window.mean(axis=0)
    reason = _too_little(depth, len(window), LEAST_DEPTH)
    if reason:
        slope = Estimate(float(x @ profile / (x @ x)), (np.nan, np.nan), np.nan)
        curvature, intervals = _UNKNOWN, np.full((len(values), 2), np.nan)
    else:
        design = np.stack([np.ones(depth), x, x**2], axis=1)
        slope, curvature = _Contrasts(window, design, np.eye(3)[1:]).estimates()
        half = _half_widths(values, design)
        intervals = np.stack([slopes - half, slopes + half], axis=1)
        reason = not_claimed(slope.p_value)
    holds = np.sign(slopes) == np.sign(slope.value)
    lost = np.flatnonzero(~holds)
    since = 0 if not len(lost) else int(lost[-1]) + 1
    return Gradient(
        statistic=statistic,
        depth=depth,
        detected=not reason,
        reason=reason,
        p_value=slope.p_value,
        slope=slope,
        curvature=curvature,
        inverted_u=_inverted_u(window, x),
        persistence=float(holds.mean()),
        since=int(steps[since]) if since < len(steps) else -1,
        window=(int(steps[-len(window)]), int(steps[-1])),
        looks=len(window),
        steps=steps,
        slopes=slopes,
        slope_intervals=intervals,
        profile=profile,
    )


def _too_little(depth: int, looks: int, least: int) -> str:
    if depth < least:
        return f"{depth} layers: at least {least} are needed to tell a curve from their scatter"
    if looks < _LEAST_LOOKS:
        return f"{looks} looks: at least {_LEAST_LOOKS} are needed to tell how far their mean may be off"
    return ""


def _inverted_u(window: Floats, x: Floats) -> InvertedU:
    reason = _too_little(len(x), len(window), LEAST_DEPTH_OF_U)
    if reason:
        return InvertedU(False, reason, np.nan, _UNKNOWN, _UNKNOWN, np.nan, (np.nan, np.nan))
    design = np.stack([np.ones_like(x), x, x**2], axis=1)
    _, b, c = np.linalg.lstsq(design, window.mean(axis=0))[0]
    vertex = float(-b / (2 * c)) if c else np.nan
    peak = vertex + 0.5 if c < 0 and abs(vertex) <= 0.5 else np.nan
    tangents = _Contrasts(window, design, np.stack([0 * _PEAKS, np.ones_like(_PEAKS), 2 * _PEAKS], axis=1))
    interval = _level_depths(tangents.p_value() > 0.05, vertex)

    at = np.clip(np.searchsorted(x, np.nan_to_num(vertex)), _SIDE, len(x) - _SIDE)
    early = np.arange(len(x)) < at
    lines = np.stack([early, ~early, early * x, ~early * x], axis=1).astype(np.float64)
    two = _Contrasts(window, lines, np.eye(4)[2:], design)
    rises, falls = two.p_greater(), two.p_less()
    rise, fall = two.estimates()
    rise = Estimate(rise.value, rise.interval, float(rises[0]))
    fall = Estimate(fall.value, fall.interval, float(falls[1]))
    p = max(rise.p_value, fall.p_value, float(tangents.p_greater()[0]), float(tangents.p_less()[-1]))
    reason = not_claimed(p)
    return InvertedU(not reason, reason, p, rise, fall, peak, interval)


def _level_depths(level: NDArray[np.bool_], vertex: float) -> tuple[float, float]:
    """The ends of those depths of the grid at which a slope is not told from zero, the vertex among them.

    One step further on either side: the ends lie between two depths of the grid.
    """
    level = level.copy()
    if abs(vertex) <= 0.5:
        level[np.abs(_PEAKS - vertex).argmin()] = True
    if not level.any():
        return (np.nan, np.nan)
    first, last = np.flatnonzero(level)[[0, -1]]
    return float(_PEAKS[max(first - 1, 0)] + 0.5), float(_PEAKS[min(last + 1, len(_PEAKS) - 1)] + 0.5)


class _Contrasts:
    """Linear combinations of the coefficients of a least-squares fit over the layers.

    Args:
        window: (n, depth) looks.
        design: (depth, p) of the fit.
        rows: (K, p): the combinations.
        other: (depth, p') of another fit; the scatter of the layers is that about the nearer curve.
    """

    def __init__(self, window: Floats, design: Floats, rows: Floats, other: Floats | None = None) -> None:
        weights = rows @ np.linalg.pinv(design)
        profile = window.mean(axis=0)
        self._degrees = len(design) - design.shape[1]
        square = _mean_square(profile, design)
        if other is not None:
            square = min(square, _mean_square(profile, other))
        self._over_looks: SeriesMean = mean_of_series(window @ weights.T, window @ cosines(len(profile)))
        self.value = self._over_looks.mean
        # A profile that lies on the curve scatters by rounding errors.
        least = len(profile) * np.finfo(np.float64).eps * np.abs(profile).max() + np.finfo(np.float64).tiny
        self._scatter = np.linalg.norm(weights, axis=1) * max(np.sqrt(square), least)
        self._t = self.value / self._scatter

    def p_greater(self) -> Floats:
        return np.maximum(stdtr(self._degrees, -self._t), self._over_looks.p_greater())

    def p_less(self) -> Floats:
        return np.maximum(stdtr(self._degrees, self._t), self._over_looks.p_less())

    def p_value(self) -> Floats:
        layers = 2 * stdtr(self._degrees, -np.abs(self._t))
        return np.maximum(layers, self._over_looks.p_value())

    def estimates(self) -> list[Estimate]:
        half = np.maximum(self._scatter * stdtrit(self._degrees, 0.975), self._over_looks.half_width())
        ends = zip(self.value - half, self.value + half, self.p_value(), strict=True)
        return [
            Estimate(float(value), (float(low), float(high)), float(p))
            for value, (low, high, p) in zip(self.value, ends, strict=True)
        ]


def _mean_square(profile: Floats, design: Floats) -> float:
    """Of the residuals of a fit over the layers."""
    residual = profile - design @ (np.linalg.pinv(design) @ profile)
    return float(residual @ residual) / (len(design) - design.shape[1])


def cosines(depth: int) -> Floats:
    """(depth, depth - 1) orthonormal cosines over the layers, all but the constant.

    They make independent series of noise that is independent over the layers, or equally correlated, and
    nearly so of noise that neighbours share.
    """
    waves = np.cos(np.pi * np.outer(np.arange(depth) + 0.5, np.arange(1, depth)) / depth)
    return np.asarray(waves * np.sqrt(2 / depth))


def _half_widths(values: Floats, design: Floats) -> Floats:
    """Half of the 95 % interval of the slope at each look, from the scatter of the layers at that look."""
    inverse = np.linalg.pinv(design)
    residual = values - values @ inverse.T @ design.T
    degrees = len(design) - design.shape[1]
    error = np.sqrt((residual**2).sum(axis=1) / degrees) * np.linalg.norm(inverse[1])
    return np.asarray(error * stdtrit(degrees, 0.975))
