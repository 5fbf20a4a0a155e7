"""Whether a spectrum is a power law: the bootstrap and the log-normal, against oracles, peers and their laws.

Every draw is seeded, so that a test of chance passes or fails for good; its tolerance is that of chance.
"""

from __future__ import annotations

import contextlib
import io
import math
import warnings

import numpy as np
import pytest
import torch
from scipy import stats as scipy_stats

from spectral_fast import compare_lognormal, fit_powerlaw, goodness, goodness_of_fit
from tests.oracles import goodness_oracle as oracle
from tests.oracles import stats_oracle

EPS = stats_oracle.EPS
REGULAR = stats_oracle.regular() | stats_oracle.minilm()


def tensor(values) -> torch.Tensor:
    return torch.from_numpy(np.array(values, dtype=np.float64))


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def pareto(rng: np.random.Generator, *shape: int, alpha: float = 2.5) -> np.ndarray:
    return (1 - rng.random(shape)) ** (-1 / (alpha - 1))


def p_value(evals, n_samples: int = 100, seed: int = 0) -> float:
    return goodness_of_fit(tensor(evals), n_samples=n_samples, generator=seeded(seed)).p_value.item()


def same_bits(a: torch.Tensor, b: torch.Tensor) -> bool:
    return torch.equal(torch.nan_to_num(a, -7.0, 8.0, -8.0), torch.nan_to_num(b, -7.0, 8.0, -8.0))


def flat(result) -> list[torch.Tensor]:
    """Every tensor of a result, those of the fit inside it too."""
    return [leaf for field in result for leaf in (field if isinstance(field, tuple) else (field,))]


# ------------------------------------------------------------------ bootstrap: the law of the samples


def bootstrap_cases() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(16)
    tail = np.sort(pareto(rng, 40, alpha=2.2))
    return {
        "all_tail": tail,
        "bulk_below": np.sort(np.concatenate([tail, 0.9 * rng.random(30)])),
        "lognormal": np.sort(np.exp(rng.standard_normal(40))),
        "gauss": np.linalg.svd(rng.standard_normal((50, 40)), compute_uv=False) ** 2,
    }


@pytest.mark.parametrize("name", bootstrap_cases())
def test_p_value_is_that_of_the_plain_bootstrap(name):
    """Two shares of n1 and n2 draws with chance p differ by 4 sqrt(p (1 - p) (1/n1 + 1/n2)) at most."""
    x = bootstrap_cases()[name]
    n1, n2 = 1000, 4000
    expected = oracle.bootstrap(x, n1, np.random.default_rng(1))
    got = p_value(x, n2)
    pooled = (n1 * expected + n2 * got) / (n1 + n2)
    assert 0.02 < pooled < 0.98  # a p of 0 or 1 would agree with anything
    assert abs(got - expected) <= 4 * math.sqrt(pooled * (1 - pooled) * (1 / n1 + 1 / n2))


def test_p_value_with_weightwatchers_fit():
    """The same bootstrap with WWFit in place of our fit: on a tail of all values, where nothing repeats."""
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        pytest.importorskip("weightwatcher")
        from weightwatcher.WW_powerlaw import WWFit
    x = bootstrap_cases()["all_tail"]
    distance, xmin, alpha = oracle.least_distance(x)
    assert xmin == x.min()
    rng = np.random.default_rng(3)
    n1, n2 = 1000, 4000
    with contextlib.redirect_stdout(io.StringIO()):
        assert pytest.approx(distance, rel=1e-10) == WWFit(x).D
        drawn = [WWFit(oracle.sample(x, xmin, alpha, rng)).D for _ in range(n1)]
    expected, got = float(np.mean(np.array(drawn) >= distance)), p_value(x, n2)
    pooled = (n1 * expected + n2 * got) / (n1 + n2)
    assert abs(got - expected) <= 4 * math.sqrt(pooled * (1 - pooled) * (1 / n1 + 1 / n2))


@pytest.fixture
def drawn(monkeypatch) -> list[torch.Tensor]:
    """The synthetic spectra that the fit was given."""
    seen: list[torch.Tensor] = []
    fit = goodness._ops.fit_powerlaw

    def spy(evals, xmin):
        seen.append(evals.clone())
        return fit(evals, xmin)

    monkeypatch.setattr(goodness._ops, "fit_powerlaw", spy)
    return seen


@pytest.mark.parametrize("zeros", [0, 5])
def test_samples_have_the_law_of_the_plain_ones(drawn, zeros):
    """Sizes of tails, values below xmin and values of the tail, on 3000 synthetic spectra of 30 values.

    The samples are given to the fit as (x / xmin)^(alpha - 1). Each test is at the level 1e-4.
    """
    rng = np.random.default_rng(4)
    x = np.sort(np.concatenate([0.8 * rng.random(12), pareto(rng, 18)]))
    fit = fit_powerlaw(tensor(x))
    n, m, xmin = len(x), fit.n_tail.item(), fit.xmin.item()
    assert 5 < m < 25
    goodness_of_fit(tensor(np.append(x, np.zeros(zeros))), n_samples=3000, generator=seeded())
    samples = torch.cat([s.reshape(-1, n + zeros) for s in drawn]).numpy()
    assert samples.shape == (3000, n + zeros)
    assert (np.diff(samples) <= 0).all()  # the fit need not sort
    assert (samples[:, n:] == 0).all()
    samples = samples[:, :n]

    original = xmin * samples ** (1 / (fit.alpha.item() - 1))
    in_tail = samples >= 1
    sizes = in_tail.sum(1)
    assert scipy_stats.binomtest(int(sizes.sum()), 3000 * n, m / n).pvalue > 1e-4
    # Not only the mean: the number varies as it does for independent values.
    variance = 3000 * sizes.var() / (m * (1 - m / n))
    assert abs(variance - 2999) < 4 * math.sqrt(2 * 2999)
    law = scipy_stats.pareto(fit.alpha.item() - 1, scale=xmin)
    assert scipy_stats.kstest(original[in_tail], law.cdf).pvalue > 1e-4
    # The largest of a spectrum: the values of one are independent.
    largest = original.max(1)[sizes > 0]
    whole = lambda v: np.clip((law.cdf(v) * m + n - m) / n, 0, 1) ** n  # noqa: E731
    assert scipy_stats.kstest(largest, whole).pvalue > 1e-4
    below, counts = np.unique(np.round(original[~in_tail], 9), return_counts=True)
    assert below == pytest.approx(x[: n - m], abs=1e-9)
    assert scipy_stats.chisquare(counts).pvalue > 1e-4


# ------------------------------------------------------------------ bootstrap: what p says


def test_p_value_on_power_laws():
    """On true power laws p is small no more often than it says: one-sided Kolmogorov test, level 1e-3.

    It is large more often (docs/statistics.md); both halves are met, so that it is no constant.
    """
    x = tensor(pareto(np.random.default_rng(5), 60, 48))
    p = goodness_of_fit(x, n_samples=100, generator=seeded(3)).p_value.numpy()
    assert scipy_stats.kstest(p, "uniform", alternative="greater").pvalue > 1e-3
    assert (p < 0.5).sum() >= 10
    assert (p > 0.5).sum() >= 10


def test_p_value_is_small_where_there_is_no_power_law():
    """Two laws with a gap between them, and eigenvalues that are nearly evenly spaced with no tail."""
    rng = np.random.default_rng(8)
    assert p_value(rng.exponential(size=600)) <= 0.02
    assert p_value(1 + rng.random(300)) <= 0.02


# ------------------------------------------------------------------ bootstrap: contract


def spectra() -> torch.Tensor:
    rng = np.random.default_rng(2)
    x = np.stack([pareto(rng, 24), np.exp(rng.standard_normal(24)), rng.random(24) * 1e5])
    x = np.concatenate([x, x[:, ::-1] ** 1.5])
    x[1, 10:] = 0
    x[4, 3] = math.nan
    return tensor(x).reshape(2, 3, 24)


@pytest.mark.parametrize("at_once", [1, 1000, 1 << 16])
def test_batch_is_the_loop_with_one_generator(at_once, monkeypatch):
    """However the draws are divided: a sample at a time, some samples of a spectrum, all spectra together."""
    x = spectra()
    expected_generator = seeded(9)
    expected = [goodness_of_fit(row, n_samples=70, generator=expected_generator) for row in x.reshape(6, 24)]
    monkeypatch.setattr(goodness, "_DRAWS_AT_ONCE", at_once)
    generator = seeded(9)
    got = goodness_of_fit(x, n_samples=70, generator=generator)
    assert torch.equal(generator.get_state(), expected_generator.get_state())
    for i, row in enumerate(expected):
        for a, b in zip(flat(got), flat(row), strict=True):
            assert a.shape == (2, 3)
            assert same_bits(a.reshape(6)[i], b)
    assert got.p_value.reshape(6).isnan().tolist() == [False, False, False, False, True, False]


def test_default_generator_is_torchs():
    x = spectra()[0]
    torch.manual_seed(17)
    got = goodness_of_fit(x, n_samples=20, generator=None)
    torch.manual_seed(17)
    again = goodness_of_fit(x, n_samples=20, generator=None)
    seventeen = goodness_of_fit(x, n_samples=20, generator=seeded(17))
    for a, b, c in zip(flat(got), flat(again), flat(seventeen), strict=True):
        assert same_bits(a, b)
        assert same_bits(a, c)


def test_input_is_only_read_and_its_order_and_dtype_do_not_matter():
    x = spectra()[0].float()
    before = x.clone()
    got = goodness_of_fit(x, n_samples=20, generator=seeded())
    assert torch.equal(x, before)
    shuffled = x[:, torch.randperm(24, generator=seeded(1))].double()
    for a, b in zip(
        flat(got), flat(goodness_of_fit(shuffled, n_samples=20, generator=seeded())), strict=True
    ):
        assert same_bits(a, b)
    for a, b in zip(got.fit, fit_powerlaw(x), strict=True):
        assert same_bits(a, b)


@pytest.mark.parametrize("scale", [1e-300, 1e-160, 1e160, 1e300])
def test_scale_of_the_spectrum_does_not_matter(scale):
    """A power of two leaves every ratio, and so p, to the bit; 1e300 is one but for rounding."""
    x = np.sort(pareto(np.random.default_rng(3), 40))
    x = np.concatenate([x, 0.9 * np.random.default_rng(4).random(20) + 0.05])
    exact = 2.0 ** round(math.log2(scale / x.max()))
    assert p_value(x * exact, 50) == p_value(x, 50)


def test_spectrum_over_all_of_float64():
    """From 1e-300 to 1e300: alpha - 1 is about 1/700, and samples of the power law itself would overflow."""
    x = np.logspace(-300, 300, 41)
    fit = fit_powerlaw(tensor(x))
    assert (3 ** (1 / (fit.alpha - 1))).isinf()  # one sample in three
    assert p_value(x, 200) == p_value(x ** (1 / 100), 200)


def test_steep_tail_over_a_deep_bulk():
    """alpha - 1 of about 1000, zero but for rounding below: (x / xmin)^(alpha - 1) would vanish there."""
    rng = np.random.default_rng(6)
    tail, bulk = pareto(rng, 30, alpha=1001), np.sort(rng.random(20)) * 1e-10
    x = np.concatenate([bulk, tail])
    fit = fit_powerlaw(tensor(x))
    assert fit.alpha > 300
    assert ((bulk / tail.min()) ** (fit.alpha.item() - 1) == 0).all()
    expected, got = oracle.bootstrap(x, 500, np.random.default_rng(0)), p_value(x, 2000)
    assert abs(got - expected) <= 4 * math.sqrt(0.25 * (1 / 500 + 1 / 2000))


def test_two_values_are_always_a_power_law():
    """The distance of two values is 1/2 - exp(-2) whatever they are: that of its samples but for rounding."""
    for x in ([1.0, 2.0], [3.0, 0.0, 0.7], [1.0, 1.0 + 1e-12], [1e-300, 1e-299]):
        result = goodness_of_fit(tensor(x), n_samples=300, generator=seeded())
        assert result.fit.n_tail == 2
        assert result.p_value == 1


def test_three_values_against_the_plain_bootstrap():
    for x in ([1.0, 2.0, 9.0], [1.0, 1.3, 1.4]):
        n1, n2 = 2000, 8000
        expected, got = oracle.bootstrap(np.array(x), n1, np.random.default_rng(0)), p_value(x, n2)
        assert 0.05 < got < 0.95
        assert abs(got - expected) <= 4 * math.sqrt(got * (1 - got) * (1 / n1 + 1 / n2))


def test_samples_without_a_fit_are_left_out():
    """One value below, two in the tail: 1 of 27 samples repeats the one below three times and has no fit."""
    x = tensor([1e-3, 1.0, 1.0 + 1e-9])
    result = goodness_of_fit(x, n_samples=5000, generator=seeded())
    assert result.fit.n_tail == 2
    k = result.p_value.item()
    # p (1 - p) / n to be solved for n, the samples left: 5000 (26/27) +- 4 sqrt(5000 (1/27) (26/27)).
    left = k * (1 - k) / result.p_stderr.item() ** 2
    assert abs(left - 5000 * 26 / 27) <= 4 * math.sqrt(5000 / 27 * 26 / 27) + 10


@pytest.mark.parametrize(
    "x", [[], [1.0], [2.0, 2.0, 2.0], [0.0, 0.0], [1.0, 2.0, math.nan], [1.0, 2.0, math.inf]]
)
def test_no_fit_has_no_p_value(x):
    result = goodness_of_fit(tensor(x), n_samples=10, generator=seeded())
    assert result.p_value.isnan()
    assert result.p_stderr.isnan()
    assert result.fit.n_tail == 0
    assert all(value.isnan() for value in compare_lognormal(tensor(x)))


def test_empty_batches():
    for shape in [(0, 5), (2, 0), (0, 0), (3, 0, 4)]:
        for value in flat(goodness_of_fit(torch.ones(shape), n_samples=3, generator=None)):
            assert value.shape == shape[:-1]
        for value in compare_lognormal(torch.ones(shape)):
            assert value.shape == shape[:-1]


def test_standard_error():
    """That of the share where it is between 0 and 1, and not zero at the ends: about 1 / n with none of n."""
    x = tensor(bootstrap_cases()["lognormal"])
    result = goodness_of_fit(x, n_samples=400, generator=seeded())
    p = result.p_value.item()
    assert result.p_stderr.item() == pytest.approx(math.sqrt(p * (1 - p) / 400), rel=0.01)
    shares = [goodness_of_fit(x, n_samples=400, generator=seeded(i)).p_value.item() for i in range(30)]
    # A standard deviation from 30 has a relative error of 1 / sqrt(58).
    assert np.std(shares, ddof=1) == pytest.approx(result.p_stderr.item(), rel=4 / math.sqrt(58))
    never = goodness_of_fit(tensor(1 + np.linspace(0, 1, 300)), n_samples=50, generator=seeded())
    assert never.p_value == 0
    assert 0.5 / 50 < never.p_stderr < 1.1 / 50


# ------------------------------------------------------------------ log-normal: values


def lognormal_cases() -> dict[str, tuple[np.ndarray, float]]:
    lam = {name: np.sort(s**2) for name, s in REGULAR.items()}
    rng = np.random.default_rng(1)
    return {
        "tail": (lam["pareto_1.6"], lam["pareto_1.6"][2]),
        "almost_exponential": (lam["pareto_2.5"], lam["pareto_2.5"][100]),
        "steep": (lam["pareto_4.0"], lam["pareto_4.0"][2]),
        "exact": (lam["exact_0.6"], lam["exact_0.6"][60]),
        "lognormal": (lam["lognormal"], lam["lognormal"][2]),
        "exponential": (lam["exponential"], lam["exponential"][75]),
        "gauss": (lam["gauss_128x80"], lam["gauss_128x80"][40]),
        "far_below": (lam["pareto_2.5"], lam["pareto_2.5"][0] * 1e-3),
        "narrow": (1 + 1e-6 * rng.random(20), 0.5),
        "just_above": (lam["lognormal"], lam["lognormal"][0] * (1 - 1e-12)),
        "large": (lam["exponential"] * 1e280, lam["exponential"][75] * 1e280),
        "small": (lam["lognormal"] * 1e-280, lam["lognormal"][2] * 1e-280),
    }


@pytest.mark.parametrize("name", lognormal_cases())
def test_lognormal_against_direct_maximisation(name):
    """Bounds for straightforward float64 code, e = (m + 8) eps, z = (ln xmin - mu) / sigma.

    y and its mean carry 4 e L relative: L = 1 through log1p, max |ln x| / mean(y) for a difference of
    logarithms. v = Var[y] / mean(y)^2 comes from deviations sqrt(v) times smaller: q = 4 e L / sqrt(v) where
    v < 1. v's formulas as functions of z are good to 2e-13, so z is to dz = (q + 2e-13) v / |dv/dz|.
    sigma = mean(y) / d(z), d ln d / dz = -v d and v d < 1 + |z| v; mu = ln xmin - z sigma. R is stationary in
    z; s is not, |d ln s / dz| <= 2; m terms of order s add their rounding, 2 q sqrt(m).
    """
    x, xmin = lognormal_cases()[name]
    want = oracle.lognormal(x, xmin)
    got = compare_lognormal(tensor(x), xmin=float(xmin))
    tail = x[x >= xmin]
    m, mean = len(tail), np.log1p((tail - xmin) / xmin).mean()
    e = (m + 8) * EPS
    magnitude = max(1.0, np.abs(np.log(tail)).max(), abs(math.log(xmin)))
    logs = 4 * e * max(1.0, magnitude / mean if tail.max() > 2 * xmin else 1.0)
    z = (math.log(xmin) - want.mu) / want.sigma
    hazard = math.exp(scipy_stats.norm.logpdf(z) - scipy_stats.norm.logsf(z))
    d = hazard - z
    v = (1 - hazard * d) / d**2
    q = logs / min(1.0, math.sqrt(v))
    dz = (q + 2e-13) * v / abs(2 * v**2 * d - hazard * (1 - v))
    sigma = dz * (1 + abs(z) * v) + logs
    assert got.sigma.item() == pytest.approx(want.sigma, rel=sigma)
    mu_bound = want.sigma * (dz + abs(z) * sigma) + 4 * EPS * magnitude
    assert got.mu.item() == pytest.approx(want.mu, rel=0, abs=mu_bound)
    ratio = 2 * dz * abs(want.ratio) + 2 * q * math.sqrt(m)
    assert got.ratio.item() == pytest.approx(want.ratio, rel=0, abs=ratio)
    # d ln erfc(r / sqrt 2) / dr = -hazard-like, below 1 + |r|; erfc itself is good to 1e-14.
    assert got.p_value.item() == pytest.approx(
        math.erfc(abs(want.ratio) / math.sqrt(2)), rel=ratio * (1 + abs(want.ratio)) + 1e-14
    )
    # The terms of R carry 2 q, their absolute values sum to less than m + |R|.
    moved = 2 * q * (m + abs(want.log_ratio))
    nested = lambda r: math.erfc(math.sqrt(max(-r, 0))) / 2  # noqa: E731
    low, high = nested(want.log_ratio - moved), nested(want.log_ratio + moved)
    assert low * (1 - 1e-12) <= got.p_nested.item() <= high * (1 + 1e-12)


def tail_likelihood(x: np.ndarray, xmin: float, mu: float, sigma: float) -> float:
    """Log-likelihood of the log-normal on x >= xmin, by scipy's normal law."""
    log_x = np.log(x)
    norm = scipy_stats.norm
    terms = norm.logpdf((log_x - mu) / sigma) - log_x - math.log(sigma)
    return float((terms - norm.logsf((math.log(xmin) - mu) / sigma)).sum())


def powerlaw_likelihood(x: np.ndarray, xmin: float) -> float:
    y = np.log(x / xmin)
    return float(len(x) * (-math.log(y.mean()) - 1) - np.log(x).sum())


@pytest.mark.parametrize("start", [None, 2, "half"])
@pytest.mark.parametrize("name", REGULAR)
def test_against_powerlaws_comparison(name, start):
    """powerlaw minimises with Nelder-Mead to 1e-4 in the parameters and in the likelihood, and no further.

    Ours is never below its likelihood; where log-normals have a maximum the two ratios agree to
    1e-3 (1 + |ratio|): s changes with the parameters by less than a few of its 1e-4, R by 1e-4 at most.
    Where they have none it runs away to mu = -1000 or -2000, where its densities are subnormal numbers and
    R is made of their rounding; the likelihood at its parameters is still below ours, the power law's.
    """
    powerlaw = pytest.importorskip("powerlaw")
    x = np.sort(REGULAR[name] ** 2)
    given = None if start is None else float(x[start if start == 2 else len(x) // 2])
    got = compare_lognormal(tensor(x), xmin=given)
    xmin = fit_powerlaw(tensor(x), xmin=given).xmin.item()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        peer = powerlaw.Fit(x, xmin=xmin, parameter_ranges={"alpha": [1, 1e5]}, verbose=0)
        ratio, p = peer.distribution_compare("power_law", "lognormal", normalized_ratio=True)
    tail = x[x >= xmin]
    theirs = tail_likelihood(tail, xmin, peer.lognormal.mu, peer.lognormal.sigma)
    y = np.log(tail / xmin)
    if (y**2).mean() >= 2 * y.mean() ** 2:
        assert [value.item() for value in got] == [0, 1, 1, -math.inf, math.inf]
        assert powerlaw_likelihood(tail, xmin) > theirs
        assert peer.lognormal.mu < -900
        assert ratio < -0.5  # for a supremum that is the power law itself
        return
    ours = tail_likelihood(tail, xmin, got.mu.item(), got.sigma.item())
    # Rounding: terms of z^2 / 2 and |ln x|, each off by a few eps of itself.
    z = (math.log(xmin) - got.mu.item()) / got.sigma.item()
    rounding = 8 * EPS * len(tail) * (z * z + np.abs(np.log(tail)).max() + 10)
    assert ours >= theirs - rounding
    assert ours >= powerlaw_likelihood(tail, xmin) - rounding
    assert got.ratio.item() == pytest.approx(ratio, abs=1e-3 * (1 + abs(ratio)))
    assert got.p_value.item() == pytest.approx(p, rel=5e-3 * (1 + abs(ratio)))


def test_close_to_the_exponential_limit():
    """ratio -> -(1 - v) sqrt(m) / (4 sd L) as v rises to 1, and is 0 from there on: no jump.

    With t = y / mean(y), L = 1 - 2t + t^2 / 2 and z -> inf: ln p - ln q = L / z^2 + O(1/z^4),
    1 - v = 2 / z^2, R = -m / (2 z^4) and s = sd(L) / z^2.
    """
    q = (np.arange(1, 401) - 0.5) / 400
    t = -np.log1p(-q)
    for gap in (1e-3, 1e-5, 1e-8):
        # Stretch the largest until v = 1 - gap: v is monotone in it.
        low, high = 0.5, 3.0
        for _ in range(200):
            middle = (low + high) / 2
            y = np.append(t[:-1], t[-1] * middle)
            low, high = (middle, high) if (y / y.mean()).var() < 1 - gap else (low, middle)
        relative = y / y.mean()
        laguerre = 1 - 2 * relative + relative**2 / 2
        expected = -gap / 4 * math.sqrt(len(y)) / laguerre.std()
        got = compare_lognormal(tensor(np.exp(y)), xmin=1.0)
        # The next order is 1 / z^2 = gap / 2 relative, times coefficients up to the fourth moments, 24.
        # v carries eps (m + 8), relative to gap.
        error = 24 * gap + 4 * len(y) * EPS / gap
        assert got.ratio.item() == pytest.approx(expected, rel=error)
        z = (0 - got.mu.item()) / got.sigma.item()
        assert z == pytest.approx(math.sqrt(2 / gap), rel=error)
    above = compare_lognormal(tensor(np.exp(np.append(t[:-1], 3 * t[-1]))), xmin=1.0)
    assert [value.item() for value in above] == [0, 1, 1, -math.inf, math.inf]


# ------------------------------------------------------------------ log-normal: what it says


def test_on_power_laws():
    """With xmin known, R is 0 in half of the cases, p_nested uniform below 1/2, Vuong's p hardly ever small.

    2000 tails of 2000: a share of chance p is off by 4 sqrt(p (1 - p) / 2000) at most, and by the skewness of
    the mean of L (above), which moves shares by less than 1 / sqrt(2000) of themselves or of the half.
    """
    x = pareto(np.random.default_rng(11), 2000, 2000)
    got = compare_lognormal(tensor(x), xmin=1.0)
    for level in (0.02, 0.1, 0.3, 0.499):
        share = (got.p_nested <= level).double().mean().item()
        assert abs(share - level) <= 4 * math.sqrt(level * (1 - level) / 2000) + level / math.sqrt(2000), (
            level
        )
    assert (got.ratio <= 0).all()
    # For m -> inf P(erfc(|N| / sqrt 8) <= 0.05) / 2 = P(|N| > 3.92) / 2 = 4.4e-5, and a few times that here.
    assert (got.p_value <= 0.05).sum() < 0.1 * 0.05 * 2000


def test_finds_a_lognormal_and_its_parameters():
    """Upper half of 20000 values: estimates within 4 of their errors, which the spread of 40 others gives."""
    rng = np.random.default_rng(13)
    x = np.exp(0.5 + 1.5 * rng.standard_normal((41, 20000)))
    got = compare_lognormal(tensor(x), xmin=math.exp(0.5))
    for estimate, truth in ((got.mu, 0.5), (got.sigma, 1.5)):
        spread = estimate[1:].std().item()
        assert abs(estimate[0].item() - truth) <= 4 * spread
        assert abs(estimate.mean().item() - truth) <= 4 * spread / math.sqrt(41) + spread**2
        assert spread < 0.2
    assert (got.p_value < 1e-10).all()
    assert (got.p_nested < got.p_value).all()


# ------------------------------------------------------------------ log-normal: contract


def test_comparison_of_a_batch_is_the_loop():
    x = spectra()
    xmin = torch.tensor([[0.5], [2.0]])
    for given in (None, 0.5, xmin):
        got = compare_lognormal(x, xmin=given)
        for i in range(2):
            for j in range(3):
                one = given[i, 0] if isinstance(given, torch.Tensor) else given
                for a, b in zip(got, compare_lognormal(x[i, j], xmin=one), strict=True):
                    assert a.shape == (2, 3)
                    assert a.dtype == torch.float64
                    assert same_bits(a[i, j], b)
        assert got.ratio.isnan().tolist() == [[False] * 3, [False, True, False]]
    strided = x.permute(2, 1, 0).contiguous().permute(2, 1, 0)
    mapped = torch.func.vmap(torch.func.vmap(compare_lognormal))(x)
    for a, b, c in zip(compare_lognormal(x), compare_lognormal(strided), mapped, strict=True):
        assert same_bits(a, b)
        assert same_bits(a, c)


def test_comparison_is_the_tails_alone():
    """Scale moves mu and nothing else; what is below xmin does not count."""
    x = np.sort(REGULAR["lognormal"] ** 2)
    xmin = float(x[30])
    got = compare_lognormal(tensor(x), xmin=xmin)
    for a, b in zip(got, compare_lognormal(tensor(x[30:]), xmin=xmin), strict=True):
        # n and the tail have other positions in the sum: its rounding, as in the test of the values.
        assert a.item() == pytest.approx(b.item(), rel=1e-11)
    scaled = compare_lognormal(tensor(x * 2.0**900), xmin=xmin * 2.0**900)
    assert scaled.mu.item() == pytest.approx(got.mu.item() + 900 * math.log(2), rel=1e-12)
    # y now comes from logarithms of 600 in part: 600 eps (m + 8) / mean(y).
    for name in ("ratio", "p_value", "p_nested", "sigma"):
        assert getattr(scaled, name).item() == pytest.approx(getattr(got, name).item(), rel=1e-9)


def test_tail_of_one_value_repeated():
    """xmin below two equal values: fit_powerlaw has no fit there, and a log-normal no width."""
    assert all(value.isnan() for value in compare_lognormal(tensor([3.0, 3.0]), xmin=1.0))
    assert all(value.isnan() for value in compare_lognormal(tensor([3.0, 2.0]), xmin=9.0))


# ------------------------------------------------------------------ errors and derivatives


def test_bad_arguments():
    x = torch.rand(3, 8)
    with pytest.raises(TypeError, match=r"goodness_of_fit\(\): argument 'evals' must be Tensor, not list"):
        goodness_of_fit([1.0, 2.0], generator=None)
    with pytest.raises(TypeError, match=r"compare_lognormal\(\): argument 'evals' must be Tensor, not list"):
        compare_lognormal([1.0, 2.0])
    for bad in (torch.tensor(1.0), torch.ones(3, dtype=torch.int64), torch.ones(3, dtype=torch.complex64)):
        with pytest.raises(ValueError, match="goodness_of_fit: evals must be a dense real floating-point"):
            goodness_of_fit(bad, generator=None)
        with pytest.raises(ValueError, match="compare_lognormal: evals must be a dense real floating-point"):
            compare_lognormal(bad)
    for bad in (0, -1, 2.5, "10"):
        with pytest.raises(ValueError, match="n_samples must be an integer of at least 1"):
            goodness_of_fit(x, n_samples=bad, generator=None)
    with pytest.raises(TypeError, match=r"argument 'generator' must be torch\.Generator or None, not int"):
        goodness_of_fit(x, generator=3)
    with pytest.raises(TypeError, match="generator"):
        goodness_of_fit(x)
    with pytest.raises(ValueError, match="does not broadcast"):
        compare_lognormal(x, xmin=torch.ones(2))


RESULTS = {
    "p_value": lambda x: goodness_of_fit(x, n_samples=3, generator=None).p_value,
    "p_stderr": lambda x: goodness_of_fit(x, n_samples=3, generator=None).p_stderr,
    "alpha": lambda x: goodness_of_fit(x, n_samples=3, generator=None).fit.alpha,
    "ratio": lambda x: compare_lognormal(x).ratio,
    "mu": lambda x: compare_lognormal(x, xmin=0.2).mu,
}


@pytest.mark.parametrize("name", RESULTS)
def test_derivatives_are_refused(name):
    function = RESULTS[name]
    x = torch.rand(20, dtype=torch.float64)
    result = function(x.clone().requires_grad_())
    with pytest.raises(RuntimeError, match="is not differentiable"):
        result.backward()
    with pytest.raises(RuntimeError, match="is not differentiable"):
        torch.func.grad(function)(x)
    with pytest.raises(RuntimeError, match="is not differentiable"):
        torch.func.jvp(function, (x,), (x,))
    with torch.no_grad():
        assert not function(x.clone().requires_grad_()).requires_grad


def test_comparison_compiled():
    x = spectra()
    compiled = torch.compile(compare_lognormal, fullgraph=True, backend="aot_eager")
    for a, b in zip(compiled(x.requires_grad_()), compare_lognormal(x.detach()), strict=True):
        assert not a.requires_grad
        assert same_bits(a, b)
