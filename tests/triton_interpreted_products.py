"""gram_product's Triton kernels under the interpreter; test_triton_numerics.py runs this file."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from spectral_fast.backends import triton as backend
from spectral_fast.triton import products
from tests.triton_interpreted_band import REAL, layouts, same_bits, virtual, wide


def problem(batch: int, m: int, n: int, cols: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(m + n + cols)
    A, X = (
        torch.randn(*shape, dtype=torch.float64, generator=g) for shape in ((batch, m, n), (batch, n, cols))
    )
    return A.to(dtype), X.to(torch.float64 if dtype == torch.float64 else torch.float32)


def check(A: Tensor, X: Tensor, got: tuple[Tensor, Tensor]) -> None:
    """As in test_gram_product.py: roundings of u add up as their root (Higham and Mary 2019), to at most
    |A|^T |A| |X|; one more for the product and for the result. LENGTH / STEP = 8 squares are one chain.
    """
    Z, energy = got
    assert Z.dtype == X.dtype
    assert Z.shape == X.shape
    assert Z.is_contiguous()
    assert energy.dtype == torch.float64
    assert energy.shape == A.shape[:-2]
    m, n = A.shape[-2:]
    u = torch.finfo(X.dtype).eps / 2
    a, x = wide(A.to(X.dtype)), wide(X)
    at = np.swapaxes(a, -1, -2)
    bound = (m**0.5 + n**0.5 + 2) * u * (abs(at) @ (abs(a) @ abs(x)))
    assert (abs(wide(Z) - at @ (a @ x)) <= bound).all(), (A.shape, X.shape, A.stride())
    squares = (a * a).sum((-2, -1))
    bound = ((products.LENGTH // products.STEP + 1) * u + (m * n) ** 0.5 * 2**-53) * squares
    assert (abs(energy.numpy() - squares) <= bound).all(), (A.shape, X.shape, A.stride())


def test_the_interpreter_runs() -> None:
    for kernel in (products.product_kernel, products.total_kernel):
        assert type(kernel).__name__ == "InterpretedFunction"
    assert products.LENGTH // products.STEP == 8  # squares to a chain, as on the CPU


T, L = products.TILE, products.LENGTH
# A tile and a part, one more and one less; several of each; fewer than a step.
SHAPES = [
    (1, 1, 1),
    (3, L + 1, 2),
    (2 * L + 3, 3, 16),
    (T - 1, L, 17),
    (T, L - 1, 48),
    (T + 1, 40, 33),
    (20, T, 49),
]


@pytest.mark.parametrize(("m", "n", "cols"), SHAPES)
def test_every_edge(m: int, n: int, cols: int) -> None:
    A, X = problem(2, m, n, cols, torch.float32)
    check(A, X, products.gram_product(A, X))
    by_columns = layouts(A)["by_columns"]
    check(A, X, products.gram_product(by_columns, X))


@pytest.mark.parametrize("dtype", REAL)
def test_any_strides(dtype: torch.dtype) -> None:
    """What lies between the entries is NaN."""
    A, X = problem(2, T + 6, 37, 5, dtype)
    for view in layouts(A).values():
        before = view.clone()
        check(A, X, products.gram_product(view, X))
        assert same_bits(view, before)
    for view in (A[:, :, :1].expand(-1, -1, 20), A[:, :1].expand(-1, 30, -1)):  # stride 0
        Y = X[:, : view.shape[-1]].contiguous()
        check(view, Y, products.gram_product(view, Y))


def test_strides_beyond_32_bits() -> None:
    far = virtual((3, 2**31 + 11), torch.float32)
    A, X = problem(3, 3, 3, 2, torch.float32)
    for strides in ((1, far.shape[1], 7), (1, 7, far.shape[1]), (far.shape[1], 3, 1)):
        view = far[:, :5].as_strided((3, 3, 3), strides)
        view.copy_(A)
        check(A, X, products.gram_product(view, X))
        view.zero_()


def test_a_batch_is_its_matrices() -> None:
    """Bit for bit, and what is not finite stays in its matrix, and in its column of X."""
    A, X = problem(3, L + 9, 40, 20, torch.float32)
    Z, energy = products.gram_product(A, X)
    for i in range(3):
        one, total = products.gram_product(A[i : i + 1], X[i : i + 1])
        assert same_bits(one[0], Z[i])
        assert same_bits(total[0], energy[i])
    A[1, L + 8, 39], X[2, 17, 3] = torch.inf, torch.nan
    again, sums = products.gram_product(A, X)
    assert same_bits(again[0], Z[0])
    assert same_bits(sums[[0, 2]], energy[[0, 2]])
    kept = [j for j in range(20) if j != 3]
    assert same_bits(again[2][:, kept], Z[2][:, kept])
    assert again[2, :, 3].isnan().all()
    assert not sums[1].isfinite()
    assert not again[1, 39].isfinite().any()


def test_an_infinity_stays_one() -> None:
    """Zeros in the padding times it would be NaN."""
    A, X = torch.ones(1, 50, 30), torch.zeros(1, 30, 2)
    X[0, 3, 0] = torch.inf
    Z, _ = products.gram_product(A, X)
    assert (Z[0, :, 0] == torch.inf).all()
    assert (Z[0, :, 1] == 0).all()


def test_squares_whose_roundings_agree() -> None:
    """All entries equal: each rounding of a chain goes the same way. A chain ends after eight squares."""
    A = torch.full((1, 3, 2 * L + 50), 1 / 3)
    energy = products.gram_product(A, torch.ones(1, A.shape[2], 1))[1]
    exact = A.numel() * A[0, 0, 0].double() ** 2
    assert abs(energy - exact) <= 9 * 2**-24 * exact


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_operator(dtype: torch.dtype) -> None:
    """Half precisions, batches of any shape, X in any strides."""
    A, X = problem(4, 40, 30, 6, dtype)
    A, X = A.view(2, 2, 40, 30), X.view(2, 2, 30, 6).mT.contiguous().mT
    check(A, X, backend.gram_product(A, X))
    one, Y = A[0, 1].mT, torch.randn(40, 3)
    check(one, Y, backend.gram_product(one, Y))


@pytest.mark.parametrize("shape", [(0, 5, 3), (2, 0, 3), (2, 5, 0), (0, 0)])
def test_nothing(shape: tuple[int, ...]) -> None:
    A, X = torch.ones(shape), torch.ones(*shape[:-2], shape[-1], 2)
    Z, energy = backend.gram_product(A, X)
    assert Z.shape == X.shape
    assert (Z == 0).all()
    assert torch.equal(energy, torch.zeros(shape[:-2], dtype=torch.float64))


def test_no_columns() -> None:
    Z, energy = backend.gram_product(torch.ones(3, 4), torch.ones(4, 0))
    assert Z.shape == (4, 0)
    assert energy == 12


def test_refusals() -> None:
    with pytest.raises(ValueError, match=r"A \(\*, m, n\) and X \(\*, n, s\)"):
        backend.gram_product(torch.ones(5, 3), torch.ones(4, 2))
    with pytest.raises(TypeError, match="takes vectors of"):
        backend.gram_product(torch.ones(5, 3), torch.ones(3, 2, dtype=torch.float64))
