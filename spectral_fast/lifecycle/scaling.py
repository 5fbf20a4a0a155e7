"""The scaling law |Delta alpha| ~ L^p: how the change of alpha over training depends on the number of layers.

Of a run with L layers, |Delta alpha| is the geometric mean over its layers of

    |mean of alpha over the last tenth of the run - alpha at the first look|.

The natural logarithms of the runs of one depth are averaged, and their means y_d regressed on ln L_d:

    y_d = ln c + p ln L_d + e_d,   (p_hat - p) / s(p_hat) ~ Student's t, D - 2 degrees of freedom, D depths.

Depths are the sample, not runs: what all runs of one depth have in common adds to e_d and no number of seeds
averages it out. s is the larger of the usual standard error and the one that allows for errors of unequal
variance (HC2; MacKinnon and White 1985): a run of few layers is the noisier, and weighs most.
docs/lifecycle.md says why this definition of Delta alpha.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
from scipy import optimize, stats

from spectral_fast.lifecycle.series import Floats
from spectral_fast.lifecycle.trajectories import Trajectories, Whole

_LEVEL = 0.05
_FEWEST_DEPTHS, _FEWEST_SEEDS = 5, 2
_LATE = 0.1


@dataclass(frozen=True)
class Scaling:
    """What :func:`measure_scaling` found.

    Attributes:
        statistic: its name.
        depths, seeds, changes: of each run, in the order given; changes as defined above.
        last_step: the changes are those up to this step, the last one that every run has reached.
        exponent: p.
        interval: 95 % of it.
        standard_error: that of p.
        factor: c, the change of a model of one layer by the law.
        p_value: two-sided, against p = 0.
        degrees_of_freedom: depths - 2.
        scatter: standard deviation of y_d about the line.
        seed_scatter: standard deviation of ln |Delta alpha| between runs of one depth.
        detectable_80, detectable_90: the least |p| that these depths and this scatter show with p_value <=
            0.05 in 80 and in 90 of 100 repetitions.
        detected: p_value <= 0.05, and p is positive.
        reason: why not, or "".
    """

    statistic: str
    depths: list[int]
    seeds: list[int]
    changes: list[float]
    last_step: int
    exponent: float
    interval: tuple[float, float]
    standard_error: float
    factor: float
    p_value: float
    degrees_of_freedom: int
    scatter: float
    seed_scatter: float
    detectable_80: float
    detectable_90: float
    detected: bool
    reason: str


def measure_scaling(runs: Sequence[Trajectories], seeds: Sequence[int], statistic: str = "alpha") -> Scaling:
    """The exponent p of |Delta alpha| ~ L^p over runs of several depths.

    The t-test and interval hold for normal e_d of equal variance, whatever part of it comes from seeds
    (equally many for every depth) and whatever part from depths; a seed's effect that all depths share drops
    out. Power is that of the noncentral t distribution, with the standard error taken as the true one.

    Args:
        runs: of at least five depths, two seeds of each at least. Their first looks are at the same step.
            Longer ones are cut where the shortest ends.
        seeds: of each run.
        statistic: what changes.

    Raises:
        ValueError: too few depths or seeds, naming what is missing; two runs with the same depth and seed;
            first looks at different steps; a run without the statistic, or in which it never changes.
    """
    if len(runs) != len(seeds):
        raise ValueError(f"measure_scaling: {len(runs)} runs, but {len(seeds)} seeds")
    depths = [run.depth for run in runs]
    _require_design(depths, seeds)
    series = [run.complete(statistic) for run in runs]
    names = [
        f"the run with {depth} layers and seed {seed}" for depth, seed in zip(depths, seeds, strict=True)
    ]
    for name, (steps, _) in zip(names, series, strict=True):
        if len(steps) < 2:
            raise ValueError(
                f"measure_scaling: {name} has {len(steps)} looks with {statistic}; two are the least"
            )
    starts = sorted({int(steps[0]) for steps, _ in series})
    if len(starts) > 1:
        raise ValueError(
            f"measure_scaling: the runs' first looks are at steps {starts}; changes from different starts do "
            "not compare. Train with a look at step 0"
        )
    last_step = min(int(steps[-1]) for steps, _ in series)
    changes = [_change(name, statistic, *looks, last_step) for name, looks in zip(names, series, strict=True)]

    logs = np.log(changes)
    unique, of_run = np.unique(depths, return_inverse=True)
    groups = [logs[of_run == i] for i in range(len(unique))]
    means = np.array([group.mean() for group in groups])
    centred = np.log(unique) - np.log(unique).mean()
    spread = float(centred @ centred)
    exponent = float(centred @ means) / spread
    left = means - means.mean() - exponent * centred
    freedom = len(unique) - 2
    scatter = float(np.sqrt(left @ left / freedom))
    leverage = 1 / len(unique) + centred**2 / spread
    unequal = float(np.sqrt(((centred * left) ** 2 / (1 - leverage)).sum())) / spread
    # No smaller than rounding, where the changes follow a law exactly.
    error = max(scatter / np.sqrt(spread), unequal, float(np.finfo(np.float64).eps))
    width = float(stats.t.isf(_LEVEL / 2, freedom)) * error
    p_value = float(2 * stats.t.sf(abs(exponent) / error, freedom))
    within = sum(float(((group - group.mean()) ** 2).sum()) for group in groups)
    reason = _why_not(exponent, p_value)
    return Scaling(
        statistic=statistic,
        depths=depths,
        seeds=list(seeds),
        changes=changes,
        last_step=last_step,
        exponent=exponent,
        interval=(exponent - width, exponent + width),
        standard_error=error,
        factor=float(np.exp(means.mean() - exponent * np.log(unique).mean())),
        p_value=p_value,
        degrees_of_freedom=freedom,
        scatter=scatter,
        seed_scatter=float(np.sqrt(within / (len(runs) - len(unique)))),
        detectable_80=error * _noncentrality(0.8, freedom),
        detectable_90=error * _noncentrality(0.9, freedom),
        detected=not reason,
        reason=reason,
    )


def _require_design(depths: Sequence[int], seeds: Sequence[int]) -> None:
    seeds_of: dict[int, list[int]] = {}
    for depth, seed in zip(depths, seeds, strict=True):
        if seed in seeds_of.setdefault(depth, []):
            raise ValueError(f"measure_scaling: two runs have {depth} layers and seed {seed}; give each once")
        seeds_of[depth].append(seed)
    missing = []
    if len(seeds_of) < _FEWEST_DEPTHS:
        there = ", ".join(map(str, sorted(seeds_of))) or "none"
        missing.append(f"{_FEWEST_DEPTHS - len(seeds_of)} more depths beside {there}")
    missing += [
        f"another seed for {depth} layers (there is seed {', '.join(map(str, own))})"
        for depth, own in sorted(seeds_of.items())
        if len(own) < _FEWEST_SEEDS
    ]
    if missing:
        raise ValueError(
            f"measure_scaling: an exponent over depth needs {_FEWEST_DEPTHS} depths and {_FEWEST_SEEDS} "
            f"seeds of each; missing: {'; '.join(missing)}"
        )


def _change(name: str, statistic: str, steps: Whole, values: Floats, last_step: int) -> float:
    """|Delta alpha| up to a step, of (n,) steps and (n, depth) values."""
    late = (steps <= last_step) & (steps >= last_step - _LATE * (last_step - steps[0]))
    late[0] = False
    if not late.any():
        raise ValueError(f"measure_scaling: {name} has no look in the last tenth of the steps to {last_step}")
    change = np.abs(values[late].mean(axis=0) - values[0])
    if (change == 0).any():
        raise ValueError(
            f"measure_scaling: in {name} {statistic} of layer {int(change.argmin())} is at the end what it "
            "was at the start; its change has no logarithm"
        )
    return float(np.exp(np.log(change).mean()))


@cache
def _noncentrality(power: float, freedom: int) -> float:
    """|p| / s(p) at which the two-sided t-test has this power."""
    bound = float(stats.t.isf(_LEVEL / 2, freedom))

    def lacking(shift: float) -> float:
        return float(stats.nct.sf(bound, freedom, shift) + stats.nct.cdf(-bound, freedom, shift)) - power

    return float(optimize.brentq(lacking, 0.0, 4 * bound))


def _why_not(exponent: float, p_value: float) -> str:
    if p_value > _LEVEL:
        return f"an exponent of 0 would leave as much (p = {p_value:.2g})"
    if exponent <= 0:
        return "deeper models change less"
    return ""
