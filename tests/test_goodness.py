"""goodness_of_fit against a plain bootstrap, with WeightWatcher's fit too, and its contract.

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


@pytest.mark.parametrize("n", [48, pytest.param(512, marks=pytest.mark.slow)])
def test_p_value_on_power_laws(n):
    """On true power laws p is small no more often than it says: one-sided Kolmogorov test, level 1e-3.

    It is large more often (docs/statistics.md); both halves are met, so that it is no constant.
    """
    x = tensor(pareto(np.random.default_rng(5), 60, n))
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


def test_scale_of_nearly_equal_values_does_not_matter():
    """ln x - ln xmin loses 230 eps at 1e100, a fifth of what lies between these values."""
    rng = np.random.default_rng(3)
    x = tensor(1 + 1e-13 * np.concatenate([5 * rng.random(20), 5 + rng.exponential(1, 20)]))
    assert 2 < goodness_of_fit(x, n_samples=1, generator=None).fit.n_tail < 40
    p = [
        goodness_of_fit(x * scale, n_samples=400, generator=seeded(1)).p_value.item()
        for scale in (1.0, 2.0**300, 2.0**-300)
    ]
    assert p[0] == p[1] == p[2]


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


def test_equal_distances_are_equal_whatever_their_rounding(monkeypatch):
    """A kernel may give the samples' distance a few eps less than that of the spectrum."""
    fit = goodness._ops.fit_powerlaw

    def rounded(evals, xmin):
        record, n_tail = fit(evals, xmin)
        return record * torch.tensor([1, 1, 1, 1 - 4 * EPS]), n_tail

    monkeypatch.setattr(goodness._ops, "fit_powerlaw", rounded)
    assert p_value([1.0, 2.0]) == 1


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
    for bad in (0, -1, 2.5, "10", True):
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
