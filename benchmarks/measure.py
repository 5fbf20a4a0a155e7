"""One case from matrices to rows: plan, accuracy gate, interleaved timing, ratios."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

import spectral_fast
from benchmarks.accuracy_gate import Gate, GateResult
from benchmarks.baselines import BASELINES, contestants, ours
from benchmarks.cases import Case
from benchmarks.timing import (
    CASE_SECONDS,
    REPEATS_LEAST,
    Spread,
    Timing,
    cuda_clock,
    failure_status,
    host_clock,
    interleave,
    paired_ratio,
    spread,
)

# torch on all threads counts as slower than on one from here on; below, it is the spread of equal runs.
SLOWER_MARGIN = 1.05

GATE_FAILED = "accuracy gate failed"
NOT_MEASURED = "not measured"


@dataclass(frozen=True)
class Setting:
    """What all cases of a run share. gemm_flops: the machine's measured rate, per second."""

    dtype: torch.dtype
    device: torch.device
    threads: int
    baselines: tuple[str, ...]
    repeats: int | None
    gemm_flops: float


@dataclass
class Measurement:
    """One method on one case. Seconds are per call of the case (a loop counts as one)."""

    method: str
    threads: int | None
    status: str
    seconds: list[float] = field(default_factory=list)
    calls_per_sample: int = 1
    spread: Spread | None = None
    ratio: Spread | None = None  # its time over ours in the same repeat: > 1 where ours is faster
    error: float | None = None  # the largest on the gate's sample, in eps sigma_1
    gemm_share: float | None = None


@dataclass
class Row:
    """One case called in one way. ``status`` is "ok", or says why there are no times."""

    case: Case
    calls: str
    plan: str
    backend: str
    status: str = "ok"
    gate: GateResult | None = None
    measurements: list[Measurement] = field(default_factory=list)
    torch_used: Measurement | None = None  # the better of torch's thread counts
    torch_slower_with_threads: bool = False

    @property
    def failed(self) -> bool:
        """Whether ours gave wrong values or none, for another reason than memory or time."""
        return self.status.startswith((GATE_FAILED, "failed"))

    @property
    def speedup(self) -> Spread | None:
        """torch's time over ours; None where nothing was compared or ours is torch itself."""
        return None if self.torch_used is None else self.torch_used.ratio


def plan_row(case: Case, calls: str, setting: Setting, status: str = "ok") -> Row:
    """A row without times yet, with the path that ours takes for such a call."""
    shape = (case.m, case.n) if calls == "loop" else case.shape
    plan = spectral_fast.explain(shape, setting.dtype, setting.device)
    return Row(case, calls, str(plan), plan.backend, status)


def measure(case: Case, setting: Setting) -> list[Row]:
    """The rows of a case, one for each way of calling it. Whatever fails is the status of its row."""
    rows = [plan_row(case, calls, setting) for calls in case.calls]
    torch.set_num_threads(setting.threads)
    try:
        A = case.matrices(setting.dtype, setting.device)
        gate = Gate(A)
    except Exception as error:  # no memory for the matrices or the oracle
        for row in rows:
            row.status = failure_status(error)
        return rows
    for row in rows:
        try:
            _measure_calls(row, A, gate, setting)
        except Exception as error:  # ours failed, or the comparison of its values
            row.status = failure_status(error)
            row.measurements.clear()
    return rows


def _measure_calls(row: Row, A: Tensor, gate: Gate, setting: Setting) -> None:
    torch.set_num_threads(setting.threads)
    our_contestant = ours(A, row.calls, setting.threads)
    row.gate = gate.check(_stacked(our_contestant.call()))
    if not row.gate.holds:
        row.status = f"{GATE_FAILED}: {row.gate.failure}"
        return
    able, obstacles = contestants(setting.baselines, A, row.calls, setting.threads)
    clock = cuda_clock if setting.device.type == "cuda" else host_clock
    timings = interleave([our_contestant, *able], clock, setting.repeats)
    our_timing = timings[0]
    row.status = our_timing.status
    for timing in timings:
        row.measurements.append(_measurement(timing, our_timing, row, gate, setting))
    row.measurements += [Measurement(name, None, why) for name, why in obstacles.items()]
    _compare_with_torch(row)


def _measurement(timing: Timing, our_timing: Timing, row: Row, gate: Gate, setting: Setting) -> Measurement:
    found = Measurement(timing.name, timing.threads, timing.status)
    if not timing.ok or not our_timing.ok:
        return found
    values = _stacked(timing.result)
    if not values.isfinite().all():
        found.status = "failed: values are not finite"
        return found
    found.seconds, found.calls_per_sample = timing.seconds, timing.calls_per_sample
    found.spread = spread(timing.seconds)
    found.error = gate.error_of(values)
    found.gemm_share = row.case.flops / found.spread.median / setting.gemm_flops
    # Where ours is torch itself a ratio would compare torch with torch.
    if timing is not our_timing and row.backend != "reference":
        found.ratio = paired_ratio(timing, our_timing)
    return found


def _stacked(result: object) -> Tensor:
    """The values a call returned, of any library, as one tensor."""
    if isinstance(result, list):
        return torch.stack([torch.as_tensor(values) for values in result])
    return torch.as_tensor(result)


def _compare_with_torch(row: Row) -> None:
    """Choose torch's better thread count by its median, and say where more threads cost time."""
    runs = [m for m in row.measurements if m.method == "torch" and m.spread is not None]
    if not runs:
        return
    best = min(runs, key=_median)
    row.torch_used = best if row.backend != "reference" else None
    single, most = (f(runs, key=lambda m: m.threads or 0) for f in (min, max))
    if single is not most:
        slower = [b / a for a, b in zip(single.seconds, most.seconds, strict=True)]
        row.torch_slower_with_threads = spread(slower).median > SLOWER_MARGIN


def _median(measurement: Measurement) -> float:
    assert measurement.spread is not None
    return measurement.spread.median


def expected_seconds(case: Case, setting: Setting) -> float:
    """A guess at what measuring the case takes, to fit cases into a time budget.

    Values at a tenth of the GEMM rate and 20 µs a matrix, in a gate, a warm-up and five repeats (or more).
    """
    per_call = case.flops / (0.1 * setting.gemm_flops) + 20e-6 * case.count
    threaded = sum(2 if BASELINES[name].threaded else 1 for name in setting.baselines)
    repeats = (setting.repeats or REPEATS_LEAST) + 2
    return max(CASE_SECONDS, per_call * (1 + threaded) * repeats) * len(case.calls)
