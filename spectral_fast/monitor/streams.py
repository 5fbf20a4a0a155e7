"""Where a look's work runs: at once, or on CUDA beside the training.

On CUDA the weights are copied, and everything is computed from the copies, on a stream of the monitor's, by a
thread of the monitor's:

    training   optimizer's kernels | e |                        wait c | forward, backward, optimizer ...
    side                        wait e | b | copies of the weights | c | s | kernels | results | d
    caller     e, b, copies, c | the next steps ...
    worker                       s, kernels, results, d

e keeps the copies behind the optimizer's kernels, c keeps the next step from writing to weights that are
being copied. The caller waits for nothing. The worker does: a tracker asks the device for values, which come
behind the training's kernels that are queued already. The results are read at a later step, when the worker
is done and d has passed. Until then copies are alive, as much memory as the weights take.

What talks to other ranks is computed by the caller, on the side stream: all ranks have to come to it in the
same order. So is what would touch settings of the process's, which the training reads.

From b to c and from s to d is what a look can have cost at most: as if the training had stood still.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor

from spectral_fast.monitor.groups import Group
from spectral_fast.monitor.matrices import Found
from spectral_fast.tracker import Matrices

Copy = Callable[[Group], Matrices | None]
"""The matrices of a group as they are now, None where there is nothing to compute."""
Compute = Callable[[Group, Matrices | None], Found | None]
Events = list[tuple[Any, Any]]
"""For each device when something began and when it was done."""


@dataclass(frozen=True)
class Took:
    """What waiting for a look's results tells of its cost, in seconds.

    waited: of the caller's time, for the training's own kernels. That is no cost.
    beside: of the device's time, while the caller was elsewhere.
    """

    waited: float = 0.0
    beside: float = 0.0


class Work(Protocol):
    """What a look has started."""

    @property
    def found(self) -> Sequence[Found | None]:
        """What was computed, group by group; to be read after `wait`."""
        ...

    @property
    def waited(self) -> float:
        """Seconds that starting it has waited for the training's own kernels."""
        ...

    def ready(self) -> bool:
        """Whether `wait` would not wait."""

    def wait(self) -> Took:
        """Wait for the results. Raises what computing them has raised."""


@dataclass(frozen=True)
class HostWork:
    """Work on the host, done when it is returned."""

    found: Sequence[Found | None]
    waited: float = 0.0

    def ready(self) -> bool:
        return True

    def wait(self) -> Took:
        return Took()


def run_on_host(groups: Sequence[Group], copy: Copy, compute: Compute) -> HostWork:
    """Group by group, so that the copy of one is alive at a time."""
    return HostWork([compute(group, copy(group)) for group in groups])


@contextlib.contextmanager
def undisturbed() -> Iterator[None]:
    """In this thread: nothing for autograd to record, nothing for autocast to round."""
    with contextlib.ExitStack() as stack:
        stack.enter_context(torch.no_grad())
        for device in ("cpu", "cuda"):
            if torch.is_autocast_enabled(device):
                stack.enter_context(torch.autocast(device, enabled=False))
        yield


class SideStreams:
    """A stream of our own on each CUDA device, and a thread that computes there.

    The thread starts with the first look and ends with `close`, with this object, or with the interpreter,
    each after the look it is at (which a daemon would leave inside of CUDA while that is torn down).

    api: torch.cuda, or what records its calls. clock: of the caller's time, in seconds.
    """

    def __init__(
        self,
        devices: Iterable[torch.device],
        api: Any = torch.cuda,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._api = api
        self._clock = clock
        self._side = {device: api.Stream(device) for device in devices}
        self._worker = ThreadPoolExecutor(1, thread_name_prefix="spectral-monitor")

    def run(
        self,
        groups: Sequence[Group],
        copy: Copy,
        compute: Compute,
        here: Callable[[Group], bool],
        warm_up: Callable[[Group], None],
    ) -> SideWork:
        """Copy all groups, let the training go on, compute.

        here: whether the caller has to compute a group; groups on the host always are. warm_up: called by the
        worker before it computes a group, outside of what counts as the look's time.
        """
        work = SideWork(self._clock, [None] * len(groups))
        for device, side in self._side.items():
            side.wait_event(self._api.current_stream(device).record_event())
        copies: list[Matrices | None] = []
        with self._timed(work.copying):
            for group in groups:
                with self._on(group.device):
                    copies.append(copy(group))
        for (_, copied), device in zip(work.copying, self._side, strict=True):
            self._api.current_stream(device).wait_event(copied)

        def compute_at(place: int) -> None:
            with self._on(groups[place].device):
                one = compute(groups[place], copies[place])
                copies[place] = None
                if one is not None:
                    one.tensors = {name: self._to_host(tensor) for name, tensor in one.tensors.items()}
                work.found[place] = one

        def compute_beside(places: Sequence[int]) -> None:
            with undisturbed():
                for place in places:
                    with self._on(groups[place].device):
                        warm_up(groups[place])
                with self._timed(work.computing):
                    for place in places:
                        compute_at(place)

        # In order, on all ranks.
        mine = [i for i, group in enumerate(groups) if group.device not in self._side or here(group)]
        talking = any(groups[i].device in self._side for i in mine)
        if talking:
            # For the training's kernels, that they are not charged.
            began = self._clock()
            _synchronize(copied for _, copied in work.copying)
            work.waited = self._clock() - began
        began = self._clock()
        with self._timed(work.computing_here) if talking else nullcontext():
            for i in mine:
                compute_at(i)
        work.blocked = self._clock() - began
        if others := [i for i in range(len(groups)) if i not in mine]:
            work.future = self._worker.submit(compute_beside, others)
        return work

    def close(self) -> None:
        """Wait for the look in work, if any, and end the thread. There are no looks any more."""
        self._worker.shutdown(wait=True, cancel_futures=True)

    def _on(self, device: torch.device) -> AbstractContextManager[Any]:
        return self._api.stream(self._side[device]) if device in self._side else nullcontext()

    @contextlib.contextmanager
    def _timed(self, between: Events) -> Iterator[None]:
        """Events on each side stream, before and after."""
        for _ in self._side:
            between.append((self._api.Event(enable_timing=True), self._api.Event(enable_timing=True)))
        for (begun, _), side in zip(between, self._side.values(), strict=True):
            begun.record(side)
        yield
        for (_, done), side in zip(between, self._side.values(), strict=True):
            done.record(side)

    def _to_host(self, tensor: Tensor) -> Tensor:
        if tensor.device not in self._side:
            return tensor
        host = torch.empty(tensor.shape, dtype=tensor.dtype, device="cpu", pin_memory=True)
        return host.copy_(tensor, non_blocking=True)


@dataclass(eq=False)
class SideWork:
    """Work on streams of our own. waited, blocked: seconds that the caller waited to compute, and did."""

    clock: Callable[[], float]
    found: list[Found | None]
    copying: Events = field(default_factory=list)
    computing_here: Events = field(default_factory=list)
    computing: Events = field(default_factory=list)
    future: Future[None] | None = None  # the worker's part
    waited: float = 0.0
    blocked: float = 0.0
    process: int = field(default_factory=os.getpid)

    def ready(self) -> bool:
        done = self.future is None or self.future.done()
        return done and all(event.query() for _, event in (*self.computing_here, *self.computing))

    def wait(self) -> Took:
        if os.getpid() != self.process:
            raise RuntimeError("a look ends in the process that began it, not in one forked from that")
        began = self.clock()
        _synchronize(begun for begun, _ in self.copying)
        waited = self.clock() - began
        if self.future is not None:
            self.future.result()
        _synchronize(done for _, done in (*self.computing_here, *self.computing))
        blocked = self.clock() - began - waited
        # While the caller computed or waited its own time is counted.
        beside = max(0.0, _seconds(self.copying) + _seconds(self.computing) - blocked)
        return Took(waited, beside + max(0.0, _seconds(self.computing_here) - self.blocked))


def _synchronize(events: Iterable[Any]) -> None:
    for event in events:
        event.synchronize()


def _seconds(events: Events) -> float:
    """Events count milliseconds."""
    return max((begun.elapsed_time(done) for begun, done in events), default=0.0) / 1e3
