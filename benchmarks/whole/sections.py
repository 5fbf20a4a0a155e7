"""The sections of ``python -m benchmarks all``: each is one suite, run for its share of the time.

A section takes a :class:`Scope` and returns plain data with ``status`` and its rows. Whatever a suite leaves
out says why in the row's status.
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from benchmarks.baselines import BASELINES
from benchmarks.budget import INTERRUPTED, measure_all
from benchmarks.cases import Case
from benchmarks.machine import gemm_rate, usable_cores
from benchmarks.measure import NOT_MEASURED, Setting
from benchmarks.report import document
from benchmarks.rows import blas_threads, measure_in_turn
from benchmarks.singular_values.conditioning import measure_conditioning
from benchmarks.singular_values.growth import batch_cases, measure_threads, size_cases, thread_counts
from benchmarks.singular_values.leading import measure_leading
from benchmarks.singular_values.memory import measure_memory
from benchmarks.singular_values.stages import (
    Rates,
    StagesRow,
    measure_shapes,
    measure_stages,
    stages_document,
)
from benchmarks.statistics.parts import build_run, measure_run, stats_document
from benchmarks.statistics.tail import measure_tail, tail_document
from benchmarks.statistics.weightwatcher import build_model, compare, comparison_document
from benchmarks.suites import SuiteError, build_suite
from benchmarks.timing import spread
from benchmarks.training.monitor import measure_monitor, monitor_document
from benchmarks.training.tracking import EXPONENTS, GATED, measure_tracking, tracking_document
from benchmarks.whole.operations import operations
from benchmarks.whole.sizes import Sizes

Data = dict[str, Any]
_CPU = torch.device("cpu")
_ALL = tuple(name for name, one in BASELINES.items() if "cpu" in one.devices)
_EVERY = 25  # steps between exact looks, of tracking and monitor
_AUDITS = 0.2

# What a comparison took on 2 cores of the machine in README, at each number of threads: to fit them into a
# budget. The suite itself has none.
_WW_SECONDS = {"minilm": 15.0, "gpt2-124m": 90.0}


@dataclass(frozen=True)
class Scope:
    """What a section may use. seconds: about; gemm: flops per second by dtype."""

    sizes: Sizes
    seconds: float
    threads: int
    gemm: Mapping[str, float]
    progress: Callable[[str], None]


def minilm(scope: Scope) -> Data:
    """Trained weights, a layer stack as one batch, against everything."""
    cases = [dataclasses.replace(case, calls=("batch",)) for case in build_suite("minilm")]
    return _svdvals(cases, scope, _ALL)


def single(scope: Scope) -> Data:
    """One matrix in one call, against everything."""
    return _svdvals(build_suite("single", max_n=scope.sizes.max_n), scope, _ALL)


def nine_models(scope: Scope) -> Data:
    """The distinct stacks of the nine models, against everything."""
    return _svdvals(_nine_models(scope.sizes, scope.sizes.max_n), scope, _ALL)


def nine_models_float64(scope: Scope) -> Data:
    """The same in float64."""
    cases = _nine_models(scope.sizes, scope.sizes.float64_max_n)
    return _svdvals(cases, scope, ("torch", "gram"), torch.float64)


def growth(scope: Scope) -> Data:
    """One square matrix of growing size."""
    return _svdvals(size_cases(scope.sizes.growth), scope, ("torch",))


def batches(scope: Scope) -> Data:
    """Batches of growing size."""
    return _svdvals(batch_cases(dict(scope.sizes.batches)), scope, ("torch",))


def threads(scope: Scope) -> Data:
    """Ours and torch on 1, 2, 4, ... threads up to the cores."""
    cases = [Case(n, n, count, ("batch",) if count > 1 else ("single",)) for count, n in scope.sizes.threads]
    return _rows(measure_threads(cases, thread_counts(usable_cores()), scope.seconds, scope.progress))


def conditioning(scope: Scope) -> Data:
    """Errors against the condition number."""
    sizes = scope.sizes
    conditions = [10.0**decade for decade in sizes.conditions]
    return _rows(
        measure_conditioning(sizes.conditioned, conditions, sizes.seeds, scope.seconds, scope.progress)
    )


def stages(scope: Scope) -> Data:
    """Each stage of one matrix against the bound of its own work."""
    rates = Rates(gemm=scope.gemm["float32"])

    def measured(case: Case) -> StagesRow:
        rates.sample(scope.threads, lambda: gemm_rate(torch.float32, _CPU))
        return measure_stages(case, torch.float32, scope.threads, None)

    torch.set_num_threads(scope.threads)
    rows = list(measure_shapes(scope.sizes.stages, measured, scope.seconds, scope.progress))
    rates.sample(scope.threads, lambda: gemm_rate(torch.float32, _CPU))
    return {"status": "ok", "threads": scope.threads, "gemm": rates.gemm, **stages_document(rows, rates, {})}


def fit(scope: Scope) -> Data:
    """fit_powerlaw against the packages that fit power laws, on one thread."""
    return _stats("fit", scope, 1)


def statistics(scope: Scope) -> Data:
    """All statistics next to the singular values they come from, on one thread."""
    return _stats("share", scope, 1)


def goodness(scope: Scope) -> Data:
    """The bootstrap of a power law, on all cores."""
    return _stats("bootstrap", scope, usable_cores())


def other_operations(scope: Scope) -> Data:
    """What has no suite of its own, on one thread, as the peers are."""
    rows = operations(1, scope.sizes.operations)
    with blas_threads(1):
        measure_in_turn(rows, None, scope.seconds, scope.progress)
    return _rows([row.data() for row in rows])


def leading(scope: Scope) -> Data:
    """Leading values only."""
    cases = [Case(m, n) for m, n in scope.sizes.leading]
    return _rows(measure_leading(cases, scope.threads, scope.seconds, scope.progress))


def tail(scope: Scope) -> Data:
    """tail_stats against all values, on one thread."""
    rows = measure_tail(scope.sizes.tail, 1, None, scope.seconds, scope.progress)
    return {"status": "ok", "threads": 1, **tail_document(rows, {})}


def memory(scope: Scope) -> Data:
    """Peak memory of one call."""
    return _rows(measure_memory(scope.sizes.memory, scope.threads, scope.seconds, scope.progress))


def tracking(scope: Scope) -> Data:
    """SpectralTracker in a training run."""
    torch.set_num_threads(scope.threads)
    found = measure_tracking(
        scope.sizes.tracking,
        lr=1e-3,
        steps=scope.sizes.tracking_steps,
        every=_EVERY,
        share=_AUDITS,
        progress=scope.progress,
        max_seconds=scope.seconds,
    )
    data = tracking_document(found, {})
    data["summary"] = [
        {"statistic": name, **_plain(found.summary(name))} for name in (*GATED, *EXPONENTS) if found.audits
    ]
    data["times"] = [
        {
            **{key: getattr(shape, key) for key in ("rows", "cols", "count")},
            **{"tracker": name, "looks": len(tracked), "asked": shape.asked[name]},
            **{"tracked": _spread(tracked), "ratios": _spread(shape.ratios[name])},
            **{"exact": _spread(shape.exact), "torch": _spread(shape.torch)},
        }
        for shape in found.shapes
        for name, tracked in shape.tracked.items()
    ]
    return data


def monitor(scope: Scope) -> Data:
    """SpectralMonitor's share of a training run."""
    torch.set_num_threads(scope.threads)
    found = measure_monitor(
        scope.sizes.monitor,
        every=_EVERY,
        track_every=1,
        budget=0.02,
        steps=scope.sizes.monitor_steps,
        stretch=_EVERY,
        progress=scope.progress,
        max_seconds=scope.seconds,
    )
    return monitor_document(found, {})


def weightwatcher(scope: Scope) -> Data:
    """WeightWatcher.analyze() of whole models, on one thread and on all."""
    end = time.monotonic() + scope.seconds
    rows: list[Data] = []
    why = ""
    for name in scope.sizes.weightwatcher:
        for randomize in scope.sizes.randomize:
            for count in sorted({1, scope.threads}):
                row: Data = {"model": name, "threads": count, "randomize": randomize}
                rows.append(row)
                if not why and (2 if randomize else 1) * _WW_SECONDS[name] > end - time.monotonic():
                    row["status"] = f"{NOT_MEASURED}: not in the budget of {scope.seconds:.0f} s"
                    continue
                if why:
                    row["status"] = f"{NOT_MEASURED}: {why}"
                    continue
                scope.progress(f"WeightWatcher.analyze() of {name}, threads {count}")
                try:
                    model = build_model(name, scope.sizes.layers_watched)
                except SuiteError as error:
                    row["status"] = f"{NOT_MEASURED}: {error}"
                    continue
                found = compare(name, model, threads=count, repeats=None, randomize=randomize)
                row |= comparison_document(found, {"versions": {}})
                if found.status.endswith(INTERRUPTED):
                    why = INTERRUPTED
    return _rows(rows)


def _svdvals(
    cases: Sequence[Case],
    scope: Scope,
    baselines: tuple[str, ...],
    dtype: torch.dtype = torch.float32,
) -> Data:
    name = str(dtype).removeprefix("torch.")
    setting = Setting(dtype, _CPU, scope.threads, baselines, None, scope.gemm[name])
    rows = list(measure_all(cases, setting, scope.seconds, scope.progress))
    return {"status": "ok", "dtype": name, "threads": scope.threads, **document(rows, {})}


def _nine_models(sizes: Sizes, max_n: int | None) -> list[Case]:
    cases = build_suite("nine-models", max_n=max_n, layers=sizes.layers)
    return [dataclasses.replace(case, calls=sizes.nine_calls) for case in cases]


def _stats(part: str, scope: Scope, threads: int) -> Data:
    run = build_run((part,), scope.sizes.stats_n, torch.float32, threads)
    measure_run(run, None, scope.seconds, scope.progress)
    data = stats_document(run, {"versions": {}})
    return {
        "status": "ok",
        "threads": threads,
        "note": data["note"],
        "versions": data["versions"],
        "summary": data["summary"][part],
        "rows": data[part],
    }


def _rows(rows: list[Data]) -> Data:
    return {"status": "ok", "rows": rows}


def _plain(found: Any) -> Data:
    """null for what is no number."""
    return {
        name: None if isinstance(value, float) and not math.isfinite(value) else value
        for name, value in dataclasses.asdict(found).items()
    }


def _spread(samples: Sequence[float]) -> Data | None:
    return dataclasses.asdict(spread(samples)) if len(samples) > 1 else None
