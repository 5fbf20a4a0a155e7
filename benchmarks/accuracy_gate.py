"""The gate before the stopwatch: no time is taken, let alone printed, for values that are wrong.

The bound is the package's contract (tests/oracles/accuracy.py), value by value, on the matrices that are
timed. Which oracle stands behind it depends on the dtype:

- float32 and the half precisions: LAPACK in float64, whose error is 1e-8 of float32's eps;
- float64 up to 64 values: Jacobi in extended precision;
- float64 above: nothing that is more precise is fast enough, so LAPACK in the same precision. It is a
  weaker gate, because the difference contains LAPACK's own error, and the row says so.

Of a large stack an evenly spread sample is compared (first and last included). Every matrix of it must
give finite, descending values >= 0 whose squares add up to ‖A‖_F².
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from tests.oracles.accuracy import constant, exact_values, judge

# Matrices compared: as many as this work pays for, but at least 8 (or all) and at most 256.
SAMPLE_FLOPS = 1e10
SAMPLE_LEAST, SAMPLE_MOST = 8, 256

# Extended precision takes 0.2 s for 64 values and grows with n^3.
EXTENDED_LARGEST = 64

# The weaker gate allows 8 times the contract's c: on Gaussian matrices LAPACK's float64 values are off by up
# to 4.5 c (18 eps sigma_1 at n = 1024), and ours may be off by c in the other direction.
WEAK_FACTOR = 8

# Σ(ŝ² − s²) is at most 2 e Σŝ for an error e of every value. e = 4c eps σ1 leaves room for matrices on
# which the contract allows more than c, because torch errs more.
NORM_FACTOR = 4


@dataclass(frozen=True)
class GateResult:
    """What the gate found.

    Attributes:
        oracle, weaker: what the values were compared with, and whether that allows more than the contract.
        compared, count: the positions of the matrices compared with the oracle, and of how many.
        error, allowed: of the matrix that came closest to failing, in units of eps sigma_1; None where
            nothing could be compared.
        failure: what is wrong; empty where the gate holds.
    """

    oracle: str
    weaker: bool
    compared: tuple[int, ...]
    count: int
    error: float | None
    allowed: float | None
    failure: str = ""

    @property
    def holds(self) -> bool:
        return not self.failure


class Gate:
    """The exact values of a sample of matrices (\\*, m, n), at most `most`, to compare results with."""

    def __init__(self, matrices: Tensor, most: int = SAMPLE_MOST) -> None:
        self._stack = matrices.reshape(-1, *matrices.shape[-2:])
        self._dtype = torch.float64 if matrices.dtype == torch.float64 else torch.float32
        self._k = min(matrices.shape[-2:])
        self._extended = self._dtype == torch.float64 and self._k <= EXTENDED_LARGEST
        self._weaker = self._dtype == torch.float64 and not self._extended
        self.compared = sample(*self._stack.shape, few=self._extended, most=most)
        self._matrices = [self._stack[index].cpu() for index in self.compared]
        if self._weaker:
            self._exact = [torch.linalg.svdvals(matrix).numpy() for matrix in self._matrices]
        else:
            self._exact = [exact_values(matrix) for matrix in self._matrices]
        self._passed: Tensor | None = None
        self._result: GateResult | None = None

    @property
    def oracle(self) -> str:
        if self._extended:
            return "Jacobi in extended precision"
        return "LAPACK in the same float64 (weaker)" if self._weaker else "LAPACK in float64"

    def check(self, values: Tensor) -> GateResult:
        """Judge the singular values of all matrices."""
        expected = (*self._stack.shape[:1], self._k)
        if values.dtype != self._dtype or values.numel() != expected[0] * expected[1]:
            return self._fail(
                f"values are {values.dtype} {tuple(values.shape)}, expected {self._dtype} {expected}"
            )
        flat = values.detach().cpu().reshape(expected)
        if self._result is not None and self._passed is not None and torch.equal(flat, self._passed):
            return self._result  # the loop of single calls gave the bits of the batch
        failure = self._whole_stack_failure(flat)
        if failure:
            return self._fail(failure)
        judged = [(*self._judge(i, flat[index]), index) for i, index in enumerate(self.compared)]
        error, allowed, index = max(judged, key=lambda one: one[0] / one[1])
        if error > allowed:
            failure = f"matrix {index} of {expected[0]} errs by {error:.3g} eps σ₁, allowed {allowed:.3g}"
        result = self._result_of(error, allowed, failure)
        if result.holds:
            self._passed, self._result = flat.clone(), result
        return result

    def error_of(self, values: Tensor) -> float | None:
        """The largest error of a baseline's values in eps sigma_1; None where the oracle is no better.

        values: of all matrices, or of the first ones.
        """
        count = values.numel() // self._k
        if self._weaker or count * self._k != values.numel() or not 0 < count <= len(self._stack):
            return None
        flat = values.detach().cpu().reshape(-1, self._k).numpy().astype(np.longdouble)
        eps = torch.finfo(self._dtype).eps
        return max(
            float(np.abs(flat[index] - exact).max() / (eps * exact[0]))
            for index, exact in zip(self.compared, self._exact, strict=True)
            if index < count
        )

    def _judge(self, i: int, values: Tensor) -> tuple[float, float]:
        """Error and allowed error of one matrix of the sample, in eps sigma_1."""
        exact = self._exact[i]
        unit = torch.finfo(self._dtype).eps * float(exact[0])
        if self._weaker:
            error = float(np.abs(values.numpy() - exact).max())
            return error / unit, WEAK_FACTOR * constant(self._k)
        accuracy = judge(self._matrices[i], values, exact)
        return accuracy.error / unit, accuracy.allowed / unit

    def _whole_stack_failure(self, values: Tensor) -> str:
        """What is wrong with any of all results, as far as it shows without an oracle."""
        values = values.to(torch.float64)
        eps = torch.finfo(self._dtype).eps
        norms = torch.stack([matrix.to(torch.float64).square().sum().cpu() for matrix in self._stack])
        allowed = NORM_FACTOR * constant(self._k) * eps * values[:, 0] * 2 * values.sum(-1)
        broken = {
            "non-finite values": ~values.isfinite().all(-1),
            "a negative value": (values < 0).any(-1),
            "values out of order": (values[:, :-1] < values[:, 1:]).any(-1),
            "squares that do not add up to ‖A‖_F²": (values.square().sum(-1) - norms).abs() > allowed,
        }
        for problem, where in broken.items():
            if where.any():
                return f"matrix {int(where.nonzero()[0])} of {len(values)} has {problem}"
        return ""

    def _fail(self, failure: str) -> GateResult:
        return self._result_of(None, None, failure)

    def _result_of(self, error: float | None, allowed: float | None, failure: str) -> GateResult:
        return GateResult(self.oracle, self._weaker, self.compared, len(self._stack), error, allowed, failure)


def sample(count: int, m: int, n: int, *, few: bool = False, most: int = SAMPLE_MOST) -> tuple[int, ...]:
    """Which of `count` matrices (m, n) are compared with the oracle: evenly spread, ends included."""
    affordable = int(SAMPLE_FLOPS / (4 * m * n * min(m, n)))
    size = min(SAMPLE_LEAST if few else min(max(affordable, SAMPLE_LEAST), SAMPLE_MOST), most)
    if count <= size:
        return tuple(range(count))
    return tuple(round(i * (count - 1) / (size - 1)) for i in range(size))
