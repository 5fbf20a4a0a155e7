"""Perplexity over the number of blocks removed, by order."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from spectral_fast.lifecycle.pruning import PROTECTED, QUANTILES, Pruning
from spectral_fast.plots import COLOURS, MARKERS

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def draw_pruning(pruning: Pruning, exponent: str, axes: Axes) -> None:
    """One exponent's orders among the others; the band holds 90 % of the random orders.

    Dashed: orders with the first and the last block protected. Dotted: those that know the importance.
    """
    from matplotlib.ticker import MaxNLocator

    from spectral_fast.monitor.report.panels import label_logarithmic

    counts = np.arange(1, pruning.most + 1)
    whole = pruning.perplexity
    low, median, high = _random(pruning, "random")
    axes.fill_between(counts, low, high, color="grey", alpha=0.25, linewidth=0)
    axes.plot(counts, median, color="grey", linewidth=1.2, label="random: median, 90 %")
    if "random" + PROTECTED in pruning.curves:
        median = _random(pruning, "random" + PROTECTED)[1]
        axes.plot(counts, median, "--", color="grey", linewidth=1.2, label="random, protected: median")
    styles = {
        exponent: "-",
        exponent + PROTECTED: "--",
        "last-n": "-",
        "first-n": "-",
        "best": ":",
        "worst": ":",
    }
    for (name, style), colour, marker in zip(styles.items(), COLOURS, MARKERS, strict=False):
        if name in pruning.curves:
            line = whole + pruning.curves[name].delta[0]
            axes.plot(counts, line, style, color=colour, marker=marker, markersize=5, label=name)
    axes.axhline(whole, color="black", linewidth=0.8, linestyle=":", label="whole model")
    # Perplexity multiplies from block to block; differences from the whole model may be negative.
    axes.set_yscale("log")
    label_logarithmic(axes.yaxis)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_title(exponent, fontsize=10)
    axes.set_xlabel("blocks removed")
    axes.set_ylabel("perplexity")
    axes.legend(fontsize=8, loc="upper left", bbox_to_anchor=(0, -0.14), ncols=2, frameon=False)


def _random(pruning: Pruning, name: str) -> list[np.ndarray[tuple[int], np.dtype[np.float64]]]:
    """5 %, median and 95 % of random orders' perplexity."""
    curve = pruning.curves[name]
    return [pruning.perplexity + curve.quantiles[QUANTILES.index(q)] for q in (0.05, 0.5, 0.95)]
