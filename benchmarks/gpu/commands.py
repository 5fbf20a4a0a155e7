"""The commands ``gpu-report`` and ``cost-model``."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from benchmarks import command_line
from benchmarks.command_line import DTYPES, EXIT_OK, positive
from benchmarks.gpu.chips import CHIPS
from benchmarks.gpu.cost_model import Assumptions
from benchmarks.gpu.cost_tables import Costs, document, markdown
from benchmarks.gpu.device import NoGpuError, cuda_gpu
from benchmarks.gpu.report import measure_report, nine_models, write_report
from benchmarks.machine import gemm_rate, versions
from benchmarks.report import write_json


def add(commands: Any) -> None:
    """Add both to the subparsers of ``python -m benchmarks``."""
    gpu_report = command_line.add_command(
        commands,
        "gpu-report",
        _run_gpu_report,
        help="on a CUDA machine: its tests and every benchmark, as one folder",
        description="Run the tests that need a GPU, then every benchmark of it, and write a report.",
        dtype="float32",
    )
    option = gpu_report.add_argument
    option(
        "--out",
        type=Path,
        default=Path("gpu-report"),
        metavar="FOLDER",
        help="report.json, report.md, pictures",
    )
    option(
        "--max-seconds", type=positive, default=600.0, metavar="S", help="stop after about S seconds (600)"
    )

    cost_model = command_line.add_command(
        commands,
        "cost-model",
        _run_cost_model,
        help="what the GPU pipeline should cost: predicted, on any machine",
        description="Predict flops, bytes, launches and time of each GPU kernel on whole models.",
        exit_codes=None,
    )
    option = cost_model.add_argument
    option("--chip", choices=CHIPS, default="h100")
    option("--dtype", choices=DTYPES, default="float32")
    option("--workspace", type=positive, default=4.0, metavar="GIB", help="memory for matrices in work (4)")
    option("--json", type=Path, metavar="FILE", help="write every kernel of every stack")


def _run_gpu_report(parser: argparse.ArgumentParser, arguments: argparse.Namespace) -> int:
    try:
        gpu = cuda_gpu()
    except NoGpuError as error:
        parser.error(str(error))
    command_line.require_report_folder(parser, arguments.out, "pictures")
    facts = command_line.facts_with_rate(arguments, gpu.device)
    facts["gemm"] = {name: gemm_rate(DTYPES[name], gpu.device) for name in ("float32", "float64")}
    suite = nine_models()
    data = measure_report(
        gpu, facts, seconds=arguments.max_seconds, suite=suite, progress=command_line.progress
    )
    write_report(data, arguments.out)
    print(f"{arguments.out / 'report.md'}: {data['status']}")
    return command_line.report_exit_code(data["status"])


def _run_cost_model(parser: argparse.ArgumentParser, arguments: argparse.Namespace) -> int:
    assume = Assumptions(workspace=arguments.workspace * 2**30)
    costs = Costs(CHIPS[arguments.chip], DTYPES[arguments.dtype], assume)
    if arguments.json is not None:  # whichever machine predicts: it says nothing about one
        facts = {"arguments": command_line.given(arguments), "versions": versions()}
        write_json(arguments.json, document(costs, facts))
    print(markdown(costs))
    return EXIT_OK
