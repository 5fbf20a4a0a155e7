"""Random matrices for the fuzzer: every property drawn, every draw named by (seed, chunk, index)."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from tests.oracles.zoo import FLOAT64_ONLY, ZOO, Maker

LARGEST, MIDDLE = 1024, 256
# Of a chunk's matrices one in so many has both sides above MIDDLE.
ONE_LARGE_IN = 10
DTYPES = {
    "float32": torch.float32,
    "float64": torch.float64,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}
# Exponents of two of the Frobenius norm: from where entries are subnormal or vanish to where sigma_1 nearly
# overflows. 2^15 is float16's last power of two.
EXPONENTS = {"float32": (-140, 120), "float64": (-1060, 1000), "bfloat16": (-130, 120), "float16": (-22, 14)}
LAYOUTS = ("rows", "columns", "sliced", "block", "batch_last", "batch_middle", "expanded")


@dataclass(frozen=True)
class Case:
    """A batch of matrices of one shape; everything about it but its entries."""

    seed: int
    chunk: int
    index: int
    rows: int
    cols: int
    batch: int
    dtype: str
    spectra: tuple[str, ...]  # of each matrix
    exponents: tuple[int | None, ...]  # None: as made
    layout: str
    threads: int

    @property
    def name(self) -> str:
        return f"{self.seed}-{self.chunk}-{self.index}"


def plan(seed: int, chunk: int, matrices: int) -> list[Case]:
    """The cases of a chunk: `matrices` matrices in all, batches of small ones, and large ones alone."""
    rng = np.random.default_rng([seed, chunk])
    large = matrices // ONE_LARGE_IN
    cases: list[Case] = []
    left = matrices - large
    while left:
        cases.append(_case(rng, seed, chunk, len(cases), most=left, large=False))
        left -= cases[-1].batch
    for _ in range(large):
        cases.append(_case(rng, seed, chunk, len(cases), most=1, large=True))
    return cases


def _case(rng: np.random.Generator, seed: int, chunk: int, index: int, *, most: int, large: bool) -> Case:
    rows, cols = _shape(rng, large)
    # Groups, one matrix to a SIMD lane, begin with a few small matrices; 40 leave a remainder in every width.
    longest = 40 if max(rows, cols) <= 64 else 3
    batch = min(most, 1 if rng.random() < 0.5 else int(rng.integers(1, longest + 1)))
    dtype = str(rng.choice(list(DTYPES), p=[0.4, 0.2, 0.2, 0.2]))
    spectra = tuple(str(rng.choice(list(SPECTRA))) for _ in range(batch))
    exponents = tuple(_exponent(rng, dtype) for _ in range(batch))
    layout = str(rng.choice(LAYOUTS))
    threads = int(rng.choice([1, 2, 3], p=[0.7, 0.15, 0.15]))
    return Case(seed, chunk, index, rows, cols, batch, dtype, spectra, exponents, layout, threads)


def _shape(rng: np.random.Generator, large: bool) -> tuple[int, int]:
    while True:
        low = math.log(MIDDLE) if large else 0.0
        rows, cols = (int(math.exp(rng.uniform(low, math.log(LARGEST + 1)))) for _ in range(2))
        if large == (min(rows, cols) > MIDDLE):
            return rows, cols


def _exponent(rng: np.random.Generator, dtype: str) -> int | None:
    if rng.random() < 0.5:
        return None
    low, high = EXPONENTS[dtype]
    return int(rng.integers(low, high + 1))


def build(case: Case) -> Tensor:
    """The batch (batch, rows, cols) in its dtype and layout; finite, the same for the same case."""
    dtype = DTYPES[case.dtype]
    generator = torch.Generator().manual_seed((case.seed * 1_000_003 + case.chunk) * 100_003 + case.index)
    matrices = [
        _scaled(SPECTRA[spectrum](case.rows, case.cols, generator), exponent, dtype)
        for spectrum, exponent in zip(case.spectra, case.exponents, strict=True)
    ]
    return _laid_out(torch.stack(matrices), case.layout)


def _scaled(matrix: Tensor, exponent: int | None, dtype: torch.dtype) -> Tensor:
    """Rounded to the dtype, with a Frobenius norm near 2^exponent; without one, as it is where it fits."""
    norm = float(torch.linalg.vector_norm(matrix))
    most = math.log2(torch.finfo(dtype).max) - 2
    if norm > 0 and (exponent is not None or math.log2(norm) > most):
        power = (most if exponent is None else exponent) - math.log2(norm)
        half = int(power / 2)  # in two steps: 2^power may lie beyond float64
        matrix = matrix * 2.0**half * 2.0 ** (int(power) - half)
    return matrix.to(dtype)


def _laid_out(stack: Tensor, layout: str) -> Tensor:
    count, rows, cols = stack.shape
    if layout == "columns":
        return stack.mT.contiguous().mT
    if layout == "sliced":
        wide = stack.new_full((count, 2 * rows, 3 * cols), torch.nan)
        wide[:, ::2, 1::3] = stack
        return wide[:, ::2, 1::3]
    if layout == "block":
        wide = stack.new_full((count + 1, rows + 3, cols + 5), torch.nan)
        wide[1:, 2 : rows + 2, 3 : cols + 3] = stack
        return wide[1:, 2 : rows + 2, 3 : cols + 3]
    if layout == "batch_last":
        return stack.permute(1, 2, 0).contiguous().permute(2, 0, 1)
    if layout == "batch_middle":
        return stack.permute(1, 0, 2).contiguous().permute(1, 0, 2)
    if layout == "expanded":
        return stack[:1].expand(count, rows, cols)
    return stack


def _reflected(matrix: Tensor, g: torch.Generator) -> Tensor:
    """Q matrix P^T for orthogonal Q and P that are products of three reflectors: dense, and O(mn) to make."""
    for side in (0, 1, 0, 1, 0, 1):
        v = torch.randn(matrix.shape[side], dtype=torch.float64, generator=g)
        v /= torch.linalg.vector_norm(v)
        matrix = matrix - 2 * (torch.outer(v, v @ matrix) if side == 0 else torch.outer(matrix @ v, v))
    return matrix


def _with(values: np.ufunc | object) -> Maker:
    """A matrix with the singular values that `values` gives for k and a generator."""

    def make(m: int, n: int, g: torch.Generator) -> Tensor:
        k = min(m, n)
        matrix = torch.zeros(m, n, dtype=torch.float64)
        matrix.diagonal().copy_(values(k, g))  # type: ignore[operator]
        return _reflected(matrix, g)

    return make


def _unit(g: torch.Generator) -> float:
    return float(torch.rand((), dtype=torch.float64, generator=g))


def _low_rank(m: int, n: int, g: torch.Generator) -> Tensor:
    rank = 1 + int(_unit(g) * min(m, n) / 2)
    left, right = (torch.randn(s, rank, dtype=torch.float64, generator=g) for s in (m, n))
    return left @ right.T


def _sparse(m: int, n: int, g: torch.Generator) -> Tensor:
    keep = torch.rand(m, n, dtype=torch.float64, generator=g) < _unit(g) ** 2
    return torch.randn(m, n, dtype=torch.float64, generator=g) * keep


def _integers(m: int, n: int, g: torch.Generator) -> Tensor:
    largest = int(2 ** (1 + 6 * _unit(g)))
    return torch.randint(-largest, largest + 1, (m, n), generator=g).double()


def _signs(m: int, n: int, g: torch.Generator) -> Tensor:
    return torch.randint(0, 2, (m, n), generator=g).double() * 2 - 1


def _hadamard(m: int, n: int, g: torch.Generator) -> Tensor:
    i, j = torch.arange(m)[:, None], torch.arange(n)
    ones = torch.zeros(m, n, dtype=torch.int64)
    for bit in range(11):
        ones += ((i & j) >> bit) & 1
    return (1 - 2 * (ones % 2)).double()


def _graded_rows(m: int, n: int, g: torch.Generator) -> Tensor:
    decades = 30 * _unit(g)
    return torch.logspace(0, -decades, m, dtype=torch.float64)[:, None] * torch.randn(
        m, n, dtype=torch.float64, generator=g
    )


def _graded_columns(m: int, n: int, g: torch.Generator) -> Tensor:
    return _graded_rows(n, m, g).T.flip(1)


def _toeplitz(m: int, n: int, g: torch.Generator) -> Tensor:
    line = torch.randn(m + n - 1, dtype=torch.float64, generator=g)
    return line[torch.arange(m)[:, None] - torch.arange(n) + n - 1]


def _position(k: int) -> Tensor:
    return torch.linspace(0, 1, k, dtype=torch.float64)


SPECTRA: dict[str, Maker] = {
    # Of the zoo what has no scale of its own (the scale is drawn), and what is no diagonal made by QR.
    **{
        name: ZOO[name]
        for name in (
            *("gaussian", "graded", "graded_upward", "lauchli", "hilbert", "heavy_tailed_entries"),
            *("one_huge_entry", "zero_rows_and_columns", "identity", "ones", "zeros"),
            *("diagonal_over_decades", "bidiagonal", "small_integers"),
        )
    },
    "column_whose_squares_are_subnormal": FLOAT64_ONLY["column_whose_squares_are_subnormal"],
    "uniform_values": _with(lambda k, g: torch.rand(k, dtype=torch.float64, generator=g)),
    "arithmetic": _with(lambda k, g: 1 - _position(k) * (1 - 1e-7)),
    "geometric": _with(lambda k, g: 10 ** (-20 * _unit(g) * _position(k))),
    "clustered": _with(lambda k, g: 1 + 10 ** (-2 - 14 * _unit(g)) * _position(k)),
    "clusters": _with(
        lambda k, g: (
            10.0 ** -torch.randint(0, 5, (k,), generator=g)
            + 1e-9 * torch.rand(k, dtype=torch.float64, generator=g)
        )
    ),
    "repeated": _with(lambda k, g: 2.0 ** -torch.randint(0, 4, (k,), generator=g).double()),
    "all_equal": _with(lambda k, g: torch.ones(k, dtype=torch.float64)),
    "one_tiny": _with(lambda k, g: torch.where(_position(k) == 1, 1e-12, 1.0)),
    "one_large": _with(lambda k, g: torch.where(_position(k) == 0, 1e6, 1.0)),
    "power_law": _with(lambda k, g: (1 + k * _position(k)) ** -(0.1 + 2 * _unit(g))),
    "low_rank": _low_rank,
    "integers": _integers,
    "signs": _signs,
    "hadamard": _hadamard,
    "sparse": _sparse,
    "graded_rows": _graded_rows,
    "graded_columns": _graded_columns,
    "toeplitz": _toeplitz,
}
