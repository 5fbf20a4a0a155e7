"""The first call of svdvals on a device, which checks the kernels; test_triton_numerics.py runs this file.

On the pretend device of cuda_pipeline_interpreted.py.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from torch import Tensor

from spectral_fast import _ops
from spectral_fast.backends import cuda as backend
from spectral_fast.cuda import pipeline
from tests.cuda_emulator import Emulator
from tests.cuda_pipeline_interpreted import check, matrix, pretend_device, svdvals

__all__ = ["pretend_device"]  # a fixture of every test here too


@pytest.fixture(autouse=True)
def first_calls() -> Iterator[None]:
    backend._missing.cache_clear()
    yield
    backend._missing.cache_clear()


def test_a_kernel_that_is_wrong_is_not_used(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The first call on a device checks; a warning says what runs instead."""

    def values_off(*args: Any) -> None:
        emulate(*args)
        if args[1] == "finish":
            args[5][-1].mul_(1 + 1e-5)

    emulate = Emulator(order="forward")
    monkeypatch.setattr(pipeline, "launch", values_off)
    A = matrix((2, 90, 70), torch.float32)
    torch.testing.assert_close(svdvals(A, None), torch.linalg.svdvals(A), rtol=0, atol=0)
    assert "computed by torch: their kernels err by" in caplog.text
    with pytest.raises(ValueError, match="'bidiag' is not available on this GPU: their kernels err by"):
        svdvals(A)


def test_a_kernel_that_fails_is_not_used(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fails(*args: Any) -> None:
        raise RuntimeError("nvrtc: invalid value for --gpu-architecture")

    monkeypatch.setattr(pipeline, "launch", fails)
    A = matrix((2, 90, 70), torch.float32)
    torch.testing.assert_close(svdvals(A, None), torch.linalg.svdvals(A), rtol=0, atol=0)
    assert "their kernels fail there: RuntimeError: nvrtc: invalid value" in caplog.text


@pytest.mark.parametrize("kernel", ["panel", "panel_scratch", "chase", "direct", "finish"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_first_check_runs_every_kernel(
    dtype: torch.dtype, kernel: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*args: Any) -> None:
        if args[1] == kernel:
            raise RuntimeError("an illegal memory access was encountered")
        emulate(*args)

    emulate = Emulator(order="forward")
    monkeypatch.setattr(pipeline, "launch", fails)
    with pytest.raises(ValueError, match="their kernels fail there: RuntimeError: an illegal"):
        svdvals(torch.ones(2, 2, dtype=dtype))


def test_the_first_check_loads_every_binary_for_a_capture(monkeypatch: pytest.MonkeyPatch) -> None:
    """triton's for each layout of A, and for whether 16 divides cols (test_what_triton_specializes)."""

    def notes(A: Tensor, rows: int, cols: int) -> tuple[Tensor, Tensor, Tensor]:
        seen.add((A.stride(1) < A.stride(2), cols % 16 == 0))
        return load(A, rows, cols)

    load, seen = pipeline.load, set[tuple[bool, bool]]()
    monkeypatch.setattr(pipeline, "load", notes)
    backend._missing(torch.device("cpu"), torch.float32)
    assert seen == {(False, False), (False, True), (True, False), (True, True)}


def test_each_dtype_has_a_check(monkeypatch: pytest.MonkeyPatch) -> None:
    """Kernels for half precisions may be wrong where those for float32 are right."""

    def wrong(A: Tensor, rows: int, cols: int) -> tuple[Tensor, Tensor, Tensor]:
        a, exponent, info = load(A, rows, cols)
        return (2 * a if A.dtype == torch.bfloat16 else a), exponent, info

    load = pipeline.load
    monkeypatch.setattr(pipeline, "load", wrong)
    svdvals(torch.ones(2, 2))
    with pytest.raises(ValueError, match="their kernels err by"):
        svdvals(torch.ones(2, 2, dtype=torch.bfloat16))


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
        RuntimeError("CUDA_ERROR_OUT_OF_MEMORY: out of memory"),  # CuPy's, for a module
    ],
)
def test_no_memory_for_the_first_check_says_nothing_of_the_kernels(
    error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The error is the call's; with memory the next call runs on them."""

    def fails(*args: Any) -> None:
        raise error

    A = matrix((2, 90, 70), torch.float32)
    with monkeypatch.context() as patch:
        patch.setattr(pipeline, "launch", fails)
        with pytest.raises(type(error), match=r"(?i)out of memory"):
            svdvals(A, None)
    check(svdvals(A), A)


def test_the_first_check_may_wait_where_torch_shall_raise(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch.cuda.set_sync_debug_mode("error"), 2, is for what follows."""

    def notes(*args: Any) -> None:
        seen.append(mode)
        emulate(*args)

    def set_mode(value: int) -> None:
        nonlocal mode
        mode = value

    mode, seen, emulate = 2, list[int](), Emulator(order="forward")
    monkeypatch.setattr(torch.cuda, "get_sync_debug_mode", lambda: mode)
    monkeypatch.setattr(torch.cuda, "set_sync_debug_mode", set_mode)
    monkeypatch.setattr(pipeline, "launch", notes)
    backend._missing(torch.device("cpu"), torch.float32)
    assert set(seen) == {0}
    seen.clear()
    svdvals(torch.ones(2, 2))
    assert set(seen) == {2}


def test_first_checks_of_two_threads_take_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    """The second would save the first's mode as torch's, and put it back for good."""

    def check_alone(device: torch.device, dtype: torch.dtype) -> str:
        inside.append(dtype)
        time.sleep(0.05)  # for the other thread to come in
        together.append(len(inside))
        inside.remove(dtype)
        return ""

    inside, together = list[torch.dtype](), list[int]()
    monkeypatch.setattr(backend, "_wrong", check_alone)
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(lambda dtype: backend._missing(torch.device("cpu"), dtype), _ops.REAL_DTYPES[:2]))
    assert together == [1, 1]


def test_a_first_call_in_a_graph_capture_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    with pytest.raises(RuntimeError, match=r"call it once with torch\.float32 on .* before the capture"):
        svdvals(torch.ones(2, 90, 70))
