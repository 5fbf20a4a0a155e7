"""Measuring the cases of a suite within a time budget, so that what is left out is spread and named."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from benchmarks.cases import Case
from benchmarks.machine import device_memory
from benchmarks.measure import NOT_MEASURED, Row, Setting, expected_seconds, measure, plan_row
from benchmarks.timing import failure_status

# The matrices of a case may take this part of the memory: float64 copies, Gram matrices and work follow.
MEMORY_SHARE = 1 / 8

# A case may take this many times its equal share of the time left; a few large ones would eat the budget
# of a whole grid otherwise. What was passed over is tried again when the others are done.
SHARE_FACTOR = 10
CHEAP_SECONDS = 2.0  # never too much, however many cases there are

INTERRUPTED = "interrupted"


def measure_all(
    cases: Sequence[Case],
    setting: Setting,
    max_seconds: float | None = None,
    progress: Callable[[str], None] = lambda text: None,
) -> Iterator[Row]:
    """The rows of all cases; of those left out by memory, time or Ctrl-C with a status that says so.

    Stacks of layers that take too long when all else is done are cut to half of their layers, or less.
    """
    cap = MEMORY_SHARE * device_memory(setting.device)
    end = None if max_seconds is None else time.monotonic() + max_seconds
    pending: list[Case] = []
    for case in cases:
        if (size := case.input_bytes(setting.dtype)) > cap:
            reason = f"its matrices take {_gib(size)}, more than the cap of {_gib(cap)} (memory / 8)"
            yield from _left_out(case, setting, reason)
        else:
            pending.append(case)
    why = f"not in the budget of {max_seconds:g} s" if max_seconds is not None else ""
    queue, total, passed_over = deque(pending), len(pending), 0
    try:
        while queue:
            if passed_over == len(queue):
                shorter = [_shorter(case, setting) for case in queue]
                if shorter == list(queue):
                    break
                queue, passed_over = deque(shorter), 0
            case = queue[0]
            if end is not None and not _affordable(case, setting, end - time.monotonic(), len(queue)):
                queue.rotate(-1)
                passed_over += 1
                continue
            progress(f"{total - len(queue) + 1}/{total} {case}")
            rows = measure(case, setting)
            queue.popleft()
            passed_over = 0
            yield from rows
    except KeyboardInterrupt:
        why = INTERRUPTED
    for case in queue:
        yield from _left_out(case, setting, why)


def _shorter(case: Case, setting: Setting) -> Case:
    """Half the layers, as long as every thread has one. In other stacks the number is what is measured."""
    return case.first(case.count // 2) if case.roles and case.count >= 2 * setting.threads else case


def _affordable(case: Case, setting: Setting, seconds: float, cases: int) -> bool:
    share = max(CHEAP_SECONDS, SHARE_FACTOR * seconds / cases)
    return expected_seconds(case, setting) <= min(seconds, share)


def _left_out(case: Case, setting: Setting, why: str) -> list[Row]:
    return [plan_row(case, calls, setting, f"{NOT_MEASURED}: {why}") for calls in case.calls]


def _gib(size: float) -> str:
    return f"{size / 2**30:.3g} GiB"


def measure_rows(
    cases: Sequence[Case],
    max_seconds: float,
    about: Callable[[Case], dict[str, Any]],
    measured: Callable[[Case], dict[str, Any]],
) -> list[dict[str, Any]]:
    """For suites of plain rows: `about` each case, and what was `measured` of it, or why it was not."""
    end = time.monotonic() + max_seconds
    rows, why = [], ""
    for case in cases:
        row = about(case)
        if not why and time.monotonic() >= end:
            why = f"not in the budget of {max_seconds:.0f} s"
        if not why:
            try:
                row |= measured(case)
            except KeyboardInterrupt:
                why = INTERRUPTED
            except Exception as error:
                row["status"] = failure_status(error)
        rows.append({"status": f"{NOT_MEASURED}: {why}", "methods": [], **row})
    return rows
