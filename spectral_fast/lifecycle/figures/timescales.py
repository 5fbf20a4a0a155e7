"""The picture of the two time scales: both statistics on their way from start to end, with their fits."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from spectral_fast.lifecycle.timescales import Decay, Timescales
from spectral_fast.plots import COLOURS, MARKERS

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# More points than this of a series hide its curve.
_POINTS = 120


def draw_timescales(result: Timescales, axes: Axes) -> None:
    """Draw what share of its fitted change over the run each statistic has made; dotted: time constants."""
    steps = np.array(result.steps, dtype=np.float64)
    moments = np.linspace(steps[0], steps[-1], 400)
    every = -(-len(steps) // _POINTS)
    series = (result.fast_series, result.slow_series)
    for decay, values, colour, marker in zip(
        (result.fast, result.slow), series, COLOURS, MARKERS, strict=False
    ):
        start, end = _curve(decay, steps[0], steps[[0, -1]])
        share = (np.array(values) - start) / (end - start)
        low, high = decay.interval
        label = f"{decay.statistic}: τ = {decay.tau:.3g} [{low:.3g}, {high:.3g}] steps"
        axes.plot(
            steps[::every], share[::every], marker, color=colour, markersize=4, alpha=0.6, linestyle="none"
        )
        fitted = (_curve(decay, steps[0], moments) - start) / (end - start)
        axes.plot(moments, fitted, color=colour, linewidth=2, label=label)
        if steps[0] + decay.tau <= steps[-1]:
            axes.axvline(steps[0] + decay.tau, color=colour, linestyle=":", linewidth=1.5)
    axes.set_xlabel("step")
    axes.set_ylabel("share of the change over the run")
    axes.set_title(f"Two time constants or one: p = {result.p_value:.2g}, ΔAICc = {result.delta_aicc:.3g}")
    axes.legend(loc="best")
    axes.grid(alpha=0.25)


def _curve(decay: Decay, start: float, moments: np.ndarray) -> np.ndarray:
    return decay.limit + decay.change * np.exp(-(moments - start) / decay.tau)
