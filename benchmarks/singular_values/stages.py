"""Where the time of one matrix goes: each stage of the CPU pipeline against the bound of its own work.

The kernels read a clock where a stage ends and count its work (csrc/kernels.h, StageClock). Nothing is
modelled here.
"""

from __future__ import annotations

import dataclasses
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

import spectral_fast
from benchmarks.accuracy_gate import Gate, GateResult
from benchmarks.budget import INTERRUPTED
from benchmarks.cases import Case
from benchmarks.measure import GATE_FAILED, NOT_MEASURED
from benchmarks.report import SCHEMA_VERSION, digits, time_cells
from benchmarks.timing import Contestant, Spread, failure_status, host_clock, interleave, spread
from spectral_fast import _cpu

SHAPES = ((256, 256), (512, 512), (768, 768), (1024, 1024), (2048, 2048), (3072, 768), (4096, 1024))

UNITS = ("flops_float32", "flops_float64", "divisions")

Stages = dict[str, tuple[float, str, float]]  # name: seconds, unit of the work, amount of it


@dataclass
class Rates:
    """What all threads of the run can do in a second: by unit of work, and torch.mm.

    The best of the whole run, sampled beside every shape: it stands for what the machine can do, and other
    work may slow it down at any time.
    """

    peak: dict[str, float] = field(default_factory=lambda: dict.fromkeys(UNITS, 0.0))
    gemm: float = 0.0

    def sample(self, threads: int, gemm: Callable[[], float]) -> None:
        for unit in UNITS:
            self.peak[unit] = max(self.peak[unit], _cpu.peak(unit, threads))
        self.gemm = max(self.gemm, gemm())


@dataclass(frozen=True)
class Stage:
    """One stage of one shape."""

    name: str
    seconds: list[float]
    spread: Spread
    share: float  # of the call's time
    unit: str
    amount: float

    @property
    def rate(self) -> float:
        return self.amount / self.spread.median


@dataclass
class StagesRow:
    """One shape. ``status`` is "ok", or says why there are no times."""

    case: Case
    status: str = "ok"
    gate: GateResult | None = None
    seconds: list[float] = field(default_factory=list)
    whole: Spread | None = None  # svdvals, called as users do
    copy_rate: float = 0.0  # bytes per second
    stages: list[Stage] = field(default_factory=list)
    rest: float | None = None  # share of the call outside of all stages

    @property
    def failed(self) -> bool:
        return self.status.startswith((GATE_FAILED, "failed"))

    def bound(self, stage: Stage, rates: Rates) -> float:
        """The rate that limits the stage's work."""
        return self.copy_rate if stage.unit == "bytes" else rates.peak[stage.unit]

    def gemm_share(self, rates: Rates) -> float | None:
        return None if self.whole is None else self.case.flops / self.whole.median / rates.gemm


def gemm_share(stage: Stage, rates: Rates) -> float | None:
    return stage.rate / rates.gemm if stage.unit.startswith("flops") else None


def stages_of(A: Tensor, threads: int) -> tuple[Tensor, Stages]:
    """The values of one matrix and what each stage took."""
    m, n = A.shape
    values = torch.empty(min(m, n), dtype=torch.float64 if A.dtype == torch.float64 else torch.float32)
    element = _cpu.element_types[str(A.dtype).removeprefix("torch.")]
    stages = _cpu.svdvals_stages(
        A.data_ptr(), element, m, n, A.stride(0), A.stride(1), values.data_ptr(), threads
    )
    return values, stages


def measure_stages(case: Case, dtype: torch.dtype, threads: int, repeats: int | None) -> StagesRow:
    """A row; whatever fails is its status."""
    row = StagesRow(case)
    try:
        _measure(row, case.matrices(dtype, torch.device("cpu")), threads, repeats)
    except Exception as error:
        row.status = failure_status(error)
        row.stages.clear()
    return row


def _measure(row: StagesRow, A: Tensor, threads: int, repeats: int | None) -> None:
    expected = spectral_fast.svdvals(A)
    row.gate = Gate(A).check(expected)
    if not row.gate.holds:
        row.status = f"{GATE_FAILED}: {row.gate.failure}"
        return
    values, stages = stages_of(A, threads)
    if not stages:
        row.status = f"{NOT_MEASURED}: so small a matrix goes in a group and has no stages"
        return
    if not torch.equal(values, expected):
        row.status = f"{GATE_FAILED}: the clocked call has other values than svdvals"
        return

    copy = torch.empty_like(A, dtype=expected.dtype)
    used = sorted({1, threads})  # a small copy is faster on one thread
    copies = interleave([Contestant("copy", lambda: copy.copy_(A), n) for n in used], host_clock, repeats)
    calls: list[Stages] = []
    whole, clocked = interleave(
        [
            Contestant("svdvals", lambda: spectral_fast.svdvals(A), threads),
            Contestant("stages", lambda: calls.append(stages_of(A, threads)[1]), threads),
        ],
        host_clock,
        repeats,
    )
    for timing in (whole, clocked, *copies):
        if not timing.ok:
            row.status = timing.status
            return
    row.seconds, row.whole = whole.seconds, spread(whole.seconds)
    row.copy_rate = (A.nbytes + copy.nbytes) / min(second for timing in copies for second in timing.seconds)

    per_sample = clocked.calls_per_sample
    del calls[: -len(clocked.seconds) * per_sample]  # those of the warm-up
    samples = [calls[i : i + per_sample] for i in range(0, len(calls), per_sample)]
    for name, (_, unit, amount) in stages.items():
        seconds = [statistics.fmean(call[name][0] for call in sample) for sample in samples]
        share = _median_ratio(seconds, clocked.seconds)
        row.stages.append(Stage(name, seconds, spread(seconds), share, unit, amount))
    inside = [sum(stage.seconds[i] for stage in row.stages) for i in range(len(samples))]
    row.rest = 1 - _median_ratio(inside, clocked.seconds)


def _median_ratio(parts: Sequence[float], wholes: Sequence[float]) -> float:
    return statistics.median(part / whole for part, whole in zip(parts, wholes, strict=True))


def measure_shapes(
    shapes: Sequence[tuple[int, int]],
    measure: Callable[[Case], StagesRow],
    max_seconds: float | None,
    progress: Callable[[str], None],
) -> Iterator[StagesRow]:
    """A row for each shape in turn; those left when the time is over, or after Ctrl-C, say so."""
    end = None if max_seconds is None else time.monotonic() + max_seconds
    why = ""
    for place, (m, n) in enumerate(shapes):
        case = Case(m, n)
        if not why and end is not None and time.monotonic() >= end:
            why = f"not in the budget of {max_seconds:g} s"
        row = StagesRow(case, f"{NOT_MEASURED}: {why}")
        if not why:
            progress(f"{place + 1}/{len(shapes)} {case}")
            try:
                row = measure(case)
            except KeyboardInterrupt:
                why = INTERRUPTED
                row.status += why
        yield row


def stages_document(rows: Sequence[StagesRow], rates: Rates, facts: dict[str, Any]) -> dict[str, Any]:
    """The whole run as plain data."""
    return {
        "schema_version": SCHEMA_VERSION,
        **facts,
        "peak": rates.peak,
        "rows": [_row_data(row, rates) for row in rows],
    }


def _row_data(row: StagesRow, rates: Rates) -> dict[str, Any]:
    return {
        "m": row.case.m,
        "n": row.case.n,
        "flops": row.case.flops,
        "status": row.status,
        "gate": row.gate and {**dataclasses.asdict(row.gate), "holds": row.gate.holds},
        "seconds": row.seconds,
        "whole": row.whole and dataclasses.asdict(row.whole),
        "gemm_share": row.gemm_share(rates),
        "rest": row.rest,
        "stages": [
            {
                **dataclasses.asdict(stage),
                "rate": stage.rate,
                "bound": row.bound(stage, rates),
                "reached": stage.rate / row.bound(stage, rates),
                "gemm_share": gemm_share(stage, rates),
            }
            for stage in row.stages
        ],
    }


def machine_line(facts: dict[str, Any], rates: Rates, threads: int) -> str:
    cpu = f"{facts['machine']['cpu']}, {_cpu.current_isa()}, {threads} thread{'s' if threads > 1 else ''}"
    peak = ", ".join(f"{_rate(rate, unit)} {_KINDS[unit]}" for unit, rate in rates.peak.items())
    return f"{cpu}\nout of registers {peak}; torch.mm {_rate(rates.gemm, 'flops')}"


_KINDS = {"flops_float32": "in float32", "flops_float64": "in float64", "divisions": "in float64"}
_NAMES = {"bytes": "B", "divisions": "div"}


def _rate(rate: float, unit: str) -> str:
    return f"{digits(rate / 1e9)} G{_NAMES.get(unit, 'flop')}/s"


def _work(amount: float, unit: str) -> str:
    factor, prefix = (1e9, "G") if amount >= 1e9 else (1e6, "M")
    return f"{digits(amount / factor)} {prefix}{_NAMES.get(unit, 'flop')}"


def _percent(share: float | None) -> str:
    return "" if share is None else f"{100 * share:.1f} %"


def print_stages(rows: Sequence[StagesRow], rates: Rates, console: Console) -> None:
    """The whole and then its stages for each shape; a shape without times has one line that says why."""
    table = Table(box=None, header_style="bold", pad_edge=False, padding=(0, 2, 0, 0))
    for heading in ("case", "stage"):
        table.add_column(heading, no_wrap=True)
    for heading in ("median", "quartiles", "share", "work", "rate", "bound", "reached", "GEMM"):
        table.add_column(heading, justify="right", no_wrap=True)
    for row in rows:
        if row.whole is None:
            table.add_row(str(row.case), row.status)
            continue
        flops, rate = row.case.flops, row.case.flops / row.whole.median
        head = (
            str(row.case),
            "whole",
            *time_cells(row.whole),
            "",
            _work(flops, "flops"),
            _rate(rate, "flops"),
        )
        table.add_row(*head, "", "", _percent(row.gemm_share(rates)))
        for stage in row.stages:
            bound = row.bound(stage, rates)
            table.add_row(
                "",
                stage.name,
                *time_cells(stage.spread),
                _percent(stage.share),
                _work(stage.amount, stage.unit),
                _rate(stage.rate, stage.unit),
                _rate(bound, stage.unit),
                _percent(stage.rate / bound),
                _percent(gemm_share(stage, rates)),
            )
        table.add_row("", "rest", "", "", _percent(row.rest))
    console.print(table)
    console.print(
        "whole: svdvals, 4mn² − 4/3 n³ operations. share: of a call with the clock. bound: the rate of the "
        "registers, or of a torch copy of\nthe matrix. GEMM: share of the measured torch.mm rate. "
        "rest: outside of all stages (workspace, threads, Python).",
        style="dim",
    )
