"""``python -m benchmarks``: one command a benchmark. Each is declared in its folder's ``commands.py``."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence

import torch

import benchmarks.gpu.commands
import benchmarks.import_time
import benchmarks.regression.commands
import benchmarks.singular_values.commands
import benchmarks.statistics.commands
import benchmarks.training.commands
import benchmarks.whole.commands

# As --help lists them.
DECLARED_IN = (
    benchmarks.whole.commands,
    benchmarks.singular_values.commands,
    benchmarks.statistics.commands,
    benchmarks.training.commands,
    benchmarks.gpu.commands,
    benchmarks.regression.commands,
    benchmarks.import_time,
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code."""
    parser = _parser()
    arguments = parser.parse_args(argv)
    if arguments.json is not None and not os.access(arguments.json.absolute().parent, os.W_OK):
        parser.error(f"--json {arguments.json}: its folder does not exist or cannot be written")
    before = torch.get_num_threads()
    arguments.threads = arguments.threads or before
    try:
        torch.set_num_threads(arguments.threads)
        code: int = arguments.run(parser, arguments)
        return code
    finally:
        torch.set_num_threads(before)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description="Benchmarks of spectral_fast.")
    parser.set_defaults(threads=None, json=None)  # where a command has no such option
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    for module in DECLARED_IN:
        module.add(commands)
    return parser


if __name__ == "__main__":
    sys.exit(main())
