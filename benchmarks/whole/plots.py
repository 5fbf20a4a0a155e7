"""The plots of a whole report, from its data alone."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.whole.tables import Data, methods_of, rows_of, shape, torch_used
from tests.oracles.accuracy import constant

# One colour and marker a method in every plot (Okabe and Ito's colours: told apart by all).
STYLES = {
    "ours": ("#000000", "D"),
    "torch": ("#D55E00", "o"),
    "ours, driver gram": ("#56B4E9", "s"),
    "eigvalsh(AᵀA)": ("#CC79A7", "X"),
    "eigvalsh(AᵀA) in float64": ("#999999", "P"),
    "gram": ("#999999", "P"),
    "numpy": ("#0072B2", "^"),
    "scipy-gesdd": ("#009E73", "v"),
}
_STAGES = {
    "load": ("#56B4E9", "o"),
    "reduce": ("#D55E00", "s"),
    "band": ("#E69F00", "D"),
    "bidiagonal": ("#0072B2", "^"),
    "values": ("#009E73", "v"),
}
_LINES = ("#000000", "#D55E00", "#0072B2", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
DPI = 100


def draw_all(data: Data, folder: Path) -> dict[str, str]:
    """Write every plot that there is something for; file names by title."""
    import matplotlib

    matplotlib.use("Agg")
    sections = data["sections"]
    found = {}
    for file, (title, names, draw) in _PLOTS.items():
        parts = [sections.get(name) for name in names]
        if any(rows_of(part) for part in parts):
            draw(title, *parts).savefig(folder / file, dpi=DPI)
            found[title] = file
    return found


def _figure(width: float, height: float, title: str, **grid: Any) -> tuple[Any, Any]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.subplots(**grid)
    figure.suptitle(title, fontsize=13)
    return figure, axes


def _lines(axes: Any, names: Sequence[str]) -> None:
    """A line for each name, the first on top."""
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.grid(axis="x", alpha=0.3)
    axes.set_axisbelow(True)


def _ends(spreads: Sequence[Data], factor: float = 1.0) -> list[list[float]]:
    """Error bars to the quartiles."""
    return [
        [factor * max(0.0, one["median"] - one["q1"]) for one in spreads],
        [factor * max(0.0, one["q3"] - one["median"]) for one in spreads],
    ]


_SUITES = (
    ("minilm", "trained weights, a layer stack", "#D55E00"),
    ("single", "one matrix", "#0072B2"),
    ("batches", "small matrices", "#009E73"),
    ("nine-models", "layers of the nine models", "#000000"),
)


def _speedups(title: str, *sections: Data | None) -> Any:
    rows = [
        (row, used, suite)
        for suite, part in zip(_SUITES, sections, strict=True)
        for row in rows_of(part)
        if (used := torch_used(row)) and used["ratio"] is not None
    ]
    figure, axes = _figure(9, 1.9 + 0.27 * len(rows), title)
    _lines(axes, [" ".join((shape(row), *(", ".join(row["roles"]),))).strip() for row, _, _ in rows])
    for suite in _SUITES:
        points = [(line, used["ratio"]) for line, (_, used, one) in enumerate(rows) if one is suite]
        if points:
            ratios = [ratio for _, ratio in points]
            axes.errorbar(
                [ratio["median"] for ratio in ratios],
                [line for line, _ in points],
                xerr=_ends(ratios),
                fmt="D",
                color=suite[2],
                capsize=2,
                markersize=5,
                label=suite[1],
            )
    axes.axvline(1, color="black", linewidth=1)
    axes.set_xscale("log")
    axes.set_xlim(
        0.8 * min(1.0, *(used["ratio"]["q1"] for _, used, _ in rows)),
        1.3 * max(used["ratio"]["q3"] for _, used, _ in rows),
    )
    _plain_ticks(axes.xaxis, (0.2, 0.5, 1, 2, 5, 10, 20, 50, 100))
    axes.set_xlabel("torch.linalg.svdvals on its better number of threads / ours: median, quartiles")
    # The errors as a column of text beside the plot.
    side = axes.secondary_yaxis("right")
    texts = []
    for row, used, _ in rows:
        ours, theirs = row["gate"]["error"], used["error"]
        texts.append(" · ".join("–" if e is None else f"{e:.1f}" for e in (ours, theirs)))
    side.set_yticks(range(len(rows)), texts)
    side.set_ylabel("largest error in eps σ₁: ours · torch")
    figure.legend(loc="outside lower center", ncols=4)
    return figure


def _plain_ticks(axis: Any, places: Sequence[float]) -> None:
    from matplotlib.ticker import FixedLocator, FuncFormatter, NullFormatter

    axis.set_major_locator(FixedLocator(places))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_formatter(NullFormatter())


def _roofline(title: str, section: Data) -> Any:
    rows = rows_of(section)
    figure, axes = _figure(9, 2.0 + 0.45 * len(rows), title)
    _lines(axes, [shape(row) for row in rows])
    for name, (colour, marker) in _STAGES.items():
        found = [
            (100 * stage["reached"], line, 60 + 500 * stage["share"])
            for line, row in enumerate(rows)
            for stage in row["stages"]
            if stage["name"] == name
        ]
        if found:
            x, y, area = zip(*found, strict=True)
            axes.scatter(x, y, area, color=colour, marker=marker, alpha=0.75, label=name, linewidths=0)
    whole = [100 * row["gemm_share"] for row in rows]
    axes.plot(whole, range(len(rows)), "|", color="black", markersize=18, label="whole call, of torch.mm")
    axes.set_xlim(0, max(105.0, 1.05 * max(whole)))
    axes.set_xlabel("% of the bound of the stage's own work; area: its share of the call's time")
    legend = figure.legend(loc="outside lower center", ncols=6)
    for handle in legend.legend_handles:
        if hasattr(handle, "set_sizes"):
            handle.set_sizes([60])
    return figure


def _conditioning(title: str, section: Data) -> Any:
    rows = rows_of(section)
    figure, grid = _figure(11, 8, title, nrows=2, ncols=2, sharex=True)
    for column, dtype in enumerate(("float32", "float64")):
        chosen = [row for row in rows if row["dtype"] == dtype]
        if not chosen:
            continue
        m, n = chosen[0]["m"], chosen[0]["n"]
        for axes, key in zip(grid[:, column], ("error", "smallest"), strict=True):
            for name in (one["method"] for one in chosen[0]["methods"]):
                colour, marker = STYLES[name]
                points = [
                    (row["asked"], one[key])
                    for row in chosen
                    for one in row["methods"]
                    # An error of exactly 0 has no place on a logarithmic axis: it is drawn at the bottom.
                    if one["method"] == name
                ]
                x, y = zip(*points, strict=True)
                floor = 1e-3 if key == "error" else 1e-18
                axes.plot(
                    x, [max(one, floor) for one in y], marker, ls="-", color=colour, label=name, alpha=0.85
                )
            axes.set_xscale("log")
            axes.set_yscale("log")
            axes.grid(alpha=0.3)
        grid[0, column].axhline(
            constant(n), color="black", linestyle=":", label="promised: this, or twice torch"
        )
        grid[0, column].set_title(f"{dtype}, {m}×{n}")
        grid[1, column].axhline(1, color="black", linewidth=0.8)
        grid[1, column].set_xlabel("condition number asked for")
    grid[0, 0].set_ylabel("largest error of any value, in eps σ₁")
    grid[1, 0].set_ylabel("relative error of σ_min (1: nothing is left of it)")
    handles, labels = grid[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3)
    return figure


def _growth(title: str, sizes: Data | None, batches: Data | None) -> Any:
    figure, (left, right) = _figure(12, 5.4, title, ncols=2)
    rows = rows_of(sizes)
    for name in ("ours", "torch"):
        colour, marker = STYLES[name]
        points = [(row["n"], _best(row, name)) for row in rows]
        _curve(left, [(n, one) for n, one in points if one is not None], 1e3, colour, marker, name)
    for row in rows:
        torch = torch_used(row)
        if torch is not None and torch["ratio"] is not None:
            at = (row["n"], 1e3 * torch["spread"]["median"])
            text = f"{torch['ratio']['median']:.1f}×"
            left.annotate(text, at, (-4, 8), textcoords="offset points", ha="right")
    left.set_ylabel("ms, median and quartiles")
    left.set_xlabel("n of one n×n matrix, float32 (label: torch / ours)")
    left.set_xscale("log", base=2)
    left.set_yscale("log")
    if rows:
        _plain_ticks(left.xaxis, sorted({row["n"] for row in rows}))
    for n, dashes in zip(dict.fromkeys(row["n"] for row in rows_of(batches)), ("-", "--", ":"), strict=False):
        for name in ("ours", "torch"):
            colour, marker = STYLES[name]
            chosen = [row for row in rows_of(batches) if row["n"] == n]
            found = [(row["matrices"], _best(row, name)) for row in chosen]
            whole = [
                (count, {key: value / count for key, value in one.items()})
                for count, one in found
                if one is not None
            ]
            _curve(right, whole, 1e6, colour, marker, f"{name}, {n}×{n}", dashes)
    right.set_ylabel("µs a matrix, median and quartiles")
    right.set_xlabel("matrices in a batch, float32")
    right.set_xscale("log", base=4)
    right.set_yscale("log")
    if rows_of(batches):
        _plain_ticks(right.xaxis, sorted({row["matrices"] for row in rows_of(batches)}))
    for axes in (left, right):
        _plain_ticks(axes.yaxis, [10.0**decade * step for decade in range(-3, 7) for step in (1, 3)])
        axes.margins(x=0.1, y=0.12)
        axes.grid(alpha=0.3)
        if axes.has_data():
            axes.legend()
    return figure


def _best(row: Data, name: str) -> Mapping[str, float] | None:
    found = min(methods_of(row, name), key=lambda one: one["spread"]["median"], default=None)
    return found and found["spread"]


def _curve(
    axes: Any,
    points: Sequence[tuple[float, Data]],
    factor: float,
    colour: str,
    marker: str,
    label: str,
    dashes: str = "-",
) -> None:
    if points:
        spreads = [one for _, one in points]
        axes.errorbar(
            [x for x, _ in points],
            [factor * one["median"] for one in spreads],
            yerr=_ends(spreads, factor),
            fmt=marker,
            ls=dashes,
            color=colour,
            label=label,
            capsize=2,
        )


def _threads(title: str, section: Data) -> Any:
    rows = rows_of(section)
    figure, axes = _figure(9, 2.2 + 0.5 * len(rows), title)
    counts = sorted({one["threads"] for row in rows for one in row["methods"]})
    names = [f"{shape(row)}, {count} thread{'s' if count > 1 else ''}" for row in rows for count in counts]
    _lines(axes, names)
    for name in ("ours", "torch"):
        colour, marker = STYLES[name]
        points = [
            (line, one["our_one_thread_over_it"])
            for line, (row, count) in enumerate((row, count) for row in rows for count in counts)
            for one in row["methods"]
            if one["method"] == name and one["threads"] == count
        ]
        spreads = [one for _, one in points]
        axes.errorbar(
            [one["median"] for one in spreads],
            [line for line, _ in points],
            xerr=_ends(spreads),
            fmt=marker,
            color=colour,
            label=name,
            capsize=2,
        )
    axes.axvline(1, color="black", linewidth=0.8)
    axes.set_xscale("log")
    _plain_ticks(axes.xaxis, (0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20))
    axes.set_xlabel("speed relative to ours on one thread, median and quartiles")
    figure.legend(loc="outside lower center", ncols=2)
    return figure


def _memory(title: str, section: Data) -> Any:
    rows = rows_of(section)
    figure, axes = _figure(9, 2.0 + 0.45 * len(rows), title)
    _lines(axes, [shape(row) for row in rows])
    for name in (one["method"] for one in rows[0]["methods"]):
        colour, marker = STYLES[name]
        points = [
            (one["bytes"] / 2**20, line)
            for line, row in enumerate(rows)
            for one in row["methods"]
            if one["method"] == name and one["bytes"]
        ]
        if points:
            x, y = zip(*points, strict=True)
            axes.plot(x, y, marker, ls="", color=colour, label=name, markersize=8, alpha=0.85)
    inputs = [row["input_bytes"] / 2**20 for row in rows]
    axes.plot(inputs, range(len(rows)), "|", color="black", markersize=18, label="the input itself")
    axes.set_xscale("log")
    _plain_ticks(axes.xaxis, [2.0**power for power in range(-4, 15)])
    axes.set_xlabel("MiB resident beyond those before the call, float32")
    figure.legend(loc="outside lower center", ncols=6)
    return figure


_PLOTS: dict[str, tuple[str, tuple[str, ...], Callable[..., Any]]] = {
    "bench-speedup.png": (
        "Singular values, float32: torch / ours, by shape",
        tuple(name for name, _, _ in _SUITES),
        _speedups,
    ),
    "bench-roofline.png": ("Each stage against the bound of its own work", ("stages",), _roofline),
    "bench-conditioning.png": ("Accuracy against conditioning", ("conditioning",), _conditioning),
    "bench-growth.png": ("Growth with n and with the batch", ("growth", "batches"), _growth),
    "bench-threads.png": ("Threads", ("threads",), _threads),
    "bench-memory.png": ("Peak memory of a call", ("memory",), _memory),
}
