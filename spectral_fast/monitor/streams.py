"""Where a look's work runs: at once, or on CUDA beside the training.

On CUDA the weights are copied, and everything is computed from the copies, on a stream of the monitor's:

    training   optimizer's kernels | e |                        wait c | forward, backward, optimizer ...
    side                        wait e | copies of the weights | c | kernels | results to the host | d

e keeps the copies behind the optimizer's kernels, c keeps the next step from writing to weights that are
being copied. The host waits for nothing: the results are read at a later step, when d has passed. Until then
the copies of all weights are alive, as much memory as the weights take.

The order of the calls is tested. They have never run on hardware.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from spectral_fast.monitor.groups import Group
from spectral_fast.monitor.matrices import Found
from spectral_fast.tracker import Matrices

Copy = Callable[[Group], Matrices | None]
"""The matrices of a group as they are now, None where there is nothing to compute."""
Compute = Callable[[Group, Matrices | None], Found | None]


class Work(Protocol):
    """What a look has started."""

    @property
    def found(self) -> Sequence[Found | None]:
        """What was computed, group by group; to be read after `wait`."""
        ...

    def ready(self) -> bool:
        """Whether `wait` would not wait."""

    def wait(self) -> float:
        """Wait for the results; seconds of device time that they took beside the training."""


@dataclass(frozen=True)
class HostWork:
    """Work on the host, done when it is returned."""

    found: Sequence[Found | None]

    def ready(self) -> bool:
        return True

    def wait(self) -> float:
        return 0.0


def run_on_host(groups: Sequence[Group], copy: Copy, compute: Compute) -> HostWork:
    """Group by group, so that the copy of one is alive at a time."""
    return HostWork([compute(group, copy(group)) for group in groups])


class SideStreams:
    """A stream of our own on each CUDA device. api: torch.cuda, or what records its calls."""

    def __init__(self, devices: Iterable[torch.device], api: Any = torch.cuda) -> None:
        self._api = api
        self._side = {device: api.Stream(device) for device in devices}

    def run(self, groups: Sequence[Group], copy: Copy, compute: Compute) -> SideWork:
        """Copy all groups, let the training go on, compute. Groups on the host are computed there."""
        begun = {device: self._api.Event(enable_timing=True) for device in self._side}
        done = {device: self._api.Event(enable_timing=True) for device in self._side}
        for device, side in self._side.items():
            side.wait_event(self._api.current_stream(device).record_event())
            begun[device].record(side)
        copies: list[Matrices | None] = []
        for group in groups:
            with self._on(group.device):
                copies.append(copy(group))
        for device, side in self._side.items():
            self._api.current_stream(device).wait_event(side.record_event())
        found = []
        for place, group in enumerate(groups):
            with self._on(group.device):
                one = compute(group, copies[place])
                copies[place] = None
                if one is not None:
                    one.tensors = {name: self._to_host(tensor) for name, tensor in one.tensors.items()}
                found.append(one)
        for device, side in self._side.items():
            done[device].record(side)
        return SideWork(found, list(begun.values()), list(done.values()))

    def _on(self, device: torch.device) -> AbstractContextManager[Any]:
        return self._api.stream(self._side[device]) if device in self._side else nullcontext()

    def _to_host(self, tensor: Tensor) -> Tensor:
        if tensor.device not in self._side:
            return tensor
        host = torch.empty(tensor.shape, dtype=tensor.dtype, device="cpu", pin_memory=True)
        return host.copy_(tensor, non_blocking=True)


@dataclass(frozen=True)
class SideWork:
    """Work on streams of our own: when it began and was done, device by device."""

    found: Sequence[Found | None]
    begun: Sequence[Any]
    done: Sequence[Any]

    def ready(self) -> bool:
        return all(event.query() for event in self.done)

    def wait(self) -> float:
        for event in self.done:
            event.synchronize()
        # Events count milliseconds. As if nothing had run beside it: the most that it can have cost.
        return max(b.elapsed_time(d) for b, d in zip(self.begun, self.done, strict=True)) / 1e3
