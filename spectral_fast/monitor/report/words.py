"""Names and numbers as the report spells them."""

from __future__ import annotations

import numpy as np

from spectral_fast.monitor.report.history import Floats
from spectral_fast.plots import ROLE_NAMES

# Title and one sentence on each statistic that a look of any kind can give.
STATISTICS = {
    "stable_rank": ("Stable rank", "Σσ² / σ₁²: how many directions carry the weight, counted softly."),
    "alpha": (
        "α, Clauset–Shalizi–Newman",
        "Density exponent of λ = σ² above the threshold that fits best. It jumps when the threshold does.",
    ),
    "alpha_hill": (
        "α, Hill",
        "Density exponent of the upper half of λ = σ², without a search for a threshold.",
    ),
    "alpha_ranksize": (
        "α, rank-size",
        "Minus the slope of ln σₖ on ln k over all values: another quantity, larger where the others are "
        "smaller.",
    ),
    "spectral_norm": ("σ₁", "The largest singular value."),
}


def role_name(role: str) -> str:
    """A role in words."""
    return ROLE_NAMES.get(role, role)


def number(value: float) -> str:
    """Three digits, or a dash."""
    if not np.isfinite(value):
        return "–"
    if value == 0 or 1e-3 <= abs(value) < 1e5:
        return f"{value:,.{max(0, 2 - int(np.floor(np.log10(abs(value) or 1))))}f}"
    return f"{value:.2e}"


def with_error(value: float, error: float) -> str:
    """A value and its standard error, to the second digit of the error."""
    if not np.isfinite(error) or not 1e-6 < error < 1e3:
        return number(value) if not np.isfinite(error) else f"{number(value)} ± {number(error)}"
    decimals = max(0, 1 - int(np.floor(np.log10(error))))
    return f"{value:,.{decimals}f} ± {error:.{decimals}f}"


def percent(fraction: float) -> str:
    """A fraction in percent, or a dash."""
    return "–" if not np.isfinite(fraction) else f"{number(100 * fraction)} %"


def count(quantity: int, singular: str, plural: str) -> str:
    """A number of things."""
    return f"{quantity:,} {singular if quantity == 1 else plural}"


def series(values: Floats) -> str:
    """Where a series begins and ends."""
    known = values[np.isfinite(values)]
    if len(known) == 0:
        return "without a value"
    return f"from {number(known[0])} to {number(known[-1])}" if len(known) > 1 else f"at {number(known[0])}"


def shortened(name: str, length: int) -> str:
    """The end of a long name, which tells more than its beginning."""
    return name if len(name) <= length else "…" + name[1 - length :]
