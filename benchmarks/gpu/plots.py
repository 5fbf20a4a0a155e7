"""The pictures of the GPU report, from its data alone: times, errors, kernels."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.gpu.markdown import Data, case_name
from tests.oracles.accuracy import constant

# One colour and one marker a method, the same in every picture (Okabe and Ito's colours: told apart by all).
_STYLES = {
    "ours": ("#000000", "D"),
    "torch": ("#D55E00", "o"),
    "torch-loop": ("#E69F00", "v"),
    "torch-gesvd": ("#0072B2", "s"),
    "torch-gesvdj": ("#56B4E9", "^"),
    "torch-gesvda": ("#009E73", "<"),
    "cupy": ("#CC79A7", ">"),
    "gram": ("#999999", "X"),
}
_STAGE_COLOURS = {
    "load": "#56B4E9",
    "panel": "#D55E00",
    "band": "#E69F00",
    "bidiagonal": "#0072B2",
    "direct": "#0072B2",
    "values": "#009E73",
    "stats": "#CC79A7",
    "other": "#999999",
}


def draw_all(data: Data, folder: Path) -> dict[str, str]:
    """Write every picture that there is something for; file names by title."""
    import matplotlib

    matplotlib.use("Agg")
    found = {}
    for title, file, figure in _figures(data):
        figure.savefig(folder / file, dpi=120)
        found[title] = file
    return found


def _figures(data: Data) -> Iterator[tuple[str, str, Any]]:
    by_dtype: dict[str, list[Data]] = defaultdict(list)
    for row in data["cases"]:
        if any(method["spread"] for method in row["methods"]):
            by_dtype[row["dtype"]].append(row)
    for dtype, rows in by_dtype.items():
        title = f"Time of one matrix, {dtype}, {data['gpu']}"
        yield title, f"times_{dtype}.png", _times(rows, title)
        if any(method["error"] is not None for row in rows for method in row["methods"]):
            title = f"Largest error of a value, {dtype}"
            yield title, f"errors_{dtype}.png", _errors(rows, title)
    stages = data.get("stages")
    rows = [row for row in stages if row["kernels"]] if isinstance(stages, list) else []
    if rows:
        title = f"Where the time of spectral_stats goes, float32, {data['gpu']}"
        yield title, "stages.png", _stages(rows, title)


def _axes(rows: Sequence[Any], names: Sequence[str], title: str) -> tuple[Any, Any]:
    """A figure with a line for each row, the first on top."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 1.8 + 0.42 * len(rows)), layout="constrained")
    axes = figure.subplots()
    axes.set_title(title, fontsize=13)
    axes.set_yticks(range(len(rows)), names)
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.grid(axis="x", alpha=0.25)
    axes.set_axisbelow(True)
    return figure, axes


def _methods(rows: Sequence[Data]) -> Iterator[tuple[str, list[tuple[int, Mapping[str, Any]]]]]:
    """(name, [(line, method), ...]) of every method that has a time somewhere."""
    for name in _STYLES:
        points = [
            (line, method)
            for line, row in enumerate(rows)
            for method in row["methods"]
            if method["name"] == name and method["spread"] is not None
        ]
        if points:
            yield name, points


def _times(rows: Sequence[Data], title: str) -> Any:
    figure, axes = _axes(rows, [case_name(row) for row in rows], title)
    for name, points in _methods(rows):
        colour, marker = _STYLES[name]
        at = [1e3 * method["spread"]["median"] for _, method in points]
        ends = [
            [
                max(0.0, middle - 1e3 * method["spread"]["q1"])
                for middle, (_, method) in zip(at, points, strict=True)
            ],
            [
                max(0.0, 1e3 * method["spread"]["q3"] - middle)
                for middle, (_, method) in zip(at, points, strict=True)
            ],
        ]
        axes.errorbar(
            at,
            [line for line, _ in points],
            xerr=ends,
            fmt=marker,
            color=colour,
            label=name,
            capsize=2,
            alpha=0.9,
        )
    predicted = [
        (line, 1e3 * row["predicted_seconds"] / row["matrices"])
        for line, row in enumerate(rows)
        if row["predicted_seconds"] is not None and row["backend"] != "reference"
    ]
    if predicted:
        lines, places = zip(*predicted, strict=True)
        axes.plot(places, lines, "|", color="black", markersize=14, label="ours, predicted")
    axes.set_xscale("log")
    axes.set_xlabel("ms a matrix, median and quartiles")
    figure.legend(loc="outside lower center", ncols=5)
    return figure


def _errors(rows: Sequence[Data], title: str) -> Any:
    figure, axes = _axes(rows, [case_name(row) for row in rows], title)
    for name, points in _methods(rows):
        known = [(line, method["error"]) for line, method in points if method["error"]]
        if known:
            colour, marker = _STYLES[name]
            axes.plot([e for _, e in known], [line for line, _ in known], marker, color=colour, label=name)
    limits = [constant(min(row["m"], row["n"])) for row in rows]
    axes.plot(limits, range(len(rows)), "|", color="black", markersize=14, label="c, the bound promised")
    axes.set_xscale("log")
    axes.set_xlabel("eps σ₁ (to the right of c where torch errs more than c/2)")
    figure.legend(loc="outside lower center", ncols=5)
    return figure


def _stages(rows: Sequence[Data], title: str) -> Any:
    """Two bars a stack: what its kernels took, and what the cost model said of those."""
    names, bars = [], []
    for row in rows:
        kernels = row["kernels"]
        names.append("{count}×{m}×{n}".format(**row["stack"]))
        bars.append(_by_stage(kernels, "seconds"))
        if any(kernel["predicted"] is not None for kernel in kernels):
            names.append("predicted")
            bars.append(_by_stage(kernels, "predicted"))
    figure, axes = _axes(bars, names, title)
    starts = [0.0] * len(bars)
    for stage, colour in _STAGE_COLOURS.items():
        widths = [1e3 * bar.get(stage, 0.0) for bar in bars]
        if any(widths):
            axes.barh(range(len(bars)), widths, left=starts, color=colour, label=stage, height=0.7)
            starts = [start + width for start, width in zip(starts, widths, strict=True)]
    axes.set_xlabel("ms of kernels in one call")
    figure.legend(loc="outside lower center", ncols=8)
    return figure


def _by_stage(kernels: Sequence[Data], what: str) -> dict[str, float]:
    found: dict[str, float] = defaultdict(float)
    for kernel in kernels:
        stage = kernel["stage"] if kernel["stage"] in _STAGE_COLOURS else "other"
        found[stage] += kernel[what] or 0.0
    return found
