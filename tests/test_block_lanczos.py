"""block_lanczos: the compiled steps against what the method promises, in float64, and the same bits however
they run."""

from __future__ import annotations

from typing import NamedTuple

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from spectral_fast import _ops
from spectral_fast.backends import reference
from tests.same_bits import MATRICES, check_threads_and_places

# (m, n, s, q): pieces of 128 rows; registers hold 2 to 16 columns, and half of one 4 or 8.
SHAPES = [(300, 256, 8, 4), (130, 129, 5, 5), (200, 300, 16, 3), (140, 127, 3, 6), (150, 140, 17, 3)]


class Walk(NamedTuple):
    along: Tensor
    first: Tensor
    second: Tensor
    energy: Tensor


def walk(A: Tensor, V: Tensor, steps: int) -> Walk:
    return Walk(*_ops.block_lanczos(A, V, steps))


def twin(A: Tensor, V: Tensor, steps: int) -> Walk:
    return Walk(*reference.block_lanczos(A.double(), V.double(), steps))


def tridiagonal(found: Walk) -> Tensor:
    """T, (b, s q, s q)."""
    b, q, s, _ = found.along.shape
    T = torch.zeros(b, s * q, s * q, dtype=torch.float64)
    below = found.second @ found.first
    for j in range(q):
        here, next_one = slice(j * s, (j + 1) * s), slice((j + 1) * s, (j + 2) * s)
        T[:, here, here] = (found.along[:, j] + found.along[:, j].mT) / 2
        if j + 1 < q:
            T[:, next_one, here] = below[:, j]
            T[:, here, next_one] = below[:, j].mT
    return T


def start(n: int, s: int, dtype: torch.dtype) -> Tensor:
    return torch.linalg.qr(torch.randn(n, s, dtype=torch.float64)).Q.to(dtype)


def rounding(A: Tensor, dtype: torch.dtype, count: int) -> Tensor:
    """(b): how far an eigenvalue of T, or M itself where T stands for it, may be off for `count` vectors.

    A v and A^T y err by u |A|_F and u sigma_1 |A|_F, if errors of single terms are independent; V is off by u
    for another u sigma_1^2. An eigenvalue moves by no more than the norm of what all vectors are off by:
    sqrt(count) of one's. A factor of two for what is not independent.
    """
    sigma = torch.linalg.matrix_norm(A.double(), 2)
    frobenius = torch.linalg.matrix_norm(A.double())
    return 2 * (2 * frobenius + sigma) * sigma * torch.finfo(dtype).eps / 2 * count**0.5


def check(A: Tensor, V: Tensor, steps: int) -> None:
    """Moments, the twin's eigenvalues and residuals; A of full rank, and nothing that has converged."""
    found, expected = walk(A, V, steps), twin(A, V, steps)
    T, n_vectors = tridiagonal(found), V.shape[1] * steps
    off = rounding(A, V.dtype, n_vectors)
    torch.testing.assert_close(found.energy, expected.energy, rtol=torch.finfo(V.dtype).eps, atol=0)
    assert (
        (torch.linalg.eigvalsh(T) - torch.linalg.eigvalsh(tridiagonal(expected))).abs() <= off[:, None]
    ).all()
    # What the next block would be multiplied by: the same but for its signs.
    couplings = [torch.linalg.svdvals((each.second @ each.first)[:, -1]) for each in (found, expected)]
    assert ((couplings[0] - couplings[1]).abs() <= off[:, None]).all()
    # Block Gauss quadrature: V^T M^k V = E_1^T T^k E_1 for all k < 2 q. Each factor passes `off` on.
    scale = torch.linalg.matrix_norm(A.double(), 2).square()[:, None, None]
    M, T = A.double().mT @ A.double() / scale, T / scale
    X, Y = (
        V.double().expand(len(A), *V.shape),
        torch.eye(n_vectors, V.shape[1]).double().expand(len(A), -1, -1),
    )
    for k in range(1, 2 * steps):
        X, Y = M @ X, T @ Y
        difference = V.double().mT @ X - Y[:, : V.shape[1]]
        assert (difference.abs() <= k * off[:, None, None] / scale).all(), f"moment {k}"
    for R in (found.first, found.second):
        assert torch.equal(R, R.triu())
        assert (R.diagonal(dim1=-2, dim2=-1) > 0).all()


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_moments_and_the_twin(isa: str, shape: tuple[int, int, int, int], dtype: torch.dtype) -> None:
    m, n, s, steps = shape
    check(torch.randn(3, m, n, dtype=dtype), start(n, s, dtype), steps)


def test_one_column() -> None:
    A = torch.randn(2, 9, 1, dtype=torch.float64)
    found = walk(A, torch.ones(1, 1, dtype=torch.float64), 2)
    torch.testing.assert_close(found.along[:, 0, 0, 0], A.square().sum((1, 2)), rtol=1e-14, atol=0)
    assert (found.second == 0).all()
    assert (found.along[:, 1] == 0).all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_halves_and_strides(dtype: torch.dtype) -> None:
    A, V = torch.randn(3, 200, 150).to(dtype), start(150, 8, torch.float32)
    check(A, V, 4)
    check(A.mT.contiguous().mT, V, 4)
    check(A.flip(0)[:, ::2], V.mT.contiguous().mT, 4)
    check(A[:1].expand(2, -1, -1), V, 4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_the_basis_stays_orthonormal(isa: str, dtype: torch.dtype) -> None:
    """Values that converge at once come back as copies where it does not; then theta_i > lambda_i."""
    n, s, steps = 256, 8, 12
    values = torch.cat([2.0 ** torch.arange(8, 0, -1), torch.linspace(1, 0.1, n - 8)]).double()
    A = (values * torch.linalg.qr(torch.randn(n, n).double()).Q).mT.to(dtype)[None]
    theta = torch.linalg.eigvalsh(tridiagonal(walk(A, start(n, s, dtype), steps)))[0].flip(-1)
    exact = torch.linalg.svdvals(A[0].double()).square()
    off = rounding(A, dtype, s * steps)
    assert (theta <= exact[: s * steps] + off).all()
    assert ((theta[:8] - exact[:8]).abs() <= off).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_graded_values(isa: str, dtype: torch.dtype) -> None:
    """Eight values over 14 orders in lambda: what the vectors of W hardly differ by tells the small ones."""
    n, s, steps = 130, 4, 5
    values = torch.cat([10 ** -torch.arange(8).double(), torch.zeros(n - 8).double()])
    A = (values * torch.linalg.qr(torch.randn(n, n).double()).Q).mT.to(dtype)[None]
    theta = torch.linalg.eigvalsh(tridiagonal(walk(A, start(n, s, dtype), steps)))[0].flip(-1)
    exact = torch.linalg.svdvals(A[0].double()).square()[: s * steps]
    assert ((theta - exact).abs() <= rounding(A, dtype, s * steps)).all()


def test_steps_are_a_prefix() -> None:
    A, V = torch.randn(2, 200, 150), start(150, 8, torch.float32)
    few, many = walk(A, V, 2), walk(A, V, 5)
    for got, want in zip(few[:3], many[:3], strict=True):
        assert torch.equal(got, want[:, :2])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("rank", [0, 3, 11])
def test_an_exhausted_space(isa: str, rank: int, dtype: torch.dtype) -> None:
    """Of rank r a start of s vectors sees r directions, and a complement that M turns to 0."""
    m, n, s, steps = 140, 130, 8, 5
    A = torch.randn(2, m, rank, dtype=torch.float64) @ torch.randn(2, rank, n, dtype=torch.float64)
    A = A.to(dtype)
    found = walk(A, start(n, s, dtype), steps)
    theta = torch.linalg.eigvalsh(tridiagonal(found)).flip(-1)
    # As written in dtype A has small values behind the rank-th: M is then off by u |A|_F sigma_1 more.
    off = 2 * rounding(A, dtype, s * steps)[:, None]
    exact = torch.linalg.svdvals(A.double())[:, : s * steps].square()
    assert ((theta[:, :rank] - exact[:, :rank]).abs() <= off).all()
    assert (theta[:, rank:].abs() <= off).all()
    if rank == 0:
        assert all((part == 0).all() for part in (found.along, found.second, found.energy))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_more_vectors_than_columns(isa: str, dtype: torch.dtype) -> None:
    m, n, s, steps = 60, 30, 8, 6
    A = torch.randn(2, m, n, dtype=dtype)
    found = walk(A, start(n, s, dtype), steps)
    alive = (found.second.diagonal(dim1=-2, dim2=-1) > 0).sum((1, 2)) + s
    assert (alive == n).all()
    assert (found.second[:, 3:] == 0).all()
    theta = torch.linalg.eigvalsh(tridiagonal(found)).flip(-1)
    exact = torch.nn.functional.pad(torch.linalg.svdvals(A.double()).square(), (0, s * steps - n))
    assert ((theta - exact).abs() <= rounding(A, dtype, s * steps)[:, None]).all()


@pytest.mark.parametrize(
    ("dtype", "exponent"),
    [(torch.float32, 25), (torch.float32, -25), (torch.float64, 300), (torch.float64, -300)],
)
def test_powers_of_two_change_no_bit(isa: str, dtype: torch.dtype, exponent: int) -> None:
    """Squares of W, fourth powers of A, must neither overflow nor vanish."""
    A, V = torch.randn(2, 140, 130, dtype=dtype), start(130, 8, dtype)
    found, expected = walk(torch.ldexp(A, torch.tensor(exponent)), V, 3), walk(A, V, 3)
    assert torch.equal(found.along, torch.ldexp(expected.along, torch.tensor(2 * exponent)))
    assert torch.equal(found.first, torch.ldexp(expected.first, torch.tensor(2 * exponent)))
    assert torch.equal(found.second, expected.second)


@pytest.mark.parametrize("s", [8, 16])
def test_threads_and_places_change_no_bit(isa: str, s: int) -> None:
    """Matrices worth 2 and 4 threads (5e6 flops each), apart and together."""
    A, V = torch.randn(MATRICES, 700, 500), start(500, s, torch.float32)
    check_threads_and_places(lambda where: walk(A[where], V, 3))


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_what_is_not_finite_stays_in_its_matrix(isa: str, value: float) -> None:
    A, V = torch.randn(3, 150, 140), start(140, 8, torch.float32)
    expected = walk(A, V, 3)
    A[1, 3, 5] = value
    found = walk(A, V, 3)
    for got, want in zip(found, expected, strict=True):
        assert torch.equal(got[[0, 2]], want[[0, 2]])
    assert not found.along[1].isfinite().all()
    assert not found.energy[1].isfinite()
    assert (found.second[1] == 0).all()


def test_refusals() -> None:
    A, V = torch.randn(2, 50, 40), torch.eye(40, 8)
    for args, said in (
        ((A[0], V, 3), r"takes A \(b, m, n\).* not \(50, 40\)"),
        ((A[:, :0], V, 3), "m at least 1"),
        ((A, V[:-1], 3), "with the same n"),
        ((A, torch.ones(40, 41), 3), "takes 1 to 40 vectors .* not 41 and 3"),
        ((A, V[:, :0], 3), "takes 1 to 40 vectors .* not 0 and 3"),
        ((A, V, 0), "at least 1 step, not 8 and 0"),
    ):
        for call in (_ops.block_lanczos, reference.block_lanczos):
            with pytest.raises(ValueError, match=said):
                call(*args)
    with pytest.raises(TypeError, match=r"not torch\.complex64"):
        _ops.block_lanczos(A.to(torch.complex64), V, 3)
    with pytest.raises(TypeError, match=r"vectors of torch\.float32, not torch\.float64"):
        _ops.block_lanczos(A, V.double(), 3)


@pytest.mark.parametrize("batch", [0, 2])
def test_fake_and_empty(batch: int) -> None:
    A, V = torch.randn(batch, 50, 40).bfloat16(), torch.eye(40, 8)
    with FakeTensorMode() as mode:
        fakes = _ops.block_lanczos(mode.from_tensor(A), mode.from_tensor(V), 3)
    for got, want in zip(fakes, walk(A, V, 3), strict=True):
        assert (got.shape, got.dtype, got.stride()) == (want.shape, want.dtype, want.stride())
