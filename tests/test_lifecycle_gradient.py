"""The depth gradient: planted slopes, curvatures and peaks, and noise that has none."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from scipy import stats

from spectral_fast.lifecycle.gradient import Gradient, cosines, measure_gradient
from tests.lifecycle_runs import EVERY, Floats, ar1_noise, layered, neighbours, shared

RUNS = 1000
# A procedure whose true rate is 3 % gives more than 50 of 1000 once in 4000 sets; these rates are smaller.
AT_MOST = 50
NO_CORRELATION: Callable[[int], Floats | None] = lambda depth: None  # noqa: E731


def measured(values: Floats) -> list[Gradient]:
    """Of each of the runs (runs, looks, layers)."""
    return [measure_gradient(layered(run, "alpha")) for run in values]


def noise(
    seed: int,
    looks: int,
    depth: int,
    rho: float,
    correlation: Callable[[int], Floats | None],
    runs: int = RUNS,
) -> Floats:
    return ar1_noise(np.random.default_rng(seed), (runs, looks, depth), rho, correlation=correlation(depth))


def profiles(
    seed: int, curve: Callable[[Floats], Floats], depth: int, scatter: float, runs: int = RUNS
) -> Floats:
    """(runs, 1, depth): a curve over depth and layers that scatter about it, the same at every look."""
    drawn = np.random.default_rng(seed).standard_normal((runs, 1, depth))
    return curve(np.linspace(-0.5, 0.5, depth)) + scatter * drawn


def test_without_noise_of_looks_it_is_least_squares_over_the_layers() -> None:
    depth = 9
    x = np.linspace(-0.5, 0.5, depth)
    profile = 3 + 0.8 * x - 1.5 * x**2 + 0.05 * np.random.default_rng(0).standard_normal(depth)
    run = layered(np.tile(profile, (20, 1)), "alpha_hill")
    found = measure_gradient(run, "alpha_hill")
    design = np.stack([np.ones(depth), x, x**2], axis=1)
    fit, rss, _, _ = np.linalg.lstsq(design, profile, rcond=None)
    errors = np.sqrt(rss[0] / (depth - 3) * np.diag(np.linalg.inv(design.T @ design)))
    half = stats.t.isf(0.025, depth - 3) * errors
    assert found.slope.value == pytest.approx(fit[1], rel=1e-9)
    assert found.slope.interval == pytest.approx((fit[1] - half[1], fit[1] + half[1]), rel=1e-9)
    assert found.curvature.value == pytest.approx(fit[2], rel=1e-9)
    assert found.curvature.interval == pytest.approx((fit[2] - half[2], fit[2] + half[2]), rel=1e-9)
    assert found.detected
    assert found.statistic == "alpha_hill"
    np.testing.assert_allclose(found.slope_intervals, np.tile(found.slope.interval, (20, 1)), rtol=1e-9)
    assert found.p_value == 0.01  # what the looks leave, whatever they are
    assert found.inverted_u.detected
    assert found.inverted_u.peak == pytest.approx(0.5 - fit[1] / (2 * fit[2]), rel=1e-9)


def test_peak_interval_is_where_the_slope_is_not_told_from_zero() -> None:
    x = np.linspace(-0.5, 0.5, 12)
    quiet = 1e-4 * noise(20, 40, 12, 0.5, shared, 1)[0]
    sharp = measure_gradient(layered(3 - 2 * (x - 0.123) ** 2 + quiet, "alpha")).inverted_u
    assert sharp.peak == pytest.approx(0.623, abs=1e-3)
    assert sharp.peak_interval[0] < 0.623 < sharp.peak_interval[1]
    assert (
        sharp.peak_interval[1] - sharp.peak_interval[0] <= 0.04
    )  # a grid of 0.01, a step further at each end
    valley = measure_gradient(layered(3 + 2 * (x - 0.123) ** 2 + quiet, "alpha")).inverted_u
    assert np.isnan(valley.peak)
    assert not valley.detected
    straight = measure_gradient(layered(3 + x + 100 * quiet, "alpha")).inverted_u
    assert np.isnan(straight.peak_interval).all()  # told from zero everywhere
    flat = measure_gradient(layered(3 + quiet, "alpha")).inverted_u
    assert flat.peak_interval[0] <= 0.05
    assert flat.peak_interval[1] >= 0.95


def test_the_noise_of_looks_widens_what_the_layers_leave_narrow() -> None:
    x = np.linspace(-0.5, 0.5, 8)
    rng = np.random.default_rng(1)
    # All layers move together along one line: they never scatter about it, but its slope is uncertain.
    wander = ar1_noise(rng, (40, 1), 0.95)
    found = measure_gradient(layered(3 + 0.1 * wander * x, "alpha"))
    assert not found.detected
    assert found.p_value > 0.1
    steady = measure_gradient(layered(3 + (1 + 0.1 * wander) * x, "alpha"))
    assert steady.detected
    assert steady.slope.interval[0] < 1 < steady.slope.interval[1]


def test_course_of_the_slope() -> None:
    x = np.linspace(-0.5, 0.5, 6)
    signs = np.array([1.0, 1, -1, 1, -1, -1, -1, -1, -1, -1])
    found = measure_gradient(layered(3 + signs[:, None] * x, "alpha"))
    np.testing.assert_allclose(found.slopes, signs)
    assert found.persistence == 0.7
    assert found.since == 4 * EVERY
    assert found.window == (5 * EVERY, 9 * EVERY)
    assert found.looks == 5
    whole = measure_gradient(layered(3 + signs[:, None] * x, "alpha"), last=1.0)
    assert whole.window == (0, 9 * EVERY)
    assert not whole.detected


def test_looks_without_a_value_are_left_out() -> None:
    values = 3 + np.tile(np.linspace(-0.5, 0.5, 6), (20, 1)) + 1e-3 * noise(2, 20, 6, 0.5, shared, 1)[0]
    gaps = values.copy()
    gaps[3, 2] = gaps[11, 5] = np.nan
    found = measure_gradient(layered(gaps, "alpha"))
    assert len(found.steps) == 18
    assert 11 * EVERY not in found.steps
    assert found.detected
    gaps[:, 4] = np.nan
    with pytest.raises(ValueError, match="layer 4 has no alpha at any look"):
        measure_gradient(layered(gaps, "alpha"))


def test_too_little_to_claim_anything() -> None:
    values = 3 + np.tile(np.linspace(-0.5, 0.5, 4), (20, 1))
    shallow = measure_gradient(layered(values, "alpha"))
    assert not shallow.detected
    assert shallow.reason.startswith("4 layers: at least 5")
    assert shallow.slope.value == pytest.approx(1)
    assert np.isnan(shallow.p_value)
    assert np.isnan(shallow.slope.interval).all()
    assert not shallow.inverted_u.detected

    short = measure_gradient(layered(3 + np.tile(np.linspace(-0.5, 0.5, 9), (8, 1)), "alpha"))
    assert short.reason.startswith("4 looks: at least 5")
    five = measure_gradient(layered(3 + np.tile(np.linspace(-0.5, 0.5, 5), (20, 1)), "alpha"))
    assert five.detected
    assert five.inverted_u.reason.startswith("5 layers: at least 6")

    with pytest.raises(ValueError, match="one layer"):
        measure_gradient(layered(np.ones((20, 1)), "alpha"))
    with pytest.raises(ValueError, match="last must be in"):
        measure_gradient(layered(values, "alpha"), last=0.0)
    with pytest.raises(ValueError, match="has no 'alpha_hill'"):
        measure_gradient(layered(values, "alpha"), "alpha_hill")


def test_cosines_take_apart_noise_that_layers_share() -> None:
    waves = cosines(7)
    np.testing.assert_allclose(waves.T @ waves, np.eye(6), atol=1e-12)
    np.testing.assert_allclose(waves.sum(axis=0), 0, atol=1e-12)
    np.testing.assert_allclose(waves.T @ shared(7) @ waves, np.eye(6) * 2 / 3, atol=1e-12)


def claims(found: list[Gradient]) -> dict[str, int]:
    return {
        "slope": sum(one.detected for one in found),
        "curvature": sum(one.curvature.p_value <= 0.03 for one in found),
        "inverted U": sum(one.inverted_u.detected for one in found),
    }


@pytest.mark.parametrize(
    ("looks", "depth", "rho", "correlation"),
    [(20, 16, 0.98, neighbours), (40, 6, 0.9, shared), (100, 8, 0.98, NO_CORRELATION)],
)
def test_noise_has_no_gradient(
    looks: int, depth: int, rho: float, correlation: Callable[[int], Floats | None]
) -> None:
    found = claims(measured(noise(3, looks, depth, rho, correlation)))
    assert max(found.values()) <= AT_MOST, found


def test_layers_that_differ_for_good_have_no_gradient() -> None:
    values = profiles(4, np.zeros_like, 8, 0.3) + 0.05 * noise(5, 30, 8, 0.8, shared)
    found = claims(measured(values))
    assert max(found.values()) <= AT_MOST, found


# All of them rise to the last layer or to where they level off: a parabola alone takes them for a U.
MONOTONE: dict[str, Callable[[Floats], Floats]] = {
    "line": lambda x: 2 * x,
    "saturating": lambda x: 1 - np.exp(-5 * (x + 0.5)),
    "levels off": lambda x: 3 * np.minimum(x, 0),
    "parabola, levels off": lambda x: -3 * np.minimum(x - 0.25, 0) ** 2,
}


def false_peaks(shape: str, depth: int, scatter: float) -> int:
    values = profiles(6, MONOTONE[shape], depth, scatter) + 0.02 * noise(7, 30, depth, 0.8, shared)
    return claims(measured(values))["inverted U"]


def test_a_rise_that_levels_off_is_no_inverted_u() -> None:
    assert false_peaks("saturating", 12, 0.1) <= AT_MOST


# The effect that the documentation states: scatter of layers and noise of looks of 0.1 each, the latter
# with rho = 0.9, 8 layers, 40 looks.
def planted(seed: int, curve: Callable[[Floats], Floats], runs: int) -> list[Gradient]:
    values = profiles(seed, curve, 8, 0.1, runs) + 0.1 * noise(seed + 1, 40, 8, 0.9, NO_CORRELATION, runs)
    return measured(values)


def test_power_at_the_stated_effect() -> None:
    slopes = planted(8, lambda x: 1.0 * x, 300)
    # 90 % of 300; the rate is above 97 %, six standard errors from there.
    assert sum(one.detected and one.slope.value > 0 for one in slopes) >= 270
    bent = planted(10, lambda x: -4 * 1.4 * x**2, 300)
    assert sum(one.inverted_u.detected for one in bent) >= 270


def test_few_looks_are_enough_where_all_layers_say_that_their_noise_is_short_lived() -> None:
    values = profiles(16, lambda x: 1.0 * x, 8, 0.1, 200) + 0.1 * noise(17, 20, 8, 0.0, NO_CORRELATION, 200)
    # 90 % of 200: the slope's ten looks alone would leave every rho plausible, and nearly nothing claimed.
    assert sum(one.detected for one in measured(values)) >= 180


def test_a_peak_off_the_centre_is_found_though_lines_fit_it_badly() -> None:
    values = profiles(18, lambda x: -8 * (x - 0.2) ** 2, 8, 0.1, 200)
    values = values + 0.1 * noise(19, 40, 8, 0.0, NO_CORRELATION, 200)
    assert sum(one.inverted_u.detected for one in measured(values)) >= 180


@pytest.mark.slow
@pytest.mark.parametrize(("looks", "rho"), [(20, 0.5), (20, 0.98), (100, 0.98)])
@pytest.mark.parametrize("correlation", [NO_CORRELATION, neighbours])
@pytest.mark.parametrize("depth", [5, 16])
def test_noise_has_no_gradient_at_any_depth(
    looks: int, rho: float, correlation: Callable[[int], Floats | None], depth: int
) -> None:
    found = claims(measured(noise(12, looks, depth, rho, correlation)))
    assert max(found.values()) <= AT_MOST, found


@pytest.mark.slow
@pytest.mark.parametrize("shape", MONOTONE)
@pytest.mark.parametrize(("depth", "scatter"), [(6, 0.3), (16, 0.1)])
def test_what_rises_is_no_inverted_u(shape: str, depth: int, scatter: float) -> None:
    assert false_peaks(shape, depth, scatter) <= AT_MOST


@pytest.mark.slow
@pytest.mark.parametrize("depth", [6, 12])
@pytest.mark.parametrize("rho", [0.0, 0.98])
def test_intervals_hold_what_was_planted(depth: int, rho: float) -> None:
    curve: Callable[[Floats], Floats] = lambda x: 0.7 * x - 4 * (x - 0.1) ** 2  # noqa: E731
    values = profiles(14, curve, depth, 0.1) + 0.1 * noise(15, 40, depth, rho, shared)
    found = measured(values)
    # 0.7 x - 4 (x - 0.1)^2: slope 1.5 in the middle, curvature -4, peak at x = 0.1875
    within = [
        sum(low <= true <= high for low, high in intervals)
        for true, intervals in (
            (1.5, [one.slope.interval for one in found]),
            (-4.0, [one.curvature.interval for one in found]),
            (0.6875, [one.inverted_u.peak_interval for one in found]),
        )
    ]
    # 95 % of 1000, less three standard errors of 6.9
    assert min(within) >= 929, within
