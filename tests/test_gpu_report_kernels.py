"""A look at a model on a GPU, kernel by kernel, and what is asked of the device."""

from __future__ import annotations

import os
import textwrap
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._C._autograd import DeviceType

import spectral_fast
from benchmarks.gpu import device
from benchmarks.gpu.device import KernelTime, NoGpuError, cuda_gpu, kernel_times, nvidia_smi
from benchmarks.gpu.look import kernel_stages, measure_look, measure_stages
from spectral_fast.cuda import sources
from tests.gpu_machine import LARGE, SQUARE, WIDE, Machine


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Machine:
    return Machine(monkeypatch)


# The look, and kernel by kernel


def test_a_look_is_taken_a_call_a_role_and_a_call_a_shape(machine: Machine) -> None:
    calls: list[tuple[int, ...]] = []
    real = spectral_fast.spectral_stats

    def spy(A: Tensor, **options: Any) -> Any:
        calls.append(tuple(A.shape))
        machine.ran = ("ours", len(A))
        return real(A, **options)

    machine.patch.setattr(spectral_fast, "spectral_stats", spy)
    look = measure_look(machine.gpu, [SQUARE, WIDE], 60.0)
    assert look.status == "ok"
    assert look.matrices == 4 * 6 + 6
    assert all(gate.holds for gate in look.gates)
    assert look.alpha_error is not None
    assert look.alpha_error < 1e-3
    assert [way.calls for way in look.ways] == [5, 2, 5]
    assert all(len(way.seconds) == 7 and way.peak_bytes == machine.memory for way in look.ways)
    assert [way.name for way in look.ways] == [
        *("ours, a call a role", "ours, a call a shape"),
        "torch.linalg.svdvals, values only",
    ]
    assert {(24, 40, 40), (6, 40, 40), (6, 30, 90)} <= set(calls)
    assert look.predicted is not None
    assert 0 < look.predicted < 1


def test_a_look_with_wrong_values_gets_no_time(machine: Machine) -> None:
    real = spectral_fast.spectral_stats

    def wrong(A: Tensor, **options: Any) -> Any:
        found = real(A, **options)
        if found.svdvals is not None:
            found.svdvals[0, -1] += found.svdvals[0, 0] * 1e-5
        return found

    machine.patch.setattr(spectral_fast, "spectral_stats", wrong)
    look = measure_look(machine.gpu, [SQUARE], 60.0)
    assert look.failed
    assert look.status.startswith("accuracy gate failed")
    assert look.ways == []


def test_torch_is_left_out_of_the_look_where_it_takes_too_long(machine: Machine) -> None:
    machine.seconds["torch"] = 1.0
    look = measure_look(machine.gpu, [SQUARE, WIDE], 60.0)
    assert look.status == "ok"
    assert look.ways[-1].spread is None
    assert look.ways[-1].status.startswith("not measured: ")
    assert look.ways[0].spread is not None


def test_kernels_of_a_call_beside_their_prediction(machine: Machine) -> None:
    row = measure_stages(machine.gpu, LARGE, torch.float32)
    assert row.status == "ok"
    ours, other = row.kernels
    assert (ours.kernel, ours.stage, ours.launches, ours.seconds) == ("distance_kernel", "stats", 1, 3e-3)
    assert ours.predicted is not None
    assert (other.stage, other.predicted) == ("other", None)


def test_every_kernel_has_the_file_it_is_in(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    source = """
        #include "kernels.h"
        __device__ void helper(float* x) {}
        extern "C" __global__ void __launch_bounds__(max_warps * warp_size) chase(Wide* band) {}
        extern "C" __global__ void __launch_bounds__(f(1), (2))
            pack_band(const Scalar* a, long long n) {}
        extern "C" __global__ void plain (Scalar* a) {}
        """
    (tmp_path / "bidiagonal.cu").write_text(textwrap.dedent(source))
    monkeypatch.setattr(sources, "folder", lambda: tmp_path)
    found = kernel_stages()
    assert {name for name, stage in found.items() if stage == "bidiagonal"} == {"chase", "pack_band", "plain"}
    assert found["spectrum_kernel"] == found["distance_kernel"] == "stats"
    assert not any(name.startswith("_") for name in found)


def test_the_kernels_of_this_checkout_are_found() -> None:
    for file in sources.folder().glob("*.cu"):
        assert file.read_text().count("__global__") == list(kernel_stages().values()).count(file.stem)


# The device


def test_kernel_times_are_those_of_the_device() -> None:
    def event(key: str, device: DeviceType, microseconds: float, annotation: bool = False) -> Any:
        found = SimpleNamespace(key=key, count=2, device_type=device, is_user_annotation=annotation)
        found.self_device_time_total = microseconds
        return found

    events = [
        event("cudaLaunchKernel", DeviceType.CPU, 0),
        event("panel", DeviceType.CUDA, 10),
        event("my region", DeviceType.CUDA, 99, annotation=True),
        event("chase", DeviceType.CUDA, 30),
    ]
    assert kernel_times(events) == [KernelTime("chase", 2, 30e-6), KernelTime("panel", 2, 10e-6)]


def test_torch_profiler_has_what_is_read_of_it() -> None:
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        torch.ones(3).sum()
    assert len(profile.key_averages()) > 0
    assert kernel_times(profile.key_averages()) == []  # reads every field, and nothing ran on a device


def test_nvidia_smi(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    tool = tmp_path / "nvidia-smi"
    names = device._STATE
    tool.write_text(f"#!/bin/sh\necho '{', '.join(f'v{i}' for i in range(len(names)))}'\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    assert nvidia_smi("GPU-1") == {name: f"v{i}" for i, name in enumerate(names)}
    tool.write_text("#!/bin/sh\necho 'Unable to determine the device handle' >&2\nexit 9\n")
    assert nvidia_smi("GPU-1") == {"error": "nvidia-smi: Unable to determine the device handle"}
    monkeypatch.setenv("PATH", str(tmp_path / "empty"))
    assert nvidia_smi("GPU-1") == {"error": "nvidia-smi: FileNotFoundError"}


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a device")
def test_no_device_is_an_error() -> None:
    with pytest.raises(NoGpuError, match="nothing is measured on another device instead"):
        cuda_gpu()
