"""README's measured regions, written from the JSON of a report: ``python -m benchmarks readme``.

A region is what stands between ``<!-- measured: NAME -->`` and ``<!-- end -->``. The JSON that README was
written from is in the repository without its samples, so that a test can write the regions again.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from benchmarks.machine import ROOT
from benchmarks.report import digits, markdown_table, write_json
from benchmarks.whole.tables import (
    Data,
    error,
    geometric_mean,
    goodness_table,
    median,
    methods_of,
    monitor_table,
    rows_of,
    shape,
    times,
    torch_used,
    tracking_table,
    tracking_times_table,
    weightwatcher_table,
)

README = ROOT / "README.md"
MEASURED = ROOT / "docs/measured/bench.json"
IMAGES = ROOT / "docs/images"
# Of all plots, those that README shows, and what they are.
SHOWN = {
    "bench-speedup.png": "Speed-up over torch by shape, with errors",
    "bench-conditioning.png": "Errors against the condition number",
    "bench-growth.png": "Time against n and against the batch",
}

# Longer lists of numbers are samples; of those the number stays.
_SHORT = 3
_REGION = re.compile(r"(<!-- measured: ([a-z-]+) -->\n)(.*?)(<!-- end -->)", re.S)


class ReadmeError(ValueError):
    """README cannot be written; the message says why."""


def compact(data: Any) -> Any:
    """The document without its samples: of a list of more than three numbers, how many they are."""
    if isinstance(data, Mapping):
        return {key: compact(value) for key, value in data.items()}
    if isinstance(data, list):
        if len(data) > _SHORT and all(value is None or isinstance(value, int | float) for value in data):
            return {"count": len(data)}
        return [compact(value) for value in data]
    # Six digits: no time is known better.
    return float(f"{data:.6g}") if isinstance(data, float) else data


def rewritten(text: str, data: Data) -> str:
    """README with every region written anew. Raises ReadmeError for an unknown region, or for none."""
    names = [name for _, name, _, _ in _REGION.findall(text)]
    if not names or text.count("<!-- measured: ") != len(names):
        raise ReadmeError(
            "README has no region `<!-- measured: NAME -->` ... `<!-- end -->`, or one is not closed"
        )
    if unknown := [name for name in names if name not in REGIONS]:
        raise ReadmeError(f"README has a region {unknown[0]!r}: choose from {', '.join(REGIONS)}")
    return _REGION.sub(lambda found: f"{found[1]}\n{REGIONS[found[2]](data)}\n\n{found[4]}", text)


def write_readme(data: Data, plots: Path) -> None:
    """Write README, the compact JSON, and the plots that README shows. plots: the folder they are in."""
    small = compact(data)
    text = rewritten(README.read_text(encoding="utf-8"), small)
    if missing := [file for file in SHOWN if not (plots / file).exists()]:
        raise ReadmeError(f"the report has no {missing[0]}: measure its section first")
    for file in SHOWN:
        if plots != IMAGES:
            shutil.copyfile(plots / file, IMAGES / file)
    MEASURED.parent.mkdir(parents=True, exist_ok=True)
    write_json(MEASURED, small, indent=None)  # a third of it would be spaces
    README.write_text(text, encoding="utf-8")


def _machine(data: Data) -> str:
    machine, versions = data["machine"], data["versions"]
    commit = versions["git_commit"] or "unknown"
    changed = ", with local changes" if versions["git_modified"] else ""
    return (
        f"On {machine['cores']} cores of an {machine['cpu']} ({data['capabilities']['cpu']['isa']}), Python "
        f"{versions['python']}, torch {versions['torch']}, {data['date_utc'][:10]}, commit "
        f"{commit[:10]}{changed}; medians,\nquartiles of the paired ratio in brackets. `make bench` measures "
        "all of it ([docs/benchmarks.md](docs/benchmarks.md) has the method), and\n`python -m "
        "benchmarks readme` wrote what follows from its JSON\n([docs/measured/bench.json](docs/measured/"
        "bench.json))."
    )


def _values(data: Data) -> str:
    lines = []
    for name in ("minilm", "batches", "single", "nine-models"):
        for row in rows_of(data["sections"].get(name)):
            ours, best = methods_of(row, "ours")[0], torch_used(row)
            if best is None or row["calls"] == "loop":
                continue
            what = "MiniLM " + ", ".join(row["roles"]) if row["data"] == "real weights" else row["data"]
            what = "shape of the nine" if row["models"] else what
            torch = " · ".join(median(one["spread"]) for one in methods_of(row, "torch"))
            errors = f"{error(row, ours)} · {error(row, best)}"
            lines.append([shape(row), what, median(ours["spread"]), torch, times(best["ratio"]), errors])
    headings = (
        *("float32", "", f"ours, {_threads(data)}", "torch, 1 thread and all"),
        *("torch's better / ours", "error / σ₁ in eps, ours and torch"),
    )
    return markdown_table(headings, lines, left=2)


def _threads(data: Data) -> str:
    return f"{data['threads']} thread{'s' if data['threads'] > 1 else ''}"


def _summary(data: Data) -> str:
    names = {
        "nine-models": "the nine models' distinct shapes",
        "float64": "the same in float64",
        "minilm": "MiniLM's weights",
        "single": "single matrices",
    }
    means = [
        f"{what} {mean}"
        for name, what in names.items()
        if (mean := geometric_mean(data["sections"].get(name))) and _mostly_measured(data["sections"][name])
    ]
    text = "Geometric means of torch / ours: " + "; ".join(means or ["too few rows were measured"]) + "."
    others: dict[str, list[float]] = {}
    for name in ("nine-models", "single", "minilm"):
        for row in rows_of(data["sections"].get(name)):
            for one in row["measurements"]:
                if one["method"] not in ("ours", "torch") and one["ratio"] is not None:
                    others.setdefault(one["method"], []).append(one["ratio"]["median"])
    if others:
        ranges = (f"{name} {digits(min(found))}–{digits(max(found))}×" for name, found in others.items())
        text += "\nOthers over ours, row by row: " + ", ".join(ranges) + "."
    return text


def _mostly_measured(section: Data) -> bool:
    """Whether a mean speaks for the section: a short run measures its cheapest rows."""
    return 2 * section["summary"]["compared"] >= section["summary"]["rows"]


def _statistics(data: Data) -> str:
    lines = []
    for one in (data["sections"].get("fit") or {}).get("summary", []):
        reached = ", ".join(f"{part['what']} {digits(part['reached'])}×" for part in one["targets"])
        lines.append([f"power-law fit, n = {one['n']}, {one['spectra']} spectra", one["peer"], reached])
    for row in rows_of(data["sections"].get("statistics")):
        share = next(one["share"] for one in row["methods"] if one["method"] == "spectral_stats")
        adds = f"adds {100 * share['median']:.1f} % to svdvals"
        lines.append(
            [
                f"all statistics of {shape(row)}",
                "plain torch",
                f"{times(row['plain_torch_over_ours'])}, {adds}",
            ]
        )
    return markdown_table(("", "against", "theirs / ours"), lines, left=2)


def _of(name: str, make: Callable[[Data], str]) -> Callable[[Data], str]:
    """A section's table, or that the report has none."""

    def region(data: Data) -> str:
        section = data["sections"].get(name)
        text = "" if section is None else make(section)
        # Two lines are a heading without rows.
        return (
            text
            if text.count("\n") > 1
            else f"Not in this report (`python -m benchmarks all --sections {name}`)."
        )

    return region


def _plots(data: Data) -> str:
    return "\n\n".join(f"![{title}](docs/images/{file})" for file, title in SHOWN.items())


REGIONS: dict[str, Callable[[Data], str]] = {
    "machine": _machine,
    "values": _values,
    "summary": _summary,
    "statistics": _statistics,
    "goodness": _of("goodness", goodness_table),
    "weightwatcher": _of("weightwatcher", weightwatcher_table),
    "tracking": _of("tracking", tracking_table),
    "tracking-times": _of("tracking", tracking_times_table),
    "monitor": _of("monitor", monitor_table),
    "plots": _plots,
}
