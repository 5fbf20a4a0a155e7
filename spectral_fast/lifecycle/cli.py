"""``spectral-fast lifecycle``: the commands of this package. Each imports what it needs when it runs."""

from __future__ import annotations

import argparse

from spectral_fast.lifecycle.commands import (
    importance,
    nine_models,
    phenomena,
    prune,
    reproduce,
    train,
)


def add(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command to those of ``spectral-fast``."""
    lifecycle = commands.add_parser(
        "lifecycle",
        help="the analyses of 'The Spectral Lifecycle of Transformer Training' on your runs and checkpoints",
        description=(
            "Ask the questions of 'The Spectral Lifecycle of Transformer Training' (arXiv 2604.22778) of\n"
            "training runs and checkpoints."
        ),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    inner = lifecycle.add_subparsers(metavar="COMMAND", required=True)
    for command in (train, phenomena, importance, prune, reproduce, nine_models):
        command.add(inner)
