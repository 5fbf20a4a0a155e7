"""What must hold for any matrix: hypothesis draws shapes, dtypes and scales."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import spectral_fast as sf
from tests.oracles.accuracy import constant
from tests.oracles.zoo import ZOO, orthonormal

# Fewer examples than the default, since each costs decompositions; derandomized, so that a run repeats.
relaxed = settings(max_examples=60, deadline=None, derandomize=True)
MODEST = [name for name in ZOO if "scale" not in name and "float32" not in name]


@st.composite
def matrices(draw: st.DrawFn) -> Tensor:
    m, n = draw(st.integers(1, 70)), draw(st.integers(1, 70))
    name = draw(st.sampled_from(MODEST))
    dtype = draw(st.sampled_from([torch.float32, torch.float64]))
    g = torch.Generator().manual_seed(draw(st.integers(0, 10**6)))
    return ZOO[name](m, n, g).to(dtype)


def bound(A: Tensor, S: Tensor) -> float:
    """What the values of one matrix may be off by: c eps sigma_1, or twice LAPACK's error.

    LAPACK's error is not known here; 4 eps sqrt(k) sigma_1 is above all that the zoo has shown of twice that.
    """
    k = S.shape[-1]
    eps = torch.finfo(A.dtype).eps
    return max(constant(k), 4 * k**0.5) * eps * float(S[0]) + 1e-300


@relaxed
@given(matrices())
def test_transpose(A: Tensor) -> None:
    """Both are read as the same tall matrix: the same bits."""
    if A.shape[0] != A.shape[1]:
        assert torch.equal(sf.svdvals(A), sf.svdvals(A.mT))
    else:
        S = sf.svdvals(A)
        assert (S - sf.svdvals(A.mT)).abs().max() <= 2 * bound(A, S)


@relaxed
@given(matrices(), st.integers(-60, 60))
def test_scaling_by_a_power_of_two_is_exact(A: Tensor, exponent: int) -> None:
    """Every operation commutes with it while nothing under- or overflows: the same bits, shifted."""
    A = torch.where(A.abs() < 1e-12 * A.abs().max(), 0, A)
    S = sf.svdvals(A)
    factor = 2.0**exponent
    shifted = sf.svdvals(A * factor)
    assert ((shifted - S * factor).abs() <= bound(A, S) * factor).all()
    if abs(exponent) <= 12 and 1e-3 < A.abs().max() < 1e3:  # neither is rescaled on load
        large = 1e-5 * S[0] < S  # below, products of roundings may fall under the smallest number
        assert torch.equal(shifted[large], S[large] * factor)


@relaxed
@given(matrices())
def test_frobenius_norm(A: Tensor) -> None:
    S = sf.svdvals(A)
    norm = A.double().norm()
    # |‖S‖ − ‖A‖_F| <= ‖S − sigma‖ <= sqrt(k) max error; 1e-13 for the sums themselves
    assert abs(S.double().norm() - norm) <= S.shape[-1] ** 0.5 * bound(A, S) + 1e-13 * norm


@relaxed
@given(matrices(), st.integers(0, 10**6))
def test_orthogonal_invariance(A: Tensor, seed: int) -> None:
    g = torch.Generator().manual_seed(seed)
    Q = orthonormal(A.shape[0], A.shape[0], g)
    S, rotated = sf.svdvals(A.double()), sf.svdvals(Q @ A.double())
    # the product itself errs by at most m eps |A|
    product = A.shape[0] * torch.finfo(torch.float64).eps * float(A.double().norm())
    assert (S - rotated).abs().max() <= 2 * bound(A.double(), S) + product


@relaxed
@given(matrices())
def test_interlacing(A: Tensor) -> None:
    """Without its last column, sigma_{i+1}(A) <= sigma_i(B) <= sigma_i(A)."""
    if A.shape[1] == 1:
        return
    S, T = sf.svdvals(A), sf.svdvals(A[:, :-1])
    slack = 2 * bound(A, S)
    k = T.shape[-1]
    assert (S[:k] + slack >= T).all()
    assert (T[: S.shape[-1] - 1] >= S[1:][:k] - slack).all()


@relaxed
@given(matrices(), st.integers(0, 10**6))
def test_weyl(A: Tensor, seed: int) -> None:
    """A perturbation moves no value by more than its own norm."""
    E = torch.randn(A.shape, generator=torch.Generator().manual_seed(seed), dtype=A.dtype)
    E *= 1e-3 * A.norm() / E.norm()
    S, T = sf.svdvals(A), sf.svdvals(A + E)
    rounding = torch.finfo(A.dtype).eps * float(A.norm() + E.norm())  # of A + E itself
    assert (S - T).abs().max() <= float(E.norm()) * (1 + 1e-6) + bound(A, S) + bound(A, T) + rounding


@relaxed
@given(matrices())
def test_batch_is_loop(A: Tensor) -> None:
    stack = torch.stack([A, A * 0.5, A.flip(0)])
    assert torch.equal(sf.svdvals(stack), torch.stack([sf.svdvals(a) for a in stack]))


@relaxed
@given(matrices())
def test_permuted_rows_and_signs(A: Tensor) -> None:
    S = sf.svdvals(A)
    order = torch.randperm(A.shape[0], generator=torch.Generator().manual_seed(1))
    assert (sf.svdvals(-A[order]) - S).abs().max() <= 2 * bound(A, S)
