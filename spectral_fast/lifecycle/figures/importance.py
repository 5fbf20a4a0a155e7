"""Pictures of layer importance: over depth, and against an exponent."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from spectral_fast.lifecycle.importance import DEPTH, Importance
from spectral_fast.plots import COLOURS

if TYPE_CHECKING:
    from matplotlib.axes import Axes

NORMAL_95 = 1.96
EXPONENTS = {"alpha": "α (CSN)", "alpha_hill": "α (Hill)", "alpha_ranksize": "α (rank-size)"}


def draw_importance(importance: Importance, axes: Axes) -> None:
    """Importance over depth with 95 % intervals over the text."""
    from matplotlib.ticker import MaxNLocator

    blocks = np.arange(importance.depth)
    half = NORMAL_95 * importance.error
    axes.errorbar(blocks, importance.importance, half, color=COLOURS[0], marker="o", capsize=3)
    _scale(importance, axes)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    found = importance.correlations[DEPTH]
    axes.set_title(f"with depth: ρ = {found.rho:.2f}, p = {found.p_value:.2g}", fontsize=10)
    axes.set_xlabel("block removed")
    axes.set_ylabel("Δ ln perplexity")


def draw_correlation(importance: Importance, exponent: str, axes: Axes) -> None:
    """Importance against one of the exponents; each point has its block's number."""
    x, y = importance.alphas[exponent], importance.importance
    axes.errorbar(x, y, NORMAL_95 * importance.error, color=COLOURS[1], marker="o", linestyle="", capsize=3)
    for block, point in enumerate(zip(x, y, strict=True)):
        axes.annotate(str(block), point, xytext=(5, 4), textcoords="offset points", fontsize=9)
    _scale(importance, axes)
    found = importance.correlations[exponent]
    interval = "" if np.isnan(found.low) else f" [{found.low:.2f}, {found.high:.2f}]"
    axes.set_title(f"ρ = {found.rho:.2f}{interval}, p = {found.p_value:.2g}", fontsize=10)
    axes.set_xlabel(f"{EXPONENTS[exponent]}, mean over the block")
    axes.set_ylabel("Δ ln perplexity")


def _scale(importance: Importance, axes: Axes) -> None:
    """Logarithmic where it can be: one block may matter a hundred times as much as another."""
    if (importance.importance > NORMAL_95 * importance.error).all():
        axes.set_yscale("log")
    else:
        axes.axhline(0, color="grey", linewidth=0.8)
