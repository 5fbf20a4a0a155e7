"""The compiled statistics in every instruction set: against 50 digits, against the full scan, on any row.

tests/test_stats_values.py has the bounds and where they come from; it runs with the fastest set alone.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator

import mpmath
import numpy as np
import pytest
import torch

from spectral_fast import (
    fit_powerlaw,
    hill_alpha,
    ranksize_slope,
    spectral_stats,
    stats_from_svdvals,
    svdvals,
    svdvals_ex,
)
from spectral_fast.backends import reference_stats
from spectral_fast.stats import scalar_fields
from tests.oracles import stats_oracle as oracle
from tests.test_stats_values import EPS, FIELDS, FIT, ZOO, bounds, check, chosen, items, same_bits, tensor

Array = np.ndarray
_mp = mpmath.mp.clone()
_mp.dps = 50


@functools.cache
def exact_stats(name: str, xmin: float) -> tuple[oracle.Fit, dict[str, float]]:
    s = ZOO[name]
    fit = chosen(s**2, xmin)
    return fit, oracle.stats(s, (3 * len(s), len(s)), fit)


@pytest.mark.parametrize("name", ZOO)
def test_zoo(isa: str, name: str) -> None:
    s = ZOO[name]
    got = items(stats_from_svdvals(tensor(s), shape=(3 * len(s), len(s))), FIELDS)
    fit, want = exact_stats(name, got["xmin"])
    check(got, want, bounds(s, fit, want))


# ------------------------------------------------------------------ the scan


def candidates(x: Array) -> tuple[Array, Array, Array]:
    """Every candidate's xmin, alpha and D by the definition, one after the other; x ascending.

    t = (alpha - 1) ln(x/xmin) is good to (n + 10) eps relative, so D to 0.37 (n + 10) eps: 2e-13 at most.
    """
    xmins = np.unique(x)[:-1]
    alphas, distances = np.empty_like(xmins), np.empty_like(xmins)
    for i, xmin in enumerate(xmins):
        tail = x[np.searchsorted(x, xmin) :]
        logs = np.log1p((tail - xmin) / xmin)
        m = len(tail)
        alphas[i] = 1 + m / logs.sum()
        distances[i] = np.abs(-np.expm1(-(alphas[i] - 1) * logs) - np.arange(m) / m).max()
    return xmins, alphas, distances


KINDS: dict[str, Callable[[np.random.Generator, int], Array]] = {
    # The worst case for bounds: every candidate fits about as well.
    "pareto": lambda g, n: (1 - g.random(n)) ** (-1 / g.uniform(0.3, 6)),
    # Each tail is a scaled copy of the others: all distances are nearly the same.
    "geometric": lambda g, n: g.uniform(0.9, 0.999) ** np.arange(n),
    "exact": lambda g, n: np.arange(1, n + 1) ** -g.uniform(0.2, 3),
    "uniform": lambda g, n: g.random(n),
    "lognormal": lambda g, n: g.lognormal(0, 2, n),
    "ties": lambda g, n: np.round(g.exponential(1, n), 1) + 0.1,
    "cluster": lambda g, n: 1 + 1e-12 * g.random(n),
    "adjacent": lambda g, n: 1 + EPS * g.integers(0, 8, n),
    "outlier": lambda g, n: np.append(1 + g.random(n - 1), 1e12),
    "tail_on_a_bulk": lambda g, n: np.append(g.random(n - n // 8), 1 + (1 - g.random(n // 8)) ** -0.6),
    "wide": lambda g, n: 10.0 ** g.uniform(-150, 150, n),
}


def sizes(g: np.random.Generator) -> Iterator[int]:
    yield from (2, 3, 4, 5, 7, 8, 9, 15, 16, 17, 31, 33, 63, 65)
    yield from g.integers(70, 400, 4).tolist()
    yield 1500


@pytest.mark.parametrize("kind", KINDS)
def test_scan_is_the_full_scan(isa: str, kind: str) -> None:
    g = np.random.default_rng(11)
    for n in sizes(g):
        x = np.sort(KINDS[kind](g, n))
        got = fit_powerlaw(tensor(x))
        if x[0] == x[-1]:
            assert got.n_tail.item() == 0
            continue
        xmins, alphas, distances = candidates(x)
        (here,) = np.flatnonzero(xmins == got.xmin.item())
        assert distances[here] <= distances.min() + oracle.TIE, n
        assert got.ks_distance.item() == pytest.approx(distances[here], rel=0, abs=oracle.TIE)
        assert got.alpha.item() - 1 == pytest.approx(alphas[here] - 1, rel=(n + 10) * EPS)
        assert got.n_tail.item() == (x >= xmins[here]).sum()


def test_ties_go_to_the_smallest_xmin(isa: str) -> None:
    """Tails of two have D = 1/2 - e^-2 each, to the last bit where their ratios are equal."""
    x = torch.tensor([1.0] * 40 + [2.0, 4.0] + [4.0] * 40 + [64.0, 128.0], dtype=torch.float64)
    for scale in (1.0, 0.5):
        pair = torch.tensor([3.0, 6.0], dtype=torch.float64) * scale
        assert fit_powerlaw(pair).ks_distance.item() == pytest.approx(0.5 - math.exp(-2), rel=4 * EPS)
    xmins, _, distances = candidates(x.numpy())
    ties = xmins[distances <= distances.min() + oracle.TIE]
    assert fit_powerlaw(x).xmin.item() == ties.min()


# ------------------------------------------------------------------ logarithm and exponential


def ratios() -> list[tuple[float, float]]:
    """Pairs x < y: neighbours, both sides of a power of two and of its root, subnormal, the whole range."""
    g = np.random.default_rng(3)
    pairs = [(x, float(np.nextafter(x, 4))) for x in (1.0, 1.5, math.sqrt(0.5), math.sqrt(2), 2 - 2 * EPS)]
    pairs += [(1 - EPS, 1 + EPS), (0.75, 1.0), (5e-324, 1e-323), (5e-324, 1.0), (3e-310, 4e-310)]
    pairs += [(2.0**-1022, 1.7e308), (1e-320, 1.7e308), (1.0, 1.5), (1.0, math.sqrt(2)), (1.0, 1.4142135)]
    low = 10.0 ** g.uniform(-300, 300, 300)
    near = low * (1 + 10.0 ** g.uniform(-15, 0.5, 300))
    pairs += list(zip(low.tolist(), near.tolist(), strict=True))
    return [(x, y) for x, y in pairs if x < y]


def test_logarithms_of_ratios(isa: str) -> None:
    """hill_alpha of two values is 1 + 2 / ln(y/x): 2 ulp of the logarithm, and three more roundings."""
    pairs = ratios()
    got = hill_alpha(torch.tensor(pairs, dtype=torch.float64), k=2)
    for (x, y), alpha in zip(pairs, got.tolist(), strict=True):
        want = 2 / _mp.log(_mp.mpf(y) / _mp.mpf(x))
        assert abs(alpha - 1 - want) <= 4 * EPS * want + EPS * (1 + want), (x, y)


def test_exponentials(isa: str) -> None:
    """Two values e^a and e^b times xmin have D = max(1 - e^-ta, |1/2 - e^-tb|), t = 2 / (a + b)."""
    g = np.random.default_rng(4)
    for low, high in np.sort(g.uniform(0, 3, (200, 2))):
        x = np.exp([low, high])
        got = fit_powerlaw(tensor(x), xmin=1.0).ks_distance.item()
        logs = [_mp.log(_mp.mpf(float(v))) for v in x]
        t = 2 / _mp.fsum(logs)
        want = max(1 - _mp.exp(-t * logs[0]), abs(_mp.mpf(1) / 2 - _mp.exp(-t * logs[1])))
        # t is good to 5 eps relative and t e^-t <= 0.37; 2 ulp of the exponential, and the difference.
        assert abs(got - want) <= 5 * EPS


# ------------------------------------------------------------------ rows


def mixed_rows(n: int, count: int) -> torch.Tensor:
    g = np.random.default_rng(n)
    makers = list(KINDS.values())
    return tensor(np.stack([makers[i % len(makers)](g, n) for i in range(count)]))


@pytest.mark.parametrize(("n", "count"), [(1, 9), (2, 3000), (21, 301), (700, 23)])
def test_threads_and_neighbours_change_no_bit(isa: str, n: int, count: int) -> None:
    rows = mixed_rows(max(n, 2), count)[:, :n]
    before, results = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 4):
            torch.set_num_threads(threads)
            results.append(every_result(rows))
    finally:
        torch.set_num_threads(before)
    for one, two, four in zip(*results, strict=True):
        assert same_bits(one, two)
        assert same_bits(one, four)
    for i in range(0, count, max(1, count // 8)):
        for whole, alone in zip(results[0], every_result(rows[i]), strict=True):
            assert same_bits(whole[i], alone)


def every_result(rows: torch.Tensor) -> list[torch.Tensor]:
    n = rows.shape[-1]
    stats = stats_from_svdvals(rows, shape=(n, 2 * n))
    return [
        *(getattr(stats, name) for name in scalar_fields()),
        *fit_powerlaw(rows),
        *fit_powerlaw(rows, xmin=1.0),
        hill_alpha(rows),
        hill_alpha(rows, k=2),
        ranksize_slope(rows),
    ]


BAD_ROWS = {
    "nan": [3.0, math.nan, 1.0, 0.5],
    "infinite": [3.0, 2.0, 1.0, math.inf],
    "minus_infinite": [3.0, 2.0, 1.0, -math.inf],
    "all_nan": [math.nan] * 4,
    "negative": [3.0, 2.0, 1.0, -0.5],
    "all_negative": [-3.0, -2.0, -1.0, -0.5],
    "zeros": [0.0] * 4,
    "minus_zero": [2.0, 1.0, -0.0, 0.0],
    "one_positive": [0.0, 2.0, 0.0, 0.0],
    "equal": [2.0] * 4,
    "vanishing": [1.0, 0.5, 1e-170, 1e-200],
    "subnormal": [2e-310, 1e-310, 5e-311, 5e-324],
    "huge": [1.7e308, 1e308, 1e307, 1.0],
    "out_of_range": [1e300, 2e200, 1e-100, 3e-300],
    "neighbours": [3e100 * (1 + k * EPS) for k in (8, 6, 5, 0)],
}


@pytest.mark.parametrize("name", BAD_ROWS)
def test_hard_rows_are_those_of_the_twin(isa: str, name: str) -> None:
    """The plain-torch operators decide what is NaN, zero or infinite; a good row between is untouched."""
    good = torch.tensor([4.0, 3.0, 2.0, 0.5], dtype=torch.float64)
    bad = torch.tensor(BAD_ROWS[name], dtype=torch.float64)
    rows = torch.stack([good, bad, good])
    stats = stats_from_svdvals(rows, shape=(4, 6))
    smooth, fitted = reference_stats.stats_from_svdvals(rows, 4, 6)
    twin = dict(zip(scalar_fields(), [*smooth.unbind(-1), *fitted.unbind(-1)], strict=True))
    pairs = [(field, getattr(stats, field), twin[field]) for field in scalar_fields()]
    for xmin in (None, torch.full((3,), 0.7, dtype=torch.float64)):
        fit, n_tail = reference_stats.fit_powerlaw(rows, xmin)
        pairs += zip(FIT, fit_powerlaw(rows, xmin=xmin), (*fit.unbind(-1), n_tail), strict=True)
    for k in (None, 1, 3, 4, 5):
        pairs.append((f"hill k={k}", hill_alpha(rows, k=k), reference_stats.hill_alpha(rows, k)))
    pairs.append(("ranksize", ranksize_slope(rows), reference_stats.ranksize_slope(rows)))
    for field, ours, theirs in pairs:
        assert ours.tolist() == pytest.approx(theirs.tolist(), rel=1e-13, abs=1e-300, nan_ok=True), field
        assert same_bits(ours[0], ours[2]), field


def test_minus_zero_is_zero(isa: str) -> None:
    """Whichever of them a sort puts last: 1 / -0 is minus infinity."""
    rows = tensor(np.array([[3.0, 0.0, -0.0], [3.0, -0.0, 0.0], [-0.0, -0.0, -0.0]]))
    stats = stats_from_svdvals(rows)
    smooth, _ = reference_stats.stats_from_svdvals(rows, None, None)
    condition, norm = (scalar_fields().index(name) for name in ("condition_number", "spectral_norm"))
    for got in (stats.condition_number, smooth[:, condition]):
        assert got.tolist()[:2] == [math.inf] * 2
    for got in (stats.spectral_norm, smooth[:, norm]):
        assert math.copysign(1.0, got[2].item()) == 1.0


def test_a_row_that_is_no_spectrum_has_no_statistics(isa: str) -> None:
    for name in ("nan", "infinite", "minus_infinite", "all_nan", "negative", "all_negative"):
        got = items(stats_from_svdvals(tensor(BAD_ROWS[name]), shape=(4, 4)), FIELDS)
        assert got.pop("n_tail") == 0
        assert all(math.isnan(value) for value in got.values()), name


@pytest.mark.parametrize("power", [-1000, -60, 60, 1000])
def test_scale_changes_no_bit(isa: str, power: int) -> None:
    """Values are divided by the largest, so a power of two cancels; there is no absolute cut-off."""
    s = tensor(np.sort(ZOO["lognormal"])[::-1].copy())
    one, scaled = (
        stats_from_svdvals(s, shape=(200, 150)),
        stats_from_svdvals(s * 2.0**power, shape=(200, 150)),
    )
    for name in (
        *("stable_rank", "effective_rank", "spectral_entropy", "participation_ratio", "condition_number"),
        *("alpha", "alpha_stderr", "ks_distance", "n_tail", "alpha_hill", "alpha_ranksize", "mp_spikes"),
    ):
        assert same_bits(getattr(one, name), getattr(scaled, name)), name


def test_nan_and_infinite_thresholds_are_above_everything(isa: str) -> None:
    rows = tensor(np.stack([ZOO["pareto_20"] ** 2] * 4))
    xmin = torch.tensor([math.nan, math.inf, 0.0, -1.0], dtype=torch.float64)
    fit = fit_powerlaw(rows, xmin=xmin)
    assert fit.n_tail.tolist() == [0] * 4
    assert fit.alpha.isnan().all()


# ------------------------------------------------------------------ from the matrix


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize(
    "shape", [(37, 6, 9), (3, 40, 1), (5, 90, 70), (3, 140, 130), (2, 2, 400, 20), (150, 140)]
)
def test_spectral_stats_is_the_statistics_of_the_values(
    isa: str, dtype: torch.dtype, shape: tuple[int, ...], two_threads: None
) -> None:
    A = torch.randn(shape, dtype=torch.float64).to(dtype)
    if len(shape) > 2:
        A[(1,) * (len(shape) - 2)][0, 0] = math.nan
    got = spectral_stats(A, return_svdvals=True)
    assert got.svdvals is not None
    assert same_bits(got.svdvals, svdvals_ex(A).S)
    want = stats_from_svdvals(got.svdvals, shape=shape[-2:])
    for name in scalar_fields():
        assert same_bits(getattr(got, name), getattr(want, name)), name


@pytest.mark.parametrize("driver", ["gram", "torch"])
def test_other_drivers_have_statistics_too(driver: str) -> None:
    A = torch.randn(3, 30, 20, dtype=torch.float64)
    got = spectral_stats(A, driver=driver)
    want = stats_from_svdvals(svdvals(A, driver=driver), shape=(30, 20))
    for name in scalar_fields():
        assert same_bits(getattr(got, name), getattr(want, name)), name


@pytest.mark.parametrize("shape", [(0, 5), (5, 0), (3, 0, 4), (0, 3, 4)])
def test_matrices_without_values(shape: tuple[int, ...]) -> None:
    got = spectral_stats(torch.empty(shape))
    for name in scalar_fields():
        assert getattr(got, name).shape == shape[:-2], name
    if 0 in shape[-2:]:
        assert (got.n_tail == 0).all()
        assert (got.nuclear_norm == 0).all()
        assert got.alpha.isnan().all()
