"""The commands ``all`` and ``readme``: arguments and exit codes."""

from __future__ import annotations

import argparse
import importlib.util
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.all import NAMES, REPORT_MARKDOWN, ReportError, measure_report
from benchmarks.all_sizes import DEFAULT, FULL
from benchmarks.budget import INTERRUPTED
from benchmarks.readme import IMAGES, MEASURED, README, compact, rewritten, write_readme

EXIT_OK, EXIT_FAILED, EXIT_INTERRUPTED = 0, 1, 130
SECONDS = 2700.0


def add(commands: Any, positive: Callable[[str], float]) -> None:
    """Add both to the sub-parsers. positive: the type of a number above 0."""
    everything = commands.add_parser(
        "all",
        help="every benchmark on the CPU, as one folder: JSON, markdown, plots",
        description="Accuracy and speed of every public operation against every peer, as one report.",
    )
    everything.set_defaults(run=_run_all, dtype="float32", threads=None, json=None)
    option = everything.add_argument
    option("--full", action="store_true", help="all layers, all shapes, both ways of calling; hours")
    option("--out", type=Path, default=Path("bench-report"), metavar="FOLDER", help="where it goes")
    option("--sections", type=_sections, default=NAMES, metavar="A,B,...", help=", ".join(NAMES))
    option(
        "--max-seconds",
        type=positive,
        metavar="S",
        help=f"end after about S seconds ({SECONDS:g}; 36000 with --full)",
    )
    readme = commands.add_parser(
        "readme",
        help="write README's measured tables from a report",
        description="Rewrite the measured regions of README from the JSON of a report, and copy its plots.",
    )
    readme.set_defaults(run=_run_readme, threads=None, json=None)
    readme.add_argument(
        "report", type=Path, nargs="?", metavar="JSON", help="of a report (docs/measured/bench.json)"
    )
    readme.add_argument("--check", action="store_true", help="write nothing; exit 1 where README differs")


def _run_all(parser: argparse.ArgumentParser, arguments: argparse.Namespace) -> int:
    if importlib.util.find_spec("matplotlib") is None:  # after 45 minutes would be late
        parser.error("the report's plots need matplotlib: pip install 'spectral_fast[demo]'")
    folder = arguments.out
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        parser.error(f"--out {folder}: {error.strerror}")
    try:
        data = measure_report(
            FULL if arguments.full else DEFAULT,
            full=arguments.full,
            chosen=arguments.sections,
            seconds=arguments.max_seconds or (36000.0 if arguments.full else SECONDS),
            folder=folder,
            progress=_progress,
        )
    except ReportError as error:
        parser.error(str(error))
    except KeyboardInterrupt:  # later ones are the status of their section
        print("interrupted before the first section; nothing was written", file=sys.stderr)
        return EXIT_INTERRUPTED
    write_pages(data, folder)
    print(f"{folder / REPORT_MARKDOWN}: {data['status']}")
    if data["status"] == INTERRUPTED:
        return EXIT_INTERRUPTED
    return EXIT_OK if data["status"] == "ok" else EXIT_FAILED


def write_pages(data: dict[str, Any], folder: Path) -> None:
    """Markdown and plots, from the data alone."""
    from benchmarks.all_markdown import markdown
    from benchmarks.all_plots import draw_all

    plots = draw_all(data, folder)
    (folder / REPORT_MARKDOWN).write_text(markdown(data, plots), encoding="utf-8")


def _run_readme(parser: argparse.ArgumentParser, arguments: argparse.Namespace) -> int:
    report = arguments.report or MEASURED
    try:
        data = json.loads(report.read_text(encoding="utf-8"))
        text = README.read_text(encoding="utf-8")
        if arguments.check:
            if rewritten(text, compact(data)) == text:
                return EXIT_OK
            print(f"README differs from {report.name}: python -m benchmarks readme {report}", file=sys.stderr)
            return EXIT_FAILED
        write_readme(data, report.parent if arguments.report else IMAGES)
    except OSError as error:
        parser.error(f"{error.filename}: {error.strerror}")
    except ValueError as error:  # no JSON, or a ReadmeError
        parser.error(f"{report}: {error}")
    return EXIT_OK


def _sections(text: str) -> tuple[str, ...]:
    names = tuple(dict.fromkeys(text.split(",")))
    if unknown := [name for name in names if name not in NAMES]:
        raise argparse.ArgumentTypeError(
            f"no section is called {unknown[0]!r}: choose from {', '.join(NAMES)}"
        )
    return names


def _progress(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
