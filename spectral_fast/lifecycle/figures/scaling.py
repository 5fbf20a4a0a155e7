"""The picture of the scaling law: the change of every run over depth, and the fitted power with its band."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from spectral_fast.lifecycle.scaling import Scaling
from spectral_fast.plots import COLOURS

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def draw_scaling(result: Scaling, axes: Axes) -> None:
    """Draw the runs and the law on two logarithmic axes, with the 95 % band of the law."""
    from matplotlib.ticker import FixedLocator, LogLocator, NullFormatter, NullLocator, StrMethodFormatter

    unique = np.unique(result.depths)
    logs = np.log(unique)
    at = np.linspace(logs[0], logs[-1], 100)
    law = np.log(result.factor) + result.exponent * at
    quantile = (result.interval[1] - result.exponent) / result.standard_error
    error = np.hypot(result.scatter / np.sqrt(len(unique)), result.standard_error * (at - logs.mean()))
    axes.set(xscale="log", yscale="log")
    edges = np.exp(law - quantile * error), np.exp(law + quantile * error)
    axes.fill_between(np.exp(at), *edges, color=COLOURS[0], alpha=0.15, linewidth=0)
    low, high = result.interval
    label = f"power p = {result.exponent:.2f} [{low:.2f}, {high:.2f}]"
    axes.plot(np.exp(at), np.exp(law), color=COLOURS[0], linewidth=2, label=label)
    axes.plot(result.depths, result.changes, "o", color=COLOURS[1], markersize=6, alpha=0.8, label="a run")
    axes.xaxis.set_major_locator(FixedLocator(unique.tolist()))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 3, 5)))
    axes.yaxis.set_minor_formatter(NullFormatter())
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axes.set_xlabel("layers")
    axes.set_ylabel(f"|Δ {result.statistic}| over the run")
    axes.set_title(
        f"Scaling law: p-value {result.p_value:.2g}\n90 % power from |p| = {result.detectable_90:.2f}"
    )
    axes.legend(loc="best")
    axes.grid(alpha=0.25)
