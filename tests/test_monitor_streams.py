"""The order of calls on CUDA, recorded; nothing here has run on hardware."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch

from spectral_fast.monitor.groups import Group
from spectral_fast.monitor.matrices import Found
from spectral_fast.monitor.streams import SideStreams, run_on_host

# The meta device stands for a GPU: copying from it does not need one, and copies are recognized by it.
GPU, HOST = torch.device("meta"), torch.device("cpu")


class FakeCuda:
    """torch.cuda's calls by name, in order; an event has passed once `finished` is set."""

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.current = "training"
        self.finished = False
        self.events = 0

    def Stream(self, device: torch.device) -> FakeStream:
        return FakeStream(self, "side")

    def current_stream(self, device: torch.device) -> FakeStream:
        return FakeStream(self, self.current)

    def Event(self, enable_timing: bool = False) -> FakeEvent:
        assert enable_timing
        return FakeEvent(self)

    @contextlib.contextmanager
    def stream(self, stream: FakeStream) -> Iterator[None]:
        before, self.current = self.current, stream.name
        yield
        self.current = before


@dataclass
class FakeStream:
    api: FakeCuda
    name: str

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
        self.api.calls.append(f"{stream.name} records {self.name}")

    def query(self) -> bool:
        return self.api.finished

    def synchronize(self) -> None:
        self.api.calls.append(f"host waits for {self.name}")

    def elapsed_time(self, other: FakeEvent) -> float:
        return 1500.0  # milliseconds


def group(device: torch.device, place: int) -> Group:
    return Group((place,), (), device, 0)


def run(api: FakeCuda, groups: list[Group]) -> Any:
    alive: list[int] = []

    def copy(group: Group) -> torch.Tensor:
        api.calls.append(f"copy {group.places[0]} on {api.current}")
        alive.append(group.places[0])
        return torch.zeros(1)

    def compute(group: Group, A: torch.Tensor | None) -> Found:
        assert A is not None
        api.calls.append(f"compute {group.places[0]} on {api.current}")
        tensors = {"values": torch.full((1,), float(group.places[0]))}
        return Found("exact", (), (), (), tensors)

    return SideStreams([GPU], api).run(groups, copy, compute)


def test_copies_come_between_the_optimizer_and_the_next_step_and_computing_beside_it() -> None:
    api = FakeCuda()
    work = run(api, [group(GPU, 0), group(GPU, 1)])
    assert api.calls == [
        "training records e2",  # the optimizer's kernels
        "side waits for e2",
        "side records e0",  # begun
        "copy 0 on side",
        "copy 1 on side",
        "side records e3",  # copied
        "training waits for e3",
        "compute 0 on side",
        "compute 1 on side",
        "side records e1",  # done
    ]
    # Nothing waited on the host, and nothing is said to be ready before the last event has passed.
    assert not work.ready()
    api.finished = True
    assert work.ready()
    assert work.wait() == 1.5
    assert api.calls[-1] == "host waits for e1"
    assert [found.tensors["values"].item() for found in work.found] == [0.0, 1.0]


def test_weights_on_the_host_beside_it_use_no_stream() -> None:
    api = FakeCuda()
    run(api, [group(GPU, 0), group(HOST, 1)])
    assert "copy 1 on training" in api.calls
    assert "compute 1 on training" in api.calls


def test_the_host_keeps_one_copy_at_a_time() -> None:
    order: list[str] = []

    def copy(group: Group) -> torch.Tensor:
        order.append(f"copy {group.places[0]}")
        return torch.zeros(1)

    def compute(group: Group, A: torch.Tensor | None) -> None:
        order.append(f"compute {group.places[0]}")

    work = run_on_host([group(HOST, 0), group(HOST, 1)], copy, compute)
    assert order == ["copy 0", "compute 0", "copy 1", "compute 1"]
    assert work.ready()
    assert work.wait() == 0.0


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
