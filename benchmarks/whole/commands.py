"""The commands ``all`` and ``readme``."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from benchmarks import command_line
from benchmarks.command_line import EXIT_FAILED, EXIT_INTERRUPTED, EXIT_OK, positive
from benchmarks.whole.readme import IMAGES, MEASURED, README, compact, rewritten, write_readme
from benchmarks.whole.report import NAMES, REPORT_MARKDOWN, ReportError, measure_report
from benchmarks.whole.sizes import DEFAULT, FULL

SECONDS = 2700.0


def add(commands: Any) -> None:
    """Add both to the subparsers of ``python -m benchmarks``."""
    everything = command_line.add_command(
        commands,
        "all",
        _run_all,
        help="every benchmark on the CPU, as one folder: JSON, markdown, plots",
        description="Accuracy and speed of every public operation against every peer, as one report.",
        exit_codes=None,
    )
    option = everything.add_argument
    option("--full", action="store_true", help="all layers, all shapes, both ways of calling; hours")
    option("--out", type=Path, default=Path("bench-report"), metavar="FOLDER", help="where it goes")
    sections = command_line.names("section", NAMES)
    option("--sections", type=sections, default=NAMES, metavar="A,B,...", help=", ".join(NAMES))
    option(
        "--max-seconds",
        type=positive,
        metavar="S",
        help=f"end after about S seconds ({SECONDS:g}; 36000 with --full)",
    )

    readme = command_line.add_command(
        commands,
        "readme",
        _run_readme,
        help="write README's measured tables from a report",
        description="Rewrite the measured regions of README from the JSON of a report, and copy its plots.",
        exit_codes=None,
    )
    option = readme.add_argument
    option("report", type=Path, nargs="?", metavar="JSON", help="of a report (docs/measured/bench.json)")
    option("--check", action="store_true", help="write nothing; exit 1 where README differs")


def _run_all(parser: argparse.ArgumentParser, arguments: argparse.Namespace) -> int:
    folder = arguments.out
    command_line.require_report_folder(parser, folder, "plots")
    try:
        data = measure_report(
            FULL if arguments.full else DEFAULT,
            full=arguments.full,
            chosen=arguments.sections,
            seconds=arguments.max_seconds or (36000.0 if arguments.full else SECONDS),
            folder=folder,
            progress=command_line.progress,
        )
    except ReportError as error:
        parser.error(str(error))
    except KeyboardInterrupt:  # later ones are the status of their section
        print("interrupted before the first section; nothing was written", file=sys.stderr)
        return EXIT_INTERRUPTED
    write_pages(data, folder)
    print(f"{folder / REPORT_MARKDOWN}: {data['status']}")
    return command_line.report_exit_code(data["status"])


def write_pages(data: dict[str, Any], folder: Path) -> None:
    """Markdown and plots, from the data alone."""
    from benchmarks.whole.markdown import markdown
    from benchmarks.whole.plots import draw_all

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
