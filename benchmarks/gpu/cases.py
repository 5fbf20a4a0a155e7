"""Singular values on a GPU: one stack, all methods, within a time. Gate first, then interleaved pairs."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

import spectral_fast
from benchmarks.accuracy_gate import Gate, GateResult
from benchmarks.baselines import ours
from benchmarks.budget import INTERRUPTED
from benchmarks.cases import Case
from benchmarks.gpu.cost_model import predict
from benchmarks.gpu.device import Gpu
from benchmarks.gpu.peers import Plan, plan, values_of
from benchmarks.measure import GATE_FAILED, NOT_MEASURED
from benchmarks.timing import Spread, Timing, failure_status, interleave, spread

REPEATS = 7  # and one call each for the warm-up and the memory

# Matrices of a stack whose exact values are computed, on the CPU in float64: seconds for one of 8192×2048.
COMPARED = 2

# The smallest share of the time that is worth starting a case for.
LEAST_SECONDS = 1.0


@dataclass
class Method:
    """One method on one stack. Seconds are of one matrix; ``matrices`` were in each call."""

    name: str
    status: str = "ok"
    matrices: int = 0
    seconds: list[float] = field(default_factory=list)
    spread: Spread | None = None
    ratio: Spread | None = None  # its time over ours in the same repeat, both of one matrix
    error: float | None = None  # the largest, in eps sigma_1
    peak_bytes: int | None = None


@dataclass
class CaseRow:
    """One stack in one dtype. ``status`` is "ok", or says why there are no times."""

    case: Case
    dtype: torch.dtype
    plan: str = ""
    backend: str = ""
    status: str = "ok"
    gate: GateResult | None = None
    predicted: float | None = None  # seconds of our call, by the cost model
    methods: list[Method] = field(default_factory=list)

    @property
    def failed(self) -> bool:
        return self.status.startswith((GATE_FAILED, "failed"))


def measure_cases(
    cases: Sequence[Case],
    dtype: torch.dtype,
    gpu: Gpu,
    peers: Sequence[str],
    seconds: float,
    progress: Callable[[str], None],
) -> Iterator[CaseRow]:
    """A row for each stack, the cheapest first; those for which no time is left say so.

    Each case gets an equal share of what is left, so what the small ones leave over goes to the larger.
    """
    end = time.monotonic() + seconds
    ordered = sorted(cases, key=lambda case: case.flops)
    gate_rate = 0.0  # seconds of a gate for one operation, as in the last case
    why = f"{NOT_MEASURED}: not in the budget of {seconds:.0f} s"
    for place, case in enumerate(ordered):
        left = end - time.monotonic()
        row = CaseRow(case, dtype, status=why)
        if left > LEAST_SECONDS + gate_rate * case.flops / case.count:
            share = left / (len(ordered) - place)
            progress(f"{place + 1}/{len(ordered)} {case} {dtype}")
            try:
                row, gate_seconds = measure_case(case, dtype, gpu, peers, share)
                gate_rate = gate_seconds * case.count / case.flops
            except KeyboardInterrupt:
                why = f"{NOT_MEASURED}: {INTERRUPTED}"
                row.status, end = why, 0.0
        yield row


def measure_case(
    case: Case, dtype: torch.dtype, gpu: Gpu, peers: Sequence[str], seconds: float
) -> tuple[CaseRow, float]:
    """A row, and the seconds that its gate took; whatever fails is its status."""
    chosen = spectral_fast.explain(case.shape, dtype, gpu.device)
    row = CaseRow(case, dtype, str(chosen), chosen.backend)
    if gpu.chip is not None:
        row.predicted = predict(case.count, case.m, case.n, dtype, gpu.chip, stats=False).seconds
    start = time.monotonic()
    try:
        A = case.matrices(dtype, gpu.device)
        gate = Gate(A, COMPARED)
        our = ours(A, "batch", torch.get_num_threads())
        row.gate = gate.check(our.call())
        gate_seconds = time.monotonic() - start
        if not row.gate.holds:
            row.status = f"{GATE_FAILED}: {row.gate.failure}"
            return row, gate_seconds
        plans = [plan(name, A, seconds / len(peers), REPEATS + 2, gpu.clock) for name in peers]
        able = [each.contestant for each in plans if each.contestant is not None]
        timings = interleave([our, *able], gpu.clock, REPEATS)
        _fill(row, A, gate, gpu, plans, timings)
    except Exception as error:
        row.status = failure_status(error)
        row.methods.clear()
        gate_seconds = time.monotonic() - start
    return row, gate_seconds


def _fill(row: CaseRow, A: Tensor, gate: Gate, gpu: Gpu, plans: list[Plan], timings: list[Timing]) -> None:
    count = row.case.count
    our_timing = timings[0]
    row.status = our_timing.status
    if not our_timing.ok:
        return
    by_name = {timing.name: timing for timing in timings}
    row.methods.append(_method(our_timing, count, gate))
    row.methods[0].peak_bytes = gpu.peak_memory(lambda: spectral_fast.svdvals(A))
    for each in plans:
        if each.contestant is None:
            row.methods.append(Method(each.name, each.status))
            continue
        timing = by_name[each.name]
        method = _method(timing, each.matrices, gate)
        # Where ours is torch itself a ratio would compare torch with torch.
        if method.spread is not None and row.backend != "reference":
            method.ratio = spread(
                [a / b for a, b in zip(method.seconds, row.methods[0].seconds, strict=True)]
            )
        if method.status == "ok":
            method.peak_bytes = gpu.peak_memory(each.contestant.call)
        row.methods.append(method)


def _method(timing: Timing, matrices: int, gate: Gate) -> Method:
    method = Method(timing.name, timing.status, matrices)
    if not timing.ok:
        return method
    values = values_of(timing.result)
    if not values.isfinite().all():
        method.status = "failed: values are not finite"
        return method
    method.error = gate.error_of(values)
    method.seconds = [seconds / matrices for seconds in timing.seconds]
    method.spread = spread(method.seconds)
    return method
