"""The commands ``stats``, ``tail`` and ``weightwatcher``."""

from __future__ import annotations

import argparse
from typing import Any

import torch

from benchmarks import command_line
from benchmarks.command_line import DTYPES, at_least, positive, sizes
from benchmarks.report import write_json
from benchmarks.statistics.parts import LEAST_N, PARTS, build_run, measure_run, print_run, stats_document
from benchmarks.statistics.tail import SIZES, measure_tail, print_tail, tail_document
from benchmarks.statistics.weightwatcher import (
    MODELS,
    build_model,
    compare,
    comparison_document,
    print_comparison,
)
from benchmarks.suites import SuiteError


def add(commands: Any) -> None:
    """Add the three to the subparsers of ``python -m benchmarks``."""
    stats = command_line.add_command(
        commands,
        "stats",
        _run_stats,
        help="statistics of a spectrum: ours against weightwatcher, powerlaw and the singular values' time",
        description="Time the power-law fit, all statistics and the bootstrap, after checking their values.",
    )
    option = stats.add_argument
    parts = command_line.names("part", PARTS)
    option("--parts", type=parts, default=PARTS, metavar="A,B,...", help=", ".join(PARTS))
    option(
        "--n", type=sizes(LEAST_N), metavar="N,...", help="values of a spectrum, in every part (by the part)"
    )
    command_line.add_common(stats)
    # The peers have one thread. The bootstrap takes all cores: its samples are independent.
    stats.set_defaults(threads=1)

    tail = command_line.add_command(
        commands,
        "tail",
        _run_tail,
        help="estimates from a few products: ours against all singular values, ours and torch's",
        description="Time tail_stats, after holding its estimates to their targets.",
        dtype="float32",
    )
    option = tail.add_argument
    option("--n", type=sizes(LEAST_N), default=SIZES, metavar="N,...", help="columns of the squares")
    option("--max-seconds", type=positive, metavar="S", help="stop measuring after S seconds")
    command_line.add_run(tail)

    weightwatcher = command_line.add_command(
        commands,
        "weightwatcher",
        _run_weightwatcher,
        help="WeightWatcher's analyze() on a whole model: with ours against its own",
        description="Time WeightWatcher's analyze(), with ours against its own, after comparing the tables.",
        dtype="float64",  # what it computes in
    )
    option = weightwatcher.add_argument
    option("--model", choices=MODELS, default=MODELS[0], help="random or trained weights")
    option("--layers", type=at_least(1), metavar="N", help="analyze the first N layers of the model, not all")
    option("--randomize", action="store_true", help="analyze(randomize=True), with fits of the noise bulk")
    command_line.add_run(weightwatcher)


def _run_stats(parser: argparse.ArgumentParser, arguments: argparse.Namespace) -> int:
    facts = command_line.facts_with_rate(arguments, torch.device("cpu"))
    run = build_run(arguments.parts, arguments.n, DTYPES[arguments.dtype], arguments.threads)
    measure_run(run, arguments.repeats, arguments.max_seconds, command_line.progress)
    if arguments.json is not None:
        write_json(arguments.json, stats_document(run, facts))
    print_run(run, command_line.console())
    return command_line.exit_code(run.rows)


def _run_tail(parser: argparse.ArgumentParser, arguments: argparse.Namespace) -> int:
    facts = command_line.facts_with_rate(arguments, torch.device("cpu"))
    rows = measure_tail(
        arguments.n, arguments.threads, arguments.repeats, arguments.max_seconds, command_line.progress
    )
    if arguments.json is not None:
        write_json(arguments.json, tail_document(rows, facts))
    print_tail(rows, command_line.console())
    return command_line.exit_code(rows)


def _run_weightwatcher(parser: argparse.ArgumentParser, arguments: argparse.Namespace) -> int:
    try:
        model = build_model(arguments.model, arguments.layers)
    except SuiteError as error:
        parser.error(str(error))
    facts = command_line.facts_with_rate(arguments, torch.device("cpu"))
    found = compare(
        arguments.model,
        model,
        threads=arguments.threads,
        repeats=arguments.repeats,
        randomize=arguments.randomize,
    )
    if arguments.json is not None:
        write_json(arguments.json, comparison_document(found, facts))
    print_comparison(found, command_line.console())
    return command_line.exit_code([found])
