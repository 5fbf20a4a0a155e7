"""Spectra over time, σ₁ over steps, what looking cost, and how far estimates were from exact values."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from spectral_fast.monitor.report.history import NORMAL_95, Audit, Floats, History
from spectral_fast.monitor.report.panels import GREY, Panel, label_logarithmic, label_steps, order_bar
from spectral_fast.monitor.report.words import (
    STATISTICS,
    count,
    number,
    percent,
    role_name,
    series,
    shortened,
)
from spectral_fast.plots import COLOURS

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Roles times layers would be hundreds of panels: the first and the last layer and two between show the depth.
_MAX_LAYERS = 4
_MAX_SPECTRA = 9
_MAX_RANKS = 250
# Points in all curves of a panel.
_MAX_POINTS = 6000
_MAX_LEGEND = 8
_MAX_DOTS = 3000
_RATIOS = (1e-2, 1e2)

Spectra = Sequence[tuple[int, NDArray[np.float32]]]


def spectra(history: History) -> list[Panel]:
    """Singular values over their rank, a curve an exact look; panels by role and layer."""
    panels = []
    for role in dict.fromkeys(matrix.role for matrix in history.matrices):
        members = [i for i, matrix in enumerate(history.matrices) if matrix.role == role]
        for member in _evenly(members, _MAX_LAYERS):
            matrix = history.matrices[member]
            finite = [(step, values) for step, values in history.spectra(member) if values.max(initial=0) > 0]
            shown = _evenly(finite, _MAX_SPECTRA)
            if not shown:
                continue
            where = shortened(matrix.name, 40) if matrix.layer is None else f"layer {matrix.layer}"
            (first, start), (last, end) = shown[0], shown[-1]
            alt = (
                f"Singular values of {matrix.name}, {matrix.rows} by {matrix.cols}, over their rank on "
                f"logarithmic axes at {count(len(shown), 'step', 'steps')} from {first} to {last}. "
                f"The largest goes {series(np.array([start[0], end[0]], dtype=np.float64))}, the smallest "
                f"{series(np.array([start[-1], end[-1]], dtype=np.float64))}."
            )
            draw = partial(_draw_spectra, shown=shown)
            panels.append(Panel(f"{role_name(role)}, {where}", alt, draw, right=0.95))
    return panels


def _draw_spectra(axes: Axes, *, shown: Spectra) -> None:
    colour = order_bar(axes, shown[0][0], shown[-1][0], "step")
    axes.set(xscale="log", yscale="log")
    # The last values of a square matrix go down by decades and would flatten all the others.
    bottom = min((values[(9 * len(values)) // 10] for _, values in shown), default=0)
    for step, values in shown:
        ranks = np.unique(np.geomspace(1, len(values), _MAX_RANKS).astype(np.int64))
        at = values[ranks - 1]
        axes.plot(ranks[at > 0], at[at > 0], color=colour(step), linewidth=1.4)
    if bottom > 0:
        axes.set_ylim(bottom=0.9 * bottom)
    axes.set_xlabel("rank k")
    axes.set_ylabel("singular value σₖ")
    label_logarithmic(axes.xaxis)
    label_logarithmic(axes.yaxis)


def largest_values(history: History) -> list[Panel]:
    """σ₁ over steps with the intervals of estimates, a curve a matrix; panels by role."""
    norm = history.statistic("spectral_norm")
    panels = []
    for role in dict.fromkeys(matrix.role for matrix in history.matrices):
        members = [i for i, m in enumerate(history.matrices) if m.role == role]
        members = [i for i in members if np.isfinite(norm.value[:, i]).any()]
        if not members:
            continue
        ends = "; ".join(
            f"{history.matrices[i].name} {series(norm.value[:, i])}" for i in _evenly(members, _MAX_LAYERS)
        )
        alt = f"Largest singular value over steps, role {role_name(role)}: {ends}."
        draw = partial(_draw_largest, history=history, members=members, value=norm.value, error=norm.error)
        panels.append(Panel(role_name(role), alt, draw, right=0.8))
    return panels


def _draw_largest(axes: Axes, *, history: History, members: list[int], value: Floats, error: Floats) -> None:
    layers = [history.matrices[i].layer for i in members]
    deep = [layer for layer in layers if layer is not None]
    colour = order_bar(axes, min(deep), max(deep), "layer") if len(set(deep)) > 1 else None
    budget = max(_MAX_POINTS // len(members), 60)
    for index, (member, layer) in enumerate(zip(members, layers, strict=True)):
        known = np.flatnonzero(np.isfinite(value[:, member]))
        known = np.array(_evenly(list(known), budget))
        steps, at = history.steps[known], value[known, member]
        style = colour(layer) if colour and layer is not None else COLOURS[index % (len(COLOURS) - 1)]
        label = shortened(history.matrices[member].name, 36)
        axes.plot(steps, at, color=style, linewidth=1.4, marker="o" if len(steps) == 1 else "", label=label)
        half = NORMAL_95 * np.nan_to_num(error[known, member])
        if half.any():
            axes.fill_between(steps, at - half, at + half, color=style, alpha=0.25, linewidth=0)
    finite = value[:, members][np.isfinite(value[:, members])]
    if finite.min() > 0 and finite.max() / finite.min() > 20:
        axes.set_yscale("log")
        label_logarithmic(axes.yaxis)
    else:
        axes.ticklabel_format(axis="y", useOffset=False)
    axes.set_ylabel("σ₁")
    label_steps(axes, *history.steps[[0, -1]])
    if colour is None and len(members) <= _MAX_LEGEND:
        axes.legend(fontsize=9, frameon=False)


def costs(history: History) -> list[Panel]:
    """The share of wall time, the intervals in force and the time of each look."""
    share, seconds = history.share, history.seconds
    every, track = (
        [f"{steps:.0f} steps" if steps else "never" for steps in (values[0], values[-1])]
        for values in (history.every, history.track_every)
    )
    return [
        Panel(
            "Share of wall time",
            f"What all looks together have cost of the wall time so far: {percent(share[-1])} at the last "
            f"look, {percent(share.max())} at most.",
            partial(_draw_share, history=history),
        ),
        Panel(
            "Steps from look to look",
            f"Intervals in force: from one exact look to the next {every[0]} at first and "
            f"{every[1]} at last, from one tracked look to the next {track[0]} and {track[1]}.",
            partial(_draw_intervals, history=history),
        ),
        Panel(
            "Time of a look",
            f"Seconds a look took: median {number(float(np.median(seconds)))}, longest "
            f"{number(float(seconds.max()))}.",
            partial(_draw_seconds, history=history),
        ),
    ]


def _draw_share(axes: Axes, *, history: History) -> None:
    shown = _evenly(range(len(history.steps)), _MAX_DOTS)
    marker = "o" if len(shown) == 1 else ""
    axes.plot(history.steps[shown], 100 * history.share[shown], color=COLOURS[0], marker=marker)
    axes.set_ylabel("% of wall time so far")
    # The first looks fall into a time in which little else has happened yet.
    axes.set_ylim(0, 130 * history.share[len(history.share) // 10 :].max() or 1)
    label_steps(axes, *history.steps[[0, -1]])


def _draw_intervals(axes: Axes, *, history: History) -> None:
    top = 1.0
    for values, label, colour, style in (
        (history.every, "exact", COLOURS[0], "-"), (history.track_every, "tracked", COLOURS[1], "--"),
    ):  # fmt: skip
        known = values > 0
        if not known.any():
            continue
        top = max(top, values.max())
        drawn = np.where(known, values, np.nan)
        # The interval holds until the next look, so the last one needs an end.
        steps = np.append(history.steps, history.steps[-1] + 1)
        drawn = np.append(drawn, drawn[-1])
        axes.step(steps, drawn, where="post", color=colour, linestyle=style, label=label)
    axes.set_ylabel("steps")
    axes.set_ylim(0, 1.1 * top)
    label_steps(axes, *history.steps[[0, -1]])
    if axes.get_legend_handles_labels()[0]:
        axes.legend(frameon=False)


def _draw_seconds(axes: Axes, *, history: History) -> None:
    for which, label, colour, marker in (
        (history.exact, "with exact values", COLOURS[0], "o"),
        (~history.exact, "tracked", COLOURS[1], "."),
    ):
        at = np.flatnonzero(which)
        at = np.array(_evenly(list(at), _MAX_DOTS), dtype=np.int64)
        if len(at):
            axes.plot(
                history.steps[at], 1e3 * history.seconds[at], marker, color=colour, markersize=4, label=label
            )
    axes.set_yscale("log" if history.seconds.min() > 0 else "linear")
    axes.set_ylabel("milliseconds")
    if history.seconds.min() > 0:
        label_logarithmic(axes.yaxis)
    label_steps(axes, *history.steps[[0, -1]])
    axes.legend(frameon=False, fontsize=9)


def audits(found: dict[str, Audit]) -> list[Panel]:
    """How far estimates were from the exact look that followed, against the interval they stated."""
    panels = []
    for name, audit in found.items():
        stated = audit.interval > 0
        if not stated.any():
            continue
        ratio = audit.difference[stated] / audit.interval[stated]
        title, estimates = STATISTICS[name][0], count(int(stated.sum()), "estimate", "estimates")
        alt = (
            f"Histogram for {title}: distance of {estimates} from the exact value that followed, in units "
            "of the stated 95 % interval. "
            f"{percent(float((ratio <= 1).mean()))} were within it, the median at "
            f"{number(float(np.median(ratio)))}."
        )
        panels.append(Panel(title, alt, partial(_draw_audit, ratio=ratio, held=audit.held[stated])))
    return panels


def _draw_audit(axes: Axes, *, ratio: Floats, held: NDArray[np.bool_]) -> None:
    bins = [float(edge) for edge in np.geomspace(*_RATIOS, 41)]
    inside = np.clip(ratio, *_RATIOS)  # what lies beyond, an exact hit too, is counted at the ends
    both = [(inside[~held], "estimated", COLOURS[0]), (inside[held], "held", COLOURS[1])]
    some = [one for one in both if len(one[0])]
    values, labels, colours = zip(*some, strict=True)
    axes.hist(list(values), bins=bins, stacked=True, color=list(colours), label=list(labels))
    axes.axvline(1, color=GREY, linestyle="--", label="edge of the interval")
    axes.set_xscale("log")
    axes.set_xlabel("distance from exact / 95 % interval stated")
    axes.set_ylabel("looks at a matrix")
    label_logarithmic(axes.xaxis)
    axes.legend(frameon=False, fontsize=9)


def _evenly(items: Sequence[Any], limit: int) -> list[Any]:
    """At most so many of the items, the first and the last among them."""
    if len(items) <= limit:
        return list(items)
    return [items[i] for i in np.linspace(0, len(items) - 1, limit).round().astype(int)]
