"""Panels and how they become files: each one an SVG for the page, those of a section together a PNG.

Single panels let the page put as many side by side as the window is wide, so that on a telephone each is
still readable. Their text and axes take the colour scheme of whoever looks at them.
"""

from __future__ import annotations

import base64
import io
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import ListedColormap
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

_INK = "#1b1f24"
_INK_ON_DARK = "#e4e7eb"
# Told from white and from the page's dark background.
GREY = "#808890"
# Inches: of a panel, above and below its axes, and of a section's heading.
_WIDTH, _HEIGHT = 5.4, 3.5
_ABOVE, _BELOW = 0.35, 0.6
_HEADING = 0.6
_DPI = 150


@dataclass(frozen=True)
class Panel:
    """One pair of axes.

    Attributes:
        title: above it.
        alt: what it shows, for those who cannot see it.
        draw: draws it, labels included.
        left, right: inches beside the axes, for labels and a colour bar.
    """

    title: str
    alt: str
    draw: Callable[[Axes], None]
    left: float = 0.85
    right: float = 0.2


@dataclass(frozen=True)
class Section:
    """Panels on one question.

    Attributes:
        name: of its PNG, and of its place in the page.
        title, caption: what is shown and how to read it.
        panels: none where the run has nothing to show.
        missing: then, why there are none.
    """

    name: str
    title: str
    caption: str
    panels: Sequence[Panel]
    missing: str = ""


def svg_uri(panel: Panel) -> str:
    """The panel as a data URI, in the viewer's colour scheme."""
    with _style():
        figure = _figure(1, 1, heading=0)
        _draw(panel, figure, 0, 0)
        file = io.StringIO()
        # Without its date and with fixed names inside, the same run gives the same page.
        figure.savefig(file, format="svg", transparent=True, metadata={"Date": None})
    text = file.getvalue()
    schemes = f"svg{{color:{_INK}}}@media(prefers-color-scheme:dark){{svg{{color:{_INK_ON_DARK}}}}}"
    start = text.index("<svg")
    text = text[start:].replace(_INK, "currentColor").replace("<defs>", f"<style>{schemes}</style><defs>", 1)
    return "data:image/svg+xml;base64," + base64.b64encode(text.encode()).decode()


def save_png(section: Section, path: Path) -> None:
    """All panels of a section in one picture, on white."""
    columns = min(len(section.panels), 3)
    rows = -(-len(section.panels) // columns)
    with _style():
        figure = _figure(rows, columns, heading=_HEADING)
        height = figure.get_figheight()
        figure.suptitle(
            section.title, fontsize=15, fontweight="bold", color=_INK, y=1 - 0.15 / height, va="top"
        )
        for index, panel in enumerate(section.panels):
            row, column = divmod(index, columns)
            _draw(panel, figure, column * _WIDTH, (rows - 1 - row) * _HEIGHT)
        figure.savefig(path, format="png", dpi=100, facecolor="white", metadata={"Software": None})


def sequential() -> ListedColormap:
    """Colours for curves in an order, all of them seen on white and on dark."""
    from matplotlib import colormaps
    from matplotlib.colors import ListedColormap

    return ListedColormap(colormaps["viridis"](np.linspace(0.22, 0.82, 256)))


def colour_bar(axes: Axes, colours: ScalarMappable, label: str, **options: Any) -> None:
    """A bar beside the axes; the panel leaves room for it (``right``)."""
    from matplotlib.colors import LogNorm

    beside = axes.inset_axes((1.025, 0, 0.04, 1))
    figure = axes.get_figure()
    assert figure is not None
    bar = figure.colorbar(colours, cax=beside, **options)
    bar.set_label(label)
    bar.outline.set_visible(False)
    if isinstance(colours.norm, LogNorm):
        label_logarithmic(beside.yaxis)


def order_bar(axes: Axes, lowest: float, highest: float, label: str) -> Callable[[float], Any]:
    """Add a bar for curves in an order and return the colour of a value."""
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize

    colours, scale = sequential(), Normalize(lowest, highest if highest > lowest else lowest + 1)
    colour_bar(axes, ScalarMappable(scale, colours), label, ticks=_whole_steps())
    return lambda value: colours(scale(value))


def label_steps(axes: Axes, first: float, last: float) -> None:
    """Whole steps below, also where there is only one."""
    from matplotlib.ticker import FuncFormatter

    axes.set_xlabel("step")
    axes.xaxis.set_major_locator(_whole_steps())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda step, _: f"{step:,.0f}" if step == int(step) else ""))
    margin = max(0.02 * (last - first), 1)
    axes.set_xlim(first - margin, last + margin)


def label_logarithmic(axis: Any) -> None:
    """Numbers at 1, 2, 5 or at powers of ten, as many as there is room for."""
    from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter, NullLocator

    low, high = axis.get_view_interval()
    decades = np.log10(high / low)
    axis.set_minor_formatter(NullFormatter())
    axis.set_minor_locator(NullLocator())
    if decades < 0.7:  # there may be one number of 1, 2, 5 in the panel, or none
        axis.set_major_locator(MaxNLocator(4))
    else:
        axis.set_major_locator(LogLocator(subs=(1, 2, 5) if decades < 2 else (1,), numticks=7))
    axis.set_major_formatter(FuncFormatter(lambda value, _: _power(value) if decades > 5 else f"{value:g}"))


def _power(value: float) -> str:
    exponent = round(np.log10(value))
    return "10" + str(exponent).translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))


def _whole_steps() -> MaxNLocator:
    from matplotlib.ticker import MaxNLocator

    return MaxNLocator(5, integer=True, steps=[1, 2, 5, 10])


@contextmanager
def _style() -> Iterator[None]:
    from matplotlib import rc_context

    settings: dict[Any, Any] = {
        "text.parse_math": False,  # a name with $ is a name
        "svg.fonttype": "none",
        "svg.hashsalt": "spectral_fast",
        "font.size": 11,
        "axes.titlesize": 12,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.grid": True,
        "grid.color": GREY,
        "grid.alpha": 0.25,
        "hatch.color": GREY,
        "hatch.linewidth": 0.5,
        **dict.fromkeys(("text.color", "axes.edgecolor", "axes.labelcolor", "axes.titlecolor"), _INK),
        **dict.fromkeys(("xtick.color", "ytick.color"), _INK),
    }
    with rc_context(settings), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")  # in a matrix's name
        yield


def _figure(rows: int, columns: int, *, heading: float) -> Figure:
    from matplotlib.figure import Figure

    return Figure(figsize=(columns * _WIDTH, rows * _HEIGHT + heading), dpi=_DPI)


def _draw(panel: Panel, figure: Figure, left: float, bottom: float) -> None:
    """Draw a panel with its corner at a place in inches. (Layout by matplotlib takes most of the time.)"""
    width, height = figure.get_size_inches()
    inside = _WIDTH - panel.left - panel.right, _HEIGHT - _ABOVE - _BELOW
    place = ((left + panel.left) / width, (bottom + _BELOW) / height, inside[0] / width, inside[1] / height)
    axes = figure.add_axes(place)
    axes.set_title(panel.title)
    panel.draw(axes)
