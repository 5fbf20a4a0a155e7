"""``spectral-fast lifecycle prune``: blocks taken out in the order of alpha, and in others."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from spectral_fast.arguments import positive
from spectral_fast.lifecycle.commands.failure import failed
from spectral_fast.lifecycle.commands.importance import print_importance
from spectral_fast.lifecycle.commands.subject import (
    EXIT_CODES,
    Subject,
    add_arguments,
    opened,
    progress_line,
    save_figure,
    write_results,
)
from spectral_fast.lifecycle.commands.tables import number, print_columns

if TYPE_CHECKING:
    from spectral_fast.lifecycle.pruning import Pruning, Ratio


def add(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser(
        "prune",
        help="perplexity over the number of blocks removed: in the order of alpha, last first, random, ...",
        description=(
            "Take more and more blocks out of a language model, in the order of each exponent (with the\n"
            "first and the last block protected, and not), from the end, from the start, at random, and in\n"
            "the order of measured importance; evaluate the perplexity on held-out text. Writes\n"
            "pruning.json and pruning.png; what was evaluated is kept beside them, for a run that is\n"
            "interrupted."
        ),
        epilog=EXIT_CODES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_arguments(parser)
    parser.add_argument("--most", metavar="K", type=positive, help="blocks to remove at most (half of them)")
    parser.add_argument("--seeds", metavar="N", type=positive, default=20, help="random orders (20)")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    try:
        with opened(arguments) as subject:
            _measure(subject, arguments.most, arguments.seeds)
    except (ValueError, OSError, ImportError) as error:
        return failed(error)
    return 0


def _measure(subject: Subject, most: int | None, seeds: int) -> None:
    from spectral_fast.lifecycle.pruning import measure_pruning

    importance = subject.importance()
    pruning = measure_pruning(
        subject.decoder,
        subject.text,
        importance,
        subject.evaluations,
        most=most,
        seeds=seeds,
        progress=progress_line("sets of blocks"),
    )
    print_importance(importance)
    print()
    print_pruning(pruning)
    write_results(subject.out, "pruning.json", {**subject.about(), **pruning.to_json()})
    from matplotlib.figure import Figure

    from spectral_fast.lifecycle.figures.pruning import draw_pruning

    figure = Figure(figsize=(15, 6.5), layout="constrained")
    for exponent, axes in zip(importance.alphas, figure.subplots(1, 3, sharey=True), strict=True):
        draw_pruning(pruning, exponent, axes)
    save_figure(figure, subject.out, "pruning.png")


def print_pruning(pruning: Pruning) -> None:
    """Delta perplexity by order and number of blocks, then what the orders are to each other."""
    from spectral_fast.lifecycle.pruning import QUANTILES

    counts = [str(count) for count in range(1, pruning.most + 1)]
    print(f"Δ perplexity over {pruning.perplexity:.4g}, by blocks removed")
    rows = []
    for name, curve in pruning.curves.items():
        if name.startswith("random"):
            low, median, high = (curve.quantiles[QUANTILES.index(q)] for q in (0.05, 0.5, 0.95))
            lines = {"mean": curve.mean, "5 %": low, "median": median, "95 %": high}
            rows += [[f"{name}, {what}", *map(number, line)] for what, line in lines.items()]
        else:
            rows.append([name, *map(number, curve.delta[0])])
    print_columns(["order", *counts], rows)
    print("\nratios of Δ perplexity, with 95 % intervals over the text; p of a random order doing as well")
    rows = []
    for name, ratio in pruning.last_over.items():
        rows.append([f"last-n / {name}", *_intervals(ratio)])
        rows.append([f"  p, {name}", *map(number, pruning.p_random[name])])
    rows.append(["worst / best", *_intervals(pruning.worst_over_best)])
    print_columns(["", *counts], rows)


def _intervals(ratio: Ratio) -> list[str]:
    return [
        "" if value != value else f"{number(value)} [{number(low)}, {number(high)}]"
        for value, low, high in zip(ratio.value, ratio.low, ratio.high, strict=True)
    ]
