"""measure_asymmetry: planted ratios, the exact test against enumeration, and how often it is wrong."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from spectral_fast.lifecycle.asymmetry import measure_asymmetry
from spectral_fast.lifecycle.trajectories import Trajectories
from tests.lifecycle_runs import ar1_noise

ROLES = ("q", "k", "v", "o")


def run_of(values: np.ndarray, roles: tuple[str, ...] = ROLES) -> Trajectories:
    """(T, layers * roles) values of a run, layer by layer."""
    n = values.shape[1]
    return Trajectories(
        steps=25 * np.arange(len(values)),
        names=tuple(f"layers.{i // len(roles)}.{roles[i % len(roles)]}" for i in range(n)),
        layers=tuple(i // len(roles) for i in range(n)),
        roles=tuple(roles[i % len(roles)] for i in range(n)),
        values={"stable_rank": values},
    )


def falling(movements: np.ndarray, looks: int = 5) -> np.ndarray:
    """(looks, M) values that fall from 50 to 50 exp(-movement)."""
    return 50 * np.exp(-movements * np.linspace(0, 1, looks)[:, None])


def planted(
    rng: np.random.Generator, layers: int, ratio: float, scatter: float, looks: int = 40, rho: float = 0.9
) -> np.ndarray:
    """Q and K fall `ratio` times as far as V and O but for a scatter of the layers, under 2 % of noise."""
    log = np.log(0.3) + np.tile([0.5, 0.5, -0.5, -0.5], layers) * np.log(ratio)
    log += np.repeat(rng.standard_normal(2 * layers), 2) * scatter / np.sqrt(2)
    noise = 0.02 * ar1_noise(rng, (looks, 4 * layers), rho)
    return 50 * np.exp(noise - np.exp(log) * (1 - np.exp(-np.arange(looks) / 8))[:, None])


def test_movement_is_the_logarithm_of_the_range():
    movements = np.array([0.8, 0.4, 0.2, 0.1, 0.9, 0.9, 0.3, 0.3])
    values = falling(movements)
    values[2] *= 1 - 1e-9  # the way between does not count
    found = measure_asymmetry(run_of(values))
    assert found.layers == [0, 1]
    for role, expected in zip(ROLES, movements.reshape(2, 4).T, strict=True):
        np.testing.assert_allclose(found.movements[role], expected, rtol=1e-12)
    expected = [np.log(np.sqrt(0.8 * 0.4 / (0.2 * 0.1))), np.log(3)]
    np.testing.assert_allclose(found.log_ratios, expected, rtol=1e-12)
    assert found.ratio == pytest.approx(np.exp(np.mean(expected)), rel=1e-12)


def test_p_value_is_that_of_all_sign_patterns():
    rng = np.random.default_rng(3)
    found = measure_asymmetry(run_of(planted(rng, layers=9, ratio=1.2, scatter=0.4)))
    d = np.array(found.log_ratios)
    sums = np.array([np.dot(signs, d) for signs in itertools.product((-1, 1), repeat=9)])
    assert found.p_value == pytest.approx(np.mean(np.abs(sums) >= abs(d.sum()) - 1e-12), abs=1e-12)
    assert found.smallest_p == 2 / 2**9


def test_planted_ratio_is_in_the_interval():
    """Eight layers that scatter about a ratio of 2: the interval has it in 95 % of 300 runs."""
    rng = np.random.default_rng(2)
    held = 0
    for _ in range(300):
        ratios = np.log(2) + 0.3 * rng.standard_normal(8)
        found = measure_asymmetry(
            run_of(falling(0.3 * np.exp(np.outer(ratios, [0.5, 0.5, -0.5, -0.5])).ravel()))
        )
        held += found.interval[0] <= 2 <= found.interval[1]
    # 285 expected, with a standard deviation of 3.8; four of those.
    assert held >= 285 - 15


def test_noise_takes_the_ratio_towards_one():
    """Ranges are at least those of the noise: a ratio of 2 is detected, and understated a little."""
    found = measure_asymmetry(run_of(planted(np.random.default_rng(0), layers=12, ratio=2.0, scatter=0.0)))
    assert found.detected
    assert found.reason == ""
    assert found.p_value == found.smallest_p == 2 / 2**12
    # The noise, 2 %, has a range of 0.08 in 40 looks; no more is added to movements of 0.42 and 0.21.
    assert (0.42 + 0.08) / (0.21 + 0.08) < found.ratio < 2


def test_many_layers_take_random_sign_patterns():
    found = measure_asymmetry(run_of(planted(np.random.default_rng(1), layers=36, ratio=2.0, scatter=0.2)))
    assert found.detected
    assert found.p_value == found.smallest_p == 2 / (2**16 + 1)


def test_other_way_round_is_no_detection():
    found = measure_asymmetry(run_of(planted(np.random.default_rng(0), layers=12, ratio=0.5, scatter=0.2)))
    assert found.p_value == found.smallest_p
    assert not found.detected
    assert found.reason == "stable_rank of V and O moves more"


@pytest.mark.parametrize(("layers", "smallest"), [(2, 0.5), (3, 0.25), (5, 0.0625)])
def test_few_layers_can_show_nothing(layers, smallest):
    found = measure_asymmetry(run_of(planted(np.random.default_rng(0), layers, ratio=5.0, scatter=0.1)))
    assert found.smallest_p == found.p_value == smallest
    assert not found.detected
    assert (
        found.reason == f"{layers} layers cannot show it: their smallest possible p-value is {smallest:.3g}"
    )
    if layers < 4:  # too many resamples are one layer over and over
        assert found.interval == (0.0, np.inf)


def test_layers_without_both_kinds_are_left_out():
    values = falling(np.full(12, 0.4))
    run = run_of(values)
    roles = list(run.roles)
    roles[4:8] = ["qkv", "qkv", "qkv", "o"]
    roles[1] = "mlp_in"  # q, v and o remain
    found = measure_asymmetry(
        Trajectories(
            steps=run.steps, names=run.names, layers=run.layers, roles=tuple(roles), values=run.values
        )
    )
    assert found.layers == [0, 2]
    assert np.isnan(found.movements["k"][0])
    assert found.ratio == pytest.approx(1)


def test_missing_looks_are_left_out():
    values = falling(np.tile([0.8, 0.8, 0.4, 0.4], 6), looks=9)
    whole = measure_asymmetry(run_of(values))
    values[3:6] = np.nan
    assert measure_asymmetry(run_of(values)).log_ratios == whole.log_ratios


def test_errors_say_what_is_wrong():
    values = falling(np.full(8, 0.4))
    with pytest.raises(ValueError, match="no 'alpha'; it has stable_rank"):
        measure_asymmetry(run_of(values), "alpha")
    with pytest.raises(ValueError, match=r"0 layers have matrices .* roles: mlp_in, qkv"):
        measure_asymmetry(run_of(values, roles=("qkv", "mlp_in")))
    frozen = values.copy()
    frozen[:, 5] = 7.0
    with pytest.raises(ValueError, match=r"stable_rank of layers\.1\.k does not change over 5 looks"):
        measure_asymmetry(run_of(frozen))
    with pytest.raises(ValueError, match=r"layers\.0\.q is not positive"):
        measure_asymmetry(run_of(values - 45))


def test_same_result_twice():
    run = run_of(planted(np.random.default_rng(0), layers=20, ratio=1.3, scatter=0.5))
    assert measure_asymmetry(run) == measure_asymmetry(run)


def test_false_positives_on_autocorrelated_noise():
    """No asymmetry in 1000 runs, the noise of all matrices correlated: claimed in 5 % at most.

    A claim takes p <= 0.05 and the right direction, so that at most 2.5 % are expected: 25, with a standard
    deviation of 5. The interval has 95 % of them, 950, with a standard deviation of 7; five of those
    allow for what the bootstrap of 6 to 12 layers loses.
    """
    rng = np.random.default_rng(11)
    claimed = held = runs = 0
    designs = itertools.product((6, 8, 12), (20, 100), (0.0, 0.5, 0.9, 0.95, 0.98))
    for layers, looks, rho in designs:
        n = 40 if layers == 6 else 30
        noise = ar1_noise(rng, (n, looks, 4 * layers), rho) + ar1_noise(rng, (n, looks, 1), rho)
        for values in np.exp(3 + 0.1 * noise):
            found = measure_asymmetry(run_of(values))
            claimed += found.detected
            held += found.interval[0] <= 1 <= found.interval[1]
            runs += 1
    assert runs == 1000
    assert claimed <= 50
    assert held >= 950 - 5 * 7


def test_power_at_the_stated_effect():
    """Q and K move 1.5 times as far, 8 layers that scatter by 0.25 about it: found in 90 % of runs."""
    rng = np.random.default_rng(5)
    claimed = sum(
        measure_asymmetry(run_of(planted(rng, layers=8, ratio=1.5, scatter=0.25))).detected
        for _ in range(200)
    )
    # 0.97 expected: 194, with a standard deviation of 2.4.
    assert claimed >= 180


def test_picture_shows_every_layer():
    matplotlib_figure = pytest.importorskip("matplotlib.figure")
    from spectral_fast.lifecycle.figures.asymmetry import draw_asymmetry

    for layers in (3, 12):
        found = measure_asymmetry(run_of(planted(np.random.default_rng(0), layers, ratio=2.0, scatter=0.2)))
        axes = matplotlib_figure.Figure().subplots()
        draw_asymmetry(found, axes)
        axes.figure.canvas.draw()
        points = next(line for line in axes.lines if line.get_marker() == "o")
        np.testing.assert_allclose(points.get_ydata(), np.exp(found.log_ratios))
        low, high = axes.get_ylim()
        assert low < min(points.get_ydata())
        assert max(points.get_ydata()) < high
        assert f"{found.ratio:.2f}" in axes.get_legend().get_texts()[0].get_text()
