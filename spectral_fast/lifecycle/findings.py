"""Every phenomenon that applies to some runs, measured, and what was found in one line each."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from spectral_fast.lifecycle.asymmetry import Asymmetry, measure_asymmetry
from spectral_fast.lifecycle.gradient import Gradient, measure_gradient
from spectral_fast.lifecycle.scaling import Scaling, measure_scaling
from spectral_fast.lifecycle.timescales import Timescales, measure_timescales
from spectral_fast.lifecycle.trajectories import Trajectories
from spectral_fast.lifecycle.wave import Wave, measure_wave

ALPHAS = ("alpha", "alpha_hill", "alpha_ranksize")
FAST = "stable_rank"

Result = Wave | Gradient | Asymmetry | Timescales | Scaling


@dataclass(frozen=True, eq=False)
class Run:
    """A run by name.

    Attributes:
        name: what it is called in tables and file names.
        trajectories: its looks.
        seed: None where the folder does not tell.
    """

    name: str
    trajectories: Trajectories
    seed: int | None


@dataclass(frozen=True, eq=False)
class Measurement:
    """One phenomenon measured on one run, or on all together.

    Attributes:
        run: its name; "" for all together.
        phenomenon: "wave", "gradient", "asymmetry", "timescales" or "scaling".
        statistic: what it was measured on.
        result: None where it does not apply.
        reason: why it does not, or "".
    """

    run: str
    phenomenon: str
    statistic: str
    result: Result | None
    reason: str


@dataclass(frozen=True)
class Finding:
    """One claim that could be made of a measurement.

    Attributes:
        run, phenomenon, statistic: as of :class:`Measurement`; a wave may also be reversed ("reversal") and a
            gradient have a peak ("inverted U").
        detected: whether it is claimed.
        p_value: NaN where none can be given.
        estimate, interval, unit: the number that describes it with 95 %; NaN where it cannot be given.
        reason: why it is not claimed, or "".
    """

    run: str
    phenomenon: str
    statistic: str
    detected: bool
    p_value: float
    estimate: float
    interval: tuple[float, float]
    unit: str
    reason: str


def read_run(path: str | os.PathLike[str], name: str) -> Run:
    """A training run's folder, or a directory that a ParquetSink wrote.

    Raises:
        spectral_fast.monitor.parquet.RunError: there is no run at the path.
        ValueError: it has no exact look, no layers, or a run.json that cannot be read.
    """
    description = Path(path) / "run.json"
    seed = None
    if description.exists():
        try:
            seed = int(json.loads(description.read_text(encoding="utf-8"))["training"]["seed"])
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{description}: describes no training run ({error!r})") from error
    return Run(name, Trajectories.read(path), seed)


def measure_all(runs: Sequence[Run], statistics: Sequence[str] = ALPHAS) -> list[Measurement]:
    """Measure every phenomenon on every run, and the scaling law if there are several.

    Args:
        runs: at least one.
        statistics: the slow ones, alpha in one or more of its meanings; the fast one is the stable rank.

    Returns:
        One for each phenomenon, run and statistic; with the reason where one does not apply.
    """
    found = []
    for run in runs:
        looks = run.trajectories
        found.append(_try(run.name, "wave", FAST, partial(measure_wave, looks, FAST)))
        for statistic in statistics:
            found.append(_try(run.name, "gradient", statistic, partial(measure_gradient, looks, statistic)))
        for statistic in (FAST, *statistics):
            found.append(_try(run.name, "asymmetry", statistic, partial(measure_asymmetry, looks, statistic)))
        for statistic in statistics:
            measure = partial(measure_timescales, looks, FAST, statistic)
            found.append(_try(run.name, "timescales", statistic, measure))
    if len(runs) > 1:
        found += [
            _try("", "scaling", statistic, partial(_scaling, runs, statistic)) for statistic in statistics
        ]
    return found


def _scaling(runs: Sequence[Run], statistic: str) -> Scaling:
    seeds = [run.seed for run in runs if run.seed is not None]
    if len(seeds) < len(runs):
        unknown = next(run.name for run in runs if run.seed is None)
        raise ValueError(f"the seed of {unknown} is not known (it has no run.json)")
    return measure_scaling([run.trajectories for run in runs], seeds, statistic)


def _try(run: str, phenomenon: str, statistic: str, measure: Callable[[], Result]) -> Measurement:
    """A phenomenon that does not apply is a finding too: the others are still wanted."""
    try:
        return Measurement(run, phenomenon, statistic, measure(), "")
    except ValueError as error:
        return Measurement(run, phenomenon, statistic, None, str(error))


def findings(measurement: Measurement) -> list[Finding]:
    """What can be claimed of a measurement, and whether it is."""
    where = (measurement.run, measurement.phenomenon, measurement.statistic)
    result = measurement.result
    unknown = (math.nan, math.nan)
    if result is None:
        return [Finding(*where, False, math.nan, math.nan, unknown, "", measurement.reason)]
    verdict = (result.detected, result.p_value)
    if isinstance(result, Wave):
        back = Finding(
            measurement.run, "reversal", measurement.statistic, result.reversed, result.reversal_p_value,
            result.reversal, unknown, "step", result.reversal_reason,
        )  # fmt: skip
        slope = result.slope
        return [Finding(*where, *verdict, slope.value, slope.interval, "steps a layer", result.reason), back]
    if isinstance(result, Gradient):
        bent = result.inverted_u
        peak = Finding(
            measurement.run, "inverted U", measurement.statistic, bent.detected, bent.p_value,
            bent.peak, bent.peak_interval, "peak, relative depth", bent.reason,
        )  # fmt: skip
        slope = result.slope
        return [
            Finding(*where, *verdict, slope.value, slope.interval, "first to last layer", result.reason),
            peak,
        ]
    if isinstance(result, Asymmetry):
        return [Finding(*where, *verdict, result.ratio, result.interval, "Q, K / V, O", result.reason)]
    if isinstance(result, Timescales):
        slow = result.slow
        return [
            Finding(*where, *verdict, slow.tau, slow.interval, "steps, slow time constant", result.reason)
        ]
    return [Finding(*where, *verdict, result.exponent, result.interval, "exponent of depth", result.reason)]
