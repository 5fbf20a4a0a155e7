"""Paired, interleaved timing: every repeat takes one sample of each contestant, in rotated order.

A machine that slows down for a second slows down all contestants of that repeat, so the ratio of a pair
taken side by side is steadier than the ratio of two medians. Rotation gives nobody the place after a
slow neighbour every time.
"""

from __future__ import annotations

import gc
import math
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

# A sample lasts at least this long: 10^4 times the resolution of the clock, 10^3 times that of CUDA events.
SAMPLE_SECONDS = 1e-3

# The first call pays for loading and allocating: of one shorter than this the second says what it takes.
SHORT_CALL_SECONDS = 20e-3

# Before every sample. Threads of OpenMP spin for some milliseconds after their work, and would take a core
# from a method with threads of its own.
REST_SECONDS = 10e-3

# Repeats: as many as take this long together, within the limits.
CASE_SECONDS = 0.5
REPEATS_LEAST, REPEATS_MOST = 5, 40

Clock = Callable[[Callable[[], Any], int], float]


@dataclass(frozen=True)
class Contestant:
    """A call to time. threads: what torch.set_num_threads gets before; None for a library of its own."""

    name: str
    call: Callable[[], Any]
    threads: int | None = None


@dataclass
class Timing:
    """The samples of one contestant: seconds per call, in the order they were taken.

    ``result`` is what the warm-up call returned. ``status`` is "ok", "out of memory" or "failed: ...".
    """

    name: str
    threads: int | None
    status: str = "ok"
    calls_per_sample: int = 1
    seconds: list[float] = field(default_factory=list)
    result: Any = None

    @property
    def ok(self) -> bool:
        return self.status == "ok"


Step = Callable[[Contestant, Timing, Clock], float]


@dataclass(frozen=True)
class Spread:
    """Five numbers of a sample."""

    median: float
    min: float
    q1: float
    q3: float
    max: float


def spread(samples: Sequence[float]) -> Spread:
    if len(samples) < 2:
        raise ValueError(f"a spread needs at least 2 samples, not {len(samples)}")
    q1, median, q3 = statistics.quantiles(samples, n=4, method="inclusive")
    return Spread(median, min(samples), q1, q3, max(samples))


def paired_ratio(numerator: Timing, denominator: Timing) -> Spread:
    """The spread of the ratios of samples taken in the same repeat."""
    return spread([a / b for a, b in zip(numerator.seconds, denominator.seconds, strict=True)])


def interleave(contestants: Sequence[Contestant], clock: Clock, repeats: int | None = None) -> list[Timing]:
    """Time all contestants; a failing one gets its status and drops out, the others go on.

    repeats: None chooses by the time one repeat takes.
    """
    timings = [Timing(contestant.name, contestant.threads) for contestant in contestants]
    pairs = list(zip(contestants, timings, strict=True))
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        per_repeat = sum(_attempt(warm_up, contestant, timing, clock) for contestant, timing in pairs)
        if repeats is None:
            affordable = math.ceil(CASE_SECONDS / per_repeat) if per_repeat else REPEATS_LEAST
            repeats = min(max(affordable, REPEATS_LEAST), REPEATS_MOST)
        for repeat in range(repeats):
            for contestant, timing in rotated(pairs, repeat):
                if timing.ok:
                    _attempt(take_sample, contestant, timing, clock)
    finally:
        if was_enabled:
            gc.enable()
    for timing in timings:
        if not timing.ok:
            timing.seconds.clear()  # samples of a call that later failed are not a result
    return timings


def rotated(items: Sequence[Any], repeat: int) -> list[Any]:
    """The order of one repeat: each item is first, second, ... equally often."""
    first = repeat % len(items)
    return [*items[first:], *items[:first]]


def failure_status(error: Exception) -> str:
    """The status of a call that raised: "out of memory", however a library says that, or "failed: ..."."""
    text = (str(error).strip() or "no message").splitlines()[0]
    out_of_memory = isinstance(error, MemoryError | torch.OutOfMemoryError) or any(
        words in text.lower() for words in ("out of memory", "allocate memory", "not enough memory")
    )
    return "out of memory" if out_of_memory else f"failed: {type(error).__name__}: {text}"


def host_clock(call: Callable[[], Any], count: int) -> float:
    """Seconds per call, by the wall clock."""
    start = time.perf_counter()
    for _ in range(count):
        call()
    return (time.perf_counter() - start) / count


def cuda_clock(call: Callable[[], Any], count: int) -> float:
    """Seconds per call between two events on the current stream.

    A call returns before the GPU is done, so the wall clock around it would time the launch; and work
    queued earlier would be counted in, were the stream not drained first. Host time between kernels counts:
    the stream stands still meanwhile.
    """
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    torch.cuda.synchronize()
    start.record()
    for _ in range(count):
        call()
    end.record()
    end.synchronize()
    return start.elapsed_time(end) / 1e3 / count


def _attempt(step: Step, contestant: Contestant, timing: Timing, clock: Clock) -> float:
    """Seconds of the step; 0 where it failed, which the status then says."""
    try:
        return step(contestant, timing, clock)
    except Exception as error:  # whatever a library raises is that contestant's row, not the run's end
        timing.status = failure_status(error)
        return 0.0


def warm_up(contestant: Contestant, timing: Timing, clock: Clock) -> float:
    """First call, and the number of calls that make a sample; returns the seconds a sample takes."""
    use_threads(contestant.threads)

    def first() -> None:
        timing.result = contestant.call()

    seconds = clock(first, 1)
    if seconds > SHORT_CALL_SECONDS:
        return seconds
    calls = 1
    while (seconds := clock(contestant.call, calls)) * calls < SAMPLE_SECONDS:
        calls *= 2
    timing.calls_per_sample = calls
    return seconds * calls


def take_sample(contestant: Contestant, timing: Timing, clock: Clock) -> float:
    use_threads(contestant.threads)
    time.sleep(REST_SECONDS)
    seconds = clock(contestant.call, timing.calls_per_sample)
    timing.seconds.append(seconds)
    return seconds


def use_threads(threads: int | None) -> None:
    """Give torch this many threads and wake them, so that no sample pays for starting the pool."""
    if threads is None or threads == torch.get_num_threads():
        return
    torch.set_num_threads(threads)
    square = torch.ones(256, 256)
    torch.mm(square, square)
