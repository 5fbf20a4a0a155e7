"""The oracles against something slower still."""

from __future__ import annotations

import mpmath
import numpy as np
import pytest
import torch

from tests.oracles.svd_oracle import singular_values
from tests.oracles.zoo import FLOAT64_ONLY, ZOO


@pytest.mark.parametrize("name", [*ZOO, *FLOAT64_ONLY])
@pytest.mark.parametrize("shape", [(9, 6), (5, 12), (1, 4)], ids=str)
def test_long_double_values_equal_mpmath(name: str, shape: tuple[int, int]) -> None:
    g = torch.Generator().manual_seed(1)
    a = {**ZOO, **FLOAT64_ONLY}[name](*shape, g)
    tall = a if a.shape[0] >= a.shape[1] else a.T
    with mpmath.workdps(60):
        exact = mpmath.svd_r(mpmath.matrix(tall.tolist()), compute_uv=False)
        ours = singular_values(a)
        # A 64-bit mantissa, sums of a dozen terms and a few sweeps: a hundred units are generous, and
        # a thousand times less than the float64 unit that is tested with these values.
        allowed = 100 * float(np.finfo(np.longdouble).eps) * exact[0]
        for mine, theirs in zip(ours, exact, strict=True):
            assert abs(mpmath.mpf(np.format_float_scientific(mine)) - theirs) <= allowed
