"""Spearman's rank correlation over few layers: a permutation p-value and a bootstrap interval."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.stats import rankdata

Floats = NDArray[np.float64]

# Up to here every permutation is tried, 362,880 of them; beyond, this many random ones.
EXACT_LAYERS = 9
PERMUTATIONS = 100_000
RESAMPLES = 10_000
# With fewer layers too many resamples are of two or three of them for an interval to mean anything.
INTERVAL_LAYERS = 6
CONFIDENCE = 0.95


@dataclass(frozen=True)
class RankCorrelation:
    """Spearman's rho of two quantities over layers.

    Attributes:
        rho: NaN where one of them is the same in all layers.
        p_value: two-sided, of "every pairing of the two is as likely". Exact up to `EXACT_LAYERS` layers,
            else (1 + b) / (1 + `PERMUTATIONS`) with b of the random permutations at least as far from 0.
            Neighbouring layers are alike, so that two quantities that merely drift with depth are paired far
            from at random: hold it beside the correlation with depth itself.
        low, high: 95 % percentile bootstrap over layers; NaN below `INTERVAL_LAYERS` layers.
        layers: how many.
    """

    rho: float
    p_value: float
    low: float
    high: float
    layers: int


def rank_correlation(x: Floats, y: Floats) -> RankCorrelation:
    """Of two finite vectors (L,), L >= 2. The same random numbers are drawn at every call.

    Raises:
        ValueError: shapes that differ, fewer than two layers, or values that are not finite.
    """
    if x.shape != y.shape or x.ndim != 1 or len(x) < 2:
        raise ValueError(f"a rank correlation needs two equally long vectors, got {x.shape} and {y.shape}")
    if not (np.isfinite(x).all() and np.isfinite(y).all()):
        raise ValueError("a rank correlation needs finite values")
    layers = len(x)
    rho = float(_rho(x, y))
    if math.isnan(rho):
        return RankCorrelation(rho, math.nan, math.nan, math.nan, layers)
    generator = np.random.default_rng(0)
    low = high = math.nan
    if layers >= INTERVAL_LAYERS:
        drawn = generator.integers(layers, size=(RESAMPLES, layers))
        resampled = _rho(x[drawn], y[drawn])
        tail = (1 - CONFIDENCE) / 2
        # A resample of one layer over and over has no correlation; of six layers 1 in 8000 is one.
        low, high = np.nanquantile(resampled, [tail, 1 - tail])
    return RankCorrelation(rho, _p_value(x, y, rho, generator), float(low), float(high), layers)


def _p_value(x: Floats, y: Floats, rho: float, generator: np.random.Generator) -> float:
    layers = len(x)
    if layers <= EXACT_LAYERS:
        count = math.factorial(layers)
        flat = itertools.chain.from_iterable(itertools.permutations(range(layers)))
        orders = np.fromiter(flat, dtype=np.int8, count=count * layers).reshape(count, layers)
        extra = 0
    else:
        orders = generator.permuted(np.tile(np.arange(layers), (PERMUTATIONS, 1)), axis=1)
        extra = 1
    # Sums of products of half-integers are exact; only the division in rho rounds.
    far = np.abs(_rho(x, y[orders])) >= abs(rho) - 1e-12
    return float((extra + np.count_nonzero(far)) / (extra + len(orders)))


def _rho(x: Floats, y: Floats) -> Floats:
    """Pearson's correlation of the ranks along the last axis, ties at their mean rank."""
    a, b = (ranks - ranks.mean(axis=-1, keepdims=True) for ranks in (_ranks(x), _ranks(y)))
    product = (a * b).sum(axis=-1)
    size = np.sqrt((a * a).sum(axis=-1) * (b * b).sum(axis=-1))
    found: Floats = np.where(size > 0, product / np.where(size > 0, size, 1), np.nan)
    return found


def _ranks(x: Floats) -> Floats:
    ranks: Floats = rankdata(x, axis=-1)
    return ranks
