"""Launching the CUDA kernels on torch's current stream, through CuPy."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from spectral_fast.cuda.sources import Types, options, source

# A tensor is passed as its address, None as a null pointer, a number as a long long: kernels take nothing else.
Argument = Tensor | int | None


@functools.cache
def _module(stage: str, types: Types) -> Any:
    import cupy

    return cupy.RawModule(code=source(stage), options=options(types), backend="nvrtc")


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
    """Queue a kernel on torch's current device and stream. The first use on a kind of chip compiles the file."""
    import cupy

    device = torch.cuda.current_device()
    with cupy.cuda.Device(device), cupy.cuda.ExternalStream(torch.cuda.current_stream().cuda_stream, device):
        function = _module(stage, types).get_function(kernel)
        if shared > 48 * 1024:
            function.max_dynamic_shared_size_bytes = shared
        function(grid, (threads,), tuple(map(_kernel_argument, args)), shared_mem=shared)
