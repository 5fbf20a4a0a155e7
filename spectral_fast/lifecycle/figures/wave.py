"""The picture of the compression wave: the fall over layers and steps, the fronts on it, the reversals."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from spectral_fast.lifecycle.wave import Wave
from spectral_fast.plots import COLOURS, whole_numbers

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def draw_wave(result: Wave, axes: Axes) -> None:
    """Draw the statistic relative to its first look, with front times and reversals of the layers."""
    layers = np.arange(result.depth)
    relative = (result.curves / result.curves[0]).T
    picture = axes.pcolormesh(result.steps, layers, relative, shading="nearest", cmap="Greys_r")
    bar = axes.figure.colorbar(picture, ax=axes)
    bar.set_label(f"{result.statistic} / at step {result.steps[0]}")
    for times, ends, colour, marker, label in (
        (result.fronts, result.front_intervals, COLOURS[1], "o", "front, 95 %"),
        (result.reversals, result.reversal_intervals, COLOURS[5], "^", "reversal, 95 %"),
    ):
        known = np.isfinite(times)
        if known.any():
            width = np.abs(ends[known] - times[known, None]).T
            axes.errorbar(
                times[known],
                layers[known],
                xerr=width,
                fmt=marker,
                color=colour,
                markeredgecolor="black",
                capsize=3,
                label=label,
            )
    if np.isfinite(result.slope.value):
        fell = np.isfinite(result.fronts)
        line = result.fronts[fell].mean() + result.slope.value * (layers - layers[fell].mean())
        low, high = result.slope.interval
        stated = f" [{low:.3g}, {high:.3g}]" if np.isfinite(low) else ""
        label = f"{result.slope.value:.3g}{stated} steps a layer"
        axes.plot(line, layers, color=COLOURS[1], linewidth=1.5, linestyle="--", label=label)
    axes.set_xlim(result.steps[0], result.steps[-1])
    axes.yaxis.set_major_locator(whole_numbers())
    axes.set_xlabel("step")
    axes.set_ylabel("layer")
    p = f": p = {result.p_value:.2g}" if np.isfinite(result.p_value) else ""
    axes.set_title(f"compression wave, {result.statistic}{p}")
    if axes.get_legend_handles_labels()[0]:
        axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.12), ncols=3, frameon=False)
