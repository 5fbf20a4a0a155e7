"""Micro-benchmarks for pytest-benchmark: ``pytest benchmarks``. They watch for changes, they compare nothing.

Figures to quote come from ``python -m benchmarks``, which checks values first and times torch beside ours.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

import spectral_fast
from benchmarks.cases import random_weights

pytest.importorskip("pytest_benchmark", reason="pip install pytest-benchmark")

Benchmark = Callable[..., object]
SHAPES = [(1, 8, 8), (1, 65, 33), (1, 384, 384), (1, 1536, 384), (64, 32, 32), (6, 384, 384)]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_svdvals(benchmark: Benchmark, shape: tuple[int, int, int]) -> None:
    A = random_weights(*shape, torch.float32)
    benchmark(spectral_fast.svdvals, A)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_spectral_stats(benchmark: Benchmark, shape: tuple[int, int, int]) -> None:
    A = random_weights(*shape, torch.float32)
    benchmark(spectral_fast.spectral_stats, A)


@pytest.mark.parametrize("size", [32, 384, 2048])
def test_fit_powerlaw(benchmark: Benchmark, size: int) -> None:
    """The eigenvalues σ² that the random weights have in the mean: (1 + 500 t)^-1.2."""
    evals = (1 + 500 * torch.linspace(0, 1, size, dtype=torch.float64)) ** -1.2
    benchmark(spectral_fast.fit_powerlaw, evals)
