"""Handing looks to sinks, which may fail: training goes on, and what they missed is delivered again."""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable
from typing import Any

from spectral_fast.monitor.record import Look

Sink = Callable[[Look], Any]

# What looks that wait for a sink may take in memory, and about what one takes beside its singular values.
BACKLOG_BYTES = 64 * 2**20
_MATRIX_BYTES = 2048
# A sink that failed is tried again after this long, then after twice as long, and so on up to the last.
FIRST_RETRY, LAST_RETRY = 1.0, 300.0

_log = logging.getLogger(__name__)


class Delivery:
    """One sink and the looks that wait for it, in order.

    A failure is logged once, and so is the sink's return. Of too many looks the tracked ones are dropped
    first, the oldest of them first, then the newest of the exact ones.
    """

    def __init__(
        self, sink: Sink, *, capacity: int = BACKLOG_BYTES, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.sink = sink
        self.dropped = 0
        self._capacity = capacity
        self._clock = clock
        self._waiting: deque[Look] = deque()
        self._bytes = 0
        self._retry_after = 0.0  # seconds; 0 while all is well
        self._retry_at = 0.0

    @property
    def waiting(self) -> int:
        """Looks not delivered yet."""
        return len(self._waiting)

    def deliver(self, look: Look) -> None:
        """Hand over a look after those that wait; what fails waits."""
        self._waiting.append(look)
        self._bytes += _size(look)
        if not self._retry_after or self._clock() >= self._retry_at:
            self._flush()
        self._bound()

    def close(self) -> None:
        """Try once more, say what is lost, and close the sink."""
        if self._waiting:
            self._flush()
        if self._waiting:
            _log.warning("%s: %d looks were never delivered", self._name, len(self._waiting))
        if self.dropped:
            _log.warning("%s: %d looks were dropped while it failed", self._name, self.dropped)
        close = getattr(self.sink, "close", None)
        if close is not None:
            try:
                close()
            except Exception:
                _log.warning("%s: closing it failed", self._name, exc_info=True)

    def _flush(self) -> None:
        while self._waiting:
            try:
                self.sink(self._waiting[0])
            except Exception as error:
                self._failed(error)
                return
            self._bytes -= _size(self._waiting.popleft())
        if self._retry_after:
            _log.info("%s: works again; %d looks were dropped so far", self._name, self.dropped)
            self._retry_after = 0.0

    def _failed(self, error: Exception) -> None:
        if not self._retry_after:
            _log.warning(
                "%s: %s: %s. Training goes on; looks wait in memory and are delivered when it works again.",
                self._name,
                type(error).__name__,
                error,
            )
        self._retry_after = min(max(FIRST_RETRY, 2 * self._retry_after), LAST_RETRY)
        self._retry_at = self._clock() + self._retry_after

    def _bound(self) -> None:
        while self._bytes > self._capacity and len(self._waiting) > 1:
            tracked = (place for place, look in enumerate(self._waiting) if look.kind != "exact")
            place = next(tracked, len(self._waiting) - 1)
            self._bytes -= _size(self._waiting[place])
            del self._waiting[place]
            self.dropped += 1

    @property
    def _name(self) -> str:
        return f"sink {getattr(self.sink, '__name__', type(self.sink).__name__)}"


def _size(look: Look) -> int:
    return sum(_MATRIX_BYTES + matrix.svdvals.nbytes for matrix in look.matrices)
