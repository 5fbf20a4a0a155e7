"""What each stage takes, over torch.linalg.svdvals of the same matrix: one process's figures.

``python -m benchmarks.regression.stage_ratios [CASE ...]`` prints them as JSON. A fresh process each time,
because where code and matrices lie in memory is drawn anew in each, which moves some figures by a third.

One thread, and processor time: what else the machine does interrupts long calls more often than short ones,
and wall times would have a ratio depend on it. The kernels' own clocks are wall clocks; of their short stages
some sample is undisturbed. The least of all samples is taken on both sides: noise only ever adds.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

import spectral_fast
from benchmarks.regression.watched import Operation, matrices
from benchmarks.singular_values.stages import Stages, stages_of
from benchmarks.timing import Contestant, Timing, interleave

# Small enough for many samples; every stage is there: up to 128 columns go directly to bidiagonal, tall ones
# through reduce, groups have no stages. And what is timed on them as a whole.
STAGED = (
    Operation("svdvals", (128, 128)),
    Operation("svdvals", (384, 384)),
    Operation("svdvals", (1536, 384)),
    Operation("svdvals", (384, 384), torch.float64),
)
WHOLE = (
    Operation("svdvals", (256, 32, 32)),
    *STAGED,
    Operation("gram_product", (384, 384)),
    Operation("tracked_look", (384, 384)),
    Operation("tail_stats", (384, 384)),
)
CASES = tuple(dict.fromkeys(operation.case for operation in WHOLE))

REPEATS = 24
# In a row: after a rest a first call finds its matrix wherever the neighbours left it, and load takes twice
# as long.
CLOCKED = 4
SPECTRA = 64  # of one call: the statistics of a single one take some microseconds


class ValuesError(Exception):
    """Wrong values: no ratio is formed."""


def ratios(cases: Sequence[str]) -> dict[str, float]:
    """Seconds of each stage over torch's, by ``case stage``. Raises ValuesError before anything is timed."""
    found: dict[str, float] = {}
    for case in cases:
        wholes = [operation for operation in WHOLE if operation.case == case]
        staged = next((operation for operation in STAGED if operation.case == case), None)
        found |= {f"{case} {name}": ratio for name, ratio in _ratios(wholes, staged).items()}
    return found


def _ratios(wholes: Sequence[Operation], staged: Operation | None) -> dict[str, float]:
    A = matrices(wholes[0].shape, wholes[0].dtype)
    calls: dict[str, Callable[[], Any]] = {"torch": lambda: torch.linalg.svdvals(A)}
    for operation in wholes:
        prepared = operation.prepare()
        if wrong := prepared.check(prepared.call()):
            raise ValuesError(f"{operation.name}: {wrong}")
        calls[operation.kind] = prepared.call
    clocks: list[Stages] = []
    if staged is not None:
        S = spectral_fast.svdvals(A)
        if not torch.equal(stages_of(A, 1)[0], S):
            raise ValuesError(f"{staged.name}: the clocked call has other values than svdvals")
        spectra = S.repeat(SPECTRA, 1)
        calls["stats"] = lambda: spectral_fast.stats_from_svdvals(spectra)
        calls["stages"] = lambda: clocks.extend(_clocked(A) for _ in range(CLOCKED))
    timings = {
        timing.name: timing
        for timing in interleave([Contestant(*one, 1) for one in calls.items()], processor_clock, REPEATS)
    }
    seconds = {name: _least(timing) for name, timing in timings.items()}
    if staged is not None:
        del seconds["stages"]  # the same as svdvals
        seconds |= {name: min(call[name][0] for call in clocks) for name in clocks[0]}
    theirs = seconds.pop("torch")
    return {name: least / theirs for name, least in seconds.items()}


def _clocked(A: Tensor) -> Stages:
    return stages_of(A, 1)[1]


def _least(timing: Timing) -> float:
    if not timing.ok:
        raise RuntimeError(f"{timing.name}: {timing.status}")
    return min(timing.seconds)


def processor_clock(call: Callable[[], Any], count: int) -> float:
    """Seconds of this thread's processor time per call."""
    start = time.thread_time()
    for _ in range(count):
        call()
    return (time.thread_time() - start) / count


def main() -> None:
    torch.set_num_threads(1)
    try:
        json.dump({"ratios": ratios(sys.argv[1:] or CASES)}, sys.stdout)
    except ValuesError as error:
        json.dump({"wrong": str(error)}, sys.stdout)


if __name__ == "__main__":
    main()
