"""The Triton statistics on a real GPU: what the interpreter and the compile gate cannot show."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from spectral_fast import capabilities, fit_powerlaw, spectral_stats, stats_from_svdvals
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
