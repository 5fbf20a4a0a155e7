"""Every statistic of a spectrum against a 50-digit oracle, and the laws they have to obey.

Tolerances are bounds for straightforward float64 code, derived in `bounds` below and nowhere
loosened. With eps = 2^-52, r values and L = max(1, max |ln lam|):

- a sum of r positive terms, in any order, is good to (r + 8) eps relative (8: the terms' own
  roundings and the final operation), written E;
- ln lam carries eps L absolute, lam = sigma^2 included; so does ln x - ln xmin, twice. The mean of
  m of them, summed in any order, carries at most (r + 8) eps L = E L.
"""

from __future__ import annotations

import dataclasses
import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import integrate

from spectral_fast import (
    fit_powerlaw,
    hill_alpha,
    ranksize_slope,
    spectral_stats,
    stats_from_svdvals,
    svdvals,
)
from tests.oracles import stats_oracle as oracle

EPS = oracle.EPS
ZOO = oracle.regular() | oracle.degenerate() | oracle.minilm()
FIT = oracle.Fit._fields
FIELDS = [
    *("spectral_norm", "frobenius_norm", "nuclear_norm", "stable_rank", "effective_rank"),
    *("spectral_entropy", "participation_ratio", "condition_number", "log_norm"),
    *("alpha", "alpha_stderr", "xmin", "ks_distance", "n_tail"),
    *("alpha_hill", "alpha_ranksize", "alpha_weighted", "log_alpha_norm", "mp_edge", "mp_spikes"),
]


def tensor(values) -> torch.Tensor:
    return torch.from_numpy(np.array(values))


def record(result, fields=FIELDS) -> dict[str, torch.Tensor]:
    return {name: getattr(result, name) for name in fields}


def fit_bounds(x: np.ndarray, fit: oracle.Fit) -> dict[str, float]:
    """Absolute error bounds of a power-law fit of the values x.

    With the mean log l = 1/(alpha - 1), |dl| <= E L gives d alpha = (alpha - 1)^2 E L. For D:
    t = (alpha - 1) ln(x/xmin), |d exp(-t)| <= t exp(-t) d alpha/(alpha - 1) + (alpha - 1) 2 eps L,
    and t exp(-t) <= 0.37, together less than (alpha - 1) E L; 2 eps for forming the difference.
    """
    positive = x[x > 0]
    el = (len(x) + 8) * EPS * max(1.0, np.abs(np.log(positive)).max(initial=0.0))
    a = fit.alpha - 1
    return {
        "alpha": a**2 * el + EPS * fit.alpha,
        "alpha_stderr": a**2 * el / math.sqrt(max(fit.n_tail, 1)) + 4 * EPS * fit.alpha_stderr,
        "xmin": 0.0,  # it is one of the values
        "ks_distance": a * el + 2 * EPS,
        "n_tail": 0.0,
    }


def bounds(s: np.ndarray, fit: oracle.Fit, want: dict[str, float]) -> dict[str, float]:
    """Absolute error bounds of every field; NaN and infinite fields have to match exactly."""
    r, lam = len(s), s**2
    e = (r + 8) * EPS
    big = max(1.0, np.abs(np.log(lam[lam > 0])).max(initial=0.0))
    out = fit_bounds(lam, fit)
    out["xmin"] = 3 * EPS * fit.xmin  # sigma/sigma_1, its square, times sigma_1 twice: 6 roundings
    out["spectral_norm"] = 0.0
    for name, factor in [
        ("frobenius_norm", 1),
        ("nuclear_norm", 1),
        ("stable_rank", 1),
        ("participation_ratio", 3),  # (sum)^2 / sum
        ("condition_number", 1),
    ]:
        out[name] = factor * e * want[name]
    # H = -sum p ln p: p is good to E relative, |d(p ln p)| <= (|ln p| + 1) dp, so dH <= E (H + 1),
    # and once more for the sum itself. exp(H) carries dH relative.
    entropy = math.log(want["effective_rank"]) if want["effective_rank"] > 0 else math.nan
    out["effective_rank"] = 2 * e * (entropy + 1) * want["effective_rank"]
    out["spectral_entropy"] = 2 * e * (want["spectral_entropy"] + 1 / math.log(max(r, 2)))
    ln10 = math.log(10)
    out["log_norm"] = e / ln10 + 2 * EPS * abs(want["log_norm"])
    out["alpha_hill"] = (want["alpha_hill"] - 1) ** 2 * e * big + EPS * want["alpha_hill"]
    # Least squares: slope = sum du v / sum du^2, |du| summing to at most sqrt(n sum du^2).
    n = int((s > 0).sum())
    u = np.log(np.arange(1, n + 1))
    spread = math.sqrt(n / ((u - u.mean()) ** 2).sum()) if n > 1 else math.nan
    out["alpha_ranksize"] = e * (big * spread + abs(want["alpha_ranksize"]))
    # alpha log10 lam_1 and log10 sum lam^alpha both move with alpha by at most L / ln 10; the
    # exponents alpha ln lam carry 2 eps alpha L, their sum E.
    moved = out["alpha"] * big / ln10
    out["alpha_weighted"] = moved + 4 * EPS * abs(want["alpha_weighted"])
    out["log_alpha_norm"] = moved + 4 * EPS * fit.alpha * big / ln10 + e / ln10
    out["mp_edge"] = 1e-12 * want["mp_edge"]  # the quadrature for the law's median, to 12 digits
    out["mp_spikes"] = 0.0
    return out


def check(got: dict[str, float], want: dict[str, float], bound: dict[str, float]) -> None:
    for name, value in got.items():
        if math.isnan(want[name]) or math.isinf(want[name]):
            assert value == pytest.approx(want[name], nan_ok=True), name
        else:
            assert abs(value - want[name]) <= bound[name], (
                f"{name}: {value!r} for {want[name]!r}, bound {bound[name]:.1e}"
            )


def chosen(x: np.ndarray, xmin: float) -> oracle.Fit:
    """The right answer with this xmin; the best one if it is none of them (and the test fails)."""
    answers = oracle.fits(x)
    return next((f for f in answers if abs(f.xmin - xmin) <= 4 * EPS * abs(xmin)), answers[0])


def items(result, fields) -> dict[str, float]:
    return {name: value.item() for name, value in record(result, fields).items()}


# ------------------------------------------------------------------ values


@pytest.mark.parametrize("shape", ["none", "square", "tall", "wide"])
@pytest.mark.parametrize("name", ZOO)
def test_every_field(name, shape):
    s = ZOO[name]
    r = len(s)
    size = {"none": None, "square": (r, r), "tall": (3 * r, r), "wide": (r, 4 * r + 1)}[shape]
    got = items(stats_from_svdvals(tensor(s), shape=size), FIELDS)
    fit = chosen(s**2, got["xmin"])
    want = oracle.stats(s, size, fit)
    if size is not None:  # a count is decided unless a value lies within the edge's own error
        _, threshold = oracle.mp_bulk(s**2, size)
        assert not np.any((s > 0) & (np.abs(s**2 / max(threshold, 1e-300) - 1) < 1e-9))
    assert set(got) == set(want)
    check(got, want, bounds(s, fit, want))


def test_fields_are_float64_and_named():
    stats = stats_from_svdvals(tensor(ZOO["pareto_20"]), shape=(20, 30))
    assert set(FIELDS) <= {field.name for field in dataclasses.fields(stats)}
    for name, value in record(stats).items():
        assert value.dtype == (torch.int64 if name == "n_tail" else torch.float64), name
        assert value.shape == (), name


@pytest.mark.parametrize("order", ["ascending", "descending", "shuffled"])
@pytest.mark.parametrize("name", ZOO)
def test_fit_powerlaw(name, order):
    x = np.sort(ZOO[name] ** 2)
    given_x = {
        "ascending": x,
        "descending": x[::-1],
        "shuffled": np.random.default_rng(1).permutation(x),
    }
    got = items(fit_powerlaw(tensor(given_x[order])), FIT)
    fit = chosen(x, got["xmin"])
    check(got, fit._asdict(), fit_bounds(x, fit))
    assert got["n_tail"] == 0 or got["xmin"] in x


@pytest.mark.parametrize("name", ZOO)
def test_fit_powerlaw_with_xmin_given(name):
    x = np.sort(ZOO[name] ** 2)
    top = float(x[-1])
    for xmin in {float(x[len(x) // 2]), float(x[0]) * 0.5, float(x[-2:].mean()), top, 2 * top}:
        if xmin <= 0:
            continue
        got = items(fit_powerlaw(tensor(x), xmin=xmin), FIT)
        want = oracle.fit_at(x, xmin)
        if want.n_tail == 0:
            assert math.isnan(got["alpha"])
            assert math.isnan(got["alpha_stderr"])
            assert math.isnan(got["ks_distance"])
            assert got["n_tail"] == 0
            continue
        check(got, want._asdict(), fit_bounds(np.append(x, xmin), want))


@pytest.mark.parametrize("name", ZOO)
def test_hill_alpha(name):
    x = ZOO[name] ** 2
    positive = int((x > 0).sum())
    e = (len(x) + 8) * EPS * max(1.0, np.abs(np.log(x[x > 0])).max(initial=0.0))
    for k in (None, 1, 2, positive // 3, positive - 1, positive):
        if k is not None and not 1 <= k <= positive:
            continue
        got = hill_alpha(tensor(x), k=k).item()
        want = oracle.hill_alpha(x, k)
        assert got == pytest.approx(want, rel=0, abs=(want - 1) ** 2 * e + EPS * want, nan_ok=True)


@pytest.mark.parametrize("k", [4, 2**70])
def test_hill_alpha_of_more_than_there_are(k):
    assert hill_alpha(tensor([3.0, 2.0, 1.0]), k=k).isnan()


@pytest.mark.parametrize("name", ZOO)
def test_ranksize_slope(name):
    s = ZOO[name]
    got = stats_from_svdvals(tensor(s)).alpha_ranksize
    assert torch.equal(torch.nan_to_num(ranksize_slope(tensor(s)), -7), torch.nan_to_num(got, -7))


def test_exact_power_law_gives_its_exponents():
    """sigma_k = k^-beta: alpha_ranksize is beta, alpha tends to 1 + 1/(2 beta) like ln(n)/n."""
    n = 4000
    for beta in (0.3, 0.6, 1.0):
        stats = stats_from_svdvals(torch.arange(1, n + 1, dtype=torch.float64) ** -beta)
        assert stats.alpha_ranksize.item() == pytest.approx(beta, rel=1e-12)
        # Hill over the n/2 largest: mean ln(n/2k) = 1 - ln(pi n)/n + ..., times 2 beta.
        limit = 1 / (2 * beta)
        assert stats.alpha_hill.item() - 1 == pytest.approx(limit, rel=2 * math.log(math.pi * n) / n)
        assert stats.alpha.item() - 1 == pytest.approx(limit, rel=2 * math.log(math.pi * n) / n)


def test_mp_median_oracle_is_the_median():
    """The oracle's median by another road: scipy's quadrature of the density as it is written."""
    for y in (1.0, 0.9, 0.25, 0.01):
        a, b = (1 - y**0.5) ** 2, (1 + y**0.5) ** 2
        middle = oracle.mp_median(y)
        density = lambda x, a=a, b=b, y=y: math.sqrt((b - x) * (x - a)) / (2 * math.pi * y * x)  # noqa: E731
        below, _ = integrate.quad(density, a, middle, epsabs=1e-11, limit=300)
        above, _ = integrate.quad(density, middle, b, epsabs=1e-11, limit=300)
        assert below == pytest.approx(above, abs=1e-9)  # quad's own reach at the square roots
        assert below + above == pytest.approx(1, abs=1e-9)


@pytest.mark.parametrize("m", [2000, 2001, 2010, 2100, 40000])
def test_bulk_edge_close_to_square(m):
    """Near ratio 1 the law's density bends within 1 - sqrt(ratio) of zero: quadrature's hard case."""
    s = np.linspace(2, 1, 2000)
    stats = stats_from_svdvals(tensor(s), shape=(m, 2000))
    edge, threshold = oracle.mp_bulk(s**2, (m, 2000))
    assert stats.mp_edge.item() == pytest.approx(edge, rel=1e-12)
    assert stats.mp_spikes.item() == (s**2 > threshold).sum()


# ------------------------------------------------------------------ batches and dtypes


def batch() -> torch.Tensor:
    names = ["pareto_2.5", "lognormal", "half_zeros", "square_64", "rounded", "exact_0.6"]
    return torch.stack([tensor(ZOO[name][:60]) for name in names]).reshape(2, 3, 60)


def same_bits(a, b) -> bool:
    return torch.equal(torch.nan_to_num(a, -7.0, 8.0, -8.0), torch.nan_to_num(b, -7.0, 8.0, -8.0))


@pytest.mark.parametrize("strided", [False, True])
def test_batch_is_the_loop(strided):
    s = batch()
    s[1, 2, 30:] = 0  # rows differ in their number of positive values
    s[0, 1] = 0
    if strided:
        s = s.permute(2, 1, 0).contiguous().permute(2, 1, 0)
        assert not s.is_contiguous()
    before = s.clone()
    whole = record(stats_from_svdvals(s, shape=(60, 90)))
    fit = record(fit_powerlaw(s**2), FIT)
    hill, slope = hill_alpha(s**2), ranksize_slope(s)
    fixed = record(fit_powerlaw(s**2, xmin=0.5), FIT)
    for i in range(2):
        for j in range(3):
            one = s[i, j].clone()
            for name, value in record(stats_from_svdvals(one, shape=(60, 90))).items():
                assert whole[name].shape == (2, 3)
                assert same_bits(whole[name][i, j], value), name
            for name, value in record(fit_powerlaw(one**2), FIT).items():
                assert same_bits(fit[name][i, j], value), name
            for name, value in record(fit_powerlaw(one**2, xmin=0.5), FIT).items():
                assert same_bits(fixed[name][i, j], value), name
            assert same_bits(hill[i, j], hill_alpha(one**2))
            assert same_bits(slope[i, j], ranksize_slope(one))
    assert torch.equal(s, before)


def test_empty_batch():
    for value in record(stats_from_svdvals(torch.empty(0, 3, 5), shape=(5, 7))).values():
        assert value.shape == (0, 3)


def test_nan_spoils_only_its_own_row():
    s = batch().reshape(6, 60)
    clean = record(stats_from_svdvals(s, shape=(60, 60)))
    s[2, 5] = math.nan
    spoilt = record(stats_from_svdvals(s, shape=(60, 60)))
    others = [0, 1, 3, 4, 5]
    for name in FIELDS:
        assert same_bits(spoilt[name][others], clean[name][others]), name
    for name in ("stable_rank", "frobenius_norm", "spectral_entropy", "alpha", "alpha_hill"):
        assert math.isnan(spoilt[name][2]), name


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_low_precision_input_is_computed_in_float64(dtype):
    """The same numbers in fewer bits give the same result bit for bit; bfloat16 brings repeats."""
    s = batch().to(dtype)
    low = record(stats_from_svdvals(s, shape=(60, 90)))
    high = record(stats_from_svdvals(s.double(), shape=(60, 90)))
    for name in FIELDS:
        assert low[name].dtype == high[name].dtype
        assert same_bits(low[name], high[name]), name
    for name, value in record(fit_powerlaw(s), FIT).items():
        assert same_bits(value, getattr(fit_powerlaw(s.double()), name)), name
    assert same_bits(hill_alpha(s), hill_alpha(s.double()))
    assert same_bits(ranksize_slope(s), ranksize_slope(s.double()))


# ------------------------------------------------------------------ whole matrices


@pytest.mark.parametrize("shape", [(90, 60), (60, 90), (70, 70)])
def test_spectral_stats_of_a_matrix(shape):
    """spectral_stats(A) is stats_from_svdvals of A's values, with A's shape.

    A float64 driver may err by 4 eps sigma_1 here (n <= 1024), so sums of values move by r times
    that; D is continuous in ln sigma, and sigma_r > 1e-2 sigma_1 for the spectra built here.
    """
    g = np.random.default_rng(5)
    r = min(shape)
    u, _ = np.linalg.qr(g.standard_normal((shape[0], r)))
    v, _ = np.linalg.qr(g.standard_normal((shape[1], r)))
    s = np.sort((1 - g.random(r)) ** -0.4)[::-1]
    assert s[-1] > 1e-2 * s[0]
    a = tensor((u * s) @ v.T)
    stats = spectral_stats(a, return_svdvals=True)
    values = stats.svdvals
    assert torch.equal(values, svdvals(a))
    assert spectral_stats(a).svdvals is None
    want = stats_from_svdvals(values, shape=shape)
    for name, value in record(want).items():
        assert getattr(stats, name).item() == pytest.approx(value.item(), rel=1e-12), name
    # u and v are orthogonal to a few eps: a factor of 10 on the driver's 4 eps covers building A.
    moved = 40 * EPS * r * s[0]
    assert stats.nuclear_norm.item() == pytest.approx(s.sum(), rel=0, abs=moved)
    assert stats.spectral_norm.item() == pytest.approx(s[0], rel=0, abs=moved)
    exact = oracle.fits(s**2)[0]
    assert stats.n_tail.item() == exact.n_tail
    assert stats.alpha.item() == pytest.approx(exact.alpha, rel=(exact.alpha - 1) * 100 * moved)


# ------------------------------------------------------------------ laws

# Values exp(j/16): far enough apart that no two differ by rounding alone, and often equal.
spectra = st.lists(st.integers(-80, 80), min_size=2, max_size=40).map(
    lambda js: np.exp(np.sort(np.array(js, dtype=np.float64))[::-1] / 16)
)
INVARIANT = [
    *("stable_rank", "effective_rank", "spectral_entropy", "participation_ratio"),
    *("condition_number", "alpha_ranksize", "alpha_hill", "mp_spikes"),
]


@settings(max_examples=60, deadline=None)
@given(spectra, st.integers(-60, 60))
def test_scaling(s, power):
    """S -> c S: shape statistics stay, norms scale, logs shift. c = 2^power, so c S is exact."""
    c, shape = 2.0**power, (len(s), 2 * len(s))
    one = items(stats_from_svdvals(tensor(s), shape=shape), FIELDS)
    two = items(stats_from_svdvals(tensor(c * s), shape=shape), FIELDS)
    # The two calls may each err by the bound for the larger logs of the scaled values.
    fit = oracle.Fit(*(one[name] for name in FIT))
    bound, scaled = bounds(s, fit, one), bounds(c * s, fit, one)
    for name in INVARIANT:
        if math.isfinite(one[name]):
            assert abs(two[name] - one[name]) <= bound[name] + scaled[name], name
        else:
            assert two[name] == pytest.approx(one[name], nan_ok=True), name
    for name, factor in [
        ("spectral_norm", c),
        ("frobenius_norm", c),
        ("nuclear_norm", c),
        ("mp_edge", c * c),
    ]:
        assert two[name] == pytest.approx(factor * one[name], rel=2 * bound[name] / one[name])
    shift = 2 * power * math.log10(2)
    slack = bound["log_norm"] + 8 * EPS * abs(shift)
    assert abs(two["log_norm"] - one["log_norm"] - shift) <= slack
    if fit.n_tail == 0:
        assert two["n_tail"] == 0
        return
    gap = abs(two["ks_distance"] - one["ks_distance"])
    assert gap <= bound["ks_distance"] + scaled["ks_distance"]
    if two["n_tail"] == fit.n_tail:  # else D ties, which the line above has shown
        assert two["xmin"] == pytest.approx(c * c * fit.xmin, rel=4 * EPS)
        assert abs(two["alpha"] - fit.alpha) <= bound["alpha"] + scaled["alpha"]


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_order_does_not_matter(data):
    x = data.draw(spectra) ** 2
    shuffled = np.array(data.draw(st.permutations(list(x))))
    for name, value in record(fit_powerlaw(tensor(x)), FIT).items():
        assert same_bits(value, getattr(fit_powerlaw(tensor(shuffled)), name)), name
    assert same_bits(hill_alpha(tensor(x)), hill_alpha(tensor(shuffled)))


@settings(max_examples=60, deadline=None)
@given(spectra, st.integers(0, 5))
def test_bounds_that_always_hold(s, zeros):
    """With p = lam/sum lam, Renyi entropies fall with their order, and sigma/sum sigma is flatter:

    1 <= 1/max p = stable_rank <= 1/sum p^2 = participation_ratio <= exp H(p) = r^spectral_entropy
    <= exp H(sigma/sum sigma) = effective_rank <= rank <= r; sigma_1 <= F <= nuclear <= sqrt(r) F.
    """
    rank = len(s)
    s = np.append(s, np.zeros(zeros))
    got = items(stats_from_svdvals(tensor(s)), FIELDS)
    r = len(s)
    chain = [
        1.0,
        got["stable_rank"],
        got["participation_ratio"],
        r ** got["spectral_entropy"],
        got["effective_rank"],
        float(rank),
    ]
    # Each member is good to 2 E (ln r + 1) relative at worst, see `bounds`.
    slack = 1 + 4 * (r + 8) * EPS * (math.log(r) + 1)
    for low, high in itertools.pairwise(chain):
        assert low <= high * slack
    norms = [got["spectral_norm"], got["frobenius_norm"], got["nuclear_norm"]]
    norms.append(math.sqrt(r) * got["frobenius_norm"])
    for low, high in itertools.pairwise(norms):
        assert low <= high * slack
    assert got["condition_number"] == math.inf if zeros else got["condition_number"] >= 1
    assert math.isnan(got["mp_edge"])
    assert math.isnan(got["mp_spikes"])
    if len(set(s[s > 0])) < 2:
        assert got["n_tail"] == 0
        assert math.isnan(got["alpha"])
        return
    assert got["alpha"] > 1
    assert 0 < got["ks_distance"] < 1
    assert 2 <= got["n_tail"] <= rank
    assert got["n_tail"] == (s**2 >= got["xmin"] * (1 - 4 * EPS)).sum()
    stderr = (got["alpha"] - 1) / math.sqrt(got["n_tail"])
    assert got["alpha_stderr"] == pytest.approx(stderr, rel=4 * EPS * got["alpha"] / stderr)
    weighted = got["alpha"] * 2 * math.log10(got["spectral_norm"])
    assert got["alpha_weighted"] == pytest.approx(weighted, rel=1e-14, abs=1e-14)
    # lam_1^alpha <= sum lam^alpha <= rank lam_1^alpha
    above = got["log_alpha_norm"] - weighted
    assert -1e-12 <= above <= math.log10(rank) + 1e-12


@settings(max_examples=60, deadline=None)
@given(spectra)
def test_any_spectrum_against_the_oracle(s):
    shape = (len(s), 3 * len(s))
    got = items(stats_from_svdvals(tensor(s), shape=shape), FIELDS)
    fit = chosen(s**2, got["xmin"])
    want = oracle.stats(s, shape, fit)
    bound = bounds(s, fit, want)
    _, threshold = oracle.mp_bulk(s**2, shape)
    if np.any(np.abs(s**2 / threshold - 1) < 1e-9):
        del got["mp_spikes"]  # a value on the threshold counts or not
    check(got, want, bound)
