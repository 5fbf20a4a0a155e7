"""The Triton kernels of statistics and of gram_product behind the operators on CUDA and ROCm.

Nothing here waits for the device or looks at a value. Triton is imported by the first call on a GPU or by
capabilities(), not before: that takes time, and a broken installation must not break the rest.
"""

from __future__ import annotations

import functools
import importlib.util
import logging
import math
from typing import Any

import torch
from torch import Tensor

from spectral_fast import _ops
from spectral_fast.backends import reference, reference_stats
from spectral_fast.backends.reference import implements

_log = logging.getLogger(__name__)

# The operators that run on kernels of ours where these load.
OPERATORS = ("stats_from_svdvals", "fit_powerlaw", "spectral_stats", "gram_product")


def importable(package: str) -> bool:
    """Whether there is something to import; whether that works is not known before it is tried."""
    try:
        return importlib.util.find_spec(package) is not None
    except ValueError:  # a stand-in in sys.modules, without a spec
        return False


def installed() -> bool:
    return importable("triton")


@functools.cache
def load() -> tuple[Any, str]:
    """The kernels of statistics, or None and why: triton is not installed, or its import fails.

    Those of products are there where these are.
    """
    if not installed():
        return None, "triton is not installed"
    try:
        from spectral_fast.triton import products, stats  # noqa: F401
    except Exception as error:  # a broken installation raises anything
        return None, f"triton is installed but its import fails: {type(error).__name__}: {error}"
    return stats, ""


@functools.cache
def _kernels() -> Any:
    kernels, missing = load()
    if kernels is None:
        _log.warning("statistics and gram_product on the GPU run in plain torch: %s", missing)
    else:
        _log.debug("statistics and gram_product on the GPU run in Triton kernels")
    return kernels


def stats_from_svdvals(S: Tensor, rows: int | None, cols: int | None) -> tuple[Tensor, Tensor]:
    """The operator on a GPU: a sort, then three launches."""
    kernels = _kernels()
    if kernels is None or S.numel() == 0:
        return reference_stats.stats_from_svdvals(S, rows, cols)
    return _stats(kernels, _descending(S), rows, cols)


def spectral_stats(A: Tensor, driver: str | None) -> tuple[Tensor, Tensor, Tensor]:
    """The operator on a GPU: the values of svdvals_ex, which are descending, then three launches."""
    S, _ = _ops.svdvals_ex(A, driver, False)
    kernels = _kernels()
    if kernels is None or S.numel() == 0:
        return (S, *reference_stats.stats_from_svdvals(S, A.shape[-2], A.shape[-1]))
    return (S, *_stats(kernels, S.contiguous(), A.shape[-2], A.shape[-1]))


def fit_powerlaw(evals: Tensor, xmin: Tensor | None) -> tuple[Tensor, Tensor]:
    """The operator on a GPU: a sort, then three launches, or one where xmin is given."""
    kernels = _kernels()
    if kernels is None or evals.numel() == 0:
        return reference_stats.fit_powerlaw(evals, xmin)
    x = _descending(evals)
    batch, n = x.shape[:-1], x.shape[-1]
    fit = x.new_empty((*batch, len(_ops.POWERLAW_FIELDS)), dtype=torch.float64)
    n_tail = x.new_empty(batch, dtype=torch.int64)
    each = (math.prod(batch),)
    tile = {"TILE": kernels.TILE, "num_warps": kernels.WARPS, "enable_fp_fusion": False}
    with torch.cuda.device_of(x):
        if xmin is None:
            logs, slopes = (torch.empty_like(x, dtype=torch.float64) for _ in range(2))
            kernels.tail_kernel[each](x, n, logs, slopes, **tile)
            distances = _distances(kernels, logs, slopes)
            kernels.fit_kernel[each](x, slopes, distances, n, fit, n_tail, **tile)
        else:
            given = xmin.detach().to(torch.float64).expand(batch).contiguous()
            kernels.threshold_kernel[each](x, given, n, fit, n_tail, **tile)
    return fit, n_tail


def gram_product(A: Tensor, X: Tensor) -> tuple[Tensor, Tensor]:
    """The operator on a GPU: four launches. No switch of torch's is touched: any thread may call it."""
    if _kernels() is None:
        return reference.gram_product(A, X)
    _ops.check_gram_product(A, X)
    *batch, m, n = A.shape
    if A.numel() == 0:
        return torch.zeros_like(X), A.new_zeros(batch, dtype=torch.float64)
    from spectral_fast.triton import products

    with torch.cuda.device_of(A):
        count = math.prod(batch)
        vectors = X.detach().reshape(count, n, X.shape[-1]).contiguous()
        Z, energy = products.gram_product(A.detach().to(X.dtype).reshape(count, m, n), vectors)
    return Z.view(X.shape), energy.view(batch)


if installed():
    for _function in (stats_from_svdvals, spectral_stats, fit_powerlaw, gram_product):
        implements(_function.__name__, "CUDA")(_function)


def _descending(x: Tensor) -> Tensor:
    if x.dtype not in (torch.float32, torch.float64):
        x = x.to(torch.float32)
    # + 0: -0 becomes 0.
    return (x.detach() + 0.0).contiguous().sort(-1, descending=True).values


def _stats(kernels: Any, S: Tensor, rows: int | None, cols: int | None) -> tuple[Tensor, Tensor]:
    batch, n = S.shape[:-1], S.shape[-1]
    smooth = S.new_empty((*batch, len(_ops.SMOOTH_FIELDS)), dtype=torch.float64)
    fitted = S.new_empty((*batch, len(_ops.FITTED_FIELDS)), dtype=torch.float64)
    logs, slopes = (torch.empty_like(S, dtype=torch.float64) for _ in range(2))
    edge, slack = reference_stats.bulk_edge(rows, cols)
    each = (math.prod(batch),)
    tile = {"TILE": kernels.TILE, "num_warps": kernels.WARPS, "enable_fp_fusion": False}
    with torch.cuda.device_of(S):
        kernels.spectrum_kernel[each](S, n, smooth, logs, slopes, **tile)
        distances = _distances(kernels, logs, slopes)
        kernels.fitted_kernel[each](S, logs, slopes, distances, n, edge, 1 + slack, fitted, **tile)
    return smooth, fitted


def _distances(kernels: Any, logs: Tensor, slopes: Tensor) -> Tensor:
    n = logs.shape[-1]
    distances = torch.empty_like(logs)
    kernels.distance_kernel[(logs.numel() // n * -(-n // kernels.CANDIDATES),)](
        logs,
        slopes,
        n,
        distances,
        CANDIDATES=kernels.CANDIDATES,
        TAIL=kernels.TAIL,
        num_warps=kernels.WARPS,
        enable_fp_fusion=False,
    )
    return distances
