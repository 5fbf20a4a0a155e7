"""Following matrices whose rows lie on several ranks: each multiplies its own rows, the products are summed.

Z = A^T (A X) = sum over ranks of A_r^T (A_r X), and so is the sum of squares: one read of each rank's rows,
and nothing is sent but Z. The parts are rounded to the dtype of the computation and summed in float64: with
any number of ranks, the sum errs by no more than the bound of the product on one process.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from spectral_fast import _ops
from spectral_fast.stats import SpectralStats, spectral_stats
from spectral_fast.tracker import SpectralTracker


class SummedProducts:
    """``_ops.gram_product`` of whole matrices, from the rows that are here.

    total: sums a tensor over the ranks, in place.
    """

    def __init__(self, total: Callable[[Tensor], None]) -> None:
        self._total = total

    def __call__(self, A: Tensor, X: Tensor) -> tuple[Tensor, Tensor]:
        """A (\\*, rows here, n); X (\\*, n, s) -> Z (\\*, n, s), energy (\\*)."""
        Z, energy = _ops.gram_product(A, X)
        both = torch.cat([Z.to(torch.float64).flatten(), energy.flatten()])
        self._total(both)
        summed = both[: Z.numel()].view(Z.shape).to(Z.dtype)
        return summed, both[Z.numel() :].view(energy.shape)


class SharedTracker(SpectralTracker):
    """A tracker that several ranks have together, each with its rows; one of them looks exactly.

    Attributes:
        found: the exact look that it has not been anchored at yet.
    """

    def __init__(self, products: SummedProducts) -> None:
        super().__init__(products=products)
        self.found: SpectralStats | None = None

    def exact(self, A: Any, **_: Any) -> SpectralStats:
        """Look at whole matrices (\\*, m, n), on one rank; all of them anchor at what was found."""
        self.found = spectral_stats(A, return_svdvals=True)
        return self.found
