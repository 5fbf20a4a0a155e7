"""The Triton kernels on a real GPU: what the interpreter and the compile gate cannot show."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from spectral_fast import _ops, capabilities, fit_powerlaw, spectral_stats, stats_from_svdvals
from spectral_fast.stats import scalar_fields
from tests.oracles import stats_oracle as oracle
from tests.test_stats_values import (
    FIELDS,
    FIT,
    ZOO,
    bounds,
    check,
    chosen,
    fit_bounds,
    items,
    same_bits,
    tensor,
)

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU"),
    pytest.mark.filterwarnings("ignore:.*deterministic"),
]


def test_the_kernels_are_there() -> None:
    assert "stats_from_svdvals" in capabilities()["cuda"]["kernels"]


@pytest.mark.parametrize("name", ZOO)
def test_zoo(name: str) -> None:
    s = ZOO[name]
    shape = (3 * len(s), len(s))
    got = items(stats_from_svdvals(tensor(s).cuda(), shape=shape), FIELDS)
    fit = chosen(s**2, got["xmin"])
    want = oracle.stats(s, shape, fit)
    check(got, want, bounds(s, fit, want))


@pytest.mark.parametrize("name", ZOO)
def test_fit_powerlaw(name: str) -> None:
    x = np.random.default_rng(1).permutation(ZOO[name] ** 2)
    got = items(fit_powerlaw(tensor(x).cuda()), FIT)
    fit = chosen(x, got["xmin"])
    check(got, fit._asdict(), fit_bounds(x, fit))


def test_large_batches_are_their_rows_bit_for_bit() -> None:
    """More programs than run at once, so that an order which matters shows."""
    S = torch.rand(600, 1300, dtype=torch.float64, device="cuda").pow(3).sort(-1, descending=True).values
    whole = stats_from_svdvals(S, shape=(1300, 2000))
    for i in range(0, 600, 60):
        one = stats_from_svdvals(S[i], shape=(1300, 2000))
        for name in scalar_fields():
            assert same_bits(getattr(whole, name)[i], getattr(one, name)), name
    cpu = stats_from_svdvals(S.cpu(), shape=(1300, 2000))
    assert (whole.ks_distance.cpu() - cpu.ks_distance).abs().max() <= oracle.TIE
    for name in ("frobenius_norm", "effective_rank", "alpha_hill", "alpha_ranksize"):
        torch.testing.assert_close(getattr(whole, name).cpu(), getattr(cpu, name), rtol=1e-11, atol=0)


def test_nothing_waits_for_the_device() -> None:
    """torch raises where it synchronizes in this mode."""
    S = torch.rand(8, 500, device="cuda")
    stats_from_svdvals(S)  # compiles
    fit_powerlaw(S)
    torch.cuda.set_sync_debug_mode("error")
    try:
        stats_from_svdvals(S)
        fit_powerlaw(S)
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_from_the_matrix() -> None:
    A = torch.randn(4, 300, 200, device="cuda")
    got = spectral_stats(A, return_svdvals=True)
    assert got.svdvals is not None
    want = stats_from_svdvals(got.svdvals, shape=(300, 200))
    for name in scalar_fields():
        assert same_bits(getattr(got, name), getattr(want, name)), name


def test_gram_product_is_there() -> None:
    assert "gram_product" in capabilities()["cuda"]["kernels"]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize(
    ("batch", "m", "n", "cols"),
    [(3, 768, 768, 48), (2, 3072, 768, 32), (5, 131, 1000, 17), (1, 3000, 5, 1), (2, 90, 70, 64)],
)
def test_gram_product(batch: int, m: int, n: int, cols: int, dtype: torch.dtype) -> None:
    """By rows and by columns, to the bound of test_gram_product.py."""
    g = torch.Generator("cuda").manual_seed(0)
    A = torch.randn(batch, m, n, device="cuda", generator=g).to(dtype)
    compute = _ops.compute_dtype(dtype)
    X = torch.randn(batch, n, cols, device="cuda", generator=g).to(compute)
    # Of float64 products these are as good as ours.
    a, x = A.double(), X.double()
    want, size = a.mT @ (a @ x), a.abs().mT @ (a.abs() @ x.abs())
    bound = (2 if dtype == torch.float64 else 1) * (m**0.5 + n**0.5 + 2) * torch.finfo(compute).eps / 2 * size
    squares = a.square().sum((1, 2))
    for H in (A, A.mT.contiguous().mT):
        Z, energy = _ops.gram_product(H, X)
        assert ((Z - want).abs() <= bound).all()
        assert ((energy - squares).abs() <= 9 * torch.finfo(compute).eps / 2 * squares).all()
        for i in range(batch):
            one, total = _ops.gram_product(H[i], X[i])
            assert torch.equal(one, Z[i])
            assert torch.equal(total, energy[i])


def test_gram_product_heeds_and_touches_no_switch() -> None:
    A, X = torch.randn(4, 700, 500, device="cuda"), torch.randn(4, 500, 48, device="cuda")
    matmul = torch.backends.cuda.matmul
    Z, _ = _ops.gram_product(A, X)
    before = matmul.fp32_precision
    try:
        matmul.fp32_precision = "tf32"
        torch.cuda.set_sync_debug_mode("error")
        with torch.autocast("cuda", torch.bfloat16):
            again, _ = _ops.gram_product(A, X)
        assert matmul.fp32_precision == "tf32"
    finally:
        torch.cuda.set_sync_debug_mode("default")
        matmul.fp32_precision = before
    assert torch.equal(again, Z)
