"""compare_lognormal against direct maximisation, powerlaw, the laws of its statistics, and its contract."""

from __future__ import annotations

import math
import warnings

import numpy as np
import pytest
import torch
from scipy import stats as scipy_stats

from spectral_fast import compare_lognormal, fit_powerlaw
from tests.oracles import goodness_oracle as oracle
from tests.oracles import stats_oracle

EPS = stats_oracle.EPS
REGULAR = stats_oracle.regular() | stats_oracle.minilm()


def tensor(values) -> torch.Tensor:
    return torch.from_numpy(np.array(values, dtype=np.float64))


def same_bits(a: torch.Tensor, b: torch.Tensor) -> bool:
    return torch.equal(torch.nan_to_num(a, -7.0, 8.0, -8.0), torch.nan_to_num(b, -7.0, 8.0, -8.0))


def spectra() -> torch.Tensor:
    rng = np.random.default_rng(2)
    x = np.exp(rng.standard_normal((6, 24)))
    x[1, 10:] = 0
    x[4, 3] = math.nan
    return tensor(x).reshape(2, 3, 24)


# ------------------------------------------------------------------ values


def lognormal_cases() -> dict[str, tuple[np.ndarray, float]]:
    lam = {name: np.sort(s**2) for name, s in REGULAR.items()}
    rng = np.random.default_rng(1)
    return {
        "tail": (lam["pareto_1.6"], lam["pareto_1.6"][2]),
        "almost_exponential": (lam["pareto_2.5"], lam["pareto_2.5"][100]),
        "steep": (lam["pareto_4.0"], lam["pareto_4.0"][75]),
        "exact": (lam["exact_0.6"], lam["exact_0.6"][60]),
        "lognormal": (lam["lognormal"], lam["lognormal"][2]),
        "exponential": (lam["exponential"], lam["exponential"][75]),
        "gauss": (lam["gauss_128x80"], lam["gauss_128x80"][40]),
        "far_below": (lam["pareto_2.5"], lam["pareto_2.5"][0] * 1e-3),
        "narrow": (1 + 1e-6 * rng.random(20), 0.5),
        "narrow_and_large": (1e100 * (1 + 1e-6 * np.append(rng.random(20), 0)), 1e100),
        "all_of_float64": (np.logspace(-300, 300, 41), 1e-300),
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
    m, mean = len(tail), (np.log(tail) - math.log(xmin)).mean()
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


# ------------------------------------------------------------------ what it says


def test_on_power_laws():
    """With xmin known, R is 0 in half of the cases, p_nested uniform below 1/2, Vuong's p hardly ever small.

    2000 tails of 2000: a share of chance p is off by 4 sqrt(p (1 - p) / 2000) at most, and by the skewness of
    the mean of L (above), which moves shares by less than 1 / sqrt(2000) of themselves or of the half.
    """
    x = (1 - np.random.default_rng(11).random((2000, 2000))) ** (-1 / 1.5)
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


# ------------------------------------------------------------------ contract


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


def test_comparison_compiled():
    x = spectra()
    compiled = torch.compile(compare_lognormal, fullgraph=True, backend="aot_eager")
    for a, b in zip(compiled(x.requires_grad_()), compare_lognormal(x.detach()), strict=True):
        assert not a.requires_grad
        assert same_bits(a, b)
