"""driver="gram" where it has a kernel: its own error bound value by value, and what every driver owes."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

import spectral_fast as sf
from spectral_fast import _cpu
from tests.oracles.accuracy import constant, exact_values
from tests.oracles.zoo import FLOAT64_ONLY, ZOO, orthonormal

CASES = [(torch.float32, name) for name in ZOO] + [(torch.float64, name) for name in (*ZOO, *FLOAT64_ONLY)]
# A remainder in every strip, tile and chunk of 128 rows; the wide one is read through its transpose. Both
# dtypes take the same path; only float32 has a fast oracle.
SHAPES = {torch.float32: [(300, 140), (131, 270)], torch.float64: [(131, 270)]}
_exact: dict[tuple[str, torch.dtype, tuple[int, int]], tuple[Tensor, np.ndarray]] = {}


def matrix(name: str, dtype: torch.dtype, shape: tuple[int, int]) -> tuple[Tensor, np.ndarray]:
    key = (name, dtype, shape)
    if key not in _exact:
        g = torch.Generator().manual_seed(sum(shape))
        a = {**ZOO, **FLOAT64_ONLY}[name](*shape, g).to(dtype)
        _exact[key] = a, exact_values(a)
    return _exact[key]


def excess(a: Tensor, values: Tensor, exact: np.ndarray) -> float:
    """The largest error of a squared value, as a part of what is allowed.

    An entry of A^T A, of its factor, or of their sum with the shift is the result of k roundings of numbers
    of at most |a_i| |a_j|. As independent errors of u each (Higham and Mary 2019) they add up to sqrt(k) u,
    in the Frobenius norm to sqrt(k) u |A|_F^2, which bounds what any eigenvalue moves by (Weyl). The stages
    behind keep the bound c eps sigma_1 of all drivers, 2 c eps sigma_1^2 for squares. The value is rounded to
    A's dtype, once: half a unit, or half of a subnormal one.
    """
    m, n = max(a.shape), min(a.shape)
    eps, info = (
        np.finfo(np.float64).eps,
        torch.finfo(torch.float64 if a.dtype == torch.float64 else torch.float32),
    )
    k = n + 128 + m // 128 + 8
    allowed = k**0.5 * eps / 2 * (exact**2).sum() + 2 * constant(n) * eps * exact[0] ** 2
    ours = values.numpy().astype(np.longdouble)
    rounding = info.eps / 2 * ours + np.longdouble(info.smallest_normal) * info.eps / 2
    low, high = np.maximum(ours - rounding, 0) ** 2, (ours + rounding) ** 2
    error = np.maximum(np.maximum(low - exact**2, exact**2 - high), 0).max()
    return float(error / allowed) if allowed else float(error)


@pytest.mark.parametrize(("dtype", "name"), CASES, ids=lambda v: str(v).removeprefix("torch."))
def test_zoo(isa: str, dtype: torch.dtype, name: str) -> None:
    for shape in SHAPES[dtype]:
        a, exact = matrix(name, dtype, shape)
        values = sf.svdvals(a, driver="gram")
        assert values.dtype == dtype
        assert (values >= 0).all()
        assert (values[:-1] >= values[1:]).all()
        assert excess(a, values, exact) <= 1, shape


@pytest.mark.parametrize("decades", [1, 4, 8, 12])
def test_condition(isa: str, decades: int) -> None:
    """The error is that of squares: half of the digits are left at 1e-4 sigma_1, none below 1e-8."""
    g = torch.Generator().manual_seed(decades)
    s = torch.logspace(0, -decades, 150, dtype=torch.float64)
    a = orthonormal(700, 150, g) * s @ orthonormal(150, 150, g).T
    exact = exact_values(a)
    values = sf.svdvals(a, driver="gram")
    assert excess(a, values, exact) <= 1
    accurate = sf.svdvals(a)
    # The smallest: eps sigma_1^2 / sigma_n. The accurate path, eps sigma_1, beats it from four decades on.
    ours, theirs = (float(abs(v[-1] - exact[-1])) for v in (values.numpy(), accurate.numpy()))
    assert (ours > 10 * max(theirs, torch.finfo(torch.float64).eps)) == (decades >= 4)


@pytest.mark.parametrize("rank", [1, 20, 139])
def test_rank_deficient(isa: str, rank: int) -> None:
    """Small integers: A^T A is exact, and without the shift a pivot is zero, or negative by a rounding."""
    g = torch.Generator().manual_seed(rank)
    a = (
        torch.randint(-3, 4, (600, rank), generator=g) @ torch.randint(-3, 4, (rank, 140), generator=g)
    ).double()
    values = sf.svdvals(a, driver="gram")
    assert values.isfinite().all()
    assert excess(a, values, exact_values(a)) <= 1


@pytest.mark.parametrize("shape", [(1536, 384), (3072, 768)], ids=str)
def test_layer_sizes(isa: str, shape: tuple[int, int]) -> None:
    """In float32, where the values of LAPACK in float64 are exact."""
    a, exact = matrix("power_law", torch.float32, shape)
    assert excess(a, sf.svdvals(a, driver="gram"), exact) <= 1


def test_zero_matrix(isa: str) -> None:
    assert torch.equal(sf.svdvals(torch.zeros(2, 300, 140), driver="gram"), torch.zeros(2, 140))


@pytest.mark.usefixtures("two_threads")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_threads_change_no_bit(isa: str, dtype: torch.dtype) -> None:
    for shape in ((300, 140), (160, 1100), (900, 385), (3, 400, 150)):
        A = torch.randn(shape, dtype=dtype)
        torch.set_num_threads(1)
        expected = sf.svdvals(A, driver="gram")
        for threads in (2, 3, 4):
            torch.set_num_threads(threads)
            assert torch.equal(sf.svdvals(A, driver="gram"), expected), (shape, threads)


def test_a_batch_is_its_matrices_and_a_nan_spoils_only_its_own(isa: str) -> None:
    A = torch.randn(2, 3, 300, 140, dtype=torch.float64)
    expected = sf.svdvals(A, driver="gram")
    assert torch.equal(expected[1, 2], sf.svdvals(A[1, 2], driver="gram"))
    A[0, 1, 299, 139] = torch.nan
    A[1, 0, 0, 0] = torch.inf
    S, info = sf.svdvals_ex(A, driver="gram")
    assert info.tolist() == [[0, 1, 0], [1, 0, 0]]
    assert S[info == 1].isnan().all()
    assert torch.equal(S[info == 0], expected[info == 0])
    with pytest.raises(torch.linalg.LinAlgError, match=r"\(Batch element 1\)"):
        sf.svdvals(A, driver="gram")


def test_strides_and_transposes(isa: str) -> None:
    """However the numbers lie in memory: the same bits, and nothing is written to them."""
    big = torch.randn(2, 620, 290, dtype=torch.float64)
    for A in (
        big.mT,
        big[:, ::2, 5:150],
        big[0, :, :1].expand(-1, 140),
        big[0, :, 0].as_strided((300, 140), (1, 2)),
    ):
        kept = A.clone(memory_format=torch.contiguous_format)
        expected = sf.svdvals(kept, driver="gram")
        assert torch.equal(sf.svdvals(A, driver="gram"), expected)
        assert torch.equal(sf.svdvals(A.mT, driver="gram"), expected)
        assert torch.equal(A, kept)


@pytest.mark.parametrize("exponent", [-500, -40, 40, 500])
def test_powers_of_two_change_no_digit(isa: str, exponent: int) -> None:
    """Squares of entries of 1e150 or 1e-150 are out of range: the matrix is scaled as it is read."""
    A = torch.randn(300, 140, dtype=torch.float64)
    S = sf.svdvals(A, driver="gram")
    assert torch.equal(sf.svdvals(torch.ldexp(A, torch.tensor(exponent)), driver="gram"), S * 2.0**exponent)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_precisions_are_exact_conversions(isa: str, dtype: torch.dtype) -> None:
    half = torch.randn(300, 140).to(dtype)
    assert torch.equal(sf.svdvals(half, driver="gram"), sf.svdvals(half.float(), driver="gram"))


def test_float32_is_computed_in_float64(isa: str) -> None:
    A = torch.randn(300, 140)
    assert torch.equal(sf.svdvals(A, driver="gram"), sf.svdvals(A.double(), driver="gram").float())


def test_statistics(isa: str) -> None:
    A = torch.randn(3, 300, 140, dtype=torch.float64)
    S = sf.svdvals(A, driver="gram")
    found = sf.spectral_stats(A, driver="gram", return_svdvals=True)
    assert torch.equal(found.svdvals, S)
    assert not torch.equal(S, sf.svdvals(A))  # by another path: the last bits
    for name, value in vars(sf.stats_from_svdvals(S, shape=A.shape[-2:])).items():
        assert value is None or torch.equal(getattr(found, name), value), name


# ---------------------------------------------------------------- the choice


def test_heuristics_and_kernels_agree_on_what_there_is_a_kernel_for() -> None:
    """heuristics.py and csrc/cpu/heuristics.inl are two texts of one decision."""
    for n in (1, 64, 128, 129, 150, 768):
        for m in (n, 5 * n // 3, 5 * n // 3 + 1, 4 * n):
            stages = tuple(_cpu.gram_stages(m, n))
            for shape in ((5, m, n), (n, m)):
                for dtype in (torch.float64, torch.float32, torch.bfloat16):
                    plan = sf.explain(shape, dtype, driver="gram")
                    assert plan.driver == "gram"
                    assert plan.backend == ("cpu" if stages else "reference")
                    assert not stages or plan.stages == stages
            assert (n > 128 and 3 * m > 5 * n) == bool(stages)


def test_nobody_gets_it_unasked() -> None:
    for device in ("cpu", "cuda"):
        assert sf.explain((3072, 768), torch.float64, device).driver != "gram"
    assert sf.explain((3072, 768), torch.float64, "cuda", "gram").backend == "reference"
    A = torch.randn(300, 140, dtype=torch.float64)
    assert torch.equal(sf.svdvals(A), sf.svdvals(A, driver="bidiag"))
    assert not torch.equal(sf.svdvals(A), sf.svdvals(A, driver="gram"))


def test_the_binding_refuses_other_shapes() -> None:
    A, values, info = torch.randn(200, 140), torch.empty(140), torch.empty(1, dtype=torch.int32)
    with pytest.raises(
        ValueError, match="no kernel for 200 x 140 matrices: more than 128 columns and more than 5/3"
    ):
        _cpu.svdvals(A.data_ptr(), 0, A.shape, A.stride(), values.data_ptr(), info.data_ptr(), 1, gram=True)
