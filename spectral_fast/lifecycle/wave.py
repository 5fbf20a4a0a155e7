"""The compression wave: when each layer's stable rank falls, whether the front travels, and if it turns back.

The paper finds that the compression of the stable rank travels from early to late layers and then reverses.
Its definitions were not available; these are ours. For layer l with curve r_l over the looks:

front      h is half way from the first look to the minimum; the front time is the time spent above h before
           the minimum, interpolated between looks. For a falling curve that is when it crosses h; noise that
           crosses h to and fro adds and takes away alike.
speed      1 / s, s the least-squares slope of the front time over the layer number.
reversal   the time of the minimum, where the curve rises from it again.

Whether a curve falls or rises at all is held against a random walk whose increments are as large as the
curve's own second differences make them: of all noise whose looks remember the last one, it strays furthest.

Chance makes slopes in two ways, and a travelling wave has to stand against both, so that its p-value is the
larger and its interval reaches as far as either:

layers   each falls at a time of its own: exact permutation of the front times over the layers, and Student's
         t for the interval.
looks    all fall together, and noise moves the fronts: random walks of resampled second differences, those
         of all layers together, are added to the curves.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from itertools import permutations

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtri, stdtr, stdtrit

from spectral_fast.lifecycle.series import CLAIM, Estimate, Floats, not_claimed
from spectral_fast.lifecycle.trajectories import Trajectories, Whole

# Of n! orders two are extreme: 2 / 5! = 0.017, but 2 / 4! = 0.08 could never be claimed.
LEAST_FRONTS = 5
# Below that many looks the second differences do not tell how large the noise is.
LEAST_LOOKS = 10
_ALL_ORDERS_UP_TO = 7
_ORDERS = 9999
_WALKS = 4000
_REPLICATES = 200
# Median of |z| for standard normal z: scales a median of absolute values to a standard deviation.
_NORMAL_MEDIAN = float(ndtri(0.75))


@dataclass(frozen=True, eq=False)
class Wave:
    """The fall of a statistic over layers and steps.

    Attributes:
        statistic, depth: which, and the number of layers.
        detected: there is a travelling wave: p_value is at most `CLAIM`, 0.03, and the front takes longer
            from the first layer to the last than from one look to the next.
        reason: why nothing is claimed, "" where it is.
        p_value: that of `slope`.
        slope: steps from one layer's front to the next one's; positive from early to late layers.
        speed: 1 / slope, layers a step; interval NaN where that of the slope holds 0 (any speed will do).
        fronts: (depth,) front times in steps; NaN where the layer does not fall by more than noise might.
        front_intervals: (depth, 2) 95 %, from the noise of the looks.
        fall_p_values: (depth,) against a curve that only strays.
        reversed: the mean over layers rises again after its minimum: `reversal_p_value` is at most `CLAIM`.
        reversal_reason: why that is not claimed, "" where it is.
        reversal_p_value: against a curve that only strays.
        reversal: step of the minimum of the mean over layers; NaN where it is not reversed.
        reversals: (depth,) step of each layer's minimum; NaN where the layer does not rise again.
        reversal_intervals: (depth, 2) 95 %, from the noise of the looks.
        rise_p_values: (depth,) against a curve that only strays, Holm's correction over layers made.
        steps: (T,) int64 of the looks; curves: (T, depth), the statistic at each.
    """

    statistic: str
    depth: int
    detected: bool
    reason: str
    p_value: float
    slope: Estimate
    speed: Estimate
    fronts: Floats
    front_intervals: Floats
    fall_p_values: Floats
    reversed: bool
    reversal_reason: str
    reversal_p_value: float
    reversal: float
    reversals: Floats
    reversal_intervals: Floats
    rise_p_values: Floats
    steps: Whole
    curves: Floats


def measure_wave(
    run: Trajectories, statistic: str = "stable_rank", *, roles: Sequence[str] | None = None, seed: int = 0
) -> Wave:
    """Measure front, speed and reversal of the fall of a statistic.

    Args:
        run: the run. Looks that lack the statistic in a layer are left out.
        statistic: any field of SpectralStats that falls.
        roles: those whose mean a layer's curve is; None: all matrices of the layer.
        seed: of the random walks and orders.

    Raises:
        ValueError: fewer than 10 looks have the statistic in every layer.
    """
    steps, curves = run.complete(statistic, roles)
    if len(steps) < LEAST_LOOKS:
        raise ValueError(
            f"measure_wave: {len(steps)} looks have {statistic} in every layer; {LEAST_LOOKS} are the least"
        )
    depth = curves.shape[1]
    far_down, far_up, _ = _strayed(len(steps))
    scales = _scales(curves)
    falls = _share_beyond(far_down, (curves[0] - curves.min(axis=0)) / scales)
    fell = falls <= CLAIM
    rises = _holm(_share_beyond(far_up, _rise(curves) / scales))
    rose = rises <= CLAIM
    mean = curves.mean(axis=1, keepdims=True)
    reversal_p = float(_share_beyond(far_up, _rise(mean) / _scales(mean))[0])
    back = not_claimed(reversal_p)

    noisy = curves[:, None] + _walks(np.random.default_rng(seed), curves, scales)
    fronts, moved = _fronts(steps, curves), _fronts(steps, noisy)
    # About so many of the overlapping second differences are independent.
    degrees = len(steps) // 3
    width = stdtrit(degrees, 0.975) * moved.std(axis=0)
    slope, reason = _slope(fronts, moved, fell, degrees)
    reason = reason or not_claimed(slope.p_value)
    spacing = float(np.median(np.diff(steps)))
    if not reason and abs(slope.value) * (depth - 1) < spacing:
        reason = f"the front passes all layers within the {spacing:g} steps from one look to the next"
    lowest = steps[noisy.argmin(axis=0)]
    ends = np.quantile(lowest, [0.025, 0.975], axis=0, method="nearest").T.astype(np.float64)
    return Wave(
        statistic=statistic,
        depth=depth,
        detected=not reason,
        reason=reason,
        p_value=slope.p_value,
        slope=slope,
        speed=_inverse(slope),
        fronts=np.where(fell, fronts, np.nan),
        front_intervals=np.where(fell[:, None], np.stack([fronts - width, fronts + width], axis=1), np.nan),
        fall_p_values=falls,
        reversed=not back,
        reversal_reason=back,
        reversal_p_value=reversal_p,
        reversal=np.nan if back else float(steps[mean.argmin()]),
        reversals=np.where(rose, steps[curves.argmin(axis=0)], np.nan),
        reversal_intervals=np.where(rose[:, None], ends, np.nan),
        rise_p_values=rises,
        steps=steps,
        curves=curves,
    )


def _fronts(steps: Whole, curves: Floats) -> Floats:
    """Front times (...) of curves (T, ...)."""
    lowest = curves.argmin(axis=0)
    above = curves - (curves[0] + curves.min(axis=0)) / 2
    positive, size = np.maximum(above, 0), np.abs(above)
    # The share of each interval that lies above, on the straight line from look to look.
    share = (positive[1:] + positive[:-1]) / np.maximum(size[1:] + size[:-1], np.finfo(np.float64).tiny)
    spread = (slice(None), *[None] * lowest.ndim)
    share[np.arange(len(steps) - 1)[spread] >= lowest] = 0
    return np.asarray(steps[0] + np.tensordot(np.diff(steps), share, axes=1))


def _slope(fronts: Floats, moved: Floats, fell: NDArray[np.bool_], degrees: int) -> tuple[Estimate, str]:
    """The slope of front times over layers with an interval and a p-value, and why there are none."""
    layers = np.flatnonzero(fell)
    count = len(layers)
    unknown = (np.nan, np.nan)
    if count < 2:
        return Estimate(
            np.nan, unknown, np.nan
        ), f"{count} of {len(fell)} layers fall by more than noise might"
    x = layers - layers.mean()
    weights = x / (x @ x)
    value = float(weights @ fronts[layers])
    if count < LEAST_FRONTS:
        return Estimate(value, unknown, np.nan), (
            f"{count} of {len(fell)} layers fall by more than noise might; {LEAST_FRONTS} are the least"
        )
    by_chance = np.abs(fronts[layers][_orders(count)] @ weights)
    rounding = 1e-9 * float(np.abs(weights) @ np.abs(fronts[layers]))
    p_layers = float((by_chance >= abs(value) - rounding).mean())
    residual = fronts[layers] - fronts[layers].mean() - value * x
    half_layers = stdtrit(count - 2, 0.975) * np.sqrt(residual @ residual / (count - 2) / (x @ x))
    error = max(float((moved[:, layers] @ weights).std()), rounding)
    p_looks = 2 * float(stdtr(degrees, -abs(value) / error))
    half = max(float(half_layers), float(stdtrit(degrees, 0.975)) * error)
    return Estimate(value, (value - half, value + half), max(p_layers, p_looks)), ""


@cache
def _orders(count: int) -> NDArray[np.intp]:
    """All orders of so many layers, or many of them, the one that is there among them."""
    if count <= _ALL_ORDERS_UP_TO:
        return np.array(list(permutations(range(count))))
    rng = np.random.default_rng(0)
    drawn = rng.permuted(np.tile(np.arange(count), (_ORDERS, 1)), axis=1)
    return np.concatenate([np.arange(count)[None], drawn])


def _inverse(slope: Estimate) -> Estimate:
    low, high = slope.interval
    told = low * high > 0
    return Estimate(
        1 / slope.value if slope.value else np.nan,
        (1 / high, 1 / low) if told else (np.nan, np.nan),
        slope.p_value,
    )


def _rise(curves: Floats) -> Floats:
    """(K,): how far curves (T, K) come up again from their minimum."""
    after = np.arange(len(curves))[:, None] >= curves.argmin(axis=0)
    return np.asarray(np.where(after, curves, -np.inf).max(axis=0) - curves.min(axis=0))


def _scales(curves: Floats) -> Floats:
    """(K,): the standard deviation of the increments of a random walk that strays as curves (T, K) may.

    Second differences over k looks of a random walk have 2 k times the variance of its increments; those of a
    trend with little curvature are next to nothing, and those of noise with a short memory do not grow with
    k, so that the least over k is nearest to how far it can stray. Medians pass over looks where a curve
    bends. No less than rounding errors.
    """
    found = [np.finfo(np.float64).eps * np.abs(curves).max(axis=0)]
    for k in 2 ** np.arange(int(np.log2(len(curves) / 4)) + 1):
        second = curves[2 * k :] - 2 * curves[k:-k] + curves[: -2 * k]
        found.append(np.median(np.abs(second), axis=0) / (_NORMAL_MEDIAN * np.sqrt(2 * k)))
    return np.asarray(np.maximum(np.min(found[1:], axis=0), found[0]))


def _walks(rng: np.random.Generator, curves: Floats, scales: Floats) -> Floats:
    """(T, replicates, K) random walks from 0 that stray as the curves (T, K) may.

    Their increments are second differences of whole looks, so that layers stray together as they do; three
    scales from 0 is a bend of the curve.
    """
    second = np.diff(curves, n=2, axis=0)
    own = np.maximum(np.median(np.abs(second), axis=0) / _NORMAL_MEDIAN, scales)
    increments = np.clip(second / own, -3, 3) * (scales / _strayed(len(curves))[2])
    either = np.concatenate([increments, -increments])
    drawn = either[rng.integers(len(either), size=(len(curves), _REPLICATES))]
    drawn[0] = 0
    return np.asarray(drawn.cumsum(axis=0))


def _share_beyond(null: Floats, distances: Floats) -> Floats:
    """How often random walks, ascending, go as far; their p-values."""
    beyond = len(null) - np.searchsorted(null, distances * (1 - 1e-9))
    return np.asarray((1 + beyond) / (1 + len(null)))


@cache
def _strayed(looks: int) -> tuple[Floats, Floats, float]:
    """Of random walks: falls below the first look and rises from the minimum, ascending, and their scale."""
    walks = np.random.default_rng(0).standard_normal((looks, _WALKS)).cumsum(axis=0)
    scales = _scales(walks)
    falls = (walks[0] - walks.min(axis=0)) / scales
    return np.sort(falls), np.sort(_rise(walks) / scales), float(np.median(scales))


def _holm(p_values: Floats) -> Floats:
    """Holm's correction (1979): below the level for one of them by chance no oftener than at the level."""
    order = np.argsort(p_values)
    stepped = p_values[order] * np.arange(len(p_values), 0, -1)
    corrected = np.empty_like(p_values)
    corrected[order] = np.minimum(1.0, np.maximum.accumulate(stepped))
    return corrected
