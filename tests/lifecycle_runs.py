"""Synthetic runs with planted answers, for the tests of the lifecycle's phenomena."""

from __future__ import annotations

import numpy as np
from scipy import signal

from spectral_fast.lifecycle.series import Floats
from spectral_fast.lifecycle.trajectories import Trajectories

EVERY = 25


def layered(values: Floats, statistic: str) -> Trajectories:
    """A run with one matrix a layer; values (looks, layers)."""
    looks, depth = values.shape
    return Trajectories(
        steps=EVERY * np.arange(looks),
        names=tuple(f"layers.{layer}.q_proj.weight" for layer in range(depth)),
        layers=tuple(range(depth)),
        roles=("q",) * depth,
        values={statistic: values},
    )


def shared(depth: int) -> Floats:
    """Correlation of layers that have a third of their noise in common."""
    return np.full((depth, depth), 1 / 3) + np.eye(depth) * 2 / 3


def neighbours(depth: int) -> Floats:
    """Correlation of layers whose noise is smooth over depth."""
    return np.asarray(0.7 ** np.abs(np.subtract.outer(np.arange(depth), np.arange(depth))))


def ar1_noise(
    rng: np.random.Generator, shape: tuple[int, ...], rho: float, *, correlation: Floats | None = None
) -> Floats:
    """Stationary first-order autoregression with variance 1.

    Args:
        rng: where the randomness comes from.
        shape: (\\*, T, K): independent runs, time, series.
        rho: correlation from one time to the next, 0 <= rho < 1.
        correlation: (K, K) of the series at one time; None: independent.

    Returns:
        float64 of that shape.
    """
    innovations = rng.standard_normal(shape)
    if correlation is not None:
        innovations = innovations @ np.linalg.cholesky(correlation).T
    innovations[..., 1:, :] *= np.sqrt(1 - rho**2)
    return np.asarray(signal.lfilter([1.0], [1.0, -rho], innovations, axis=-2))
