"""The gate of ``python -m benchmarks stats``: its scan, what it calls right, and the zoo it is used on."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

import spectral_fast
from benchmarks.statistics.bootstrap import plain_p_value, synthetic
from benchmarks.statistics.gate import Scan, check_fits, ks_tolerance, scan
from benchmarks.statistics.peers import PEERS, judge_powerlaw, judge_powerlawrs, judge_wwfit, load_powerlawrs
from benchmarks.statistics.spectra import ZOO, descending, draw, minilm_spectra, mixture
from benchmarks.suites import SuiteError
from tests.oracles import stats_oracle


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


# The oracle of the fits


@pytest.mark.parametrize("name", [*ZOO, "rounded", "half_zeros"])
def test_the_scan_is_the_50_digit_oracle(name: str) -> None:
    degenerate = stats_oracle.degenerate()
    evals = degenerate[name] ** 2 if name in degenerate else draw(name, 60).evals
    for dtype, digits in ((np.longdouble, 1e-15), (np.float64, 1e-12)):
        got, expected = scan(evals, dtype).right()[0], stats_oracle.fits(evals)[0]
        assert (got.xmin, got.n_tail) == (expected.xmin, expected.n_tail)
        assert got.alpha == pytest.approx(expected.alpha, rel=digits, abs=0)
        assert got.alpha_stderr == pytest.approx(expected.alpha_stderr, rel=digits, abs=0)
        assert got.ks_distance == pytest.approx(expected.ks_distance, rel=digits, abs=0)


def _tied() -> Scan:
    """Three candidates, the last two of which are equally good."""
    found = scan(np.array([5.0, 3.0, 2.0, 1.0]))
    distance = np.array([0.3, 0.1 + 5e-13, 0.1], dtype=np.longdouble)
    return Scan(found.xmin, found.alpha, distance, found.n_tail)


def _wwfit(found: Scan, index: int, **changes: Any) -> Any:
    fit = found.fit(index)
    usual = {
        "xmin": fit.xmin,
        "alpha": fit.alpha,
        "sigma": fit.alpha_stderr,
        "D": fit.ks_distance,
        "data": [0.0] * fit.n_tail,
        "xmins": found.xmin,
        "Ds": found.distance.astype(float),
    }
    return SimpleNamespace(**{**usual, **changes})


def test_either_xmin_is_right_where_d_ties() -> None:
    found = _tied()
    assert [fit.xmin for fit in found.right()] == [3.0, 2.0]
    for index in (1, 2):
        fit = found.fit(index)
        columns = [torch.tensor([value], dtype=torch.float64) for value in fit]
        check = check_fits(spectral_fast.PowerLawFit(*columns), [found])
        assert check.holds
        assert check.ties == 1
    columns = [torch.tensor([value], dtype=torch.float64) for value in found.fit(0)]
    assert "right is 3" in check_fits(spectral_fast.PowerLawFit(*columns), [found]).failure

    ours = 2.0
    assert judge_wwfit(_wwfit(found, 1), found, ours) == ("", "")
    assert judge_wwfit(_wwfit(found, 2), found, ours) == ("", "another xmin of equal D")
    assert "its xmin is 1, ours 2" in judge_wwfit(_wwfit(found, 0), found, ours)[0]
    # The tie is one of WWFit's own D.
    apart = np.array([0.3, 0.1 + 2e-12, 0.1])
    assert "its xmin is 3, ours 2" in judge_wwfit(_wwfit(found, 2, Ds=apart), found, ours)[0]
    assert "alpha" in judge_wwfit(_wwfit(found, 1, alpha=1.0), found, ours)[0]
    assert "n_tail" in judge_wwfit(_wwfit(found, 1, data=[]), found, ours)[0]


def test_powerlaw_is_right_within_the_precision_of_its_optimizer() -> None:
    found = scan(draw("Pareto 6", 200).evals)
    best, second = (int(index) for index in np.argsort(found.distance)[:2])
    assert found.alpha[best] > 3
    xmin, distance = float(found.xmin[best]), float(found.distance[best])
    allowed = 0.37 * 1e-4 / (float(found.alpha[best]) - 1)

    def judged(answer_xmin: float, D: float) -> tuple[str, str]:
        return judge_powerlaw(SimpleNamespace(xmin=answer_xmin, D=D), found, xmin)

    assert judged(xmin, distance) == ("", "")
    error, note = judged(xmin, distance + 0.9 * allowed)
    assert error == ""
    assert note.startswith("its D is off by ")
    assert judged(xmin, distance + 1.1 * allowed)[0].startswith("its D is off by ")
    assert found.distance[second] - distance > 2 * allowed
    other = float(found.xmin[second])
    assert judged(other, float(found.distance[second]))[0].endswith("of less D")
    near = Scan(found.xmin, found.alpha, found.distance.copy(), found.n_tail)
    near.distance[second] = distance + allowed
    answer = SimpleNamespace(xmin=other, D=near.distance[second])
    assert judge_powerlaw(answer, near, xmin) == ("", "another xmin within its precision")
    assert judge_powerlaw(SimpleNamespace(xmin=-1.0, D=0.1), found, xmin)[0].endswith("none of the values")


def test_powerlaw_in_its_closed_form_is_exact() -> None:
    found = scan(draw("exact quantiles", 100).evals)
    best = found.right()[0]
    assert 1.5 < best.alpha <= 3
    allowed = ks_tolerance(best.ks_distance)
    for factor, right in ((0.9, True), (1.1, False)):
        answer = SimpleNamespace(xmin=best.xmin, D=best.ks_distance + factor * allowed)
        assert (judge_powerlaw(answer, found, best.xmin)[0] == "") == right


@pytest.mark.parametrize(("field", "wrong"), [("alpha", "its alpha is"), ("D", "its D is")])
def test_a_wrong_answer_of_powerlawrs_is_seen(field: str, wrong: str) -> None:
    pytest.importorskip("powerlawrs")
    evals = draw("Pareto 2.5", 100).evals
    found, answer = scan(evals), load_powerlawrs()(evals)
    ours = found.right()[0].xmin
    assert judge_powerlawrs(answer, found, ours)[0] == ""
    off = replace(answer, **{field: getattr(answer, field) * (1 + 1e-10)})
    assert judge_powerlawrs(off, found, ours)[0].startswith(wrong)


@pytest.mark.parametrize("name", ZOO)
def test_peers_and_ours_agree_on_the_zoo(name: str) -> None:
    for module in ("weightwatcher", "powerlawrs"):
        pytest.importorskip(module)
    evals = draw(name, 100).evals
    found, fit = scan(evals), spectral_fast.fit_powerlaw(torch.from_numpy(evals))
    assert check_fits(fit, [found]).holds
    for peer in PEERS:
        assert peer.judge(peer.load()(evals), found, fit.xmin.item())[0] == ""


# The zoo


def test_the_zoo_is_the_same_in_every_run() -> None:
    for name in ZOO:
        first, again, other = draw(name, 50), draw(name, 50), draw(name, 50, 1)
        assert np.array_equal(first.evals, again.evals)
        assert first.n == 50
        assert (np.diff(first.evals) < 0).all()
        assert first.evals[-1] > 0
        assert np.array_equal(first.evals, other.evals) == (name in ("exact quantiles", "geometric"))
    stack = mixture(33, 30)
    assert [one.name for one in stack[:15]] == [one.name for one in stack[15:30]] == list(ZOO)


@pytest.mark.parametrize("alpha", [1.5, 2, 2.5, 3.5, 6])
def test_pareto_samples_have_their_alpha(alpha: float) -> None:
    x = draw(f"Pareto {alpha:g}", 4000).evals
    estimate = 1 + len(x) / np.log(x).sum()
    # Its standard error is (alpha - 1) / sqrt(n).
    assert abs(estimate - alpha) < 4 * (alpha - 1) / math.sqrt(len(x))


def test_kinds_of_spectra_are_what_they_are_called() -> None:
    n = 400
    edges = {"Gaussian n×n": (0.0, 4.0), "Gaussian 4n×n": (0.25, 2.25)}
    for name, (low, high) in edges.items():
        x = draw(name, n).evals
        # The largest value is off by n^(-2/3) of the edge, times a few (Tracy-Widom).
        assert x[0] == pytest.approx(high, rel=5 * n ** (-2 / 3))
        assert low * (1 - 5 * n ** (-2 / 3)) <= x[-1] <= low + 0.05
        assert x.mean() == pytest.approx(1, abs=0.02)
    spiked = draw("spiked bulk", n).evals
    assert 8 <= (spiked > 2.25 * (1 + n ** (-2 / 3))).sum() <= 16
    over = draw("Pareto over bulk", n).evals
    assert (over > over[n // 5] * 1.0).sum() == n // 5
    slopes = draw("two slopes", 20_000).evals
    logs = np.log(slopes[slopes > 10] / 10)
    assert 1 + 1 / logs.mean() == pytest.approx(3.5, abs=0.2)
    steps = np.diff(np.log(draw("geometric", n).evals))
    assert steps == pytest.approx(np.full(n - 1, -4 * math.log(10) / (n - 1)), rel=1e-9)


def test_a_spectrum_has_distinct_positive_values() -> None:
    assert descending(np.array([1.0, 3.0, 2.0])).tolist() == [3, 2, 1]
    for bad in ([1.0, 1.0], [1.0, 0.0], [1.0, math.nan], [1.0, math.inf]):
        with pytest.raises(ValueError, match="finite, positive, different"):
            descending(np.array(bad))


def test_minilm_spectra_are_of_every_role() -> None:
    try:
        found = minilm_spectra()
    except SuiteError as error:
        pytest.skip(str(error))
    assert {one.n for one in found} == {384}
    assert len({one.name.split()[1] for one in found}) == len(found) == 6
    assert len({one.name.split()[2] for one in found}) == 6


# The bootstrap


def test_synthetic_spectra_follow_the_fit() -> None:
    """Below xmin the values themselves, above it the power law, in the proportion of the fit."""
    x = draw("Pareto over bulk", 2000).evals
    fit = scan(x).fit(1000)
    g = np.random.default_rng(1)
    drawn = np.concatenate([synthetic(x, fit, g) for _ in range(50)])
    assert len(drawn) == 50 * len(x)
    below = drawn[drawn < fit.xmin]
    assert set(below.tolist()) <= set(x.tolist())
    share = fit.n_tail / len(x)
    assert len(below) / len(drawn) == pytest.approx(1 - share, abs=4 * math.sqrt(share / len(drawn)))
    logs = np.log(drawn[drawn >= fit.xmin] / fit.xmin)
    # The mean of exponential variables has the relative standard error 1 / sqrt(count).
    assert logs.mean() * (fit.alpha - 1) == pytest.approx(1, abs=4 / math.sqrt(len(logs)))
    whole = scan(x).fit(0)
    assert (synthetic(x, whole, g) >= whole.xmin).all()


def test_plain_p_value_tells_a_power_law_from_another() -> None:
    g = np.random.default_rng(3)
    assert plain_p_value(draw("Pareto 2.5", 100).evals, 40, g) > 0.1
    assert plain_p_value(draw("geometric", 100).evals, 40, g) < 0.1
