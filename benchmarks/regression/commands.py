"""The commands ``base`` and ``check``."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from benchmarks import command_line
from benchmarks.command_line import EXIT_FAILED, EXIT_OK, EXIT_USAGE, at_least
from benchmarks.machine import ROOT
from benchmarks.regression import check, commits
from benchmarks.regression.stage_ratios import CASES
from benchmarks.regression.watched import operations
from benchmarks.report import write_json

_BASE_CODES = """\
exit codes:
  0    both were measured, whichever is faster; the base may lack operations
  1    an operation of the working tree failed or gave wrong values, or a process ended
  2    bad usage, no such commit, a build that failed, or a base whose package cannot be used
  130  interrupted; what was measured is printed and written
"""
_CHECK_CODES = f"""\
exit codes:
  0    no stage lost more than {check.MARGIN:.0%} beyond its spread
  1    a stage did, twice, or the values were wrong
  2    bad usage, no stored ratios, or those of another CPU, instruction set or torch
"""


def add(commands: Any) -> None:
    """Add both to the subparsers of ``python -m benchmarks``."""
    base = command_line.add_command(
        commands,
        "base",
        _run_base,
        help="the working tree against another commit, built in a worktree of its own",
        description="Build another commit and time its operations beside ours, after checking both's values.",
        exit_codes=_BASE_CODES,
    )
    option = base.add_argument
    option("ref", metavar="REF", help="commit, branch or tag to compare with")
    option(
        "--shapes",
        type=command_line.shapes,
        metavar="[Bx]M[xN],...",
        help="matrices for every operation (those watched)",
    )
    option("--max-n", type=at_least(1), metavar="N", help="leave out matrices with a larger dimension")
    option("--threads", type=at_least(1), metavar="N", help="of both (torch's number)")
    option("--json", type=Path, metavar="FILE", help="write every sample")

    against = command_line.add_command(
        commands,
        "check",
        _run_check,
        help="each stage's time over torch's, against the stored ratios of this CPU",
        description="Find the stages that lost time against torch.linalg.svdvals since ratios were stored.",
        exit_codes=_CHECK_CODES,
        threads=1,
    )
    option = against.add_argument
    option(
        "--against", type=Path, default=check.STORED, metavar="FILE", help="the stored ratios (%(default)s)"
    )
    option("--write", action="store_true", help="measure and store them there")
    option("--json", type=Path, metavar="FILE", help="write what was measured and judged")


def _run_base(parser: argparse.ArgumentParser, arguments: argparse.Namespace) -> int:
    if arguments.shapes is not None and arguments.max_n is not None:
        parser.error("--shapes says which matrices: leave out --max-n")
    wanted = operations(arguments.max_n, arguments.shapes)
    if not wanted:
        parser.error(f"no operation is on matrices as small as --max-n {arguments.max_n}: raise it")
    try:
        commits.require_built(ROOT)
        commit = commits.resolve(ROOT, arguments.ref)
        with commits.built_worktree(ROOT, commit, command_line.progress) as tree:
            rows = commits.compare_trees(ROOT, tree, wanted, arguments.threads, command_line.progress)
    except commits.CommitError as error:
        print(f"base {arguments.ref}: {error}", file=sys.stderr)
        return EXIT_USAGE
    if arguments.json is not None:
        facts = {**command_line.facts(arguments), "base_commit": commit}
        write_json(arguments.json, commits.commits_document(rows, facts))
    commits.print_commits(rows, commit, command_line.console())
    return command_line.exit_code(rows)


def _run_check(parser: argparse.ArgumentParser, arguments: argparse.Namespace) -> int:
    if arguments.write and arguments.json is not None:
        parser.error("--write judges nothing: leave out --json")
    try:
        if arguments.write:
            samples = check.measure(CASES, command_line.progress)
            check.store(arguments.against, samples, command_line.facts(arguments))
            print(f"{arguments.against}: {len(samples)} ratios")
            return EXIT_OK
        verdicts = check.judge(check.load(arguments.against), command_line.progress)
    except check.StoredError as error:
        print(f"check: {error}", file=sys.stderr)
        return EXIT_USAGE
    except check.MeasureError as error:
        print(f"check: {error}", file=sys.stderr)
        return EXIT_FAILED
    if arguments.json is not None:
        write_json(arguments.json, check.check_document(verdicts, command_line.facts(arguments)))
    check.print_verdicts(verdicts, command_line.console())
    return EXIT_FAILED if any(verdict.lost for verdict in verdicts) else EXIT_OK
