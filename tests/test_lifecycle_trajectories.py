"""Trajectories from runs on disk and from checkpoints, and the statistics of autocorrelated series."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import linalg

from spectral_fast import SpectralMonitor, spectral_stats
from spectral_fast.lifecycle.series import effective_size, mean_of_series
from spectral_fast.lifecycle.trajectories import Trajectories
from spectral_fast.monitor import ParquetSink
from tests.lifecycle_runs import ar1_noise

ROLES = ("q_proj", "k_proj", "up_proj")


class Layers(torch.nn.Module):
    """Three layers of three matrices, an embedding and a head, as GPTs have them."""

    def __init__(self) -> None:
        super().__init__()
        self.token_embedding = torch.nn.Embedding(7, 6)
        self.layers = torch.nn.ModuleList(
            torch.nn.ModuleDict({role: torch.nn.Linear(6, 6, bias=False) for role in ROLES}) for _ in range(3)
        )
        self.lm_head = torch.nn.Linear(6, 7, bias=False)

    def move(self) -> None:
        """Another set of weights."""
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.add_(torch.randn_like(parameter))


def by_hand(model: Layers, statistic: str, roles: tuple[str, ...]) -> list[float]:
    return [
        float(
            np.mean(
                [float(getattr(spectral_stats(layer[role].weight.detach()), statistic)) for role in roles]
            )
        )
        for layer in model.layers
    ]


def test_reads_the_exact_looks_of_a_run(tmp_path: Path) -> None:
    model, expected = Layers(), []
    with SpectralMonitor(
        model, every=2, track_every=1, budget=None, sinks=[ParquetSink(tmp_path / "run" / "looks")]
    ) as monitor:
        for step in range(5):
            if step:
                model.move()
                monitor.step()
            else:
                monitor.look()
            if step % 2 == 0:
                expected.append(by_hand(model, "stable_rank", ROLES))
    # The training run's folder and the sink's own directory are the same run.
    for path in (tmp_path / "run", tmp_path / "run" / "looks"):
        run = Trajectories.read(path)
        assert run.steps.tolist() == [0, 2, 4]  # the looks between are tracked
        assert run.depth == 3
        # float32 singular values of 6 x 6 matrices: within 2 eps sigma_1 each, some 1e-6 in stable rank.
        np.testing.assert_allclose(run.layerwise("stable_rank"), expected, rtol=1e-5)
        np.testing.assert_allclose(
            run.layerwise("alpha_hill", ["q", "k"])[-1],
            by_hand(model, "alpha_hill", ("q_proj", "k_proj")),
            rtol=1e-4,
        )


def test_reads_checkpoints(tmp_path: Path) -> None:
    model, checkpoints, expected = Layers(), {}, []
    for step in (0, 10, 200):
        model.move()
        checkpoints[step] = tmp_path / f"{step}.pt"
        torch.save(model.state_dict(), checkpoints[step])
        expected.append(by_hand(model, "alpha", ROLES))
    run = Trajectories.of_checkpoints(dict(reversed(checkpoints.items())))
    assert run.steps.tolist() == [0, 10, 200]
    assert set(run.roles) == {"q", "k", "mlp_in"}  # embedding and head are left out
    np.testing.assert_array_equal(run.layerwise("alpha"), expected)

    other = torch.nn.ModuleDict({"layers": torch.nn.ModuleList([torch.nn.Linear(4, 4)])})
    torch.save(other.state_dict(), tmp_path / "other.pt")
    with pytest.raises(ValueError, match="not of one model"):
        Trajectories.of_checkpoints({0: checkpoints[0], 1: tmp_path / "other.pt"})


def test_a_matrix_without_a_value_leaves_its_layer_without_one() -> None:
    values = {"alpha": np.array([[1.0, 3.0, 5.0, 7.0], [1.0, np.nan, 5.0, 7.0]])}
    run = Trajectories(
        np.array([0, 5]), ("a", "b", "c", "d"), (0, 0, 1, None), ("q", "k", "q", "head"), values
    )
    np.testing.assert_array_equal(run.layerwise("alpha"), [[2, 5], [np.nan, 5]])
    np.testing.assert_array_equal(run.layerwise("alpha", ["q"]), [[1, 5], [1, 5]])
    np.testing.assert_array_equal(run.layerwise("alpha", ["k"]), [[3, np.nan], [np.nan, np.nan]])
    with pytest.raises(ValueError, match="no 'alpha_hill'; it has alpha"):
        run.layerwise("alpha_hill")
    with pytest.raises(ValueError, match="no layer has a matrix of roles"):
        run.layerwise("alpha", ["head"])
    with pytest.raises(ValueError, match="ascend"):
        Trajectories(np.array([5, 5]), run.names, run.layers, run.roles, values)
    with pytest.raises(ValueError, match=r"shape \(2, 4\); \(3, 4\) is"):
        Trajectories(np.array([0, 5, 9]), run.names, run.layers, run.roles, values)
    with pytest.raises(ValueError, match="no matrix has a layer"):
        Trajectories(run.steps, run.names, (None,) * 4, run.roles, values)


def test_noise_has_the_correlations_asked_for() -> None:
    correlation = np.array([[1.0, 0.6], [0.6, 1.0]])
    noise = ar1_noise(np.random.default_rng(0), (20_000, 6, 2), 0.8, correlation=correlation)
    flat = noise.reshape(len(noise), -1)
    times = 0.8 ** np.abs(np.subtract.outer(np.arange(6), np.arange(6)))
    # Correlations of 20,000 runs: five standard errors of 1 / sqrt(20,000).
    np.testing.assert_allclose(np.cov(flat.T), np.kron(times, correlation), atol=5 * 2**0.5 / 20_000**0.5)


def test_effective_size_is_the_variance_of_the_mean() -> None:
    for n, rho in ((7, 0.0), (7, 0.5), (40, 0.98)):
        covariance = linalg.toeplitz(rho ** np.arange(n))
        assert effective_size(n, rho) == pytest.approx(1 / covariance.mean(), rel=1e-12)


@pytest.mark.parametrize("looks", [6, 15, 40])
def test_the_error_of_a_mean_is_that_of_generalized_least_squares_at_the_least_certain_rho(
    looks: int,
) -> None:
    series = ar1_noise(np.random.default_rng(1), (looks, 30), 0.9)
    found = mean_of_series(series)
    np.testing.assert_allclose(found.mean, series.mean(axis=0), rtol=1e-12)
    rhos = np.tanh(np.linspace(0, np.arctanh(0.98), 33))
    deviances, errors = np.empty((2, len(rhos), 30))
    ones = np.ones(looks)
    for i, rho in enumerate(rhos):
        covariance = linalg.toeplitz(rho ** np.arange(looks)) / (1 - rho**2)
        inverse = np.linalg.inv(covariance)
        centred = series - ones @ inverse @ series / inverse.sum()
        rss = np.einsum("tk,ts,sk->k", centred, inverse, centred)
        deviances[i] = (looks - 1) * np.log(rss) + np.linalg.slogdet(covariance)[1] + np.log(inverse.sum())
        errors[i] = np.sqrt(rss / (looks - 1) * covariance.mean())
    # 6.635: the 99 % point of chi-squared with one degree of freedom
    plausible = deviances - deviances.min(axis=0) <= 6.634897
    np.testing.assert_allclose(found.error, np.where(plausible, errors, 0).max(axis=0), rtol=1e-9)
    np.testing.assert_array_equal(found.rho, rhos[deviances.argmin(axis=0)])


@pytest.mark.parametrize("looks", [5, 20, 50])
@pytest.mark.parametrize("rho", [0.0, 0.7, 0.95, 0.98])
def test_means_are_within_their_intervals_whatever_the_autocorrelation(looks: int, rho: float) -> None:
    noise = ar1_noise(np.random.default_rng(2), (1000, looks, 1), rho)[..., 0].T
    found = mean_of_series(noise)
    # 95 % at the least: of 1000, five standard errors below that are 915; at rho = 0.98 little is given away.
    assert np.count_nonzero(np.abs(found.mean) <= found.half_width()) >= 915
    assert np.count_nonzero(found.p_value() <= 0.05) <= 85
    if rho == 0.98:
        assert found.half_width().mean() < 2.1 * 1.96 / np.sqrt(effective_size(looks, rho))


def test_a_mean_needs_looks_that_are_there() -> None:
    with pytest.raises(ValueError, match="3 are the least"):
        mean_of_series(np.zeros((2, 1)))
    with pytest.raises(ValueError, match="NaN"):
        mean_of_series(np.array([1.0, np.nan, 2.0, 3.0]))
