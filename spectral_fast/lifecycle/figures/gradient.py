"""Pictures of the depth gradient: the profile over depth with its parabola, and the slope over the run."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from spectral_fast.lifecycle.gradient import Gradient
from spectral_fast.plots import COLOURS

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def draw_gradient(result: Gradient, axes: Axes) -> None:
    """Draw the layers' means over the last looks over relative depth; the peak where there is a U."""
    depth = np.linspace(0, 1, result.depth)
    axes.plot(
        depth, result.profile, "o", color=COLOURS[1], label=f"steps {result.window[0]} to {result.window[1]}"
    )
    if np.isfinite(result.curvature.value):
        fine = np.linspace(0, 1, 101)
        curve = np.polyval(np.polyfit(depth, result.profile, 2), fine)
        axes.plot(fine, curve, color=COLOURS[0], label=f"slope {_with_interval(result)}")
    if result.inverted_u.detected:
        low, high = result.inverted_u.peak_interval
        label = f"peak, 95 %; inverted U: p = {result.inverted_u.p_value:.2g}"
        axes.axvspan(low, high, color=COLOURS[2], alpha=0.2, linewidth=0, label=label)
    axes.set_xlabel("relative depth")
    axes.set_ylabel(result.statistic)
    axes.set_title(f"depth gradient, {result.statistic}{_p(result)}")
    axes.grid(alpha=0.25)
    axes.legend(loc="best")


def draw_slopes(result: Gradient, axes: Axes) -> None:
    """Draw the slope at each look with the band that the scatter of the layers gives it."""
    low, high = result.slope_intervals.T
    if np.isfinite(low).all():
        axes.fill_between(
            result.steps, low, high, color=COLOURS[0], alpha=0.2, linewidth=0, label="95 %, layers"
        )
    axes.plot(result.steps, result.slopes, color=COLOURS[0], label="slope at a look")
    axes.axhline(0, color="0.3", linestyle="--", linewidth=1)
    axes.axvspan(*result.window, color="0.5", alpha=0.12, linewidth=0, label="the last looks")
    axes.set_xlabel("step")
    axes.set_ylabel(f"{result.statistic}, last layer - first")
    axes.set_title(f"its sign holds at {result.persistence:.0%} of the looks")
    axes.grid(alpha=0.25)
    axes.legend(loc="best")


def _with_interval(result: Gradient) -> str:
    return f"{result.slope.value:.2g} [{result.slope.interval[0]:.2g}, {result.slope.interval[1]:.2g}]"


def _p(result: Gradient) -> str:
    return f": p = {result.p_value:.2g}" if np.isfinite(result.p_value) else ""
