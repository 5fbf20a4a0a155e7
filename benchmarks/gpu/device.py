"""What the GPU report asks of the machine it runs on: a clock, kernel times, memory, clocks and driver."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch._C._autograd import DeviceType

from benchmarks.gpu.chips import Chip, chip_of
from benchmarks.timing import Clock, cuda_clock

Call = Callable[[], Any]

# What nvidia-smi is asked for. One name that a driver does not know, and it answers nothing.
_STATE = (
    *("name", "driver_version", "pstate", "clocks.sm", "clocks.max.sm", "clocks.mem", "clocks.max.mem"),
    *("power.draw", "power.limit", "temperature.gpu", "ecc.mode.current"),
)


class NoGpuError(RuntimeError):
    """There is no CUDA device to measure."""


@dataclass(frozen=True)
class KernelTime:
    """All launches of one kernel in a call."""

    name: str
    launches: int
    seconds: float


@dataclass(frozen=True)
class Gpu:
    """A device and how things are measured on it.

    Attributes:
        clock: seconds per call. profile: the kernels of a call. peak_memory: bytes a call takes besides its
            input. state: clocks, power, driver, as text. chip: for predictions, where it is known.
    """

    device: torch.device
    name: str
    clock: Clock
    profile: Callable[[Call], list[KernelTime]]
    peak_memory: Callable[[Call], int]
    state: Callable[[], dict[str, str]]
    chip: Chip | None


def cuda_gpu() -> Gpu:
    """torch's current CUDA device. Raises NoGpuError where there is none."""
    if not torch.cuda.is_available():
        why = (
            "this torch is built without CUDA"
            if torch.version.cuda is None
            else "torch sees no CUDA device here"
        )
        raise NoGpuError(f"{why}; nothing is measured on another device instead")
    device = torch.device("cuda", torch.cuda.current_device())
    properties = torch.cuda.get_device_properties(device)
    return Gpu(
        device,
        properties.name,
        cuda_clock,
        _profile,
        _peak_memory,
        lambda: nvidia_smi(f"GPU-{properties.uuid}"),
        chip_of(properties.name, (properties.major, properties.minor)),
    )


def _profile(call: Call) -> list[KernelTime]:
    """CUPTI's times, through torch.profiler: it sees the kernels of every library in the process."""
    torch.cuda.synchronize()
    activities = [torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]
    with torch.profiler.profile(activities=activities) as profile:
        call()
        torch.cuda.synchronize()
    return kernel_times(profile.key_averages())


def kernel_times(averages: Iterable[Any]) -> list[KernelTime]:
    """What ran on the device, of the averages of torch.profiler; the most expensive first."""
    found = [
        KernelTime(event.key, event.count, event.self_device_time_total / 1e6)
        for event in averages
        if event.device_type == DeviceType.CUDA and not event.is_user_annotation
    ]
    return sorted(found, key=lambda kernel: -kernel.seconds)


def _peak_memory(call: Call) -> int:
    """Of torch's allocator: CuPy's own pool and what cuSOLVER takes by itself do not show."""
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    call()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before


def nvidia_smi(device: str) -> dict[str, str]:
    """What nvidia-smi says of a device; where it says nothing, why."""
    command = ["nvidia-smi", f"--id={device}", f"--query-gpu={','.join(_STATE)}", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, encoding="utf-8", check=False, timeout=30)
    except (OSError, subprocess.SubprocessError) as error:
        return {"error": f"nvidia-smi: {type(error).__name__}"}
    values = [value.strip() for value in done.stdout.strip().split(",")]
    if done.returncode or len(values) != len(_STATE):
        return {"error": f"nvidia-smi: {(done.stderr or done.stdout).strip()[:200]}"}
    return dict(zip(_STATE, values, strict=True))
