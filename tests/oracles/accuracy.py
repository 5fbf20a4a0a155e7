"""The accuracy bound that svdvals promises, and what a result makes of it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from tests.oracles.svd_oracle import singular_values


@dataclass(frozen=True)
class Accuracy:
    """Errors of one matrix as absolute numbers: ours, torch's on the same matrix, and what is allowed."""

    error: float
    torch_error: float
    allowed: float

    @property
    def holds(self) -> bool:
        return self.error <= self.allowed


def constant(k: int) -> int:
    return 2 if k <= 128 else 4 if k <= 1024 else 8


def exact_values(A: Tensor) -> np.ndarray:
    """Values of one matrix with an error far below eps of its compute dtype."""
    if A.dtype == torch.float64:
        return singular_values(A)
    # LAPACK in float64 errs by about 1e-15 sigma_1: 1e-8 of float32's eps.
    return torch.linalg.svdvals(A.double()).numpy().astype(np.longdouble)


def judge(A: Tensor, values: Tensor, exact: np.ndarray | None = None) -> Accuracy:
    """Compare the values of one matrix with exact ones, value by value.

    The bound is the larger of twice torch's error and c eps sigma_1. A result in the subnormal range is also
    rounded to a multiple of the smallest subnormal number: half of one at most.
    """
    exact = exact_values(A) if exact is None else exact
    compute = torch.float64 if A.dtype == torch.float64 else torch.float32
    assert values.dtype == compute
    assert values.shape == exact.shape
    peer = torch.linalg.svdvals(A.to(compute))
    info = torch.finfo(compute)
    error, torch_error = (
        float(np.abs(v.numpy().astype(np.longdouble) - exact).max()) for v in (values, peer)
    )
    bound = max(2 * torch_error, constant(len(exact)) * info.eps * float(exact[0]))
    return Accuracy(error, torch_error, bound + 0.5 * info.smallest_normal * info.eps)
