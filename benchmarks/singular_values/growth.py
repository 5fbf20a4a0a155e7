"""How the time grows: with the size of a matrix, with the batch, with the threads."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import torch

from benchmarks.accuracy_gate import Gate
from benchmarks.baselines import BASELINES, ours
from benchmarks.budget import measure_rows
from benchmarks.cases import Case, bind
from benchmarks.measure import GATE_FAILED
from benchmarks.timing import Contestant, Timing, host_clock, interleave, paired_ratio, spread


def size_cases(sizes: Sequence[int]) -> list[Case]:
    """One square matrix of each size."""
    return [Case(n, n) for n in sizes]


def batch_cases(batches: dict[int, Sequence[int]]) -> list[Case]:
    """batches: of each number of columns, how many matrices."""
    return [Case(n, n, count, ("batch",)) for n, counts in batches.items() for count in counts]


def thread_counts(cores: int) -> list[int]:
    """1, 2, 4, ... and all of them."""
    counts = [1]
    while counts[-1] * 2 < cores:
        counts.append(counts[-1] * 2)
    return [*counts, cores] if cores > 1 else counts


def measure_threads(
    cases: Sequence[Case], counts: Sequence[int], max_seconds: float, progress: Callable[[str], None]
) -> list[dict[str, Any]]:
    """A row for each case: ours and torch on every number of threads, all in turn, float32."""

    def measured(case: Case) -> dict[str, Any]:
        progress(f"{case}, threads {', '.join(map(str, counts))}")
        return _measure(case, counts)

    return measure_rows(
        cases,
        max_seconds,
        lambda case: {"matrices": case.count, "m": case.m, "n": case.n, "dtype": "float32"},
        measured,
    )


def _measure(case: Case, counts: Sequence[int]) -> dict[str, Any]:
    A = case.matrices(torch.float32, torch.device("cpu"))
    calls = case.calls[0]
    gate = Gate(A)
    torch_call = bind(BASELINES["torch"].values, A, calls)
    our_calls = [ours(A, calls, count) for count in counts]
    result = gate.check(our_calls[0].call())
    if not result.holds:
        return {"status": f"{GATE_FAILED}: {result.failure}"}
    timings = interleave(
        [*our_calls, *(Contestant("torch", torch_call, count) for count in counts)], host_clock
    )
    for timing in timings:
        if not timing.ok:
            return {"status": timing.status}
    for timing in timings[: len(counts)]:  # the thread count changes no bit, and so no value
        if not torch.equal(timing.result, timings[0].result):
            return {"status": f"{GATE_FAILED}: other values with {timing.threads} threads than with 1"}
    gated = {**dataclasses.asdict(result), "holds": True}
    return {
        "status": "ok",
        "gate": gated,
        "methods": [_method(timing, timings[: len(counts)]) for timing in timings],
    }


def _method(timing: Timing, our_timings: Sequence[Timing]) -> dict[str, Any]:
    same = next(one for one in our_timings if one.threads == timing.threads)
    alone = our_timings[0]
    return {
        "method": timing.name,
        "threads": timing.threads,
        "seconds": timing.seconds,
        "spread": dataclasses.asdict(spread(timing.seconds)),
        "over_ours": None if timing is same else dataclasses.asdict(paired_ratio(timing, same)),
        "our_one_thread_over_it": dataclasses.asdict(paired_ratio(alone, timing)),
    }
