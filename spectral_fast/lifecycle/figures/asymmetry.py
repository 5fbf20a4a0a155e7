"""The picture of Q/K against V/O: each layer's ratio of movements, and their mean with its interval."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from spectral_fast.lifecycle.asymmetry import Asymmetry
from spectral_fast.plots import COLOURS, whole_numbers

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def draw_asymmetry(result: Asymmetry, axes: Axes) -> None:
    """Draw the layers' ratios on a logarithmic axis; above 1, queries and keys move more."""
    from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

    ratios = np.exp(result.log_ratios)
    low, high = result.interval
    # An interval without ends fills the axes, which the points bound.
    reach = np.concatenate([ratios, [0.8, 1.25], [end for end in (low, high) if 0 < end < np.inf]])
    bottom, top = reach.min() / 1.2, reach.max() * 1.2
    axes.set_yscale("log")
    axes.set_ylim(bottom, top)
    axes.axhspan(max(low, bottom), min(high, top), color=COLOURS[0], alpha=0.15, linewidth=0)
    label = f"all: {result.ratio:.2f} [{low:.2f}, {high:.2f}]"
    axes.axhline(result.ratio, color=COLOURS[0], linewidth=1.8, label=label)
    axes.axhline(1, color="0.3", linestyle="--", linewidth=1)
    axes.plot(result.layers, ratios, "o", color=COLOURS[1], markersize=6, label="a layer")
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.xaxis.set_major_locator(whole_numbers())
    axes.set_xlabel("layer")
    axes.set_ylabel("movement of Q, K / of V, O")
    axes.set_title(f"Q/K against V/O, {result.statistic}: p = {result.p_value:.2g}")
    axes.legend(loc="best")
    axes.grid(alpha=0.25)
