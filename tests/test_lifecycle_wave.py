"""The compression wave: planted fronts, speeds and reversals, and falls that do not travel."""

from __future__ import annotations

from collections.abc import Callable
from itertools import permutations

import numpy as np
import pytest

from spectral_fast.lifecycle.wave import Wave, measure_wave
from tests.lifecycle_runs import EVERY, Floats, ar1_noise, layered, neighbours, shared

RUNS = 1000
# A procedure whose true rate is 3 % gives more than 50 of 1000 once in 4000 sets; these rates are smaller.
AT_MOST = 50
FALL = 20.0

Correlation = Callable[[int], Floats]


def falls(looks: int, fronts: Floats, rise: float = 0.0) -> Floats:
    """(..., looks, layers): from 30 to 10 about these fronts (..., layers), in looks; then a rise a look."""
    time = np.arange(looks)[:, None]
    fronts = fronts[..., None, :]
    after = np.clip(time - fronts - 8, 0, None)
    return 30 - FALL / (1 + np.exp(-(time - fronts) / 2)) + rise * after


def noise(
    seed: int, looks: int, depth: int, rho: float, correlation: Correlation = shared, runs: int = RUNS
) -> Floats:
    return ar1_noise(np.random.default_rng(seed), (runs, looks, depth), rho, correlation=correlation(depth))


def measured(values: Floats) -> list[Wave]:
    """Of each of the runs (runs, looks, layers)."""
    return [measure_wave(layered(run, "stable_rank")) for run in values]


def test_finds_the_planted_wave() -> None:
    fronts = 10 + 1.5 * np.arange(8)
    some = 0.05 * noise(0, 60, 8, 0.5, runs=1)[0]
    found = measure_wave(layered(falls(60, fronts, rise=0.2) + some, "stable_rank"))
    assert found.detected
    assert found.reason == ""
    # Half way is at the front, but for the tails of the fall and chords for arcs between looks.
    np.testing.assert_allclose(found.fronts, EVERY * fronts, atol=0.15 * EVERY)
    assert found.slope.value == pytest.approx(1.5 * EVERY, rel=0.02)
    assert found.slope.interval[0] < 1.5 * EVERY < found.slope.interval[1]
    assert found.speed.value == pytest.approx(1 / found.slope.value)
    assert found.speed.interval == pytest.approx((1 / found.slope.interval[1], 1 / found.slope.interval[0]))
    # The rise begins 8 looks behind the front, where the fall still goes on a little.
    assert found.reversed
    np.testing.assert_allclose(found.reversals, EVERY * (fronts + 9), atol=2 * EVERY)
    assert found.p_value == pytest.approx(1e-4, rel=1)  # 1 of 10,000 orders


def test_noise_about_half_way_adds_and_takes_away_alike() -> None:
    time = EVERY * np.arange(11)
    curve = np.array([10.0, 10, 10, 4, 6, 0, 0, 0, 0, 0, 0])[:, None]
    tied = measure_wave(layered(np.tile(curve, (1, 5)), "stable_rank"))
    # Above 5 from 0 to 2 + 5/6, and from 3.5 to 4 + 1/6.
    crossings = np.array([2 + 5 / 6, 4 + 1 / 6 - 3.5]).sum() * EVERY
    known = tied.fronts[np.isfinite(tied.fronts)]
    assert len(known) == 5
    np.testing.assert_allclose(known, crossings, rtol=1e-12)
    assert not tied.detected
    assert tied.p_value == 1.0
    assert tied.steps.tolist() == time.tolist()


def test_p_values_are_shares_of_all_orders() -> None:
    quiet = 1e-4 * noise(1, 40, 5, 0.5, runs=1)[0]
    forward = measure_wave(layered(falls(40, 10 + 2.0 * np.arange(5)) + quiet, "stable_rank"))
    assert forward.p_value == 2 / 120
    back = measure_wave(layered(falls(40, 18 - 2.0 * np.arange(5)) + quiet, "stable_rank"))
    assert back.detected
    assert back.slope.value == pytest.approx(-2 * EVERY, rel=0.02)
    assert back.speed.interval[1] < 0
    # Slopes are as the inner products with -2 to 2: 8 for this order, between equals noise decides.
    mixed = measure_wave(layered(falls(40, 10 + 2.0 * np.array([1, 0, 3, 2, 4])) + quiet, "stable_rank"))
    products = np.array([np.dot(np.arange(5) - 2, order) for order in permutations(range(5))])
    least, most = (np.mean(np.abs(products) >= product) for product in (9, 8))
    assert least < mixed.p_value <= most
    assert not mixed.detected
    assert mixed.reason.startswith("p = ")


def test_what_is_too_little() -> None:
    quiet = 1e-3 * noise(2, 40, 8, 0.5, runs=1)[0]
    fronts = 10 + 1.5 * np.arange(8)
    curves = falls(40, fronts) + quiet
    four = measure_wave(layered(curves[:, :4], "stable_rank"))
    assert not four.detected
    assert four.reason == "4 of 4 layers fall by more than noise might; 5 are the least"
    assert four.slope.value == pytest.approx(1.5 * EVERY, rel=0.05)
    assert np.isnan(four.p_value)
    # Layers that never fall have no front.
    some = curves.copy()
    some[:, [1, 5]] = 30 + quiet[:, [1, 5]]
    found = measure_wave(layered(some, "stable_rank"))
    assert np.flatnonzero(np.isnan(found.fronts)).tolist() == [1, 5]
    assert found.detected
    assert found.slope.value == pytest.approx(1.5 * EVERY, rel=0.02)
    some[:, 2:] = 30 + quiet[:, 2:]
    nothing = measure_wave(layered(some, "stable_rank"))
    assert nothing.reason.startswith("1 of 8 layers")
    assert np.isnan(nothing.slope.value)
    with pytest.raises(ValueError, match="9 looks have stable_rank in every layer; 10 are the least"):
        measure_wave(layered(curves[:9], "stable_rank"))


def test_a_front_that_is_through_before_the_next_look_is_not_resolved() -> None:
    quiet = 1e-4 * noise(3, 40, 8, 0.5, runs=1)[0]
    found = measure_wave(layered(falls(40, 10 + 0.1 * np.arange(8)) + quiet, "stable_rank"))
    assert found.p_value <= 0.03
    assert not found.detected
    assert "within the 25 steps from one look to the next" in found.reason


def test_a_speed_that_may_be_anything_has_no_interval() -> None:
    values = falls(40, np.full(8, 12.0)) + 0.5 * noise(4, 40, 8, 0.9, runs=1)[0]
    found = measure_wave(layered(values, "stable_rank"))
    assert found.slope.interval[0] < 0 < found.slope.interval[1]
    assert np.isnan(found.speed.interval).all()
    again = measure_wave(layered(values, "stable_rank"))
    assert again.slope == found.slope  # the same random numbers


@pytest.mark.parametrize(
    ("looks", "depth", "rho", "correlation"),
    [(20, 8, 0.98, neighbours), pytest.param(40, 6, 0.9, shared, marks=pytest.mark.slow)],
)
def test_layers_that_fall_together_are_no_wave(
    looks: int, depth: int, rho: float, correlation: Correlation
) -> None:
    values = falls(looks, np.full(depth, looks / 3)) + noise(5, looks, depth, rho, correlation)
    found = measured(values)
    assert sum(np.isfinite(one.fronts).all() for one in found) >= 0.95 * RUNS  # there is something to claim
    assert sum(one.detected for one in found) <= AT_MOST
    # Even of fronts that pass within less than a look's interval, which are not claimed anyway.
    assert sum(one.p_value <= 0.03 for one in found) <= AT_MOST
    assert sum(one.reversed for one in found) <= AT_MOST


def test_layers_that_fall_whenever_they_like_are_no_wave() -> None:
    fronts = 14 + 3 * np.random.default_rng(6).standard_normal((RUNS, 6))
    found = measured(falls(30, fronts) + 0.1 * noise(7, 30, 6, 0.9))
    assert sum(one.detected for one in found) <= AT_MOST


@pytest.mark.parametrize("rho", [pytest.param(0.5, marks=pytest.mark.slow), 0.98])
def test_noise_neither_falls_nor_turns_back(rho: float) -> None:
    found = measured(noise(8, 20, 6, rho))
    assert sum(one.detected for one in found) <= AT_MOST
    assert sum(one.reversed for one in found) <= AT_MOST
    assert sum(np.isfinite(one.reversals).any() for one in found) <= AT_MOST
    assert np.mean([np.isfinite(one.fronts).mean() for one in found]) <= 0.05


def planted(rho: float, runs: int) -> list[Wave]:
    """The effect that the documentation states: 3 looks from the first of 8 layers to the last, noise 0.3."""
    fronts = 12 + 3 / 7 * np.arange(8)
    return measured(falls(60, fronts, rise=0.2) + 0.3 * noise(9, 60, 8, rho, runs=runs))


@pytest.mark.parametrize("rho", [0.0, 0.9])
def test_power_at_the_stated_effect(rho: float) -> None:
    found = planted(rho, 200)
    # 90 % of 200, of a rate that is close to 100 %
    assert sum(one.detected and one.slope.value > 0 for one in found) >= 180
    if rho == 0.9:
        assert sum(one.reversed for one in found) >= 180


@pytest.mark.slow
@pytest.mark.parametrize("rho", [0.0, 0.9, 0.98])
def test_intervals_hold_what_was_planted(rho: float) -> None:
    found = planted(rho, RUNS)
    slope = 3 / 7 * EVERY
    # 95 % of 1000, less three standard errors of 6.9
    assert sum(one.slope.interval[0] <= slope <= one.slope.interval[1] for one in found) >= 929
    front = EVERY * (12 + 3 / 7 * 4)
    assert sum(one.front_intervals[4, 0] <= front <= one.front_intervals[4, 1] for one in found) >= 929


@pytest.mark.slow
@pytest.mark.parametrize("correlation", [shared, neighbours])
@pytest.mark.parametrize("kind", ["weaker falls", "stronger noise"])
def test_falls_that_are_told_less_well_with_depth_are_no_wave(kind: str, correlation: Correlation) -> None:
    share = np.linspace(1, 0.2, 8)
    values = falls(30, np.full(8, 10.0))
    drawn = noise(10, 30, 8, 0.95, correlation)
    values = (
        30 + share * (values - 30) + 0.3 * drawn if kind == "weaker falls" else values + drawn / share / 3
    )
    assert sum(one.detected for one in measured(values)) <= AT_MOST
