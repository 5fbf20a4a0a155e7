"""``spectral-fast lifecycle importance``: what each block is worth, and whether alpha tells."""

from __future__ import annotations

import argparse
import math
from typing import TYPE_CHECKING

from spectral_fast.lifecycle.commands.failure import failed
from spectral_fast.lifecycle.commands.subject import (
    EXIT_CODES,
    Subject,
    add_arguments,
    opened,
    save_figure,
    write_results,
)
from spectral_fast.lifecycle.commands.tables import number, print_columns

if TYPE_CHECKING:
    from spectral_fast.lifecycle.importance import Importance


def add(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser(
        "importance",
        help="the perplexity each block is worth, and its rank correlation with alpha",
        description=(
            "Take each block out of a language model in turn (the residual stream passes it by), evaluate\n"
            "the perplexity on held-out text, and correlate what is lost with each of the three exponents\n"
            "of the block's spectra. Writes importance.json and importance.png; what was evaluated is kept\n"
            "beside them, for an interrupted run and for the command prune."
        ),
        epilog=EXIT_CODES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_arguments(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    try:
        with opened(arguments) as subject:
            _measure(subject)
    except (ValueError, OSError, ImportError) as error:
        return failed(error)
    return 0


def _measure(subject: Subject) -> None:
    importance = subject.importance()
    print_importance(importance)
    write_results(subject.out, "importance.json", {**subject.about(), **importance.to_json()})
    from matplotlib.figure import Figure

    from spectral_fast.lifecycle.figures.importance import draw_correlation, draw_importance

    figure = Figure(figsize=(11, 8), layout="constrained")
    over_depth, *others = figure.subplots(2, 2).flat
    draw_importance(importance, over_depth)
    for exponent, axes in zip(importance.alphas, others, strict=True):
        draw_correlation(importance, exponent, axes)
    save_figure(figure, subject.out, "importance.png")


def print_importance(importance: Importance) -> None:
    """One line a block, then one line a correlation."""
    print(f"perplexity {math.exp(importance.loss):.4g} ({importance.loss:.4f} nats a token)")
    rows = [
        [
            *(str(block), f"{importance.importance[block]:.4f}", f"{importance.error[block]:.4f}"),
            *(number(importance.alphas[name][block]) for name in importance.alphas),
        ]
        for block in range(importance.depth)
    ]
    print_columns(["block", "Δ ln PPL", "± error", *importance.alphas], rows, left=0)
    print()
    rows = [
        [name, f"{found.rho:.3f}", number(found.low), number(found.high), number(found.p_value)]
        for name, found in importance.correlations.items()
    ]
    print_columns(["importance with", "ρ", "95 % from", "to", "p"], rows)
