"""The pipeline of spectral_fast/cuda behind svdvals_ex on CUDA.

Nothing here waits for the device unless asked to check errors, but for the first call on a device: it
compiles the kernels and compares their values with LAPACK's. CuPy and triton are imported by that call or by
capabilities(), not before.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import math
import threading
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from spectral_fast import _ops
from spectral_fast.backends import reference, triton
from spectral_fast.heuristics import choose

_log = logging.getLogger(__name__)

# The operators that run on kernels of ours where these load; backends/triton.py has the others.
OPERATORS = ("svdvals_ex",)

# A check changes a mode of the process, and what it compiles need not be compiled twice at once.
_checking = threading.Lock()

_EXTRA = "pip install 'spectral_fast[cuda]'"


def installed() -> bool:
    return triton.importable("cupy")


@functools.cache
def load() -> tuple[Any, str]:
    """spectral_fast.cuda.pipeline, or None and why: ROCm, a package that is missing or cannot be imported."""
    if torch.version.hip is not None:
        return None, "on ROCm only the statistics have kernels"
    kernels, missing = triton.load()
    if kernels is None:
        return None, f"{missing}: {_EXTRA}"
    if not installed():
        return None, f"CuPy is not installed: {_EXTRA}"
    try:
        import cupy  # noqa: F401

        from spectral_fast.cuda import pipeline
    except Exception as error:  # a broken installation raises anything
        return None, f"CuPy is installed but its import fails: {type(error).__name__}: {error}"
    return pipeline, ""


@reference.implements("svdvals_ex", "CUDA")
def svdvals_ex(A: Tensor, driver: str | None, check_errors: bool) -> tuple[Tensor, Tensor]:
    """The operator on a GPU: all matrices of a batch through each stage together."""
    with torch.cuda.device_of(A):
        ours = driver in (None, "bidiag") and A.dtype in _ops.REAL_DTYPES
        missing = _missing(A.device, A.dtype) if ours else ""
        plan = choose(A.shape, A.dtype, "cuda", driver, cuda_missing=missing)
        reference.log_plan(A, plan)
        values, info = _svdvals(A) if plan.backend == "cuda" else reference.svdvals(A, plan.driver)
    if check_errors:
        _ops.raise_if_nonfinite(info)
    return values, info


def _svdvals(A: Tensor, *, scratch: bool = False) -> tuple[Tensor, Tensor]:
    """Values and info. scratch: all panels go where those do that are too long for the chip's blocks."""
    *batch, m, n = A.shape
    values = A.new_empty((*batch, min(m, n)), dtype=_ops.values_dtype(A.dtype))
    info = A.new_zeros(batch, dtype=torch.int32)
    if values.numel():
        tall = A.reshape(math.prod(batch), m, n)
        pipeline, _ = load()
        chip = pipeline.chip_of(A.device)
        if scratch:
            chip = pipeline.without_panel(chip, values.dtype)
        pipeline.svdvals(tall if m >= n else tall.mT, values.view(-1, min(m, n)), info.view(-1), chip)
    return values, info


@functools.cache
def _missing(device: torch.device, dtype: torch.dtype) -> str:
    """Why matrices of this dtype on this device are torch's; empty where the pipeline is right."""
    with _checking:
        missing = load()[1] or _wrong(device, dtype)
    if missing:
        _log.warning("singular values of %s on %s are computed by torch: %s", dtype, device, missing)
    return missing


def _wrong(device: torch.device, dtype: torch.dtype) -> str:
    """What the pipeline does wrong on matrices that take it through every kernel; empty if nothing."""
    if torch.cuda.is_current_stream_capturing():
        raise RuntimeError(
            "the first call of svdvals on a device compiles and checks its kernels, which no CUDA graph "
            f"captures: call it once with {dtype} on {device}, with a matrix of the same shape and strides, "
            "before the capture"
        )
    eps = torch.finfo(_ops.compute_dtype(dtype)).eps
    generator = torch.Generator().manual_seed(0)
    # The last: a tail of the panel in scratch (600 rows are 512 and a rest), and a small matrix after QR.
    # Wide ones are read by columns. So a capture finds every binary loaded, but where n is one.
    checks = (((3, 200, 97), False), ((3, 40, 30), False), ((3, 30, 40), False), ((2, 20, 600), True))
    for shape, scratch in checks:
        A = torch.randn(shape, dtype=torch.float32, generator=generator).to(dtype)
        want = torch.linalg.svdvals(A.to(torch.float64))
        try:
            with _may_wait():
                got = _svdvals(A.to(device), scratch=scratch)[0].to("cpu", torch.float64)
        except Exception as error:  # of a compiler, a driver, a launch
            if "out of memory" in str(error).lower():  # torch's, CuPy's and triton's: says nothing of kernels
                raise
            return f"their kernels fail there: {type(error).__name__}: {error}"
        # The contract has 2 here; a wrong kernel errs by orders of magnitude more.
        off = float(((got - want).abs().amax(-1) / want[:, 0]).max()) / eps
        if not off <= 8:
            return f"their kernels err by {off:.3g} eps sigma_1 on {'x'.join(map(str, shape))} matrices there"
    return ""


@contextlib.contextmanager
def _may_wait() -> Iterator[None]:
    """The first call waits, also where torch shall raise at that: it says nothing of the kernels."""
    mode = torch.cuda.get_sync_debug_mode()
    if not mode:  # of the process: another thread may be about to set it
        yield
        return
    torch.cuda.set_sync_debug_mode(0)
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode(mode)
