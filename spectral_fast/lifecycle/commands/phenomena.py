"""``spectral-fast lifecycle phenomena``: the paper's phenomena in some runs, in numbers and pictures."""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from spectral_fast.lifecycle.commands.failure import failed, not_installed
from spectral_fast.lifecycle.outputs import plain, write_figure, write_json
from spectral_fast.report import encodable

if TYPE_CHECKING:
    from spectral_fast.lifecycle.findings import Finding, Measurement, Run

_EXIT_CODES = """\
exit codes:
  0    everything that applies was measured and written
  2    bad usage, a run that cannot be read, or files that cannot be written
  130  interrupted (Ctrl-C)
"""
# Raised when a field of findings.json changes its name or meaning; new fields do not raise it.
_FORMAT = 1


def add(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command to those of ``spectral-fast lifecycle``."""
    phenomena = commands.add_parser(
        "phenomena",
        help="measure the paper's phenomena on training runs",
        description=(
            "Measure on each run the compression wave and its reversal, the depth gradient and inverted U,\n"
            "Q/K against V/O and the two time scales, and on five or more depths of two or more seeds each\n"
            "the scaling law. Prints a table with 95 % intervals and p-values, each of its line alone, and\n"
            "writes findings.json and a picture of each measurement."
        ),
        epilog=_EXIT_CODES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    phenomena.add_argument(
        "paths",
        metavar="RUN",
        nargs="+",
        type=Path,
        help="a folder of lifecycle train, or one that a ParquetSink wrote",
    )
    phenomena.add_argument("--out", metavar="FOLDER", type=Path, required=True, help="where the files go")
    phenomena.add_argument(
        "--statistic",
        metavar="NAME",
        action="append",
        help="measure on this one, instead of on alpha, alpha_hill and alpha_ranksize; may be repeated",
    )
    phenomena.set_defaults(run=_run)


def _run(arguments: argparse.Namespace) -> int:
    try:
        # What these need is in the extra, not in every installation.
        import matplotlib  # noqa: F401

        from spectral_fast.lifecycle.findings import ALPHAS, findings, measure_all
        from spectral_fast.monitor.parquet import RunError
    except ImportError as error:
        return not_installed(error)
    out: Path = arguments.out
    if out.exists() and not out.is_dir():
        return failed(f"{out}: is a file; give a folder to --out")
    if any(path.resolve() in (out.resolve(), *out.resolve().parents) for path in arguments.paths):
        return failed(f"{out}: is in a run; give another --out")
    statistics = tuple(dict.fromkeys(arguments.statistic or ALPHAS))
    try:
        runs = _read(arguments.paths)
        unknown = [name for name in statistics if name not in runs[0].trajectories.values]
        if unknown:
            known = ", ".join(runs[0].trajectories.values)
            return failed(f"--statistic {unknown[0]}: is unknown; there are {known}")
        measurements = measure_all(runs, statistics)
        found = [finding for measurement in measurements for finding in findings(measurement)]
        out.mkdir(parents=True, exist_ok=True)
        written = _write(out, runs, measurements, found)
    except (RunError, ValueError) as error:
        return failed(error)
    except OSError as error:
        return failed(f"{error.filename or out}: {error.strerror or error}")
    _print_table(found)
    claimed = sum(finding.detected for finding in found)
    print(f"{claimed} of {len(found)} lines are claimed; p-values are of each line alone")
    print(encodable(f"wrote {written[0]} and {len(written) - 1} pictures in {out}"))
    return 0


def _read(paths: Sequence[Path]) -> list[Run]:
    from spectral_fast.lifecycle.findings import read_run

    resolved = [path.resolve() for path in paths]
    if len(set(resolved)) < len(resolved):
        raise ValueError(f"{next(p for p in paths if resolved.count(p.resolve()) > 1)}: is given twice")
    names = [path.name for path in resolved]
    if len(set(names)) < len(names):
        names = [f"{i + 1}-{name}" for i, name in enumerate(names)]
    return [read_run(path, name) for path, name in zip(paths, names, strict=True)]


def _write(
    out: Path, runs: Sequence[Run], measurements: Sequence[Measurement], found: Sequence[Finding]
) -> list[Path]:
    """findings.json first, then the pictures."""
    from spectral_fast.lifecycle.figures.measurement import figure_of

    content = {
        "format": _FORMAT,
        "runs": [
            {
                "name": run.name,
                "seed": run.seed,
                "depth": run.trajectories.depth,
                "looks": len(run.trajectories.steps),
                "last_step": int(run.trajectories.steps[-1]),
            }
            for run in runs
        ],
        "findings": plain(list(found)),
        "measurements": plain(list(measurements)),
    }
    written = [out / "findings.json"]
    write_json(written[0], content)
    for measurement in measurements:
        if measurement.result is not None:
            parts = (measurement.run, measurement.phenomenon, measurement.statistic)
            written.append(out / f"{'-'.join(part for part in parts if part)}.png")
            write_figure(written[-1], figure_of(measurement))
    return written


def _print_table(found: Sequence[Finding]) -> None:
    headings = ("run", "phenomenon", "statistic", "estimate", "95 %", "", "p", "", "")
    rows = [headings, *(_cells(finding) for finding in found)]
    widths = [max(len(row[i]) for row in rows) for i in range(len(headings))]
    for row in rows:
        line = "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        print(encodable(line.rstrip()))


def _cells(finding: Finding) -> tuple[str, ...]:
    known = math.isfinite(finding.estimate)
    low, high = finding.interval
    return (
        finding.run or "all",
        finding.phenomenon,
        finding.statistic,
        f"{finding.estimate:.3g}" if known else "-",
        "-" if not known or math.isnan(low) else f"{low:.3g} to {high:.3g}",
        finding.unit if known else "",
        "-" if math.isnan(finding.p_value) else f"{finding.p_value:.2g}",
        "claimed" if finding.detected else "not claimed",
        finding.reason,
    )
