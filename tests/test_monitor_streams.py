"""Looks beside the training: the order of calls on CUDA, recorded, and the thread that computes."""

from __future__ import annotations

import contextlib
import gc
import logging
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from torch import Tensor

from spectral_fast.monitor import Look, SpectralMonitor
from spectral_fast.monitor.groups import Group, Weights
from spectral_fast.monitor.matrices import Found
from spectral_fast.monitor.ranks import OneProcess
from spectral_fast.monitor.streams import SideStreams, Took, run_on_host
from spectral_fast.stats import SpectralStats
from spectral_fast.tracker import SpectralTracker
from tests.test_monitor import Model, train

# The meta device stands for a GPU: copying from it does not need one, and copies are recognized by it.
GPU, HOST = torch.device("meta"), torch.device("cpu")
SECONDS = 20.0  # nothing here takes that long but what hangs


class FakeCuda:
    """torch.cuda's calls by name, in order; an event has passed once `finished` is set.

    As torch's, the current stream is each thread's own.
    """

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.finished = False
        self.events = 0
        self.milliseconds = 1500.0
        self._here = threading.local()

    @property
    def current(self) -> str:
        return getattr(self._here, "current", "training")

    @property
    def thread(self) -> str:
        return "caller" if threading.current_thread() is threading.main_thread() else "worker"

    def Stream(self, device: torch.device) -> FakeStream:
        return FakeStream(self, "side")

    def current_stream(self, device: torch.device) -> FakeStream:
        return FakeStream(self, self.current)

    def Event(self, enable_timing: bool = False) -> FakeEvent:
        assert enable_timing
        return FakeEvent(self)

    @contextlib.contextmanager
    def stream(self, stream: FakeStream) -> Iterator[None]:
        before, self._here.current = self.current, stream.name
        yield
        self._here.current = before


class FakeStream:
    def __init__(self, api: FakeCuda, name: str) -> None:
        self.api = api
        self.name = name

    def record_event(self) -> FakeEvent:
        event = FakeEvent(self.api)
        event.record(self)
        return event

    def wait_event(self, event: FakeEvent) -> None:
        self.api.calls.append(f"{self.name} waits for {event.name}")


class FakeEvent:
    def __init__(self, api: FakeCuda) -> None:
        self.api = api
        self.name = f"e{api.events}"
        api.events += 1

    def record(self, stream: FakeStream) -> None:
        self.api.calls.append(f"{stream.name} records {self.name} ({self.api.thread})")

    def query(self) -> bool:
        return self.api.finished

    def synchronize(self) -> None:
        self.api.calls.append(f"{self.api.thread} waits for {self.name}")

    def elapsed_time(self, other: FakeEvent) -> float:
        return self.api.milliseconds


class Clock:
    """Seconds that pass where a test says so."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def group(device: torch.device, place: int) -> Group:
    return Group((place,), (), device, 0)


def test_wide_matrices_join_the_batch_of_tall_ones_on_a_gpu() -> None:
    """There a batch is what pays; on a CPU each shape keeps to itself."""
    model = torch.nn.ModuleList(torch.nn.Linear(*shape, bias=False) for shape in ((8, 32), (32, 8), (8, 8)))
    weights = Weights(model, embeddings=False)
    assert weights.changed()
    assert [group.places for group in weights.groups([0, 0, 0])] == [(0,), (1,), (2,)]
    weights._devices = [torch.device("cuda", 0)] * 3
    both, square = weights.groups([0, 0, 0])
    assert (both.places, square.places) == ((0, 1), (2,))
    tall, wide = (p.detach() for p in list(model.parameters())[:2])
    assert torch.equal(both.stacked(), torch.stack([tall, wide.mT]))


class Looking:
    """A look at groups, recorded: two on the device, unless said otherwise. Computing begins with `go`."""

    def __init__(
        self,
        *devices: torch.device,
        here: Callable[[Group], bool] = lambda group: False,
        clock: Clock | None = None,
    ) -> None:
        self.api, self.clock = FakeCuda(), clock or Clock()
        self.go = threading.Event()
        self.streams = SideStreams([GPU], self.api, self.clock)
        groups = [group(device, place) for place, device in enumerate(devices or (GPU, GPU))]
        with torch.enable_grad(), torch.autocast("cpu", torch.bfloat16):
            self.work = self.streams.run(groups, self.copy, self.compute, here, self.warm_up)

    def copy(self, group: Group) -> Tensor:
        self.api.calls.append(f"copy {group.places[0]} on {self.api.current} ({self.api.thread})")
        return torch.zeros(1)

    def warm_up(self, group: Group) -> None:
        assert self.go.wait(SECONDS)
        self.api.calls.append(f"warm up for {group.places[0]} on {self.api.current} ({self.api.thread})")

    def compute(self, group: Group, A: Tensor | None) -> Found:
        assert A is not None
        if self.api.thread == "worker":
            assert not torch.is_grad_enabled()
            assert not torch.is_autocast_enabled("cpu")
        self.api.calls.append(f"compute {group.places[0]} on {self.api.current} ({self.api.thread})")
        self.clock.now += 1
        return Found("exact", (), (), (), {"values": torch.full((1,), float(group.places[0]))})

    def found(self) -> list[float]:
        return [found.tensors["values"].item() for found in self.work.found]


def test_copies_come_between_the_optimizer_and_the_next_step_and_a_thread_computes_beside_it() -> None:
    looking = Looking()
    queued = [
        "training records e0 (caller)",  # the optimizer's kernels
        "side waits for e0",
        "side records e1 (caller)",  # begun
        "copy 0 on side (caller)",
        "copy 1 on side (caller)",
        "side records e2 (caller)",  # copied
        "training waits for e2",
    ]
    # The caller is back, and nothing is computed yet.
    assert looking.api.calls == queued
    looking.api.finished = True
    assert not looking.work.ready()
    looking.api.finished = False
    looking.go.set()
    looking.streams.close()
    assert looking.api.calls == [
        *queued,
        "warm up for 0 on side (worker)",
        "warm up for 1 on side (worker)",
        "side records e3 (worker)",
        "compute 0 on side (worker)",
        "compute 1 on side (worker)",
        "side records e4 (worker)",  # done
    ]
    assert not looking.work.ready()  # the device is not there yet
    looking.api.finished = True
    assert looking.work.ready()
    assert looking.work.wait() == Took(waited=0.0, beside=3.0)  # 1.5 s of copying, 1.5 of computing
    assert looking.api.calls[-2:] == ["caller waits for e1", "caller waits for e4"]
    assert looking.found() == [0.0, 1.0]


def test_what_the_caller_waits_is_not_counted_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    looking = Looking()
    looking.go.set()
    looking.streams.close()
    looking.clock.now = 0
    looking.api.milliseconds = 3000.0
    # Ten for the training's kernels that came before the look's, and two for these.
    seconds = {"e1": 10, "e4": 2}

    def pass_by(event: FakeEvent) -> None:
        looking.clock.now += seconds[event.name]

    monkeypatch.setattr(FakeEvent, "synchronize", pass_by)
    assert looking.work.wait() == Took(waited=10, beside=3 + 3 - 2)


def test_weights_on_the_host_are_computed_at_once() -> None:
    looking = Looking(GPU, HOST)
    assert "copy 1 on training (caller)" in looking.api.calls
    assert looking.api.calls[-1] == "compute 1 on training (caller)"
    looking.go.set()
    looking.work.wait()
    assert looking.found() == [0.0, 1.0]
    looking.streams.close()


def test_what_talks_to_other_ranks_is_computed_by_the_caller(monkeypatch: pytest.MonkeyPatch) -> None:
    """On the side stream, after the copies; that it waits for them is no cost of the look's."""
    recorded = FakeEvent.synchronize

    def pass_by(event: FakeEvent) -> None:
        recorded(event)
        clock.now += 7

    clock = Clock()
    with monkeypatch.context() as patch:
        patch.setattr(FakeEvent, "synchronize", pass_by)
        looking = Looking(GPU, GPU, here=lambda group: group.places == (1,), clock=clock)
    looking.go.set()
    looking.streams.close()
    assert looking.api.calls[7:] == [
        "caller waits for e2",
        "side records e3 (caller)",
        "compute 1 on side (caller)",
        "side records e4 (caller)",
        "warm up for 0 on side (worker)",
        "side records e5 (worker)",
        "compute 0 on side (worker)",
        "side records e6 (worker)",
    ]
    # 1.5 s of copying and 1.5 of the worker's; of 1.5 s here the caller was there for one.
    assert looking.work.waited == 7
    assert looking.work.wait().beside == pytest.approx(3.5)
    assert looking.found() == [0.0, 1.0]


def test_what_the_worker_raises_comes_out_of_wait() -> None:
    class Failing(Looking):
        def compute(self, group: Group, A: Tensor | None) -> Found:
            raise MemoryError("the device is full")

    looking = Failing()
    looking.go.set()
    looking.streams.close()
    looking.api.finished = True
    assert looking.work.ready()
    with pytest.raises(MemoryError, match="the device is full"):
        looking.work.wait()


def test_closing_waits_for_the_look_in_work() -> None:
    looking = Looking()
    closing = threading.Thread(target=looking.streams.close)
    closing.start()
    closing.join(0.05)
    assert closing.is_alive()
    looking.go.set()
    closing.join(SECONDS)
    assert not closing.is_alive()
    assert "compute 1 on side (worker)" in looking.api.calls
    assert not _workers()


@pytest.mark.filterwarnings("ignore:.*fork")
def test_a_forked_process_does_not_wait_for_a_thread_that_it_does_not_have() -> None:
    looking = Looking()
    if not (child := os.fork()):
        with contextlib.suppress(BaseException):
            looking.streams.close()
            assert not looking.work.ready()
            try:
                looking.work.wait()
            except RuntimeError as error:
                os._exit(0 if "forked" in str(error) else 1)
        os._exit(2)
    looking.go.set()
    deadline = time.monotonic() + SECONDS
    while not (ended := os.waitpid(child, os.WNOHANG))[0]:
        if time.monotonic() > deadline:
            os.kill(child, 9)
        time.sleep(0.01)
    assert ended[1] == 0
    looking.streams.close()


AT_EXIT = """
import threading, time
from tests.test_monitor_streams import Looking
looking = Looking()
threading.Timer(0.2, looking.go.set).start()
class Said:
    def append(self, call):
        print(call, flush=True)
looking.api.calls = Said()
"""


def test_the_interpreter_ends_after_the_look_in_work() -> None:
    root = Path(__file__).parents[1]
    environment = {**os.environ, "PYTHONPATH": str(root)}
    run = subprocess.run(
        [sys.executable, "-c", AT_EXIT],
        env=environment,
        capture_output=True,
        text=True,
        timeout=100,
        check=True,
    )
    assert run.stdout.splitlines()[-1] == "side records e4 (worker)"
    assert not run.stderr


def test_the_host_keeps_one_copy_at_a_time() -> None:
    order: list[str] = []

    def copy(group: Group) -> Tensor:
        order.append(f"copy {group.places[0]}")
        return torch.zeros(1)

    def compute(group: Group, A: Any) -> None:
        order.append(f"compute {group.places[0]}")

    work = run_on_host([group(HOST, 0), group(HOST, 1)], copy, compute)
    assert order == ["copy 0", "compute 0", "copy 1", "compute 1"]
    assert work.ready()
    assert work.wait() == Took()


def test_results_go_to_pinned_memory_without_waiting() -> None:
    """_to_host asks for pinned memory and a copy that does not wait."""
    api = FakeCuda()
    asked: dict[str, Any] = {}

    class OnGpu:
        shape, dtype, device = (2,), torch.float64, GPU

    class Host:
        def copy_(self, source: Any, non_blocking: bool) -> Host:
            asked.update(source=source, non_blocking=non_blocking)
            return self

    def empty(shape: Any, **options: Any) -> Host:
        asked.update(shape=shape, **options)
        return Host()

    source = OnGpu()
    real, torch.empty = torch.empty, empty
    try:
        SideStreams([GPU], api)._to_host(source)
    finally:
        torch.empty = real
    assert asked["source"] is source
    assert asked["non_blocking"]
    assert asked["pin_memory"]
    assert asked["device"] == "cpu"


class Beside(SideStreams):
    """The host as a device of its own: what it computes, a thread does. `hold` keeps that from beginning."""

    def __init__(self, api: FakeCuda, clock: Callable[[], float]) -> None:
        super().__init__([HOST], api, clock)
        self.hold = threading.Lock()

    def _to_host(self, tensor: Tensor) -> Tensor:
        return tensor

    def run(self, groups: Any, copy: Any, compute: Any, here: Any, warm_up: Any) -> Any:
        def held(group: Group, A: Any) -> Any:
            with self.hold:
                return compute(group, A)

        return super().run(groups, copy, held, here, lambda group: None)


class Copying(OneProcess):
    """Snapshots are copies, as on CUDA. tracker: makes the trackers."""

    def __init__(self, tracker: Callable[[], SpectralTracker] = SpectralTracker) -> None:
        self._tracker = tracker

    def tracker(self, group: Group) -> SpectralTracker:
        return self._tracker()

    def snapshot(self, group: Group, kind: Any) -> Tensor:
        return torch.stack([matrix.tensor.detach().clone() for matrix in group.matrices])


def beside(model: torch.nn.Module, looks: list[Look], **options: Any) -> tuple[SpectralMonitor, Beside]:
    """A monitor that computes as on CUDA."""
    options = {"every": 4, "budget": None, "ranks": Copying(), **options}
    monitor = SpectralMonitor(model, sinks=[looks.append], **options)
    api = FakeCuda()
    api.finished, api.milliseconds = True, 0.0
    streams = Beside(api, monitor._account.now)
    monitor._following._streams = streams
    return monitor, streams


def _workers() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith("spectral-monitor")]


def _trained(how: str, **options: Any) -> tuple[list[Look], list[Tensor]]:
    torch.manual_seed(5)
    model = Model(d=256, layers=1)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    looks: list[Look] = []
    monitor = None
    if how == "beside":
        monitor, _ = beside(model, looks, **options)
    elif how == "at once":
        options = {"every": 4, "budget": None, "ranks": Copying(), **options}
        monitor = SpectralMonitor(model, sinks=[looks.append], **options)
    for _ in range(6):
        train(model, optimizer, 1)
        if monitor is not None:
            monitor.step()
            while monitor._pending is not None and not monitor._pending.started.work.ready():
                time.sleep(1e-3)  # or the looks would be others
    if monitor is not None:
        monitor.close()
    return looks, [p.detach().clone() for p in model.parameters()]


def test_looks_of_a_thread_are_those_of_the_caller() -> None:
    """Number by number, exact and tracked; and the training is the one without."""
    at_once, weights = _trained("at once")
    looks, watched = _trained("beside")
    _, plain = _trained("not")
    assert all(map(torch.equal, watched, plain))
    assert all(map(torch.equal, weights, plain))
    assert [(look.step, look.kind) for look in looks] == [(look.step, look.kind) for look in at_once]
    assert {look.kind for look in looks} == {"exact", "tracked"}
    for look, other in zip(looks, at_once, strict=True):
        for mine, theirs in zip(look.matrices, other.matrices, strict=True):
            assert (mine.name, mine.statistics, mine.errors) == (
                theirs.name,
                theirs.statistics,
                theirs.errors,
            )
            assert np.array_equal(mine.svdvals, theirs.svdvals)
    assert not _workers()


def test_a_look_that_still_runs_when_the_next_is_due() -> None:
    looks: list[Look] = []
    monitor, streams = beside(Model(), looks, every=2, track_every=0)
    with streams.hold:
        for _ in range(5):
            monitor.step()
        assert not looks  # and no step has waited
    while not monitor._pending.started.work.ready():
        time.sleep(1e-3)
    monitor.step()
    assert [look.step for look in looks] == [1]
    monitor.close()
    assert [look.step for look in looks] == [1, 6]


def test_closing_reads_the_look_in_work() -> None:
    looks: list[Look] = []
    monitor, streams = beside(Model(), looks)
    streams.hold.acquire()
    monitor.step()
    threading.Timer(0.1, streams.hold.release).start()
    monitor.close()
    assert [look.step for look in looks] == [1]
    assert not _workers()


def test_a_monitor_that_nobody_closes_leaves_no_thread() -> None:
    monitor, _ = beside(Model(), [])
    monitor.step()
    assert _workers()
    del monitor, _
    deadline = time.monotonic() + SECONDS
    while _workers() and time.monotonic() < deadline:
        gc.collect()  # while the look is in work it holds on to all of it
        time.sleep(0.01)
    assert not _workers()


class Unlucky(SpectralTracker):
    """Fails at the first exact look, and then at a tracked one."""

    failures: ClassVar[list[str]] = []

    def exact(self, A: Any) -> SpectralStats:
        if "exact" not in self.failures:
            self.failures.append("exact")
            raise torch.linalg.LinAlgError("no exact look")
        return super().exact(A)

    def track(self, A: Any) -> Any:
        if "tracked" not in self.failures:
            self.failures.append("tracked")
            raise torch.linalg.LinAlgError("no tracked look")
        return super().track(A)


def test_what_fails_in_the_thread_is_told(caplog: pytest.LogCaptureFixture) -> None:
    Unlucky.failures = []
    looks: list[Look] = []
    monitor, _ = beside(torch.nn.Linear(32, 24), looks, ranks=Copying(Unlucky), every=3)
    with caplog.at_level(logging.WARNING):
        for _ in range(8):
            monitor.step()
            while monitor._pending is not None and not monitor._pending.started.work.ready():
                time.sleep(1e-3)
        monitor.close()
    assert [record.message for record in caplog.records] == [
        "step 1: an exact look at weight failed: LinAlgError: no exact look (said once)",
        "step 4: tracking weight failed: LinAlgError: no tracked look (said once)",
    ]
    # After a failure there is nothing to follow before the next exact look.
    first, _, third, failed, *again = looks
    assert (first.step, first.kind, len(first.matrices)) == (1, "exact", 1)
    assert (third.step, third.kind, failed.step, failed.kind) == (3, "exact", 4, "tracked")
    assert np.isnan(failed.matrices[0].statistics["stable_rank"])
    assert [(look.step, look.kind) for look in again[1:]] == [(6, "exact"), (7, "tracked"), (8, "tracked")]
    assert np.isfinite(looks[0].matrices[0].svdvals).all()  # one by one it goes


def test_a_thread_that_fails_as_a_whole_is_told_and_looking_goes_on(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks: list[Look] = []
    monitor, streams = beside(Model(), looks, every=1, track_every=0)
    to_host, calls = Beside._to_host, []

    def once(self: Beside, tensor: Tensor) -> Tensor:
        calls.append(1)
        if len(calls) == 1:
            raise RuntimeError("CUDA error: out of pinned memory")
        return to_host(self, tensor)

    monkeypatch.setattr(Beside, "_to_host", once)
    with caplog.at_level(logging.WARNING):
        for _ in range(5):
            monitor.step()
            while monitor._pending is not None and not monitor._pending.started.work.ready():
                time.sleep(1e-3)
        monitor.close()
    (record,) = caplog.records
    assert "looking failed: RuntimeError: CUDA error: out of pinned memory" in record.message
    assert [look.step for look in looks] == [3, 4, 5]
    assert streams._worker._shutdown
