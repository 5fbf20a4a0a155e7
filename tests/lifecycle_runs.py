"""Synthetic runs with planted answers, for the tests of the lifecycle's phenomena."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from spectral_fast.lifecycle.trajectories import Trajectories

EVERY = 25

Floats = NDArray[np.float64]


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
