"""WeightWatcher's analyze() of a whole model, unmodified and on spectral_fast: tables first, then times."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib
import importlib.metadata
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

import spectral_fast
from benchmarks.budget import INTERRUPTED
from benchmarks.measure import GATE_FAILED, NOT_MEASURED
from benchmarks.report import SCHEMA_VERSION, digits, time_cells
from benchmarks.suites import SuiteError, minilm_file
from benchmarks.timing import Contestant, Spread, Timing, failure_status, host_clock, interleave, spread
from tests.oracles.weightwatcher_models import RTOL, differences, gpt2, minilm

MODELS = ("gpt2-124m", "minilm")
METHODS = ("weightwatcher", "with spectral_fast")

# Where weightwatcher looks up what takes its time: (part, module, attribute).
_CLOCKED = (
    ("svdvals", "RMT_Util", "_svd_vals_accurate"),
    ("svdvals", "RMT_Util", "_svd_vals_fast"),
    ("fit", "RMT_Util", "pl_fit"),
    ("fit", "weightwatcher", "pl_fit"),
)
PARTS = ("svdvals", "fit")

Parts = dict[str, float]


@dataclass
class Method:
    """One way of running analyze(): seconds of each call, and of its parts inside."""

    name: str
    seconds: list[float] = field(default_factory=list)
    spread: Spread | None = None
    parts: list[Parts] = field(default_factory=list)

    def part(self, name: str) -> float:
        """Median seconds of a part."""
        return statistics.median(parts[name] for parts in self.parts)


@dataclass
class Comparison:
    """Both ways of analysing one model. ``status`` is "ok", or says why there are no times."""

    model: str
    randomize: bool
    status: str = "ok"
    matrices: int = 0
    differences: list[str] = field(default_factory=list)
    methods: list[Method] = field(default_factory=list)
    speedup: Spread | None = None
    speedup_without_fit: Spread | None = None  # were our fits to take no time

    @property
    def failed(self) -> bool:
        return self.status.startswith((GATE_FAILED, "failed"))


def build_model(name: str, layers: int | None) -> Any:
    """The model, its first ``layers`` only where given. SuiteError says what is missing for it."""
    for module in ("weightwatcher", "transformers", "threadpoolctl"):
        try:
            importlib.import_module(module)
        except ImportError as error:
            raise SuiteError(f"this benchmark needs {module}: pip install {module} ({error})") from error
    if name == "minilm":
        minilm_file()  # raises where there is none
        return minilm(layers)
    return gpt2(layers=layers or 12)


def compare(name: str, model: Any, *, threads: int, repeats: int | None, randomize: bool) -> Comparison:
    """Both tables, and where they are equal the times; whatever fails is the status."""
    from threadpoolctl import threadpool_limits

    found = Comparison(name, randomize)
    try:
        with threadpool_limits(threads, user_api="blas"):  # SciPy's and NumPy's
            _measure(found, model, threads, repeats)
    except KeyboardInterrupt:
        found.status = f"{NOT_MEASURED}: {INTERRUPTED}"
    except Exception as error:
        found.status = failure_status(error)
    return found


def _measure(found: Comparison, model: Any, threads: int, repeats: int | None) -> None:
    own, ours = (_analyze(model, accelerated, found.randomize)[0] for accelerated in (False, True))
    found.matrices = len(own)
    found.differences = differences(own, ours)
    if not found.matrices or found.differences:
        found.status = f"{GATE_FAILED}: {'the tables differ' if found.differences else 'the table is empty'}"
        return

    calls: dict[str, list[Parts]] = {name: [] for name in METHODS}

    def call(name: str, accelerated: bool) -> Callable[[], None]:
        return lambda: calls[name].append(_analyze(model, accelerated, found.randomize)[1])

    contestants = [Contestant(name, call(name, name != METHODS[0]), threads) for name in METHODS]
    timings = interleave(contestants, host_clock, repeats)
    for timing in timings:
        if not timing.ok:
            found.status = timing.status
            return
    found.methods = [_method(timing, calls[timing.name]) for timing in timings]
    first, second = found.methods
    found.speedup = spread([a / b for a, b in zip(first.seconds, second.seconds, strict=True)])
    found.speedup_without_fit = spread(
        [
            a / (b - parts["fit"])
            for a, b, parts in zip(first.seconds, second.seconds, second.parts, strict=True)
        ]
    )


def _method(timing: Timing, calls: list[Parts]) -> Method:
    per_sample = timing.calls_per_sample
    last = calls[-len(timing.seconds) * per_sample :]  # without those of the warm-up
    samples = [last[i : i + per_sample] for i in range(0, len(last), per_sample)]
    parts = [{name: statistics.fmean(one[name] for one in sample) for name in PARTS} for sample in samples]
    return Method(timing.name, timing.seconds, spread(timing.seconds), parts)


def _analyze(model: Any, accelerated: bool, randomize: bool) -> tuple[Any, Parts]:
    """The table, and what its parts took."""
    import weightwatcher

    np.random.seed(0)  # noqa: NPY002 - weightwatcher shuffles with it
    parts = dict.fromkeys(PARTS, 0.0)
    context = spectral_fast.weightwatcher_accelerated() if accelerated else contextlib.nullcontext()
    with context, _clocked(parts):
        return weightwatcher.WeightWatcher(model=model).analyze(randomize=randomize), parts


@contextlib.contextmanager
def _clocked(parts: Parts) -> Iterator[None]:
    """Adds up the seconds inside of weightwatcher's functions, its own or those in their place."""

    def clocked(part: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            start = time.perf_counter()
            try:
                return function(*args, **kwargs)
            finally:
                parts[part] += time.perf_counter() - start

        return call

    places = [
        (part, importlib.import_module(f"weightwatcher.{module}"), name) for part, module, name in _CLOCKED
    ]
    originals = [getattr(module, name) for _, module, name in places]
    try:
        for (part, module, name), original in zip(places, originals, strict=True):
            setattr(module, name, clocked(part, original))
        yield
    finally:
        for (_, module, name), original in zip(places, originals, strict=True):
            setattr(module, name, original)


def comparison_document(found: Comparison, facts: dict[str, Any]) -> dict[str, Any]:
    """The whole run as plain data."""
    facts["versions"]["weightwatcher"] = importlib.metadata.version("weightwatcher")
    return {"schema_version": SCHEMA_VERSION, **facts, "rtol": RTOL, **dataclasses.asdict(found)}


def print_comparison(found: Comparison, console: Console) -> None:
    """One line a method, or one that says why there are no times."""
    if found.speedup is None or found.speedup_without_fit is None:
        console.print(f"{found.model}: {found.status}")
        for difference in found.differences[:10]:
            console.print(f"  {difference}", markup=False)
        return
    table = Table(box=None, header_style="bold", pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column("analyze()", no_wrap=True)
    for heading in ("median", "quartiles", "svdvals", "fit", "rest", "speed-up", "quartiles"):
        table.add_column(heading, justify="right", no_wrap=True)
    for method in found.methods:
        assert method.spread is not None
        parts = [method.part(name) for name in PARTS]
        row = [method.name, *time_cells(method.spread)]
        row += [f"{digits(part)} s" for part in (*parts, method.spread.median - sum(parts))]
        if method is found.methods[1]:
            row += [f"{digits(found.speedup.median)}×", _range(found.speedup)]
        table.add_row(*row)
    console.print(table)
    without = found.speedup_without_fit
    console.print(
        f"{found.model}: {found.matrices} matrices, tables equal to {RTOL:g}. If our fits took no time: "
        f"{digits(without.median)}× ({_range(without)})."
    )


def _range(times: Spread) -> str:
    return f"{digits(times.q1)}–{digits(times.q3)}"
