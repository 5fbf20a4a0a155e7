"""Sinks that fail: training goes on, looks wait and come in order."""

from __future__ import annotations

import logging
from typing import Any

import numpy as np
import pytest

from spectral_fast.monitor import Look, MatrixLook
from spectral_fast.monitor.delivery import LAST_RETRY, Delivery

VALUES = 1024  # of a look here: 4 KiB beside the 2 KiB that a matrix is taken for


def look(step: int, kind: str = "tracked") -> Look:
    values = np.zeros(VALUES, np.float32)
    matrix = MatrixLook("w", 0, "q", VALUES, VALUES, "float32", kind, {}, {}, (), values)
    return Look(step, kind, 0.0, 0.0, 0.0, 25, 1, [matrix])


class Flaky:
    """Fails while it is broken; remembers what it took and when it was tried."""

    def __init__(self) -> None:
        self.broken = False
        self.took: list[int] = []
        self.tried = 0
        self.closed = 0

    def __call__(self, look: Look) -> None:
        self.tried += 1
        if self.broken:
            raise OSError(28, "No space left on device")
        self.took.append(look.step)

    def close(self) -> None:
        self.closed += 1


@pytest.fixture
def now() -> list[float]:
    return [0.0]


@pytest.fixture
def sink() -> Flaky:
    return Flaky()


def test_looks_wait_and_come_in_order(
    sink: Flaky, now: list[float], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    delivery = Delivery(sink, clock=lambda: now[0])
    delivery.deliver(look(1))
    sink.broken = True
    for step in range(2, 12):
        now[0] += 0.5
        delivery.deliver(look(step))
    assert sink.took == [1]
    assert delivery.waiting == 10
    sink.broken = False
    now[0] += LAST_RETRY
    delivery.deliver(look(12))
    assert sink.took == list(range(1, 13))
    assert delivery.waiting == 0
    assert [record.levelname for record in caplog.records] == ["WARNING", "INFO"]
    assert "Flaky: OSError: [Errno 28] No space left on device" in caplog.text
    assert "works again" in caplog.text


def test_the_next_failure_is_told_again(
    sink: Flaky, now: list[float], caplog: pytest.LogCaptureFixture
) -> None:
    delivery = Delivery(sink, clock=lambda: now[0])
    for step, broken in enumerate([True, False, True, True]):
        sink.broken = broken
        now[0] += LAST_RETRY
        delivery.deliver(look(step))
    assert len(caplog.records) == 2


def test_retries_become_seldom_but_do_not_end(sink: Flaky, now: list[float]) -> None:
    sink.broken = True
    delivery = Delivery(sink, clock=lambda: now[0])
    tries = []
    for step in range(3000):
        before = sink.tried
        delivery.deliver(look(step))
        if sink.tried > before:
            tries.append(now[0])
        now[0] += 1.0
    gaps = np.diff(tries)
    assert list(gaps[:8]) == [1, 2, 4, 8, 16, 32, 64, 128]
    assert set(gaps[9:]) == {LAST_RETRY}


def test_memory_is_bounded_and_the_oldest_exact_looks_last(
    sink: Flaky, now: list[float], caplog: pytest.LogCaptureFixture
) -> None:
    sink.broken = True
    one = 2048 + 4 * VALUES
    delivery = Delivery(sink, capacity=10 * one, clock=lambda: now[0])
    for step in range(40):
        delivery.deliver(look(step, "exact" if step % 5 == 0 else "tracked"))
    assert delivery.waiting == 10
    assert delivery.dropped == 30
    sink.broken = False
    delivery.close()
    # All 8 exact ones, and the newest tracked ones.
    assert sink.took == [0, 5, 10, 15, 20, 25, 30, 35, 38, 39]
    assert "30 looks were dropped" in caplog.text

    sink.broken, sink.took = True, []
    delivery = Delivery(sink, capacity=10 * one, clock=lambda: now[0])
    for step in range(40):
        delivery.deliver(look(step, "exact"))
    sink.broken = False
    delivery.close()
    assert sink.took == list(range(10))


def test_a_look_larger_than_the_memory_is_kept(sink: Flaky) -> None:
    sink.broken = True
    delivery = Delivery(sink, capacity=10)
    delivery.deliver(look(1))
    assert delivery.waiting == 1


def test_closing_tries_a_last_time_and_says_what_is_lost(
    sink: Flaky, caplog: pytest.LogCaptureFixture
) -> None:
    sink.broken = True
    delivery = Delivery(sink)
    delivery.deliver(look(1))
    delivery.deliver(look(2))
    tried = sink.tried
    delivery.close()
    assert sink.tried == tried + 1
    assert sink.closed == 1
    assert "2 looks were never delivered" in caplog.text


def test_a_sink_that_cannot_be_closed(caplog: pytest.LogCaptureFixture) -> None:
    class Stuck(Flaky):
        def close(self) -> None:
            raise RuntimeError("stuck")

    Delivery(Stuck()).close()
    assert "closing it failed" in caplog.text
    assert "stuck" in caplog.text


def test_a_plain_function_is_a_sink() -> None:
    got: list[Any] = []
    delivery = Delivery(got.append)
    delivery.deliver(look(3))
    delivery.close()
    assert [one.step for one in got] == [3]


def test_ctrl_c_in_a_sink_is_not_swallowed() -> None:
    def interrupted(look: Look) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Delivery(interrupted).deliver(look(1))
