"""Perplexity over the number of blocks removed, by order."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from spectral_fast.lifecycle.pruning import PROTECTED, QUANTILES, Pruning
from spectral_fast.plots import COLOURS, MARKERS

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_OTHERS = ("last-n", "first-n", "best", "worst")


def draw_pruning(pruning: Pruning, exponent: str, axes: Axes) -> None:
    """One exponent's orders among the others; the band holds 90 % of the random orders."""
    from matplotlib.ticker import MaxNLocator

    counts = np.arange(1, pruning.most + 1)
    whole = pruning.perplexity
    low, median, high = (
        whole + pruning.curves["random"].quantiles[QUANTILES.index(q)] for q in (0.05, 0.5, 0.95)
    )
    axes.fill_between(counts, low, high, color="grey", alpha=0.25, linewidth=0)
    axes.plot(counts, median, color="grey", linewidth=1.2, label="random, median and 90 %")
    names = (exponent, exponent + PROTECTED, *_OTHERS)
    for name, colour, marker in zip(names, COLOURS, MARKERS, strict=False):
        if name in pruning.curves:
            style = "--" if name in ("best", "worst") else "-"
            line = whole + pruning.curves[name].delta[0]
            axes.plot(counts, line, style, color=colour, marker=marker, markersize=5, label=name)
    axes.axhline(whole, color="black", linewidth=0.8, linestyle=":", label="whole model")
    # Perplexity multiplies from block to block; differences from the whole model may be negative.
    axes.set_yscale("log")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_xlabel("blocks removed")
    axes.set_ylabel("perplexity")
    axes.legend(fontsize=8, frameon=False)
