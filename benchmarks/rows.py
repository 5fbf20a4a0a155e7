"""Rows that measure themselves, in turn within a time, and the targets that their figures are held to."""

from __future__ import annotations

import contextlib
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from benchmarks.budget import INTERRUPTED
from benchmarks.measure import GATE_FAILED, NOT_MEASURED
from benchmarks.report import digits
from benchmarks.timing import Timing, failure_status, paired_ratio, spread


class GateError(Exception):
    """Wrong values: the row gets no time."""


class NotMeasured(Exception):
    """Something that the row needs is not there; the message says what."""


class TimedRow(ABC):
    """One line of a table. ``status`` is "ok", or says why there are no times."""

    status: str = "ok"

    @property
    def failed(self) -> bool:
        return self.status.startswith((GATE_FAILED, "failed"))

    @abstractmethod
    def __str__(self) -> str: ...

    @abstractmethod
    def measure(self, repeats: int | None) -> None:
        """Fill in the figures. Raises GateError before any time is taken where values are wrong."""

    @abstractmethod
    def clear(self) -> None:
        """Forget the figures."""


def measure_in_turn(
    rows: Sequence[TimedRow],
    repeats: int | None,
    max_seconds: float | None,
    progress: Callable[[str], None],
) -> None:
    """Measure row after row; those left when the time is over, or after Ctrl-C, say so."""
    end = None if max_seconds is None else time.monotonic() + max_seconds
    why = ""
    for place, row in enumerate(rows):
        if not why and end is not None and time.monotonic() >= end:
            why = f"not in the budget of {max_seconds:g} s"
        if why:
            row.status = f"{NOT_MEASURED}: {why}"
            continue
        progress(f"{place + 1}/{len(rows)} {row}")
        try:
            row.measure(repeats)
            continue
        except KeyboardInterrupt:
            why = INTERRUPTED
            row.status = f"{NOT_MEASURED}: {why}"
        except GateError as error:
            row.status = f"{GATE_FAILED}: {error}"
        except NotMeasured as error:
            row.status = f"{NOT_MEASURED}: {error}"
        except Exception as error:  # ours failed; whatever it is belongs to this row
            row.status = failure_status(error)
        row.clear()


def require(timing: Timing) -> None:
    """Raise where ours failed while it was timed."""
    if not timing.ok:
        raise RuntimeError(timing.status)


def pair_data(timing: Timing, ours: Timing) -> dict[str, Any]:
    """Every sample of a contestant and of ours beside it, and the ratio of the pairs, as plain data."""
    return {
        "calls_per_sample": timing.calls_per_sample,
        "seconds": timing.seconds,
        "spread": asdict(spread(timing.seconds)),
        "our_calls_per_sample": ours.calls_per_sample,
        "our_seconds": ours.seconds,
        "our_spread": asdict(spread(ours.seconds)),
        "ratio": asdict(paired_ratio(timing, ours)),
    }


@dataclass(frozen=True)
class Target:
    """A figure to reach, and the one reached. ``at_least``: or at most."""

    what: str
    reached: float
    target: float
    unit: str
    at_least: bool = True

    @property
    def met(self) -> bool:
        return self.reached >= self.target if self.at_least else self.reached <= self.target

    def __str__(self) -> str:
        bound = "≥" if self.at_least else "≤"
        verdict = "met" if self.met else "missed"
        return f"{digits(self.reached)}{self.unit} (target {bound} {self.target:g}{self.unit}: {verdict})"

    def data(self) -> dict[str, Any]:
        return {**asdict(self), "met": self.met}


@contextlib.contextmanager
def blas_threads(threads: int) -> Iterator[str]:
    """Limit the BLAS of NumPy and SciPy; yields a note where that cannot be done."""
    try:
        import threadpoolctl
    except ImportError:
        yield "the BLAS threads of NumPy and SciPy are not limited: threadpoolctl is not installed"
        return
    with threadpoolctl.threadpool_limits(threads, user_api="blas"):
        yield ""
