"""The stopwatch: how samples are paired, how many there are, what a failure leaves."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import pytest
import torch

from benchmarks.timing import (
    Contestant,
    Timing,
    failure_status,
    host_clock,
    interleave,
    paired_ratio,
    rotated,
    spread,
)


def test_a_contestant_that_fails_later_has_no_samples() -> None:
    calls = itertools.count()

    def breaks_in_the_end() -> None:
        if next(calls) == 3:
            raise RuntimeError("late")

    steady, late = interleave(
        [Contestant("steady", lambda: None), Contestant("late", breaks_in_the_end)],
        lambda call, count: call() or 1.0,
        repeats=5,
    )
    assert (late.status, late.seconds) == ("failed: RuntimeError: late", [])
    assert len(steady.seconds) == 5


def test_repeats_interleave_and_rotate() -> None:
    log: list[str] = []
    contestants = [Contestant(name, lambda name=name: log.append(name)) for name in "abc"]
    interleave(contestants, lambda call, count: call() or 1.0, repeats=5)
    assert "".join(log) == "abc" + "abc" + "bca" + "cab" + "abc" + "bca"  # warm-up first
    assert rotated("abc", 4) == ["b", "c", "a"]


def test_ratio_is_taken_in_pairs() -> None:
    """A machine that gets slower from repeat to repeat moves the times, not the ratio."""
    slowness = itertools.count()

    def clock(call: Callable[[], float], count: int) -> float:
        return (call() or 1.0) * 10.0 ** (next(slowness) // 2)

    ours, theirs = interleave([Contestant("ours", lambda: 1.0), Contestant("torch", lambda: 2.0)], clock, 6)
    assert spread(ours.seconds).max > 1e4 * spread(ours.seconds).min
    ratio = paired_ratio(theirs, ours)
    assert (ratio.min, ratio.median, ratio.max) == pytest.approx((2, 2, 2))


def test_repeats_and_inner_loops_follow_the_time() -> None:
    def timing(seconds: float) -> Timing:
        return interleave([Contestant("", lambda: None)], lambda call, count: call() or seconds)[0]

    assert (len(timing(10.0).seconds), timing(10.0).calls_per_sample) == (5, 1)
    assert len(timing(0.05).seconds) == 10
    fast = timing(1e-6)
    assert (len(fast.seconds), fast.calls_per_sample) == (40, 1024)
    real = interleave([Contestant("", lambda: None)], host_clock, 5)[0]
    assert real.calls_per_sample > 1000
    assert max(real.seconds) < 1e-5  # per call, not per sample


def test_spread() -> None:
    found = spread([5.0, 1.0, 3.0, 2.0, 4.0])
    assert (found.min, found.q1, found.median, found.q3, found.max) == (1, 2, 3, 4, 5)
    with pytest.raises(ValueError, match="at least 2"):
        spread([1.0])


def test_memory_errors_of_every_library() -> None:
    for error in (
        MemoryError(),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried ..."),
        RuntimeError("cudaErrorMemoryAllocation: out of memory"),
    ):
        assert failure_status(error) == "out of memory"
    assert failure_status(ValueError("")) == "failed: ValueError: no message"
