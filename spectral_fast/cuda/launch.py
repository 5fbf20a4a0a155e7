"""Launching the CUDA kernels on torch's current stream, through CuPy."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from spectral_fast.cuda.sources import Types, options, source

# A tensor is passed as its address, None as a null pointer, a number as a long long; kernels take no other.
Argument = Tensor | int | None


class _CurrentStream:
    """torch's current stream, by the CUDA stream protocol, which torch's own class has from 2.10 on."""

    def __cuda_stream__(self) -> tuple[int, int]:
        return 0, torch.cuda.current_stream().cuda_stream


def _cupy() -> Any:
    try:
        import cupy
    except ImportError as error:
        message = f"the CUDA kernels need CuPy: pip install 'spectral_fast[cuda]' ({error})"
        raise RuntimeError(message) from error
    return cupy


@functools.cache
def _module(stage: str, types: Types, device: int) -> Any:
    return _cupy().RawModule(code=source(stage), options=options(types), backend="nvrtc")


@functools.cache
def _function(stage: str, kernel: str, types: Types, device: int) -> Any:
    if torch.cuda.is_current_stream_capturing():
        raise RuntimeError(
            f"{stage}.cu is loaded by its first launch, which no CUDA graph captures: call svdvals with a "
            "matrix of the same shape, dtype and strides once before the capture"
        )
    function = _module(stage, types, device).get_function(kernel)
    # Once, and all there is: what a launch set for itself another thread's could lower before it ran.
    limit = torch.cuda.get_device_properties(device).shared_memory_per_block_optin  # type: ignore[attr-defined]
    function.max_dynamic_shared_size_bytes = limit
    return function


def _kernel_argument(arg: Argument) -> np.generic:
    if isinstance(arg, Tensor):
        return np.uint64(arg.data_ptr())
    return np.uint64(0) if arg is None else np.int64(arg)


def launch(
    stage: str,
    kernel: str,
    types: Types,
    grid: tuple[int, int],
    threads: int,
    args: Sequence[Argument],
    shared: int = 0,
) -> None:
    """Queue a kernel on torch's current device and stream. First use of a file on a kind of chip compiles it.

    Raises RuntimeError where CuPy is missing.
    """
    cuda, device = _cupy().cuda, torch.cuda.current_device()
    with cuda.Device(device), cuda.Stream.from_external(_CurrentStream()):
        function = _function(stage, kernel, types, device)
        function(grid, (threads,), tuple(map(_kernel_argument, args)), shared_mem=shared)
