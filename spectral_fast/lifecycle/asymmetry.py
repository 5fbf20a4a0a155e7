"""Q/K against V/O: whether the spectra of queries and keys move more over training than the others.

A matrix moves by the range of the logarithm of its statistic x over the looks of the run,

    m = ln max_t x(t) - ln min_t x(t),

and layer l by the geometric means over its matrices of the two kinds; the layers' log ratios

    d_l = mean ln m (Q, K of layer l) - mean ln m (V, O of layer l)

are the sample. Under the null hypothesis each d_l is as likely to have the other sign. docs/lifecycle.md says
why.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np
from scipy import stats

from spectral_fast.lifecycle.series import Floats
from spectral_fast.lifecycle.trajectories import Trajectories

ROLES = ("q", "k", "v", "o")
_LEVEL = 0.05
# All sign patterns up to 16 layers; beyond, as many at random.
_PATTERNS = 2**16
_RESAMPLES = 9999


@dataclass(frozen=True)
class Asymmetry:
    """What :func:`measure_asymmetry` found.

    Attributes:
        statistic: its name.
        layers: those that have matrices of both kinds.
        movements: role -> movement of that role's matrix in each of these layers, a relative range (the
            geometric mean where a layer has several); NaN where it has none.
        log_ratios: d of each of these layers.
        ratio: exp of their mean: how many times as far Q and K move.
        interval: 95 % of it; (0, inf) where the layers are too few to bound it.
        p_value: two-sided, of d being as likely positive as negative in each layer.
        smallest_p: the least p-value that this many layers can give.
        detected: p_value <= 0.05, and Q and K move more.
        reason: why not, or "".
    """

    statistic: str
    layers: list[int]
    movements: dict[str, list[float]]
    log_ratios: list[float]
    ratio: float
    interval: tuple[float, float]
    p_value: float
    smallest_p: float
    detected: bool
    reason: str


def measure_asymmetry(run: Trajectories, statistic: str = "stable_rank") -> Asymmetry:
    """How many times as far the spectra of Q and K move over training as those of V and O.

    The p-value is that of the sign-flip permutation test of the mean log ratio, exact up to 16 layers, and
    of 65,536 random sign patterns beyond. The interval is a studentized bootstrap over layers (Efron 1982;
    Hall 1988): 9999 resamples, the same random numbers in every call.

    Args:
        run: its looks, two at least.
        statistic: a positive one.

    Raises:
        ValueError: the run does not have the statistic, it is not positive or one of the matrices never
            moves, or fewer than two layers have matrices of both kinds (fused weights that were not taken
            apart do not count).
    """
    logs = np.log(_movements(run, statistic))
    pairs = np.stack([_mean(logs[:2]), _mean(logs[2:])])
    both = np.isfinite(pairs).all(axis=0)
    layers = np.flatnonzero(both)
    if len(layers) < 2:
        raise ValueError(
            f"measure_asymmetry: {len(layers)} layers have matrices of both Q or K and V or O; two are the "
            f"least. The run's roles: {', '.join(sorted(set(run.roles)))}"
        )
    first, second = pairs[:, both]
    ratios = first - second
    p_value = _sign_flip_p(first, second)
    low, high = _bootstrap_interval(ratios)
    smallest_p = 2.0 ** (1 - len(layers)) if 2 ** len(layers) <= _PATTERNS else 2 / (_PATTERNS + 1)
    reason = _why_not(statistic, float(ratios.mean()), p_value, smallest_p, len(layers))
    return Asymmetry(
        statistic=statistic,
        layers=layers.tolist(),
        movements={role: np.exp(log[both]).tolist() for role, log in zip(ROLES, logs, strict=True)},
        log_ratios=ratios.tolist(),
        ratio=float(np.exp(ratios.mean())),
        interval=(float(np.exp(low)), float(np.exp(high))),
        p_value=p_value,
        smallest_p=smallest_p,
        detected=not reason,
        reason=reason,
    )


def _movements(run: Trajectories, statistic: str) -> Floats:
    """(4, depth) relative range of the matrices of each of ROLES by layer; NaN where there is none."""
    if statistic not in run.values:
        raise ValueError(f"the run has no {statistic!r}; it has {', '.join(run.values)}")
    movements = np.full((len(ROLES), run.depth), np.nan)
    for i, role in enumerate(ROLES):
        for layer in range(run.depth):
            logs = [
                np.log(_movement(run, statistic, column))
                for column, place in enumerate(zip(run.roles, run.layers, strict=True))
                if place == (role, layer)
            ]
            if logs:
                movements[i, layer] = np.exp(np.mean(logs))
    return movements


def _movement(run: Trajectories, statistic: str, column: int) -> float:
    values = run.values[statistic][:, column]
    values = values[~np.isnan(values)]
    if len(values) < 2 or np.ptp(values) == 0:
        raise ValueError(
            f"measure_asymmetry: {statistic} of {run.names[column]} does not change over {len(values)} "
            "looks; a frozen matrix, or one look, has no movement"
        )
    if values.min() <= 0 or not np.isfinite(values).all():
        raise ValueError(
            f"measure_asymmetry: {statistic} of {run.names[column]} is not positive and finite at every "
            "look; a relative range is not defined"
        )
    return float(np.log(values.max() / values.min()))


def _mean(logs: Floats) -> Floats:
    """(2, depth) -> (depth,): the mean of those that are there; NaN where neither is."""
    there = np.isfinite(logs)
    count = there.sum(axis=0)
    return np.asarray(np.where(there, logs, 0).sum(axis=0) / np.where(count, count, np.nan))


def _sign_flip_p(first: Floats, second: Floats) -> float:
    # Exchanging a pair turns the sign of its difference.
    result = stats.permutation_test(
        (first, second),
        lambda x, y, axis: np.mean(x - y, axis=axis),
        permutation_type="samples",
        vectorized=True,
        n_resamples=_PATTERNS,
        rng=np.random.default_rng(0),
    )
    return float(result.pvalue)


def _bootstrap_interval(sample: Floats) -> tuple[float, float]:
    """95 % interval of the mean: resampled means in units of their own standard errors."""
    n, mean = len(sample), float(sample.mean())
    centred = sample - mean
    variance = float(centred @ centred) / n
    if variance == 0:
        return mean, mean
    weights = _resampling_weights(n)
    shift = weights @ centred
    variances = weights @ centred**2 - shift**2
    # One layer drawn every time has no variance but rounding. Its t is infinite, so that few layers, of
    # which many resamples are like that, get no interval.
    single = variances < 1e-9 * variance
    t = np.where(single, np.copysign(np.inf, shift), shift / np.sqrt(np.where(single, 1, variances)))
    low, high = np.quantile(t, [_LEVEL / 2, 1 - _LEVEL / 2], method="closest_observation")
    return mean - float(high) * variance**0.5, mean - float(low) * variance**0.5


@cache
def _resampling_weights(n: int) -> Floats:
    """(resamples, n): the share of each of n layers in each resample; the same in every call."""
    return np.random.default_rng(0).multinomial(n, np.full(n, 1 / n), _RESAMPLES) / n


def _why_not(statistic: str, mean: float, p_value: float, smallest_p: float, layers: int) -> str:
    if smallest_p > _LEVEL:
        return f"{layers} layers cannot show it: their smallest possible p-value is {smallest_p:.3g}"
    if p_value > _LEVEL:
        return f"the layers do not agree on which moves more (p = {p_value:.2g})"
    if mean <= 0:
        return f"{statistic} of V and O moves more"
    return ""
