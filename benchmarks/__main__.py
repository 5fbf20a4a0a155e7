"""``python -m benchmarks``: one command a benchmark. Arguments, one run, exit codes."""

from __future__ import annotations

import argparse
import importlib.util
import os
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

import spectral_fast
from benchmarks import commands_all, commands_regress
from benchmarks.baselines import BASELINES, DEFAULT_BASELINES
from benchmarks.budget import INTERRUPTED, measure_all
from benchmarks.cases import Case
from benchmarks.cost_model import Assumptions
from benchmarks.cost_tables import Costs
from benchmarks.cost_tables import document as cost_document
from benchmarks.cost_tables import markdown as cost_markdown
from benchmarks.gpu_chips import CHIPS
from benchmarks.gpu_device import NoGpuError, cuda_gpu
from benchmarks.gpu_report import measure_report, nine_models, write_report
from benchmarks.import_time import LEAST_PAIRS, import_document, import_text, measure_import
from benchmarks.lifecycle_cost import (
    STEP_TOKENS,
    lifecycle_document,
    lifecycle_markdown,
    measure_lifecycle,
    model_costs,
)
from benchmarks.machine import GEMM_SIZE, gemm_rate, machine, versions
from benchmarks.measure import Row, Setting
from benchmarks.monitor import MonitorRun, measure_monitor, monitor_document, print_monitor
from benchmarks.report import document, print_table, summary_line, write_json
from benchmarks.stages import (
    SHAPES,
    Rates,
    StagesRow,
    machine_line,
    measure_shapes,
    measure_stages,
    print_stages,
    stages_document,
)
from benchmarks.stats import LEAST_N, PARTS, build_run, measure_run, print_run, stats_document
from benchmarks.stats_row import StatsRow
from benchmarks.suites import SUITES, SuiteError, build_suite
from benchmarks.tail import SIZES as TAIL_SIZES
from benchmarks.tail import measure_tail, print_tail, tail_document
from benchmarks.timing import REPEATS_LEAST
from benchmarks.tracking import TrackingRun, measure_tracking, print_tracking, tracking_document
from benchmarks.weightwatcher import MODELS as WW_MODELS
from benchmarks.weightwatcher import Comparison, build_model, compare, comparison_document, print_comparison
from examples.train_gpt import Size

DTYPES = {"float32": torch.float32, "float64": torch.float64, "bfloat16": torch.bfloat16}

EXIT_OK, EXIT_FAILED, EXIT_USAGE, EXIT_INTERRUPTED = 0, 1, 2, 130
_EXIT_CODES = """\
exit codes:
  0    every row is there; some may lack memory or time, and baselines may have failed
  1    a row of ours failed: wrong values (its times are not printed) or an error
  2    bad usage, no such device, or a suite whose weights are not installed
  130  interrupted; what was measured is printed and written
"""
# rich would fold the table into the 80 columns it assumes of a pipe.
_PIPE_WIDTH = 170


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
    facts = _facts(arguments, device)
    setting = Setting(
        DTYPES[arguments.dtype],
        device,
        arguments.threads,
        arguments.baselines,
        arguments.repeats,
        facts["gemm"]["flops_per_second"],
    )
    rows = list(measure_all(cases, setting, arguments.max_seconds, _progress))

    # Before the table: whoever reads that may close the pipe early.
    if arguments.json is not None:
        write_json(arguments.json, document(rows, facts))
    print_table(rows, _console())
    threads = f"{arguments.threads} thread{'s' if arguments.threads > 1 else ''}"
    name = f"{arguments.suite} on {device.type}, {arguments.dtype}, {threads}"
    print(summary_line(name, rows))
    return _exit_code(rows)


def _run_stats(parser: argparse.ArgumentParser, arguments: argparse.Namespace) -> int:
    facts = _facts(arguments, torch.device("cpu"))
    run = build_run(arguments.parts, arguments.n, DTYPES[arguments.dtype], arguments.threads)
    measure_run(run, arguments.repeats, arguments.max_seconds, _progress)
    if arguments.json is not None:
        write_json(arguments.json, stats_document(run, facts))
    print_run(run, _console())
    return _exit_code(run.rows)


def _run_stages(parser: argparse.ArgumentParser, arguments: argparse.Namespace) -> int:
    dtype, threads = DTYPES[arguments.dtype], arguments.threads
    facts = _facts(arguments, torch.device("cpu"))
    rates = Rates(gemm=facts["gemm"]["flops_per_second"])

    def measured(case: Case) -> StagesRow:
        rates.sample(threads, lambda: gemm_rate(dtype, torch.device("cpu")))
        return measure_stages(case, dtype, threads, arguments.repeats)

    rows = list(measure_shapes(arguments.shapes, measured, arguments.max_seconds, _progress))
    rates.sample(threads, lambda: gemm_rate(dtype, torch.device("cpu")))
    facts["gemm"]["flops_per_second"] = rates.gemm
    if arguments.json is not None:
        write_json(arguments.json, stages_document(rows, rates, facts))
    print(machine_line(facts, rates, threads))
    print_stages(rows, rates, _console())
    return _exit_code(rows)


def _run_weightwatcher(parser: argparse.ArgumentParser, arguments: argparse.Namespace) -> int:
    try:
        model = build_model(arguments.model, arguments.layers)
    except SuiteError as error:
        parser.error(str(error))
    facts = _facts(arguments, torch.device("cpu"))
    found = compare(
        arguments.model,
        model,
        threads=arguments.threads,
        repeats=arguments.repeats,
        randomize=arguments.randomize,
    )
    if arguments.json is not None:
        write_json(arguments.json, comparison_document(found, facts))
    print_comparison(found, _console())
    return _exit_code([found])


def _run_monitor(parser: argparse.ArgumentParser, arguments: argparse.Namespace) -> int:
    if arguments.steps < 4 * arguments.stretch:
        parser.error("--steps must be at least four times --stretch: two pairs warm up, two are measured")
    if arguments.width % arguments.heads:
        parser.error("--width must be a multiple of --heads")
    facts = _facts(arguments, torch.device("cpu"))
    found = measure_monitor(
        Size(width=arguments.width, heads=arguments.heads, layers=arguments.layers, batch=arguments.batch),
        every=arguments.every,
        track_every=arguments.track_every,
        budget=arguments.budget,
        steps=arguments.steps,
        stretch=arguments.stretch,
        progress=_progress,
    )
    if arguments.json is not None:
        write_json(arguments.json, monitor_document(found, facts))
    print_monitor(found, _console())
    return _exit_code([found])


def _run_tracking(parser: argparse.ArgumentParser, arguments: argparse.Namespace) -> int:
    if arguments.width % arguments.heads:
        parser.error("--width must be a multiple of --heads")
    if arguments.steps < arguments.every:
        parser.error("--steps must be at least --every")
    facts = _facts(arguments, torch.device("cpu"))
    size = {name: getattr(arguments, name) for name in ("width", "heads", "layers", "batch", "context")}
    found = measure_tracking(
        Size(**size),
        lr=arguments.lr,
        steps=arguments.steps,
        every=arguments.every,
        share=arguments.audits,
        progress=_progress,
    )
    if arguments.json is not None:
        write_json(arguments.json, tracking_document(found, facts))
    print_tracking(found, _console())
    return _exit_code([found])


def _run_tail(parser: argparse.ArgumentParser, arguments: argparse.Namespace) -> int:
    facts = _facts(arguments, torch.device("cpu"))
    rows = measure_tail(arguments.n, arguments.threads, arguments.repeats, arguments.max_seconds, _progress)
    if arguments.json is not None:
        write_json(arguments.json, tail_document(rows, facts))
    print_tail(rows, _console())
    return _exit_code(rows)


def _run_cost_model(parser: argparse.ArgumentParser, arguments: argparse.Namespace) -> int:
    assume = Assumptions(workspace=arguments.workspace * 2**30)
    costs = Costs(CHIPS[arguments.chip], DTYPES[arguments.dtype], assume)
    if arguments.json is not None:
        write_json(
            arguments.json, cost_document(costs, {"arguments": _given(arguments), "versions": versions()})
        )
    print(cost_markdown(costs))
    return EXIT_OK


def _run_lifecycle_cost(parser: argparse.ArgumentParser, arguments: argparse.Namespace) -> int:
    facts = _facts(arguments, torch.device("cpu"))
    gemm = facts["gemm"]["flops_per_second"]
    rows = measure_lifecycle(
        arguments.threads, arguments.max_n, arguments.repeats, arguments.max_seconds, _progress
    )
    costs = model_costs(rows, gemm, arguments.tokens)
    if arguments.json is not None:
        write_json(arguments.json, lifecycle_document(rows, costs, arguments.tokens, facts))
    print(lifecycle_markdown(rows, costs, gemm, arguments.tokens))
    return _exit_code(rows)


def _run_import_time(parser: argparse.ArgumentParser, arguments: argparse.Namespace) -> int:
    found = measure_import(arguments.pairs)
    if arguments.json is not None:
        facts = {"arguments": _given(arguments), "machine": machine(), "versions": versions()}
        write_json(arguments.json, import_document(found, facts))
    print(import_text(found))
    return EXIT_FAILED if found.failed else EXIT_OK


def _run_gpu_report(parser: argparse.ArgumentParser, arguments: argparse.Namespace) -> int:
    try:
        gpu = cuda_gpu()
    except NoGpuError as error:
        parser.error(str(error))
    if importlib.util.find_spec("matplotlib") is None:  # after ten minutes would be late
        parser.error("the report's pictures need matplotlib: pip install 'spectral_fast[demo]'")
    try:
        arguments.out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        parser.error(f"--out {arguments.out}: {error.strerror}")
    facts = _facts(arguments, gpu.device)
    facts["gemm"] = {name: gemm_rate(DTYPES[name], gpu.device) for name in ("float32", "float64")}
    suite = nine_models()
    data = measure_report(gpu, facts, seconds=arguments.max_seconds, suite=suite, progress=_progress)
    write_report(data, arguments.out)
    print(f"{arguments.out / 'report.md'}: {data['status']}")
    if data["status"] == INTERRUPTED:
        return EXIT_INTERRUPTED
    return EXIT_OK if data["status"] == "ok" else EXIT_FAILED


def _console() -> Console:
    return Console() if sys.stdout.isatty() else Console(width=_PIPE_WIDTH)


def _exit_code(
    rows: Sequence[Row]
    | Sequence[StagesRow]
    | Sequence[StatsRow]
    | Sequence[Comparison]
    | Sequence[MonitorRun]
    | Sequence[TrackingRun],
) -> int:
    if any(row.failed for row in rows):
        return EXIT_FAILED
    return EXIT_INTERRUPTED if any(row.status.endswith(INTERRUPTED) for row in rows) else EXIT_OK


def _facts(arguments: argparse.Namespace, device: torch.device) -> dict[str, Any]:
    """What a figure of this run depends on."""
    return {
        "date_utc": datetime.now(UTC).isoformat(timespec="seconds"),
        "arguments": _given(arguments),
        "machine": machine(),
        "versions": versions(),
        "capabilities": spectral_fast.capabilities(),
        "gemm": {"n": GEMM_SIZE, "flops_per_second": gemm_rate(DTYPES[arguments.dtype], device)},
    }


def _given(arguments: argparse.Namespace) -> dict[str, Any]:
    """The arguments as plain data; file names stay out."""
    return {name: value for name, value in vars(arguments).items() if name not in ("json", "run", "out")}


def _progress(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description="Benchmarks of spectral_fast.")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    svdvals = commands.add_parser(
        "svdvals",
        help="singular values: ours against torch and others",
        description="Time svdvals against torch and others, after checking its values.",
        epilog=_EXIT_CODES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    svdvals.set_defaults(run=_run_svdvals)
    add = svdvals.add_argument
    add("--suite", required=True, choices=SUITES, metavar="NAME", help=", ".join(SUITES))
    add("--device", choices=("cpu", "cuda"), default="cpu")
    add("--embeddings", action="store_true", help="measure embeddings (and untied heads) too")
    add("--max-n", type=_at_least(1), metavar="N", help="leave out matrices with a larger dimension")
    add("--layers", type=_at_least(1), metavar="N", help="measure N layers of each stack, not all")
    add("--baselines", type=_baselines, metavar="A,B,...", help=f"all, or of: {', '.join(BASELINES)}")
    _add_common(svdvals)
    stats = commands.add_parser(
        "stats",
        help="statistics of a spectrum: ours against weightwatcher, powerlaw and the singular values' time",
        description="Time the power-law fit, all statistics and the bootstrap, after checking their values.",
        epilog=_EXIT_CODES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    stats.set_defaults(run=_run_stats)
    stats.add_argument("--parts", type=_parts, default=PARTS, metavar="A,B,...", help=", ".join(PARTS))
    stats.add_argument(
        "--n", type=_sizes, metavar="N,...", help="values of a spectrum, in every part (by the part)"
    )
    _add_common(stats)
    # The peers have one thread. The bootstrap takes all cores: its samples are independent.
    stats.set_defaults(threads=1)
    stages = commands.add_parser(
        "stages",
        help="singular values on the CPU: each stage against its own bound",
        description="Time the stages of svdvals on the CPU, one matrix at a time, after checking its values.",
        epilog=_EXIT_CODES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    stages.set_defaults(run=_run_stages)
    default = ",".join(map(_shape_text, SHAPES))
    stages.add_argument(
        "--shapes",
        type=_shapes,
        default=SHAPES,
        metavar="M[xN],...",
        help=f"matrices, squares as one size ({default})",
    )
    _add_common(stages)
    weightwatcher = commands.add_parser(
        "weightwatcher",
        help="WeightWatcher's analyze() on a whole model: with ours against its own",
        description="Time WeightWatcher's analyze(), with ours against its own, after comparing the tables.",
        epilog=_EXIT_CODES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    weightwatcher.set_defaults(run=_run_weightwatcher, dtype="float64")  # what it computes in
    add = weightwatcher.add_argument
    add("--model", choices=WW_MODELS, default=WW_MODELS[0], help="random or trained weights")
    add("--layers", type=_at_least(1), metavar="N", help="analyze the first N layers of the model, not all")
    add("--randomize", action="store_true", help="analyze(randomize=True), with fits of the noise bulk")
    _add_run(weightwatcher)
    monitor = commands.add_parser(
        "monitor",
        help="what SpectralMonitor takes of a training run's time, and that it changes no bit of it",
        description="Train the example with the monitor and without, in alternating stretches.",
        epilog=_EXIT_CODES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    monitor.set_defaults(run=_run_monitor, dtype="float32")
    add = monitor.add_argument
    for name in ("width", "heads", "layers", "batch"):
        add(f"--{name}", type=_at_least(1), default=getattr(Size, name), metavar="N", help="of the model")
    add("--steps", type=_at_least(1), default=300, metavar="N", help="of each training (300)")
    add("--stretch", type=_at_least(1), default=25, metavar="N", help="steps at a time (25)")
    add("--every", type=_at_least(1), default=25, metavar="N", help="steps between exact looks (25)")
    add("--track-every", type=_at_least(0), default=1, metavar="N", help="between tracked ones (1)")
    add("--budget", type=_positive, default=0.02, metavar="SHARE", help="of wall time (0.02)")
    add("--threads", type=_at_least(1), metavar="N", help="of the training and the looks (torch's)")
    add("--json", type=Path, metavar="FILE", help="write every stretch")
    tracking = commands.add_parser(
        "tracking",
        help="how well and how fast SpectralTracker follows a training run",
        description="Train the example, track every matrix after every step, and audit at random steps.",
        epilog=_EXIT_CODES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    tracking.set_defaults(run=_run_tracking, dtype="float32")
    add = tracking.add_argument
    for name, size in {"width": 768, "heads": 12, "layers": 2, "batch": 8, "context": 128}.items():
        add(f"--{name}", type=_at_least(1), default=size, metavar="N", help=f"of the model ({size})")
    add("--lr", type=_positive, default=1e-3, metavar="RATE", help="of AdamW, after 50 steps (1e-3)")
    add("--steps", type=_at_least(1), default=500, metavar="N", help="of the training (500)")
    add("--every", type=_at_least(2), default=25, metavar="N", help="steps between exact looks (25)")
    add("--audits", type=_positive, default=0.2, metavar="SHARE", help="of the steps (0.2)")
    add("--threads", type=_at_least(1), metavar="N", help="of the training and the looks (torch's)")
    add("--json", type=Path, metavar="FILE", help="write every audit")
    tail = commands.add_parser(
        "tail",
        help="estimates from a few products: ours against all singular values, ours and torch's",
        description="Time tail_stats, after holding its estimates to their targets.",
        epilog=_EXIT_CODES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    tail.set_defaults(run=_run_tail, dtype="float32")
    tail.add_argument("--n", type=_sizes, default=TAIL_SIZES, metavar="N,...", help="columns of the squares")
    tail.add_argument("--max-seconds", type=_positive, metavar="S", help="stop measuring after S seconds")
    _add_run(tail)
    lifecycle_cost = commands.add_parser(
        "lifecycle-cost",
        help="full spectra every 25 steps at the nine sizes: ours against torch in a loop, share of a step",
        description="Time a look at each of the nine sizes, shape by shape, after checking its values.",
        epilog=_EXIT_CODES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    lifecycle_cost.set_defaults(run=_run_lifecycle_cost, dtype="float32")
    add = lifecycle_cost.add_argument
    add("--max-n", type=_at_least(1), metavar="N", help="leave out shapes with a larger dimension")
    add("--tokens", type=_at_least(1), default=STEP_TOKENS, metavar="N", help=f"of a step ({STEP_TOKENS})")
    add("--max-seconds", type=_positive, metavar="S", help="stop measuring after S seconds")
    _add_run(lifecycle_cost)
    cost_model = commands.add_parser(
        "cost-model",
        help="what the GPU pipeline should cost: predicted, on any machine",
        description="Predict flops, bytes, launches and time of each GPU kernel on whole models.",
    )
    cost_model.set_defaults(run=_run_cost_model, threads=None)
    add = cost_model.add_argument
    add("--chip", choices=CHIPS, default="h100")
    add("--dtype", choices=DTYPES, default="float32")
    add("--workspace", type=_positive, default=4.0, metavar="GIB", help="memory for matrices in work (4)")
    add("--json", type=Path, metavar="FILE", help="write every kernel of every stack")
    import_time = commands.add_parser(
        "import-time",
        help="what `import spectral_fast` takes beyond `import torch`",
        description="Time both imports in fresh interpreters, alternating. Exit code 1: above 50 ms.",
    )
    import_time.set_defaults(run=_run_import_time, threads=None)
    add = import_time.add_argument
    add("--pairs", type=_at_least(LEAST_PAIRS), default=LEAST_PAIRS, metavar="N", help="of interpreters (15)")
    add("--json", type=Path, metavar="FILE", help="write every sample")
    commands_regress.add(commands)
    gpu_report = commands.add_parser(
        "gpu-report",
        help="on a CUDA machine: its tests and every benchmark, as one folder",
        description="Run the tests that need a GPU, then every benchmark of it, and write a report.",
        epilog=_EXIT_CODES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    gpu_report.set_defaults(run=_run_gpu_report, dtype="float32", threads=None, json=None)
    add = gpu_report.add_argument
    add(
        "--out",
        type=Path,
        default=Path("gpu-report"),
        metavar="FOLDER",
        help="report.json, report.md, pictures",
    )
    add("--max-seconds", type=_positive, default=600.0, metavar="S", help="stop after about S seconds (600)")
    commands_all.add(commands, _positive)
    return parser


def _add_common(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--dtype", choices=DTYPES, default="float32")
    add("--max-seconds", type=_positive, metavar="S", help="stop measuring after about S seconds")
    _add_run(parser)


def _add_run(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--threads", type=_at_least(1), metavar="N", help="of ours and of torch's all (torch's number)")
    add("--repeats", type=_at_least(REPEATS_LEAST), metavar="N", help="samples a method (by its time)")
    add("--json", type=Path, metavar="FILE", help="write every sample and what it depends on")


def _shape_text(shape: tuple[int, int]) -> str:
    m, n = shape
    return str(m) if m == n else f"{m}x{n}"


def _shapes(text: str) -> tuple[tuple[int, int], ...]:
    size = _at_least(1)
    shapes = []
    for one in text.split(","):
        m, by, n = one.partition("x")
        shapes.append((size(m), size(n if by else m)))
    return tuple(dict.fromkeys(shapes))


def _parts(text: str) -> tuple[str, ...]:
    names = tuple(dict.fromkeys(text.split(",")))
    if unknown := [name for name in names if name not in PARTS]:
        raise argparse.ArgumentTypeError(f"no part is called {unknown[0]!r}: choose from {', '.join(PARTS)}")
    return names


def _sizes(text: str) -> tuple[int, ...]:
    size = _at_least(LEAST_N)
    return tuple(dict.fromkeys(size(one) for one in text.split(",")))


def _at_least(least: int) -> Any:
    def convert(text: str) -> int:
        if not text.isdecimal() or int(text) < least:
            raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least {least}")
        return int(text)

    return convert


def _positive(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is not a positive number")
    return value


def _baselines(text: str) -> tuple[str, ...]:
    if text == "all":
        return tuple(BASELINES)
    names = tuple(dict.fromkeys(text.split(",")))
    if unknown := [name for name in names if name not in BASELINES]:
        raise argparse.ArgumentTypeError(
            f"no baseline is called {unknown[0]!r}: choose from {', '.join(BASELINES)}, or all"
        )
    return names


if __name__ == "__main__":
    sys.exit(main())
