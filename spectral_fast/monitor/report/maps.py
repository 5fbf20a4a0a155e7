"""Heat maps of a statistic over layers and steps, one a role."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from spectral_fast.monitor.report.history import Floats, History, Matrix, Whole
from spectral_fast.monitor.report.panels import GREY, Panel, colour_bar, label_steps
from spectral_fast.monitor.report.words import role_name, series, shortened
from spectral_fast.plots import whole_numbers

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# More cells than a panel has pixels cannot be seen, nor can more names be read than this.
_MAX_COLUMNS = 600
_MAX_NAMES = 14
# Beyond this ratio of largest and smallest value, one linear scale hides what happens among the small ones.
_LINEAR_RATIO = 5.0
# Where the range is so many times that of the inner 98 %, a few outliers would take all the colours.
_OUTLIERS = 2.0


def heat_maps(history: History, statistic: str, label: str) -> list[Panel]:
    """A panel for every role with values; layers without a matrix and steps without a look stay hatched.

    A look fills the steps until the next one was due: after the interval in force, or the next look if
    that came first. Of several matrices in one layer, such as experts, the median is drawn.
    """
    values = history.statistic(statistic).value
    starts, ends, picked = _columns(history)
    panels = []
    for role in dict.fromkeys(matrix.role for matrix in history.matrices):
        members = [i for i, matrix in enumerate(history.matrices) if matrix.role == role]
        names, grid = _rows([history.matrices[i] for i in members], values[:, members])
        if not np.isfinite(grid).any():
            continue
        draw = partial(_draw, starts=starts, ends=ends, grid=grid[:, picked], names=names, label=label)
        left = 2.2 if isinstance(names[0], str) else 0.7
        alt = _alt(history, label, role, names, grid)
        panels.append(Panel(role_name(role), alt, draw, left=left, right=1.0))
    return panels


def _columns(history: History) -> tuple[Whole, Whole, Whole]:
    """Where the cell of each step begins and ends, and which steps have one."""
    steps = history.steps
    due = np.where(history.track_every > 0, history.track_every, history.every)
    due = np.where(due > 0, due, 1).astype(np.int64)
    follows = np.append(steps[1:], steps[-1] + due[-1])
    ends = np.minimum(follows, steps + due)
    if len(steps) <= _MAX_COLUMNS:
        return steps, ends, np.arange(len(steps))
    # The last look of every column of pixels, drawn as wide as the column.
    span = (follows[-1] - steps[0]) / _MAX_COLUMNS
    column = ((steps - steps[0]) / span).astype(np.int64)
    picked = np.flatnonzero(np.append(column[1:] != column[:-1], True))
    first = np.append(0, picked[:-1] + 1)
    return steps[first], np.maximum(ends[picked], steps[first] + 1), picked


def _rows(matrices: list[Matrix], values: Floats) -> tuple[list[int] | list[str], Floats]:
    """Names and values of the map's rows: layers where there are any, else the matrices."""
    layers = [matrix.layer for matrix in matrices if matrix.layer is not None]
    if not layers:
        return [matrix.name for matrix in matrices], values.T
    names = list(range(min(layers), max(layers) + 1))
    grid = np.full((len(names), len(values)), np.nan)
    for row, layer in enumerate(names):
        of_layer = values[:, [matrix.layer == layer for matrix in matrices]]
        known = np.isfinite(of_layer).any(axis=1)
        finite = np.where(np.isfinite(of_layer), of_layer, np.nan)
        grid[row, known] = np.nanmedian(finite[known], axis=1)
    return names, grid


def _draw(axes: Axes, *, starts: Whole, ends: Whole, grid: Floats, names: list[Any], label: str) -> None:
    from matplotlib.colors import LogNorm, Normalize

    edges, cells = _with_gaps(starts, ends, grid)
    finite = grid[np.isfinite(grid)]
    low, high = finite.min(), finite.max()
    usual = np.percentile(finite, [1, 99])
    if high - low > _OUTLIERS * (usual[1] - usual[0]):
        low, high = usual
    wide = low > 0 and high / low > _LINEAR_RATIO
    norm = (LogNorm if wide else Normalize)(low, high if high > low else low + (abs(low) or 1) * 1e-3)
    axes.patch.set(facecolor="none", edgecolor=GREY, hatch="////")
    mesh = axes.pcolormesh(
        edges, np.arange(len(names) + 1) - 0.5, np.ma.masked_invalid(cells), norm=norm, rasterized=True
    )
    beyond = (bool((finite < low).any()), bool((finite > high).any()))
    extend = {(False, False): "neither", (True, False): "min", (False, True): "max"}.get(beyond, "both")
    colour_bar(axes, mesh, label, extend=extend)
    axes.grid(visible=False)
    label_steps(axes, starts[0], ends[-1])
    axes.set_xlim(starts[0], ends[-1])
    if isinstance(names[0], str):
        every = -(-len(names) // _MAX_NAMES)
        axes.set_yticks(range(0, len(names), every), [shortened(name, 22) for name in names[::every]])
    else:
        from matplotlib.ticker import FuncFormatter

        axes.set_ylabel("layer")
        axes.yaxis.set_major_locator(whole_numbers())
        axes.yaxis.set_major_formatter(FuncFormatter(lambda row, _: f"{names[0] + row:.0f}"))


def _with_gaps(starts: Whole, ends: Whole, grid: Floats) -> tuple[NDArray[Any], Floats]:
    """Edges of columns without holes: an empty column wherever one ends before the next begins."""
    edges, columns = [starts[0]], []
    empty = np.full(len(grid), np.nan)
    for start, end, values in zip(starts, ends, grid.T, strict=True):
        if start > edges[-1]:
            edges.append(start)
            columns.append(empty)
        edges.append(end)
        columns.append(values)
    return np.array(edges), np.stack(columns, axis=1)


def _alt(history: History, label: str, role: str, names: list[Any], grid: Floats) -> str:
    rows = f"layers {names[0]} to {names[-1]}" if isinstance(names[0], int) else f"{len(names)} matrices"
    first, last = (series(grid[row]) for row in (0, -1))
    ends = f"The first row goes {first}, the last {last}." if len(names) > 1 else f"It goes {first}."
    steps = f"steps {history.steps[0]} to {history.steps[-1]}"
    return f"Heat map of {label} of the role {role_name(role)}, {rows}, {steps}. {ends}"
