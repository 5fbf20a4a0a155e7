"""Singular-value spectra of neural-network weights, fast enough to look at on every training step."""

from typing import TYPE_CHECKING, Any

from spectral_fast import backends as _backends  # registers the operators' implementations
from spectral_fast._info import capabilities, explain
from spectral_fast._version import __version__
from spectral_fast.goodness import (
    GoodnessOfFit,
    LogNormalComparison,
    compare_lognormal,
    goodness_of_fit,
)
from spectral_fast.linalg import svdvals, svdvals_ex
from spectral_fast.models import WeightMatrix, weight_matrices
from spectral_fast.powerlaw import PowerLawFit, fit_powerlaw, hill_alpha, ranksize_slope
from spectral_fast.stats import SpectralStats, spectral_stats, stats_from_svdvals
from spectral_fast.tail import TailStats, tail_stats
from spectral_fast.tracker import SpectralTracker, TrackedStats
from spectral_fast.weightwatcher import weightwatcher_accelerated

if TYPE_CHECKING:
    from spectral_fast.monitor import SpectralMonitor

__all__ = [
    "GoodnessOfFit",
    "LogNormalComparison",
    "PowerLawFit",
    "SpectralMonitor",
    "SpectralStats",
    "SpectralTracker",
    "TailStats",
    "TrackedStats",
    "WeightMatrix",
    "__version__",
    "capabilities",
    "compare_lognormal",
    "explain",
    "fit_powerlaw",
    "goodness_of_fit",
    "hill_alpha",
    "ranksize_slope",
    "spectral_stats",
    "stats_from_svdvals",
    "svdvals",
    "svdvals_ex",
    "tail_stats",
    "weight_matrices",
    "weightwatcher_accelerated",
]

del _backends


def __getattr__(name: str) -> Any:
    # Not needed by everybody who needs values, and slower to import.
    if name == "SpectralMonitor":
        from spectral_fast.monitor import SpectralMonitor

        return SpectralMonitor
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
