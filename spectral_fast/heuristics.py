"""Which path a call takes. A pure function of shape, dtype, device type and driver."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from spectral_fast._ops import DTYPES, REAL_DTYPES

# "jacobi" is a name for what no device has yet: it raises, as every driver does on a device that lacks it.
DRIVERS = ("bidiag", "gram", "jacobi", "torch")
TORCH_DRIVERS = ("gesvd", "gesvdj", "gesvda")

# The CPU path. csrc/cpu/heuristics.inl makes the same choices, with the measurements behind them.
REDUCE_RATIO = 5 / 3
DIRECT_SIZE = 128
GROUPED_SIZE, GROUPED_ENTRIES, GROUPED_BATCH, ALWAYS_GROUPED_ENTRIES = 64, 8192, 8, 64

# On CUDA: columns of a panel and width of the band, a lane of a warp each: `block` in csrc/cuda/kernels.h.
CUDA_BLOCK = 32
# Matrices that a block of threads holds whole. Two stages cost no more from the third panel on.
CUDA_DIRECT_SIZE, CUDA_DIRECT_ROWS = 64, 128
# The longest side: panel.cu has 32-bit offsets in a panel of 32 columns.
CUDA_MOST_ROWS = 1 << 26


@dataclass(frozen=True)
class Plan:
    """The path of one call; ``str`` of it is one line."""

    backend: str
    """where: "cpu" or "cuda" by kernels of ours, "reference" by plain torch"""
    driver: str
    """as in svdvals, chosen where none was asked for"""
    stages: tuple[str, ...]
    """the steps from the matrix to its values, in order"""
    reason: str
    """why this path"""

    def __str__(self) -> str:
        return f"{self.backend}:{self.driver} [{' -> '.join(self.stages)}] because {self.reason}"


def choose(
    shape: tuple[int, ...],
    dtype: torch.dtype,
    device_type: str,
    driver: str | None = None,
    *,
    cuda_missing: str = "",
) -> Plan:
    """The plan for svdvals of a tensor of this shape (\\*, m, n).

    cuda_missing: why the CUDA kernels do not run on this machine; empty where they do.

    Raises ValueError for what svdvals does not take: the shape, the dtype, a driver that is unknown or that
    the device lacks.
    """
    if len(shape) < 2:
        raise ValueError(f"shape {tuple(shape)} is not a batch of matrices: it needs two dimensions")
    if min(shape) < 0:
        raise ValueError(f"shape {tuple(shape)} has a negative size")
    if dtype not in DTYPES:
        raise ValueError(f"svdvals does not take {dtype}, only {', '.join(map(str, DTYPES))}")
    if driver is not None and driver not in DRIVERS + TORCH_DRIVERS:
        available = available_drivers(device_type, cuda_missing=cuda_missing)
        raise ValueError(f"driver {driver!r} is unknown: choose from {', '.join(available)} or None")
    native = device_type == "cpu" and dtype in REAL_DTYPES
    cuda = device_type == "cuda" and dtype in REAL_DTYPES
    if cuda and max(shape[-2:]) > CUDA_MOST_ROWS:
        cuda_missing = cuda_missing or f"a side is longer than {CUDA_MOST_ROWS}"

    if driver is None:
        if native:
            return _native_plan(shape, "CPU kernels exist for this dtype")
        if cuda and not cuda_missing:
            return _cuda_plan(shape, "CUDA kernels exist for this dtype")
        if cuda:
            why = f"the CUDA kernels do not run here: {cuda_missing}"
        elif device_type in ("cpu", "cuda"):
            why = f"no kernel of ours takes {dtype}"
        else:
            why = f"no kernel of ours runs on {device_type}"
        return Plan("reference", "torch", ("torch.linalg.svdvals",), why)
    asked = f"driver={driver!r} was asked for"
    if driver == "torch":
        return Plan("reference", "torch", ("torch.linalg.svdvals",), asked)
    if driver == "gram" and native and (stages := _gram_stages(shape)):
        return Plan("cpu", "gram", stages, f"{asked}; tall enough for the Cholesky factor of A^T A")
    if driver == "gram" and dtype in REAL_DTYPES:
        return Plan("reference", "gram", ("float64 Gram matrix", "torch.linalg.eigvalsh"), asked)
    if driver == "bidiag" and native:
        return _native_plan(shape, asked)
    if driver == "bidiag" and cuda:
        if cuda_missing:
            raise ValueError(f"driver 'bidiag' is not available on this GPU: {cuda_missing}")
        return _cuda_plan(shape, asked)
    if driver in TORCH_DRIVERS and device_type == "cuda":
        return Plan("reference", driver, (f"torch.linalg.svdvals(driver={driver!r})",), asked)
    raise ValueError(
        f"driver {driver!r} is not available for {dtype} on {device_type}: "
        f"leave driver=None to have one chosen, or use 'torch'"
    )


def available_drivers(device_type: str, *, cuda_missing: str = "") -> list[str]:
    """The drivers that svdvals takes for float32 matrices on such a device; cuda_missing as in `choose`."""
    available = []
    for driver in DRIVERS + TORCH_DRIVERS:
        try:
            choose((1, 1), torch.float32, device_type, driver, cuda_missing=cuda_missing)
        except ValueError:
            continue
        available.append(driver)
    return available


def _gram_stages(shape: tuple[int, ...]) -> tuple[str, ...]:
    """Of driver "gram"; empty where it has no kernel."""
    m, n = max(shape[-2:]), min(shape[-2:])
    return ("reduce", "band", "bidiagonal", "values") if n > DIRECT_SIZE and m > REDUCE_RATIO * n else ()


def _native_plan(shape: tuple[int, ...], reason: str) -> Plan:
    m, n, batch = max(shape[-2:]), min(shape[-2:]), math.prod(shape[:-2])
    if (
        n <= GROUPED_SIZE
        and m * n <= GROUPED_ENTRIES
        and (batch >= GROUPED_BATCH or m * n <= ALWAYS_GROUPED_ENTRIES)
    ):
        return Plan("cpu", "bidiag", ("group",), f"{reason}; small enough for one matrix to a SIMD lane")
    if n == 1:
        return Plan("cpu", "bidiag", ("norm",), f"{reason}; a column has one value")
    stages = ["bidiagonal", "values"]
    if n > DIRECT_SIZE:
        stages.insert(0, "band")
        reason += "; large enough for two stages"
    if m > REDUCE_RATIO * n:
        stages.insert(0, "reduce")
        reason += "; tall enough for QR first"
    return Plan("cpu", "bidiag", tuple(stages), reason)


def cuda_direct(m: int, n: int) -> bool:
    """Whether a block of threads bidiagonalizes an m x n matrix, m >= n, by itself."""
    return n <= CUDA_DIRECT_SIZE and m <= CUDA_DIRECT_ROWS


def cuda_reduce(m: int, n: int) -> bool:
    """Whether an m x n matrix, m >= n, goes through its QR factorization first."""
    return m > REDUCE_RATIO * n and not cuda_direct(m, n)


def _cuda_plan(shape: tuple[int, ...], reason: str) -> Plan:
    m, n = max(shape[-2:]), min(shape[-2:])
    stages = ["bidiagonal", "values"]
    if n > CUDA_DIRECT_SIZE:
        stages.insert(0, "band")
        reason += "; large enough for two stages"
    if cuda_reduce(m, n):
        stages.insert(0, "reduce")
        reason += "; tall enough for QR first"
    return Plan("cuda", "bidiag", tuple(stages), reason)
