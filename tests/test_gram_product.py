"""gram_product: entry by entry, at every edge of its blocks, and the same bits however it runs."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from spectral_fast import _ops
from spectral_fast.backends import reference

DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]

# Strips of 24 or 48, copies of 16, 48 or 96 rows (48 from 1366 columns of float32 on), pieces of 192 rows.
SHAPES = [
    *((1, 1), (1, 60), (60, 1), (15, 23), (16, 24), (17, 25), (24, 47), (23, 48), (25, 49)),
    *((95, 97), (96, 96), (97, 95), (191, 31), (192, 72), (193, 50), (385, 30), (3500, 2), (60, 1400)),
]
# A register has 2 to 16 lanes: each of the tiles for few columns, and one to four registers and beyond.
COLUMNS = [1, 2, 3, 4, 5, 7, 8, 9, 12, 15, 16, 17, 24, 31, 32, 33, 48, 49, 64, 65, 70]


def laid_out(A: Tensor, layout: str) -> Tensor:
    """The same numbers elsewhere in memory; what lies between them is NaN."""
    *batch, m, n = A.shape
    if layout == "columns":
        return A.mT.contiguous().mT
    if layout == "every second":
        memory = A.new_full((*batch, 2 * m, 3 * n), torch.nan)
        memory[..., ::2, ::3] = A
        return memory[..., ::2, ::3]
    if layout == "part":
        memory = A.new_full((*batch, m + 5, n + 7), torch.nan)
        memory[..., 2 : 2 + m, 3 : 3 + n] = A
        return memory[..., 2 : 2 + m, 3 : 3 + n]
    return A


LAYOUTS = ["rows", "columns", "every second", "part"]


def check(A: Tensor, X: Tensor) -> None:
    """An entry of Y is a sum of n products, one of Z a sum of m. Independent roundings of u each add up as
    their root (Higham and Mary 2019) and reach an entry of Z with at most |A|^T |A| |X|; one more rounds the
    product, one the result. Eight squares are summed in the compute dtype, the sums in float64.
    """
    Z, energy = _ops.gram_product(A, X)
    assert Z.dtype == X.dtype
    assert Z.shape == X.shape
    assert Z.is_contiguous()
    assert energy.dtype == torch.float64
    assert energy.shape == A.shape[:-2]
    m, n = A.shape[-2:]
    u = torch.finfo(X.dtype).eps / 2
    exact = np.longdouble if X.dtype == torch.float64 else np.float64
    a, x = (tensor.double().numpy().astype(exact) for tensor in (A, X))
    at = np.swapaxes(a, -1, -2)
    bound = (m**0.5 + n**0.5 + 2) * u * (abs(at) @ (abs(a) @ abs(x)))
    error = abs(Z.numpy() - at @ (a @ x))
    assert (error <= bound).all(), (A.shape, X.shape, A.stride(), float((error - bound).max()))
    squares = (a * a).sum((-2, -1))
    bound = (9 * u + (m * n) ** 0.5 * 2**-53) * squares
    assert (abs(energy.numpy() - squares) <= bound).all(), (A.shape, X.shape, A.stride())


def problem(shape: tuple[int, ...], columns: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    A = torch.randn(shape).to(dtype)
    return A, torch.randn(*shape[:-2], shape[-1], columns, dtype=_ops.compute_dtype(dtype))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_every_edge(isa: str, dtype: torch.dtype) -> None:
    """By rows and by columns; each shape with a third of the numbers of columns."""
    for i, shape in enumerate(SHAPES):
        for columns in COLUMNS[i % 3 :: 3]:
            A, X = problem(shape, columns, dtype)
            check(A, X)
            check(laid_out(A, "columns"), X)


@pytest.mark.parametrize("columns", [1, 7, 33])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_dtypes_and_strides(isa: str, dtype: torch.dtype, columns: int) -> None:
    A, X = problem((2, 197, 61), columns, dtype)
    before = A.clone()
    for layout in LAYOUTS:
        check(laid_out(A, layout), X)
    check(A[0, :, :1].expand(-1, 40), X[0, :40])  # stride 0 along rows
    check(A[0, :1].expand(70, -1), X[0])  # and along columns
    check(A[0, 0, 0].expand(50, 30), X[0, :30])
    check(A[0, 0].as_strided((60, 30), (1, 1)), X[0, :30])  # rows that overlap
    check(A[0], X[0].mT.contiguous().mT)
    assert torch.equal(A, before)


def test_every_number_of_columns(isa: str) -> None:
    for columns in range(1, 71):
        check(*problem((50, 30), columns, torch.float32))


def test_the_sum_of_squares_is_good_where_roundings_agree(isa: str) -> None:
    """All entries equal: each rounding of a chain of squares goes the same way. Chains end after eight."""
    for dtype in (torch.float32, torch.float64):
        for columns in (1, 16):
            A = torch.full((1000, 300), 1 / 3, dtype=dtype)
            energy = _ops.gram_product(A, torch.ones(300, columns, dtype=dtype))[1]
            exact = 300000 * (A[0, 0].double() ** 2)
            # float64: 8 roundings, and in each lane, of two at least, a chain of 96 rows' sums of eight
            allowed = 9 * torch.finfo(dtype).eps / 2 + (96 * 300 / 8 / 2 + 10) * 2**-53
            assert abs(energy - exact) <= allowed * exact


@pytest.fixture
def threads() -> Iterator[list[int]]:
    before = torch.get_num_threads()
    yield [1, 2, 3, 5]
    torch.set_num_threads(before)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
def test_threads_and_places_change_no_bit(isa: str, dtype: torch.dtype, threads: list[int]) -> None:
    """Large enough for several threads in one matrix (5e6 flops), and batches that leave some for the end."""
    for columns in (1, 16, 40):
        for layout in ("rows", "columns"):
            A, X = problem((7, 700, 330), columns, dtype)
            A = laid_out(A, layout)
            torch.set_num_threads(1)
            Z, energy = _ops.gram_product(A, X)
            for count in threads:
                torch.set_num_threads(count)
                for size in (1, 5, 7):
                    again, sums = _ops.gram_product(A[:size], X[:size])
                    assert torch.equal(again, Z[:size])
                    assert torch.equal(sums, energy[:size])
                one, total = _ops.gram_product(A[3], X[3])
                assert torch.equal(one, Z[3])
                assert torch.equal(total, energy[3])


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_what_is_not_finite_stays_in_its_matrix(isa: str, value: float) -> None:
    """And in X in its column, whatever the padding of a block."""
    for columns in (1, 3, 16, 20):
        for layout in ("rows", "columns"):
            A, X = problem((4, 101, 53), columns, torch.float32)
            Z, energy = _ops.gram_product(laid_out(A, layout), X)
            A[2, 100, 52] = value
            X[1, 17, 0] = value
            again, sums = _ops.gram_product(laid_out(A, layout), X)
            for kept in (0, 3):
                assert torch.equal(again[kept], Z[kept])
                assert torch.equal(sums[kept], energy[kept])
            assert torch.equal(again[1, :, 1:], Z[1, :, 1:])
            assert not again[1, :, 0].isfinite().any()
            assert torch.equal(sums[1], energy[1])
            assert not again[2, 52].isfinite().any()
            assert not sums[2].isfinite()


def test_an_infinity_stays_one(isa: str) -> None:
    """Zeros in the padding times it would be NaN."""
    for columns in (1, 2, 16):
        for layout in ("rows", "columns"):
            A, X = laid_out(torch.ones(50, 30), layout), torch.zeros(30, columns)
            X[3, 0] = torch.inf
            Z = _ops.gram_product(A, X)[0]
            assert (Z[:, 0] == torch.inf).all()
            assert (Z[:, 1:] == 0).all()


@pytest.mark.parametrize("shape", [(0, 5, 3), (2, 0, 3), (2, 5, 0), (0, 0), (2, 0, 4, 3)])
def test_nothing(shape: tuple[int, ...]) -> None:
    A, X = torch.ones(shape), torch.ones(*shape[:-2], shape[-1], 2)
    Z, energy = _ops.gram_product(A, X)
    assert Z.shape == X.shape
    assert (Z == 0).all()
    assert torch.equal(energy, torch.zeros(shape[:-2], dtype=torch.float64))
    Z, energy = _ops.gram_product(torch.ones(3, 4), torch.ones(4, 0))
    assert Z.shape == (4, 0)
    assert abs(energy - 12) < 1e-14


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_the_twin(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    """Plain torch, in parts of a few rows, and inside autocast, which rounds factors of float32."""
    monkeypatch.setattr(reference, "_SQUARED_ENTRIES", 500)
    A, X = problem((3, 60, 40), 5, dtype)
    Z, energy = _ops.gram_product(A, X)
    for inside in (False, True):
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=inside):
            twin, sums = reference.gram_product(A, X)
        # Both hold the bound of check(), 16 u |A|^T |A| |X|.
        allowed = 32 * torch.finfo(X.dtype).eps / 2
        bound = allowed * (A.abs().double().mT @ (A.abs().double() @ X.abs().double()))
        assert ((twin - Z).abs() <= bound).all()
        assert torch.allclose(sums, energy, rtol=9 * torch.finfo(X.dtype).eps, atol=0)


@pytest.mark.parametrize("chosen", ["tf32", "ieee"])
def test_the_twin_on_a_gpu_never_multiplies_as_tf32(chosen: str) -> None:
    """Whatever the user chose for the model, and that is there again afterwards."""
    matmul = torch.backends.cuda.matmul
    before = matmul.fp32_precision
    try:
        matmul.fp32_precision = chosen
        with reference._unrounded_products(torch.device("cuda")):
            assert matmul.fp32_precision == "ieee"
        assert matmul.fp32_precision == chosen
        with pytest.raises(ZeroDivisionError), reference._unrounded_products(torch.device("cuda")):
            1 / 0  # noqa: B018
        assert matmul.fp32_precision == chosen
    finally:
        matmul.fp32_precision = before


def test_refusals() -> None:
    A, X = torch.ones(2, 5, 3), torch.ones(2, 3, 4)
    for a, x in ((A, X[0]), (A[0], X), (A, X.mT), (A, X[:1]), (A[0, 0], X), (A, X[0, 0])):
        with pytest.raises(ValueError, match=r"A \(\*, m, n\) and X \(\*, n, s\)"):
            _ops.gram_product(a, x)
    with pytest.raises(TypeError, match=r"not torch\.complex64"):
        _ops.gram_product(A.to(torch.complex64), X)
    with pytest.raises(TypeError, match=r"bfloat16 matrices takes vectors of torch.float32, not torch.bf"):
        _ops.gram_product(A.bfloat16(), X.bfloat16())


def test_fake_and_vmap_and_compile() -> None:
    A, X = problem((3, 2, 40, 30), 5, torch.bfloat16)
    Z, energy = _ops.gram_product(A, X)
    with FakeTensorMode() as mode:
        fakes = _ops.gram_product(*(mode.from_tensor(tensor) for tensor in (A, X)))
    for fake, real in zip(fakes, (Z, energy), strict=True):
        assert (fake.shape, fake.dtype, fake.stride()) == (real.shape, real.dtype, real.stride())

    call = torch.compile(lambda a, x: _ops.gram_product(a, x), fullgraph=True, backend="aot_eager")
    for got, want in zip(call(A, X), (Z, energy), strict=True):
        assert torch.equal(got, want)

    one = X[1]
    for got, want in zip(
        torch.vmap(torch.vmap(_ops.gram_product), in_dims=(0, None))(A, one),
        _ops.gram_product(A, one.expand(3, -1, -1, -1)),
        strict=True,
    ):
        assert torch.equal(got, want)
    moved = torch.vmap(_ops.gram_product, in_dims=(1, 1))(A, X)
    for got, want in zip(moved, (Z, energy), strict=True):
        assert torch.equal(got, want.transpose(0, 1))


def test_no_derivative() -> None:
    """A backward pass raises, instead of leaving zeros."""
    A, X = torch.randn(5, 3), torch.randn(3, 2)
    for a, x in ((A.clone().requires_grad_(), X), (A, X.clone().requires_grad_())):
        Z, energy = _ops.gram_product(a, x)
        for result in (Z.sum(), energy):
            with pytest.raises(NotImplementedError, match=r"no derivative: give it A\.detach"):
                result.backward(retain_graph=True)
