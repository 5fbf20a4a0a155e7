"""The commands ``monitor``, ``tracking`` and ``lifecycle-cost``."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch

from benchmarks import command_line
from benchmarks.command_line import at_least, positive
from benchmarks.report import write_json
from benchmarks.training.lifecycle_cost import (
    STEP_TOKENS,
    lifecycle_document,
    lifecycle_markdown,
    measure_lifecycle,
    model_costs,
)
from benchmarks.training.monitor import measure_monitor, monitor_document, print_monitor
from benchmarks.training.tracking import measure_tracking, print_tracking, tracking_document
from examples.train_gpt import Size


def add(commands: Any) -> None:
    """Add the three to the subparsers of ``python -m benchmarks``."""
    monitor = command_line.add_command(
        commands,
        "monitor",
        _run_monitor,
        help="what SpectralMonitor takes of a training run's time, and that it changes no bit of it",
        description="Train the example with the monitor and without, in alternating stretches.",
        dtype="float32",
    )
    option = monitor.add_argument
    for name in ("width", "heads", "layers", "batch"):
        option(f"--{name}", type=at_least(1), default=getattr(Size, name), metavar="N", help="of the model")
    option("--steps", type=at_least(1), default=300, metavar="N", help="of each training (300)")
    option("--stretch", type=at_least(1), default=25, metavar="N", help="steps at a time (25)")
    option("--every", type=at_least(1), default=25, metavar="N", help="steps between exact looks (25)")
    option("--track-every", type=at_least(0), default=1, metavar="N", help="between tracked ones (1)")
    option("--budget", type=positive, default=0.02, metavar="SHARE", help="of wall time (0.02)")
    option("--threads", type=at_least(1), metavar="N", help="of the training and the looks (torch's)")
    option("--json", type=Path, metavar="FILE", help="write every stretch")

    tracking = command_line.add_command(
        commands,
        "tracking",
        _run_tracking,
        help="how well and how fast SpectralTracker follows a training run",
        description="Train the example, track every matrix after every step, and audit at random steps.",
        dtype="float32",
    )
    option = tracking.add_argument
    for name, size in {"width": 768, "heads": 12, "layers": 2, "batch": 8, "context": 128}.items():
        option(f"--{name}", type=at_least(1), default=size, metavar="N", help=f"of the model ({size})")
    option("--lr", type=positive, default=1e-3, metavar="RATE", help="of AdamW, after 50 steps (1e-3)")
    option("--steps", type=at_least(1), default=500, metavar="N", help="of the training (500)")
    option("--every", type=at_least(2), default=25, metavar="N", help="steps between exact looks (25)")
    option("--audits", type=positive, default=0.2, metavar="SHARE", help="of the steps (0.2)")
    option("--threads", type=at_least(1), metavar="N", help="of the training and the looks (torch's)")
    option("--json", type=Path, metavar="FILE", help="write every audit")

    lifecycle_cost = command_line.add_command(
        commands,
        "lifecycle-cost",
        _run_lifecycle_cost,
        help="full spectra every 25 steps at the nine sizes: ours against torch in a loop, share of a step",
        description="Time a look at each of the nine sizes, shape by shape, after checking its values.",
        dtype="float32",
    )
    option = lifecycle_cost.add_argument
    option("--max-n", type=at_least(1), metavar="N", help="leave out shapes with a larger dimension")
    option("--tokens", type=at_least(1), default=STEP_TOKENS, metavar="N", help=f"of a step ({STEP_TOKENS})")
    option("--max-seconds", type=positive, metavar="S", help="stop measuring after S seconds")
    command_line.add_run(lifecycle_cost)


def _run_monitor(parser: argparse.ArgumentParser, arguments: argparse.Namespace) -> int:
    if arguments.steps < 4 * arguments.stretch:
        parser.error("--steps must be at least four times --stretch: two pairs warm up, two are measured")
    if arguments.width % arguments.heads:
        parser.error("--width must be a multiple of --heads")
    facts = command_line.facts_with_rate(arguments, torch.device("cpu"))
    found = measure_monitor(
        Size(width=arguments.width, heads=arguments.heads, layers=arguments.layers, batch=arguments.batch),
        every=arguments.every,
        track_every=arguments.track_every,
        budget=arguments.budget,
        steps=arguments.steps,
        stretch=arguments.stretch,
        progress=command_line.progress,
    )
    if arguments.json is not None:
        write_json(arguments.json, monitor_document(found, facts))
    print_monitor(found, command_line.console())
    return command_line.exit_code([found])


def _run_tracking(parser: argparse.ArgumentParser, arguments: argparse.Namespace) -> int:
    if arguments.width % arguments.heads:
        parser.error("--width must be a multiple of --heads")
    if arguments.steps < arguments.every:
        parser.error("--steps must be at least --every")
    facts = command_line.facts_with_rate(arguments, torch.device("cpu"))
    size = {name: getattr(arguments, name) for name in ("width", "heads", "layers", "batch", "context")}
    found = measure_tracking(
        Size(**size),
        lr=arguments.lr,
        steps=arguments.steps,
        every=arguments.every,
        share=arguments.audits,
        progress=command_line.progress,
    )
    if arguments.json is not None:
        write_json(arguments.json, tracking_document(found, facts))
    print_tracking(found, command_line.console())
    return command_line.exit_code([found])


def _run_lifecycle_cost(parser: argparse.ArgumentParser, arguments: argparse.Namespace) -> int:
    facts = command_line.facts_with_rate(arguments, torch.device("cpu"))
    gemm = facts["gemm"]["flops_per_second"]
    rows = measure_lifecycle(
        arguments.threads, arguments.max_n, arguments.repeats, arguments.max_seconds, command_line.progress
    )
    costs = model_costs(rows, gemm, arguments.tokens)
    if arguments.json is not None:
        write_json(arguments.json, lifecycle_document(rows, costs, arguments.tokens, facts))
    print(lifecycle_markdown(rows, costs, gemm, arguments.tokens))
    return command_line.exit_code(rows)
