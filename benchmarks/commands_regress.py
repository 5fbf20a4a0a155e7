"""Comparing the package with itself: ``base`` with another commit, ``check`` with ratios stored earlier."""

from __future__ import annotations

import argparse
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rich.console import Console

from benchmarks import commits, regression
from benchmarks.machine import machine, versions
from benchmarks.report import write_json
from benchmarks.stage_ratios import CASES
from benchmarks.watched import operations

_BASE_CODES = """\
exit codes:
  0    both were measured, whichever is faster; the base may lack operations
  1    an operation of the working tree failed or gave wrong values, or a process ended
  2    bad usage, no such commit, a build that failed, or a base whose package cannot be used
  130  interrupted; what was measured is printed and written
"""
_CHECK_CODES = f"""\
exit codes:
  0    no stage lost more than {regression.MARGIN:.0%} beyond its spread
  1    a stage did, twice, or the values were wrong
  2    bad usage, no stored ratios, or those of another CPU, instruction set or torch
"""
# rich would fold the table into the 80 columns it assumes of a pipe.
_PIPE_WIDTH = 170


def add(commands: Any) -> None:
    """Add both to the subparsers of ``python -m benchmarks``."""
    base = commands.add_parser(
        "base",
        help="the working tree against another commit, built in a worktree of its own",
        description="Build another commit and time its operations beside ours, after checking both's values.",
        epilog=_BASE_CODES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    base.set_defaults(run=_run_base)
    base.add_argument("ref", metavar="REF", help="commit, branch or tag to compare with")
    base.add_argument(
        "--shapes", type=_shapes, metavar="[Bx]M[xN],...", help="matrices for every operation (those watched)"
    )
    base.add_argument("--max-n", type=_count, metavar="N", help="leave out matrices with a larger dimension")
    base.add_argument("--threads", type=_count, metavar="N", help="of both (torch's number)")
    base.add_argument("--json", type=Path, metavar="FILE", help="write every sample")

    check = commands.add_parser(
        "check",
        help="each stage's time over torch's, against the stored ratios of this CPU",
        description="Find the stages that lost time against torch.linalg.svdvals since ratios were stored.",
        epilog=_CHECK_CODES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    check.set_defaults(run=_run_check, threads=1)
    check.add_argument(
        "--against",
        type=Path,
        default=regression.STORED,
        metavar="FILE",
        help="the stored ratios (%(default)s)",
    )
    check.add_argument("--write", action="store_true", help="measure and store them there")
    check.add_argument("--json", type=Path, metavar="FILE", help="write what was measured and judged")


def _run_base(parser: argparse.ArgumentParser, arguments: argparse.Namespace) -> int:
    if arguments.shapes is not None and arguments.max_n is not None:
        parser.error("--shapes says which matrices: leave out --max-n")
    wanted = operations(arguments.max_n, arguments.shapes)
    if not wanted:
        parser.error(f"no operation is on matrices as small as --max-n {arguments.max_n}: raise it")
    try:
        commits.require_built(commits.ROOT)
        commit = commits.resolve(commits.ROOT, arguments.ref)
        with commits.built_worktree(commits.ROOT, commit, _progress) as tree:
            rows = commits.compare_trees(commits.ROOT, tree, wanted, arguments.threads, _progress)
    except commits.CommitError as error:
        print(f"base {arguments.ref}: {error}", file=sys.stderr)
        return 2
    if arguments.json is not None:
        facts = {**_facts(arguments), "base_commit": commit}
        write_json(arguments.json, commits.commits_document(rows, facts))
    commits.print_commits(rows, commit, _console())
    if any(row.failed for row in rows):
        return 1
    return 130 if any(row.interrupted for row in rows) else 0


def _run_check(parser: argparse.ArgumentParser, arguments: argparse.Namespace) -> int:
    if arguments.write and arguments.json is not None:
        parser.error("--write judges nothing: leave out --json")
    try:
        if arguments.write:
            samples = regression.measure(CASES, _progress)
            regression.store(arguments.against, samples, _facts(arguments))
            print(f"{arguments.against}: {len(samples)} ratios")
            return 0
        verdicts = regression.judge(regression.load(arguments.against), _progress)
    except regression.StoredError as error:
        print(f"check: {error}", file=sys.stderr)
        return 2
    except regression.MeasureError as error:
        print(f"check: {error}", file=sys.stderr)
        return 1
    if arguments.json is not None:
        write_json(arguments.json, regression.check_document(verdicts, _facts(arguments)))
    regression.print_verdicts(verdicts, _console())
    return 1 if any(verdict.lost for verdict in verdicts) else 0


def _facts(arguments: argparse.Namespace) -> dict[str, Any]:
    """What the figures depend on; file names stay out."""
    given = {k: v for k, v in vars(arguments).items() if k not in ("json", "run", "against")}
    now = datetime.now(UTC).isoformat(timespec="seconds")
    return {"date_utc": now, "arguments": given, "machine": machine(), "versions": versions()}


def _console() -> Console:
    return Console() if sys.stdout.isatty() else Console(width=_PIPE_WIDTH)


def _progress(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least 1")
    return int(text)


def _shapes(text: str) -> tuple[tuple[int, ...], ...]:
    shapes = []
    for one in text.split(","):
        sizes = tuple(map(_count, one.split("x")))
        if len(sizes) > 3:
            raise argparse.ArgumentTypeError(f"{one!r} is no shape: N, MxN or BxMxN")
        shapes.append(sizes * 2 if len(sizes) == 1 else sizes)
    return tuple(dict.fromkeys(shapes))
