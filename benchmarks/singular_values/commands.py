"""The commands ``svdvals`` and ``stages``."""

from __future__ import annotations

import argparse
from typing import Any

import torch

from benchmarks import command_line
from benchmarks.baselines import BASELINES, DEFAULT_BASELINES
from benchmarks.budget import measure_all
from benchmarks.cases import Case
from benchmarks.command_line import DTYPES, at_least
from benchmarks.machine import gemm_rate
from benchmarks.measure import Setting
from benchmarks.report import document, print_table, summary_line, write_json
from benchmarks.singular_values.stages import (
    SHAPES,
    Rates,
    StagesRow,
    machine_line,
    measure_shapes,
    measure_stages,
    print_stages,
    stages_document,
)
from benchmarks.suites import SUITES, SuiteError, build_suite


def add(commands: Any) -> None:
    """Add both to the subparsers of ``python -m benchmarks``."""
    svdvals = command_line.add_command(
        commands,
        "svdvals",
        _run_svdvals,
        help="singular values: ours against torch and others",
        description="Time svdvals against torch and others, after checking its values.",
    )
    option = svdvals.add_argument
    option("--suite", required=True, choices=SUITES, metavar="NAME", help=", ".join(SUITES))
    option("--device", choices=("cpu", "cuda"), default="cpu")
    option("--embeddings", action="store_true", help="measure embeddings (and untied heads) too")
    option("--max-n", type=at_least(1), metavar="N", help="leave out matrices with a larger dimension")
    option("--layers", type=at_least(1), metavar="N", help="measure N layers of each stack, not all")
    option("--baselines", type=_baselines, metavar="A,B,...", help=f"all, or of: {', '.join(BASELINES)}")
    command_line.add_common(svdvals)

    stages = command_line.add_command(
        commands,
        "stages",
        _run_stages,
        help="singular values on the CPU: each stage against its own bound",
        description="Time the stages of svdvals on the CPU, one matrix at a time, after checking its values.",
    )
    default = ",".join(str(m) if m == n else f"{m}x{n}" for m, n in SHAPES)
    stages.add_argument(
        "--shapes",
        type=_matrices,
        default=SHAPES,
        metavar="M[xN],...",
        help=f"matrices, squares as one size ({default})",
    )
    command_line.add_common(stages)


def _run_svdvals(parser: argparse.ArgumentParser, arguments: argparse.Namespace) -> int:
    device = torch.device(arguments.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: torch sees no CUDA device here; nothing is measured on another instead")
    try:
        cases = build_suite(
            arguments.suite,
            embeddings=arguments.embeddings,
            max_n=arguments.max_n,
            layers=arguments.layers,
        )
    except SuiteError as error:
        parser.error(str(error))
    arguments.baselines = arguments.baselines or DEFAULT_BASELINES[device.type]
    facts = command_line.facts_with_rate(arguments, device)
    setting = Setting(
        DTYPES[arguments.dtype],
        device,
        arguments.threads,
        arguments.baselines,
        arguments.repeats,
        facts["gemm"]["flops_per_second"],
    )
    rows = list(measure_all(cases, setting, arguments.max_seconds, command_line.progress))

    # Before the table: whoever reads that may close the pipe early.
    if arguments.json is not None:
        write_json(arguments.json, document(rows, facts))
    print_table(rows, command_line.console())
    threads = f"{arguments.threads} thread{'s' if arguments.threads > 1 else ''}"
    name = f"{arguments.suite} on {device.type}, {arguments.dtype}, {threads}"
    print(summary_line(name, rows))
    return command_line.exit_code(rows)


def _run_stages(parser: argparse.ArgumentParser, arguments: argparse.Namespace) -> int:
    dtype, threads = DTYPES[arguments.dtype], arguments.threads
    facts = command_line.facts_with_rate(arguments, torch.device("cpu"))
    rates = Rates(gemm=facts["gemm"]["flops_per_second"])

    def measured(case: Case) -> StagesRow:
        rates.sample(threads, lambda: gemm_rate(dtype, torch.device("cpu")))
        return measure_stages(case, dtype, threads, arguments.repeats)

    rows = list(measure_shapes(arguments.shapes, measured, arguments.max_seconds, command_line.progress))
    rates.sample(threads, lambda: gemm_rate(dtype, torch.device("cpu")))
    facts["gemm"]["flops_per_second"] = rates.gemm
    if arguments.json is not None:
        write_json(arguments.json, stages_document(rows, rates, facts))
    print(machine_line(facts, rates, threads))
    print_stages(rows, rates, command_line.console())
    return command_line.exit_code(rows)


def _baselines(text: str) -> tuple[str, ...]:
    given = command_line.names("baseline", (*BASELINES, "all"))(text)
    return tuple(BASELINES) if "all" in given else given


def _matrices(text: str) -> tuple[tuple[int, ...], ...]:
    shapes = command_line.shapes(text)
    if any(len(shape) > 2 for shape in shapes):
        raise argparse.ArgumentTypeError(f"{text!r} has a stack: one matrix at a time, N or MxN")
    return shapes
