"""The compiled CPU kernels (csrc/cpu) behind the operators."""

from __future__ import annotations

import functools
import os

import torch
from torch import Tensor

from spectral_fast import _cpu, _ops
from spectral_fast.backends import reference
from spectral_fast.heuristics import choose

_ELEMENT_TYPES = {getattr(torch, name): code for name, code in _cpu.element_types.items()}
_VALUES_DTYPES = {dtype: _ops.values_dtype(dtype) for dtype in _ELEMENT_TYPES}
_choose = functools.lru_cache(maxsize=1024)(choose)
assert _cpu.info_nonfinite == _ops.INFO_NONFINITE

if _forced := os.environ.get("SPECTRAL_FAST_ISA"):
    _cpu.use_isa(_forced)


@reference.implements("svdvals_ex", "CPU")
def svdvals_ex(A: Tensor, driver: str | None, check_errors: bool) -> tuple[Tensor, Tensor]:
    """The operator on the CPU: one matrix a thread, torch.get_num_threads() threads."""
    shape, dtype = A.shape, A.dtype
    plan = _choose(shape, dtype, "cpu", driver)
    reference.log_plan(A, plan)
    if plan.backend != "cpu":
        values, info = reference.svdvals(A, plan.driver)
        if check_errors:
            reference.raise_if_nonfinite(info)
        return values, info

    batch = shape[:-2]
    values = torch.empty((*batch, min(shape[-2:])), dtype=_VALUES_DTYPES[dtype], device="cpu")
    info = torch.empty(batch, dtype=torch.int32, device="cpu")
    all_finite = _cpu.svdvals(
        A.data_ptr(),
        _ELEMENT_TYPES[dtype],
        shape,
        A.stride(),
        values.data_ptr(),
        info.data_ptr(),
        torch.get_num_threads(),
    )
    if check_errors and not all_finite:
        reference.raise_if_nonfinite(info)
    return values, info


_ops.cpu_kernels[_ops.svdvals_ex] = svdvals_ex
