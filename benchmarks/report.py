"""What a run says: the JSON document, the table and the summary line."""

from __future__ import annotations

import dataclasses
import json
import os
import statistics
import tempfile
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.measure import NOT_MEASURED, Measurement, Row
from benchmarks.timing import Spread

# Raised when a field changes its meaning or goes; new fields do not raise it.
SCHEMA_VERSION = 1


def document(rows: Sequence[Row], facts: dict[str, Any]) -> dict[str, Any]:
    """The whole run as plain data: `facts` of the run (machine, versions, arguments, ...) and its rows."""
    return {
        "schema_version": SCHEMA_VERSION,
        **facts,
        "summary": summary(rows),
        "rows": [_row_data(row) for row in rows],
    }


def _row_data(row: Row) -> dict[str, Any]:
    case = row.case
    return {
        "models": case.models,
        "roles": case.roles,
        "stacks": case.stacks,
        "matrices": case.count,
        "layers": case.layers,
        "m": case.m,
        "n": case.n,
        "calls": row.calls,
        "data": "real weights" if case.weights else "random",
        "plan": row.plan,
        "backend": row.backend,
        "status": row.status,
        "gate": row.gate and {**dataclasses.asdict(row.gate), "holds": row.gate.holds},
        "measurements": [dataclasses.asdict(measurement) for measurement in row.measurements],
        "torch_threads_used": row.torch_used and row.torch_used.threads,
        "speedup": row.speedup and dataclasses.asdict(row.speedup),
        "torch_slower_with_threads": row.torch_slower_with_threads,
    }


def summary(rows: Sequence[Row]) -> dict[str, Any]:
    """Counts, and the geometric means of the median ratios torch / ours by way of calling."""
    compared = [(row, row.speedup) for row in rows if row.speedup is not None]
    by_calls: dict[str, list[float]] = {}
    for row, speedup in compared:
        by_calls.setdefault(row.calls, []).append(speedup.median)
    ratios = [speedup.median for _, speedup in compared]
    slower = [(row, speedup) for row, speedup in compared if speedup.median < 1]
    worst = min(slower, key=lambda pair: pair[1].median, default=None)
    return {
        "rows": len(rows),
        "statuses": dict(Counter(row.status.partition(":")[0] for row in rows)),
        "compared": len(compared),
        "geometric_mean": statistics.geometric_mean(ratios) if ratios else None,
        "geometric_mean_by_calls": {calls: statistics.geometric_mean(v) for calls, v in by_calls.items()},
        "slower": len(slower),
        # The whole middle half of the pairs below 1: slower beyond this run's own spread.
        "slower_beyond_spread": sum(speedup.q3 < 1 for _, speedup in slower),
        "worst": worst and {"case": f"{worst[0].case} {worst[0].calls}", "ratio": worst[1].median},
        "torch_slower_with_threads": sum(row.torch_slower_with_threads for row in rows),
        "reference": sum(row.backend == "reference" for row in rows),
    }


def summary_line(name: str, rows: Sequence[Row]) -> str:
    found = summary(rows)
    parts = []
    if found["compared"]:
        means = ", ".join(f"{calls} {mean:.2f}×" for calls, mean in found["geometric_mean_by_calls"].items())
        parts.append(f"torch / ours {found['geometric_mean']:.2f}× over {found['compared']} rows ({means})")
        if found["slower"]:
            worst = found["worst"]
            parts.append(
                f"slower than torch in {found['slower']}, beyond the spread in "
                f"{found['slower_beyond_spread']} (worst {worst['ratio']:.2f}×: {worst['case']})"
            )
        else:
            parts.append("slower than torch in none")
    else:
        parts.append("nothing compared with torch")
    parts += [f"{status}: {count}" for status, count in found["statuses"].items() if status != "ok"]
    if found["reference"]:
        parts.append(f"ours was torch itself in {found['reference']}")
    if found["torch_slower_with_threads"]:
        parts.append(
            f"noisy: torch was slower with more threads than with one in {found['torch_slower_with_threads']}"
        )
    return f"{name}: " + "; ".join(parts)


def write_json(path: Path, data: dict[str, Any], *, indent: int | None = 1) -> None:
    """Write the file whole or not at all."""
    text = json.dumps(data, indent=indent, allow_nan=False, ensure_ascii=False) + "\n"
    with tempfile.NamedTemporaryFile(
        "w", encoding="utf-8", dir=path.parent, prefix=f".{path.name}.", delete=False
    ) as file:
        try:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
            os.chmod(file.name, 0o644)  # a temporary file is private; a result is not
            os.replace(file.name, path)
        except BaseException:
            os.unlink(file.name)
            raise


def print_table(rows: Sequence[Row], console: Console) -> None:
    """One line a method under each case; a row without times has one line that says why."""
    left_out = Counter(row.status for row in rows if row.status.startswith(NOT_MEASURED))
    table = Table(box=None, header_style="bold", pad_edge=False, padding=(0, 2, 0, 0))
    for heading in ("case", "calls", "method", "threads"):
        table.add_column(heading, no_wrap=True)
    for heading in ("median", "quartiles", "× ours", "quartiles", "error / allowed", "GEMM"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("note")
    for row in rows:
        if not row.status.startswith(NOT_MEASURED):
            _add_row(table, row)
    if table.row_count:
        console.print(table)
        console.print(
            "threads: empty where the library chooses. × ours: time over ours in the same repeat. error: in "
            "eps σ₁, ours on the\nmatrix closest to its bound, the largest of others. GEMM: share of the "
            "measured torch.mm rate. *: torch's time in the summary.",
            style="dim",
        )
    for status, count in left_out.items():
        console.print(f"{count} rows {status}")


def _add_row(table: Table, row: Row) -> None:
    note = "" if row.status == "ok" else row.status
    if row.backend == "reference":
        note = ", ".join(filter(None, (note, "ours is torch here: no ratio")))
    if row.gate is not None and row.gate.weaker:
        note = ", ".join(filter(None, (note, "weaker gate")))
    what = f"{row.case} {', '.join(row.case.roles)}".rstrip()
    if not row.measurements:
        table.add_row(what, row.calls, "ours", *[""] * 5, _error(row, None), "", note)
    for place, measurement in enumerate(row.measurements):
        first = place == 0
        table.add_row(
            what if first else "",
            row.calls if first else "",
            measurement.method + ("*" if measurement is row.torch_used else ""),
            "" if measurement.threads is None else str(measurement.threads),
            *_times(measurement),
            _error(row, measurement),
            "" if measurement.gemm_share is None else f"{100 * measurement.gemm_share:.1f} %",
            note if first else _note(measurement, row),
        )


def _note(measurement: Measurement, row: Row) -> str:
    if measurement.status != "ok":
        return measurement.status
    most = max(m.threads or 0 for m in row.measurements if m.method == "torch") if row.torch_used else 0
    if row.torch_slower_with_threads and measurement.method == "torch" and measurement.threads == most:
        return "slower than with 1 thread: noisy"
    return ""


def _times(measurement: Measurement) -> tuple[str, str, str, str]:
    times, ratio = measurement.spread, measurement.ratio
    if times is None:
        return "", "", "", ""
    if ratio is None:
        return *time_cells(times), "", ""
    return *time_cells(times), f"{ratio.median:.2f}", f"{ratio.q1:.2f}–{ratio.q3:.2f}"


def time_cells(times: Spread) -> tuple[str, str]:
    """Median and quartiles."""
    unit, factor = _unit(times)
    return f"{digits(times.median * factor)} {unit}", _range(times.q1 * factor, times.q3 * factor)


def _unit(times: Spread) -> tuple[str, float]:
    for unit, factor in (("s", 1.0), ("ms", 1e3)):
        if times.median * factor >= 1:
            return unit, factor
    return "µs", 1e6


def digits(value: float) -> str:
    """Three figures, without an exponent."""
    return f"{value:.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def _range(low: float, high: float) -> str:
    return f"{digits(low)}–{digits(high)}"


def _error(row: Row, measurement: Measurement | None) -> str:
    """Ours with its bound; a baseline's error alone, nothing where it is unknown."""
    if measurement is None or measurement.method == "ours":
        gate = row.gate
        if gate is None or gate.error is None or gate.allowed is None:
            return ""
        return f"{gate.error:.2f} / {gate.allowed:.2g}"
    return "" if measurement.error is None else f"{measurement.error:.2f}"


def markdown_table(headings: Sequence[str], rows: Iterable[Sequence[str]], left: int = 1) -> str:
    """A markdown table; the first `left` columns are text, the others numbers."""
    count = len(headings)
    rule = ["---" if place < left else "---:" for place in range(count)]
    return "\n".join("| " + " | ".join(row) + " |" for row in (headings, rule, *rows))
