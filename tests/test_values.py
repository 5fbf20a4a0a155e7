"""Stage `values`: singular values of bidiagonal matrices, certified by Sturm counts with 400 digits."""

from __future__ import annotations

import mpmath
import numpy as np
import pytest
import torch
from torch import Tensor

import spectral_fast as sf

Array = np.ndarray
Bidiagonal = tuple[Array, Array]  # diagonal, superdiagonal
SIZES = (9, 33, 70)  # 33 and 70 leave a remainder in every register width; smaller matrices go in groups


def gaussian(n: int, rng: np.random.Generator) -> Bidiagonal:
    """What Householder reflections make of a Gaussian matrix."""
    return np.sqrt(rng.chisquare(np.arange(n, 0, -1))), np.sqrt(rng.chisquare(np.arange(n - 1, 0, -1)))


def graded(n: int, rng: np.random.Generator) -> Bidiagonal:
    d = 10.0 ** -np.linspace(0, 30, n)
    return d, 0.7 * d[:-1]


def graded_upward(n: int, rng: np.random.Generator) -> Bidiagonal:
    d, e = graded(n, rng)
    return d[::-1].copy(), e[::-1].copy()


def scattered(n: int, rng: np.random.Generator) -> Bidiagonal:
    """Entries over eight orders of magnitude, in any order."""
    return 10.0 ** (-8 * rng.random(n)), 10.0 ** (-8 * rng.random(n - 1))


def wilkinson(n: int, rng: np.random.Generator) -> Bidiagonal:
    """Pairs of values that agree to nearly all digits."""
    return np.abs(np.arange(n) - n // 2) + 0.25, np.ones(n - 1)


def glued(n: int, rng: np.random.Generator) -> Bidiagonal:
    """Copies of one block, joined weakly: clusters."""
    block = max(1, n // 6)
    d, e = np.tile(rng.standard_normal(block), 12)[:n], np.tile(rng.standard_normal(block), 12)[: n - 1]
    e[block - 1 :: block] = 1e-9
    return d, e


def equal(n: int, rng: np.random.Generator) -> Bidiagonal:
    return np.full(n, 3.0), np.zeros(n - 1)


def nearly_equal(n: int, rng: np.random.Generator) -> Bidiagonal:
    return 1 + 1e-7 * rng.random(n), 1e-8 * rng.random(n - 1)


def zeros_on_the_diagonal(n: int, rng: np.random.Generator) -> Bidiagonal:
    d, e = rng.standard_normal(n), rng.standard_normal(n - 1)
    d[rng.random(n) < 0.3] = 0
    d[-1] = 0
    return d, e


def zeros_above_the_diagonal(n: int, rng: np.random.Generator) -> Bidiagonal:
    d, e = rng.standard_normal(n), rng.standard_normal(n - 1)
    e[rng.random(n - 1) < 0.5] = 0
    return d, e


def small_integers(n: int, rng: np.random.Generator) -> Bidiagonal:
    """Pivots that vanish exactly at round points."""
    return rng.integers(-2, 3, n).astype(float), rng.integers(-2, 3, n - 1).astype(float)


def nothing_but_superdiagonal(n: int, rng: np.random.Generator) -> Bidiagonal:
    return np.zeros(n), np.ones(n - 1)


def tiny_tail(n: int, rng: np.random.Generator) -> Bidiagonal:
    """A few values of order one, the others at 1e-16: what a rank-deficient matrix leaves."""
    size = np.where(np.arange(n) < n // 3, 1.0, 1e-16)
    return size * rng.standard_normal(n), size[:-1] * rng.standard_normal(n - 1)


MAKERS = [
    gaussian,
    graded,
    graded_upward,
    scattered,
    wilkinson,
    glued,
    equal,
    nearly_equal,
    zeros_on_the_diagonal,
    zeros_above_the_diagonal,
    small_integers,
    nothing_but_superdiagonal,
    tiny_tail,
]


def assemble(make: object, n: int, dtype: torch.dtype) -> Tensor:
    assert callable(make)
    d, e = make(n, np.random.default_rng(n))
    return (torch.diag(torch.from_numpy(d)) + torch.diag(torch.from_numpy(e), 1)).to(dtype)


class Counter:
    """Number of singular values below x, from the pivots of B^T B - x^2 I with 400 digits."""

    def __init__(self, A: Tensor) -> None:
        d, e = A.diagonal().double().tolist(), [0.0, *A.diagonal(1).double().tolist()]
        with mpmath.workdps(400):
            self.q = [mpmath.mpf(v) ** 2 for v in d]
            self.e2 = [mpmath.mpf(v) ** 2 for v in e]

    def below(self, x: mpmath.mpf) -> int:
        count, pivot, mu = 0, mpmath.mpf(1), x * x
        for i, (q, e2) in enumerate(zip(self.q, self.e2, strict=True)):
            pivot = q + e2 - mu - (self.q[i - 1] * e2 / pivot if i else 0)
            if pivot == 0:
                pivot = mpmath.mpf(10) ** -350
            count += pivot < 0
        return count


def certify(A: Tensor, values: Tensor, relative: float) -> None:
    """Every exact value lies within `relative` of ours; zeros are below 1e-70 of the largest."""
    counter = Counter(A)
    assert (values[:-1] >= values[1:]).all()
    with mpmath.workdps(400):
        zero = mpmath.mpf(10) ** -70 * float(values[0])
        for k, value in enumerate(reversed(values.tolist())):
            x = mpmath.mpf(value)
            if value == 0:
                assert counter.below(zero) > k, (k, value)
            else:
                assert counter.below(x * (1 - mpmath.mpf(relative))) <= k, (k, value)
                assert counter.below(x * (1 + mpmath.mpf(relative))) > k, (k, value)


@pytest.mark.parametrize("make", MAKERS, ids=lambda make: make.__name__)
def test_float64_values_are_within_a_few_units(isa: str, make: object) -> None:
    """A count is exact for entries that differ from B's by a few units in the last place."""
    for n in SIZES:
        A = assemble(make, n, torch.float64)
        certify(A, sf.svdvals(A), 4 * 2.0**-52)


@pytest.mark.parametrize("make", MAKERS, ids=lambda make: make.__name__)
def test_float32_values_are_correctly_rounded_but_for_an_eighth(isa: str, make: object) -> None:
    for n in SIZES:
        A = assemble(make, n, torch.float32)
        certify(A, sf.svdvals(A), (0.5 + 0.125) * 2.0**-23)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_all_values_equal_of_a_large_matrix(isa: str, dtype: torch.dtype) -> None:
    A = 0.3 * torch.eye(700, dtype=dtype)
    assert (sf.svdvals(A) - A[0, 0]).abs().max() <= torch.finfo(dtype).eps * A[0, 0]


@pytest.mark.usefixtures("two_threads")
def test_threads_change_no_bit(isa: str) -> None:
    for make in (gaussian, glued, graded):
        A = assemble(make, 300, torch.float64)
        expected = sf.svdvals(A)
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            assert torch.equal(sf.svdvals(A), expected)
