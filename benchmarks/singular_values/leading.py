"""The leading values only: torch.svd_lowrank and tail_stats, next to all values.

torch.svd_lowrank is what people take for a few leading values. It computes no others, so it is no peer of
svdvals: its line has the largest relative error of the k values it gives, next to its time. Asked for exactly
k, with torch's default of two iterations; more columns make it slower and better.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

import spectral_fast
from benchmarks.accuracy_gate import Gate
from benchmarks.budget import measure_rows
from benchmarks.cases import Case
from benchmarks.measure import GATE_FAILED
from benchmarks.timing import Contestant, host_clock, interleave, paired_ratio, spread

K = 16
# What tail_stats' leading values promise where they are not exact (docs/tail.md; the gate of `tracking` too).
TAIL_ERROR = 1e-2


def _lowrank(A: Tensor) -> Tensor:
    return torch.svd_lowrank(A, q=K, niter=2)[1]  # torch's default iterations


def _tail(A: Tensor) -> Tensor:
    return spectral_fast.tail_stats(A, k=K, generator=torch.Generator().manual_seed(0)).leading


METHODS: dict[str, Callable[[Tensor], Tensor]] = {
    "svdvals (all values)": lambda A: spectral_fast.svdvals(A),
    f"tail_stats (top {K} and estimates)": _tail,
    "torch.linalg.svdvals (all values)": torch.linalg.svdvals,
    f"torch.svd_lowrank (top {K} only)": _lowrank,
}


def measure_leading(
    cases: Sequence[Case], threads: int, max_seconds: float, progress: Callable[[str], None]
) -> list[dict[str, Any]]:
    """A row for each float32 matrix; ``over_ours`` is over svdvals with all its values."""

    def measured(case: Case) -> dict[str, Any]:
        progress(f"{case}, leading values")
        return _measure(case, threads)

    return measure_rows(
        cases,
        max_seconds,
        lambda case: {"m": case.m, "n": case.n, "dtype": "float32", "threads": threads, "k": K},
        measured,
    )


def _measure(case: Case, threads: int) -> dict[str, Any]:
    torch.set_num_threads(threads)
    A = case.matrices(torch.float32, torch.device("cpu"))
    gate = Gate(A).check(spectral_fast.svdvals(A))
    if not gate.holds:
        return {"status": f"{GATE_FAILED}: {gate.failure}"}
    exact = torch.linalg.svdvals(A.double())[:K]

    def error(values: Tensor) -> float:
        return float((values[:K].double() / exact - 1).abs().max())

    if not (off := error(_tail(A))) <= TAIL_ERROR:
        return {"status": f"{GATE_FAILED}: a leading value of tail_stats is off by {off:.1e}"}
    timings = interleave(
        [Contestant(name, partial(method, A), threads) for name, method in METHODS.items()],
        host_clock,
    )
    methods = []
    for timing in timings:
        found: dict[str, Any] = {"method": timing.name, "status": timing.status}
        if timing.ok:
            found |= {
                "seconds": timing.seconds,
                "spread": dataclasses.asdict(spread(timing.seconds)),
                "over_ours": dataclasses.asdict(paired_ratio(timing, timings[0])) if timings[0].ok else None,
                "largest_error": error(timing.result),
            }
        methods.append(found)
    status = next((one.status for one in timings[:2] if not one.ok), "ok")
    return {"status": status, "gate": {**dataclasses.asdict(gate), "holds": True}, "methods": methods}
