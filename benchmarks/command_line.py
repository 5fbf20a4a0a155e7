"""What the commands share: options and their types, the facts of a run, where it prints, exit codes."""

from __future__ import annotations

import argparse
import importlib.util
import sys
from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Protocol

import torch
from rich.console import Console

import spectral_fast
from benchmarks.budget import INTERRUPTED
from benchmarks.machine import GEMM_SIZE, gemm_rate, machine, versions
from benchmarks.timing import REPEATS_LEAST

DTYPES = {"float32": torch.float32, "float64": torch.float64, "bfloat16": torch.bfloat16}

EXIT_OK, EXIT_FAILED, EXIT_USAGE, EXIT_INTERRUPTED = 0, 1, 2, 130
EXIT_CODES = """\
exit codes:
  0    every row is there; some may lack memory or time, and baselines may have failed
  1    a row of ours failed: wrong values (its times are not printed) or an error
  2    bad usage, no such device, or a suite whose weights are not installed
  130  interrupted; what was measured is printed and written
"""
# rich would fold the table into the 80 columns it assumes of a pipe.
_PIPE_WIDTH = 170


class Outcome(Protocol):
    """A row, or a run that is one."""

    @property
    def failed(self) -> bool: ...

    @property
    def status(self) -> str: ...


def add_command(
    commands: Any,
    name: str,
    run: Callable[[argparse.ArgumentParser, argparse.Namespace], int],
    *,
    help: str,
    description: str,
    exit_codes: str | None = EXIT_CODES,
    **defaults: Any,
) -> argparse.ArgumentParser:
    """Add a command to the subparsers. run: gives the exit code. defaults: of arguments."""
    parser: argparse.ArgumentParser = commands.add_parser(
        name,
        help=help,
        description=description,
        epilog=exit_codes,
        # The codes are a table; a description alone is wrapped.
        formatter_class=argparse.RawDescriptionHelpFormatter if exit_codes else argparse.HelpFormatter,
    )
    parser.set_defaults(run=run, **defaults)
    return parser


def add_common(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--dtype", choices=DTYPES, default="float32")
    add("--max-seconds", type=positive, metavar="S", help="stop measuring after about S seconds")
    add_run(parser)


def add_run(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--threads", type=at_least(1), metavar="N", help="of ours and of torch's all (torch's number)")
    add("--repeats", type=at_least(REPEATS_LEAST), metavar="N", help="samples a method (by its time)")
    add("--json", type=Path, metavar="FILE", help="write every sample and what it depends on")


def at_least(least: int) -> Callable[[str], int]:
    def convert(text: str) -> int:
        if not text.isdecimal() or int(text) < least:
            raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least {least}")
        return int(text)

    return convert


def positive(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is not a positive number")
    return value


def sizes(least: int) -> Callable[[str], tuple[int, ...]]:
    """N,..."""
    size = at_least(least)
    return lambda text: tuple(dict.fromkeys(map(size, text.split(","))))


def shapes(text: str) -> tuple[tuple[int, ...], ...]:
    """M[xN],... or, for stacks, BxMxN: a square may be given as one size."""
    found = []
    for one in text.split(","):
        shape = tuple(map(at_least(1), one.split("x")))
        if len(shape) > 3:
            raise argparse.ArgumentTypeError(f"{one!r} is no shape: N, MxN or BxMxN")
        found.append(shape * 2 if len(shape) == 1 else shape)
    return tuple(dict.fromkeys(found))


def names(what: str, known: Iterable[str]) -> Callable[[str], tuple[str, ...]]:
    """A,B,... of those that are known."""
    choices = tuple(known)

    def convert(text: str) -> tuple[str, ...]:
        given = tuple(dict.fromkeys(text.split(",")))
        if unknown := [name for name in given if name not in choices]:
            raise argparse.ArgumentTypeError(
                f"no {what} is called {unknown[0]!r}: choose from {', '.join(choices)}"
            )
        return given

    return convert


def require_report_folder(parser: argparse.ArgumentParser, folder: Path, pictures: str) -> None:
    """End where a report could not be written: after its many minutes would be late."""
    if importlib.util.find_spec("matplotlib") is None:
        parser.error(f"the report's {pictures} need matplotlib: pip install 'spectral_fast[demo]'")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        parser.error(f"--out {folder}: {error.strerror}")


def exit_code(rows: Sequence[Outcome]) -> int:
    if any(row.failed for row in rows):
        return EXIT_FAILED
    return EXIT_INTERRUPTED if any(row.status.endswith(INTERRUPTED) for row in rows) else EXIT_OK


def report_exit_code(status: str) -> int:
    """Of a whole report."""
    if status == INTERRUPTED:
        return EXIT_INTERRUPTED
    return EXIT_OK if status == "ok" else EXIT_FAILED


def facts(arguments: argparse.Namespace) -> dict[str, Any]:
    """What a figure of this run depends on."""
    return {
        "date_utc": datetime.now(UTC).isoformat(timespec="seconds"),
        "arguments": given(arguments),
        "machine": machine(),
        "versions": versions(),
    }


def facts_with_rate(arguments: argparse.Namespace, device: torch.device) -> dict[str, Any]:
    """Also what the package can here, and the device's own rate, which bounds are taken from."""
    return {
        **facts(arguments),
        "capabilities": spectral_fast.capabilities(),
        "gemm": {"n": GEMM_SIZE, "flops_per_second": gemm_rate(DTYPES[arguments.dtype], device)},
    }


def given(arguments: argparse.Namespace) -> dict[str, Any]:
    """The arguments as plain data; file names stay out."""
    files = ("json", "out", "against")
    return {name: value for name, value in vars(arguments).items() if name not in ("run", *files)}


def console() -> Console:
    return Console() if sys.stdout.isatty() else Console(width=_PIPE_WIDTH)


def progress(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
