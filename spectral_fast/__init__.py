"""Singular-value spectra of neural-network weights, fast enough to look at on every training step."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from spectral_fast import backends as _backends  # registers the operators' implementations
from spectral_fast._info import capabilities, explain
from spectral_fast._version import __version__
from spectral_fast.linalg import svdvals, svdvals_ex
from spectral_fast.powerlaw import PowerLawFit, fit_powerlaw, hill_alpha, ranksize_slope
from spectral_fast.stats import SpectralStats, spectral_stats, stats_from_svdvals

if TYPE_CHECKING:
    from spectral_fast.goodness import (
        GoodnessOfFit,
        LogNormalComparison,
        compare_lognormal,
        goodness_of_fit,
    )
    from spectral_fast.models import WeightMatrix, weight_matrices
    from spectral_fast.monitor import SpectralMonitor
    from spectral_fast.tail import TailStats, tail_stats
    from spectral_fast.tracker import SpectralTracker, TrackedStats
    from spectral_fast.weightwatcher import weightwatcher_accelerated

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

# Half of the import's time, and not needed by everybody who needs values: imported when first asked for.
_HOMES = {
    "GoodnessOfFit": "goodness",
    "LogNormalComparison": "goodness",
    "compare_lognormal": "goodness",
    "goodness_of_fit": "goodness",
    "WeightMatrix": "models",
    "weight_matrices": "models",
    "SpectralMonitor": "monitor",
    "TailStats": "tail",
    "tail_stats": "tail",
    "SpectralTracker": "tracker",
    "TrackedStats": "tracker",
    "weightwatcher_accelerated": "weightwatcher",
}

del _backends


def __getattr__(name: str) -> Any:
    if name in _HOMES.values():
        return import_module(f"{__name__}.{name}")
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
