"""The gradient of svdvals by the kernel `vectors`: backward errors value by value, what every kernel owes.

A gradient X = U diag(g) V^T has no bounded error where values meet. What is bounded is the backward error: X
has the singular values |g|, A^T X and A X^T are symmetric, and A^T X has the eigenvalues sigma_i g_i.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.func import hessian

import spectral_fast as sf
from spectral_fast import _cpu, _ops, _vectors
from spectral_fast.backends import cpu
from tests.oracles.zoo import ZOO, orthonormal

EPS = torch.finfo(torch.float32).eps
# A remainder in every block, strip and register of each instruction set; the last two by way of QR.
SHAPES = [(200, 150), (150, 151), (300, 140), (131, 270)]
# Values that are equal, or vanish beside the largest, in exact arithmetic: torch has these.
CLOSE = ("all_equal", "clustered", "identity", "ones", "repeated", "two_clusters", "zeros")
SEPARATED = (
    "gaussian",
    "log_spaced",
    "power_law",
    "heavy_tailed_entries",
    "scale_1e30",
    "scale_1e-30",
    "one_large",
)


def matrix(name: str, shape: tuple[int, int]) -> Tensor:
    return ZOO[name](*shape, torch.Generator().manual_seed(sum(shape))).float()


def weights_of(A: Tensor) -> Tensor:
    """Different for every value, and of both signs."""
    n = min(A.shape[-2:])
    return (torch.linspace(2, 1, n) * torch.ones(n).cumsum(0).cos().sign()).expand(*A.shape[:-2], n)


def backward_errors(A: Tensor, X: Tensor, g: Tensor) -> list[float]:
    A, X, g = (x.double() if A.shape[0] >= A.shape[1] or x.dim() == 1 else x.double().mT for x in (A, X, g))
    s = torch.linalg.svdvals(A)
    scale = float(s[0] * g.abs().max()) or 1.0
    right, left = A.mT @ X, A @ X.mT
    values = torch.linalg.svdvals(X) - g.abs().sort(descending=True).values
    eigenvalues = torch.linalg.eigvalsh((right + right.mT) / 2) - (s * g).sort().values
    norm = torch.linalg.matrix_norm
    return [
        float(values.abs().max() / g.abs().max()),
        float(norm(right - right.mT, 2) / scale),
        float(norm(left - left.mT, 2) / scale),
        float(eigenvalues.abs().max() / scale),
    ]


@pytest.mark.parametrize("name", ZOO)
def test_backward_error(isa: str, name: str) -> None:
    """At most sqrt(k) eps, or what torch.linalg.svd makes of the same matrix where that is larger.

    Every entry meets 2 k reflectors, of the band and of the chase, on either side, each of which rounds it by
    half a unit. As independent errors they add up to sqrt(2 k) / 2 eps on a side, sqrt(k) eps on both.
    """
    for shape in SHAPES:
        A = matrix(name, shape)
        g = weights_of(A)
        ours, theirs = _ops.svdvals_gradient(A, g), _vectors.gradient(A, g)
        if name in CLOSE:
            assert torch.equal(ours, theirs), shape
        if name in SEPARATED:
            assert not torch.equal(ours, theirs), shape
        allowed = min(shape) ** 0.5 * EPS
        for error, torch_error in zip(
            backward_errors(A, ours, g), backward_errors(A, theirs, g), strict=True
        ):
            assert error <= max(allowed, torch_error), shape


@pytest.mark.parametrize("name", ["gaussian", "power_law", "heavy_tailed_entries", "small_integers"])
def test_entries_against_float64(name: str) -> None:
    """Where values are well apart every entry has an error, and it is at most twice torch's."""
    for shape in (*SHAPES, (384, 384)):
        A = matrix(name, shape)
        g = weights_of(A)
        exact = _vectors.gradient(A.double(), g.double())
        ours, theirs = (
            float((x.double() - exact).abs().max())
            for x in (_ops.svdvals_gradient(A, g), _vectors.gradient(A, g))
        )
        assert ours <= 2 * theirs, shape


def singular_vectors(A: Tensor) -> tuple[Tensor, Tensor, int]:
    U, V, info = cpu._vectors_of(A)
    return U.double(), V.double(), int(info)


@pytest.mark.parametrize("decades", [0.3, 2, 6])
def test_vectors_belong_to_their_values(isa: str, decades: float) -> None:
    """U^T A V is diagonal and descending; the bounds are those of test_backward_error."""
    g = torch.Generator().manual_seed(5)
    s = torch.logspace(0, -decades, 150, dtype=torch.float64)
    A = (orthonormal(210, 150, g) * s @ orthonormal(150, 150, g).T).float()
    U, V, info = singular_vectors(A)
    assert info == 0
    exact = torch.linalg.svdvals(A.double())
    allowed = 150**0.5 * EPS
    assert (torch.diag(U.mT @ A.double() @ V) - exact).abs().max() <= allowed
    for Q in (U, V):
        assert torch.linalg.matrix_norm(Q.mT @ Q - torch.eye(150, dtype=torch.float64), 2) <= 2 * allowed


@pytest.mark.parametrize("gap", [1e-3, 1e-9])
def test_close_values_are_left_to_torch(isa: str, gap: float) -> None:
    """A diagonal matrix has its values exactly: 1e-3 of themselves apart, or equal in float32."""
    s = torch.linspace(2, 1, 140)
    s[71] = s[70] * (1 - gap)
    assert singular_vectors(torch.diag(s))[2] == (0 if gap == 1e-3 else 3)
    A = torch.diag(s)
    if gap == 1e-9:
        assert torch.equal(_ops.svdvals_gradient(A, s), _vectors.gradient(A, s))


def test_svdvals_and_statistics_use_it() -> None:
    A = torch.randn(2, 140, 130, requires_grad=True)
    (X,) = torch.autograd.grad(sf.svdvals(A).square().sum(), A)
    assert torch.equal(X, _ops.svdvals_gradient(A.detach(), 2 * sf.svdvals(A.detach())))
    assert not torch.equal(X, _vectors.gradient(A.detach(), 2 * sf.svdvals(A.detach())))
    # d |A|_F^2 = 2 A: backward stable is forward stable there
    errors = torch.linalg.matrix_norm(X - 2 * A, 2) / torch.linalg.matrix_norm(2 * A, 2)
    assert errors.max() <= 2 * 130**0.5 * EPS
    (X,) = torch.autograd.grad(sf.spectral_stats(A).nuclear_norm.sum(), A)
    assert torch.equal(X, _ops.svdvals_gradient(A.detach(), torch.ones(2, 130)))


def test_second_derivatives_are_torchs() -> None:
    s = torch.linspace(3, 1, 130, dtype=torch.float64)
    g = torch.Generator().manual_seed(1)
    A = (orthonormal(131, 130, g) * s @ orthonormal(130, 130, g).T).float().requires_grad_()
    direction = torch.randn(131, 130)
    products = []
    for values in (sf.svdvals, torch.linalg.svdvals):
        (first,) = torch.autograd.grad(values(A).pow(3).sum(), A, create_graph=True)
        products.append(torch.autograd.grad((first * direction).sum(), A)[0])
    # gaps of 1/65 divide some roundings of U and V
    torch.testing.assert_close(*products, rtol=0, atol=65 * 130**0.5 * EPS * float(products[1].abs().max()))
    B = torch.randn(3, 2)
    both = [hessian(lambda x, f=f: f(x).sin().sum())(B) for f in (sf.svdvals, torch.linalg.svdvals)]
    torch.testing.assert_close(*both)


@pytest.mark.parametrize("shape", [(140, 130), (130, 300), (300, 130)], ids=str)
def test_strides_scales_and_halves(isa: str, shape: tuple[int, int]) -> None:
    """However the numbers lie in memory: the same bits, in A's dtype, and nothing is written to them."""
    A = torch.randn(shape)
    g = weights_of(A)
    X = _ops.svdvals_gradient(A, g)
    assert X.is_contiguous()
    padded = torch.full((shape[0], 2 * shape[1] + 3), torch.nan)
    padded[:, 1 : 2 * shape[1] : 2] = A
    strided = padded[:, 1 : 2 * shape[1] : 2]
    for other in (A.mT.contiguous().mT, strided):
        kept = other.clone()
        assert torch.equal(_ops.svdvals_gradient(other, g), X)
        assert torch.equal(other, kept)
    for exponent in (-100, 90):
        assert torch.equal(_ops.svdvals_gradient(A * 2.0**exponent, g), X)
    for dtype in (torch.bfloat16, torch.float16):
        half = A.to(dtype)
        assert torch.equal(_ops.svdvals_gradient(half, g), _ops.svdvals_gradient(half.float(), g).to(dtype))


@pytest.mark.usefixtures("two_threads")
def test_threads_and_neighbours_change_no_vector(isa: str) -> None:
    A = torch.randn(5, 170, 140)
    torch.set_num_threads(1)
    expected = [cpu._vectors_of(a) for a in A]
    A[3] = torch.eye(170, 140)
    A[1, 7, 7] = torch.nan
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        U, V, info = cpu._vectors_of(A)
        assert info.tolist() == [0, 1, 0, 3, 0]
        for i in (0, 2, 4):
            assert torch.equal(U[i], expected[i][0])
            assert torch.equal(V[i], expected[i][1])


def test_a_nan_and_equal_values_spoil_no_neighbour() -> None:
    for shape in ((2, 2, 150, 140), (2, 2, 140, 300)):
        A = torch.randn(shape)
        g = weights_of(A)
        expected = _ops.svdvals_gradient(A, g)
        A[0, 1, 3, 3] = torch.inf
        A[1, 0] = torch.eye(*shape[-2:])
        X = _ops.svdvals_gradient(A, g)
        assert X[0, 1].isnan().all()
        assert torch.equal(X[1, 0], _vectors.gradient(A[1, 0], g[1, 0]))
        assert torch.equal(X[0, 0], expected[0, 0])
        assert torch.equal(X[1, 1], expected[1, 1])


def test_empty_and_other_dtypes_are_torchs() -> None:
    for A in (torch.randn(0, 150, 140), torch.randn(3, 0, 140), torch.randn(150, 140, dtype=torch.float64)):
        g = torch.randn(*A.shape[:-2], min(A.shape[-2:]), dtype=A.dtype)
        assert torch.equal(_ops.svdvals_gradient(A, g), _vectors.gradient(A, g))


@pytest.mark.parametrize("shape", [(128, 128), (300, 140)], ids=str)
def test_the_binding_refuses_other_shapes(shape: tuple[int, int]) -> None:
    A, out = torch.randn(shape), np.empty(1, np.int32)
    with pytest.raises(ValueError, match=f"no kernel for {shape[0]} x {shape[1]} matrices"):
        _cpu.vectors(A.data_ptr(), 0, A.shape, A.stride(), 0, 0, out.ctypes.data, 1)
