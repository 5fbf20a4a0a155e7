"""The command ``spectral-fast``: a checkpoint's spectra as a table, a monitored run as a page, lifecycles."""

import argparse
import importlib.util
import os
import platform
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch

import spectral_fast
from spectral_fast.analyze import Row, analyze_matrix, select
from spectral_fast.arguments import device_of, positive
from spectral_fast.compare import Comparison, compare, verdict
from spectral_fast.export import Results, write_atomically, write_csv, write_json, write_parquet
from spectral_fast.heuristics import DRIVERS, TORCH_DRIVERS, available_drivers
from spectral_fast.lifecycle import cli as lifecycle
from spectral_fast.models import Checkpoint, CheckpointError, WeightMatrix, open_checkpoint
from spectral_fast.plots import PICTURE_SUFFIXES, save_picture
from spectral_fast.report import encodable, print_notes, print_table

_EXIT_CODES = """\
exit codes:
  0    all matrices were analysed
  1    some weights could not be analysed (they are listed, the others are in the table), or
       --compare found an error beyond the accuracy bound
  2    bad usage, or a file that cannot be read or written
  130  interrupted (Ctrl-C); table and files hold the matrices that were finished
"""
_REPORT_EXIT_CODES = """\
exit codes:
  0    the page and the pictures were written
  2    bad usage, no run, no look in it yet, or files that cannot be read or written
  130  interrupted (Ctrl-C)
"""
_INTERRUPTED = 130  # 128 + SIGINT, as shells have it


class _CommandError(Exception):
    """A request that cannot be carried out: exit code 2."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code (see ``--help`` of each command).

    Args:
        argv: the arguments after the program's name; None takes them from the process.

    Raises:
        SystemExit: from argparse, with code 2 for bad usage and 0 for --help and --version.
    """
    arguments = _parser().parse_args(argv)
    try:
        code: int = arguments.run(arguments)
        sys.stdout.flush()
        return code
    except (CheckpointError, _CommandError) as error:
        print(f"spectral-fast: error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:  # for analyze: before the first matrix, or while the results are written
        print("spectral-fast: interrupted", file=sys.stderr)
        return _INTERRUPTED
    except BrokenPipeError:
        # The reader of the table, such as head, has seen enough; keep the interpreter from
        # flushing into the closed pipe once more.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="spectral-fast",
        description="Singular-value spectra of neural-network weights.",
    )
    parser.add_argument("--version", action="version", version=f"spectral-fast {spectral_fast.__version__}")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    _add_analyze(commands)
    _add_report(commands)
    lifecycle.add(commands)
    return parser


def _add_analyze(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    analyze = commands.add_parser(
        "analyze",
        help="list the spectral statistics of every weight matrix of a checkpoint",
        description=(
            "List the spectral statistics of every weight matrix of a checkpoint: the largest\n"
            "singular value sigma_1, the stable rank (sum of sigma^2) / sigma_1^2, the power-law\n"
            "exponent alpha of the density of sigma^2 in its tail with its standard error, the\n"
            "Kolmogorov-Smirnov distance of that fit, and the number of values in the tail.\n"
            "Fused attention and MLP weights are split where the model's layout is known."
        ),
        epilog=_EXIT_CODES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    analyze.add_argument(
        "path",
        metavar="PATH",
        type=Path,
        help="a Hugging Face folder, .safetensors or .index.json file, PyTorch checkpoint or .npy array",
    )
    analyze.add_argument("--csv", metavar="FILE", type=Path, help="write all statistics, one row a matrix")
    analyze.add_argument(
        "--json", metavar="FILE", type=Path, help="write all statistics and how they were computed"
    )
    analyze.add_argument(
        "--parquet", metavar="FILE", type=Path, help="write the same as a Parquet table (needs pyarrow)"
    )
    analyze.add_argument(
        "--plot",
        metavar="FILE",
        type=Path,
        help=f"draw spectra and statistics over depth ({', '.join(PICTURE_SUFFIXES)}; needs matplotlib)",
    )
    analyze.add_argument("--embeddings", action="store_true", help="analyse embeddings, pooler and head too")
    drivers = f"{', '.join(available_drivers('cpu'))}, or on CUDA {', '.join(TORCH_DRIVERS)}"
    analyze.add_argument("--driver", metavar="NAME", help=f"how: {drivers}")
    analyze.add_argument(
        "--device", metavar="DEVICE", default="cpu", help="where: cpu (default), cuda, cuda:1, ..."
    )
    analyze.add_argument("--threads", metavar="N", type=positive, help="CPU threads to use")
    analyze.add_argument(
        "--compare",
        action="store_true",
        help="time torch.linalg.svdvals on the same matrices and compare the errors (CPU only)",
    )
    analyze.set_defaults(run=_analyze)


def _add_report(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    report = commands.add_parser(
        "report",
        help="draw a monitored training run as one page and pictures",
        description=(
            "Draw a run that SpectralMonitor wrote with a ParquetSink, finished or not: heat maps of the\n"
            "stable rank and of each alpha over layers and steps, spectra over time, sigma_1 over steps,\n"
            "what looking cost, and estimates against the exact values that followed. Writes report.html,\n"
            "which needs no other file and no network, and the pictures as PNG files."
        ),
        epilog=_REPORT_EXIT_CODES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    report.add_argument("path", metavar="RUN", type=Path, help="the directory of the ParquetSink")
    report.add_argument("--out", metavar="DIR", type=Path, help="where the files go (default: RUN-report)")
    report.set_defaults(run=_report)


@contextmanager
def _threads(number: int | None) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(number or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _report(arguments: argparse.Namespace) -> int:
    run = arguments.path.resolve()
    out = arguments.out or run.with_name(f"{run.name}-report")
    _check_installed("report", pyarrow="parquet", matplotlib="demo")
    if out.exists() and not out.is_dir():
        raise _CommandError(f"{out}: is a file; give a directory to --out")
    if out.resolve() == run or run in out.resolve().parents:
        raise _CommandError(f"{out}: is in the run, which holds Parquet files only; give another --out")
    from spectral_fast.monitor.parquet import RunError
    from spectral_fast.monitor.report import write_report

    try:
        written = write_report(run, out)
    except RunError as error:
        raise _CommandError(str(error)) from error
    except OSError as error:
        raise _CommandError(f"{error.filename or out}: {error.strerror or error}") from error
    for file in written:
        print(f"wrote {encodable(str(file))}")
    return 0


def _analyze(arguments: argparse.Namespace) -> int:
    with _threads(arguments.threads):
        return _analyzed(arguments)


def _analyzed(arguments: argparse.Namespace) -> int:
    device = _device(arguments.device)
    _check_driver(arguments.driver, device)
    if arguments.compare and device.type != "cpu":
        raise _CommandError("--compare times the CPU only; leave out --device or --compare")
    _check_outputs(arguments)
    checkpoint = open_checkpoint(arguments.path)
    for warning in checkpoint.warnings:
        print(f"spectral-fast: warning: {warning}", file=sys.stderr)
    found = checkpoint.matrices()
    pending = select(found, embeddings=arguments.embeddings)
    if not pending:
        raise CheckpointError(
            checkpoint.path, "holds embeddings, poolers and heads only", "Give --embeddings to analyse them"
        )
    if arguments.plot is not None and all(matrix.layer is None for matrix in pending):
        raise _CommandError(
            "--plot draws the spectra over depth, but no matrix has a layer number in its name"
        )

    rows: list[Row] = []
    comparisons: list[Comparison] = []
    try:
        _run(arguments, device, pending, rows, comparisons)
    except KeyboardInterrupt:
        interrupted = True
    else:
        interrupted = False

    # Files first, so that a reader who closes the pipe still gets them; the report in any case.
    run = _description(arguments, checkpoint, complete=not interrupted)
    messages: list[str] = []
    try:
        _write_files(arguments, Results(run, rows, found.skipped), messages)
    finally:
        print_table(rows)
        if interrupted:
            print(f"interrupted: {len(rows)} of {_count(len(pending), 'matrix', 'matrices')} analysed")
        left_out = len(found) - len(pending)
        if left_out:
            print(
                f"{_count(left_out, 'matrix', 'matrices')} outside the layers left out "
                "(embeddings, pooler, head); see --embeddings"
            )
        print_notes(rows, found.skipped)
        accurate = True
        if arguments.compare:
            line, accurate = verdict(comparisons)
            print(line)
        for message in messages:
            print(message)
    if interrupted:
        return _INTERRUPTED
    return 0 if accurate and not found.skipped and all(row.statistics is not None for row in rows) else 1


def _run(
    arguments: argparse.Namespace,
    device: torch.device,
    pending: list[WeightMatrix],
    rows: list[Row],
    comparisons: list[Comparison],
) -> None:
    """Append to rows and comparisons matrix by matrix, so that an interruption leaves what is finished."""
    keep = arguments.plot is not None
    # A progress bar redraws from a thread of its own, which would disturb the timing.
    for matrix in pending if arguments.compare else _with_progress(pending):
        row = analyze_matrix(matrix, device=device, driver=arguments.driver, keep_spectrum=keep)
        rows.append(row)
        if arguments.compare and row.statistics is not None:
            first = len(comparisons) % 2 == 0
            comparisons.append(compare(matrix.name, matrix.tensor, driver=arguments.driver, ours_first=first))


def _device(text: str) -> torch.device:
    try:
        return device_of(text)
    except ValueError as error:
        raise _CommandError(str(error)) from error


def _check_driver(driver: str | None, device: torch.device) -> None:
    available = available_drivers(device.type)
    if driver is not None and driver not in available:
        unknown = driver not in DRIVERS + TORCH_DRIVERS
        problem = "is unknown" if unknown else f"is not available on {device.type}"
        raise _CommandError(f"--driver {driver}: {problem}; choose from {', '.join(available)}")


def _check_outputs(arguments: argparse.Namespace) -> None:
    outputs = [
        path
        for path in (arguments.csv, arguments.json, arguments.parquet, arguments.plot)
        if path is not None
    ]
    for output in outputs:
        _check_output(output, arguments.path)
    if len({output.resolve() for output in outputs}) < len(outputs):
        raise _CommandError(f"{outputs[0]}: is asked for as more than one file; give each its own name")
    if arguments.plot is not None:
        if arguments.plot.suffix.lower() not in PICTURE_SUFFIXES:
            raise _CommandError(f"{arguments.plot}: --plot writes {', '.join(PICTURE_SUFFIXES)} files only")
        _check_installed("--plot", matplotlib="demo")
    if arguments.parquet is not None:
        _check_installed("--parquet", pyarrow="parquet")


def _check_output(output: Path, checkpoint: Path) -> None:
    if not output.parent.is_dir():
        raise _CommandError(f"{output}: the directory {output.parent} does not exist; create it")
    if output.is_dir():
        raise _CommandError(f"{output}: is a directory; give the name of a file to write")
    if not output.exists():
        return
    belongs = output.name.endswith((".index.json", ".safetensors", ".bin")) or output.name == "config.json"
    if checkpoint.is_dir() and output.resolve().parent == checkpoint.resolve() and belongs:
        raise _CommandError(f"{output}: belongs to the checkpoint; write to another file")
    if checkpoint.exists() and output.samefile(checkpoint):
        raise _CommandError(f"{output}: is the checkpoint itself; write to another file")


def _check_installed(option: str, **extras: str) -> None:
    """extras: by the module that each brings."""
    missing = [module for module in extras if importlib.util.find_spec(module) is None]
    if missing:
        names = ",".join(extras[module] for module in missing)
        raise _CommandError(f"{option} needs {' and '.join(missing)}: pip install 'spectral_fast[{names}]'")


def _with_progress(matrices: list[WeightMatrix]) -> Iterable[WeightMatrix]:
    from rich.console import Console
    from rich.progress import track

    return track(
        matrices,
        description="analysing",
        console=Console(stderr=True),
        transient=True,
        disable=not sys.stderr.isatty(),
    )


def _description(arguments: argparse.Namespace, checkpoint: Checkpoint, *, complete: bool) -> dict[str, Any]:
    return {
        "checkpoint": str(checkpoint.path),
        "model_type": checkpoint.config.get("model_type"),
        "complete": complete,
        "driver": arguments.driver,
        "device": arguments.device,
        "threads": torch.get_num_threads(),
        "versions": {
            "spectral_fast": spectral_fast.__version__,
            "torch": torch.__version__,
            "python": platform.python_version(),
        },
        "capabilities": spectral_fast.capabilities(),
        "warnings": list(checkpoint.warnings),
    }


def _write_files(arguments: argparse.Namespace, results: Results, messages: list[str]) -> None:
    """Write what was asked for and append to the messages what was done."""
    writers = (
        (arguments.csv, write_csv),
        (arguments.json, write_json),
        (arguments.parquet, write_parquet),
    )
    for output, write in writers:
        if output is not None:
            messages.append(_write(output, partial(write, results)))
    if arguments.plot is not None:
        messages.append(_plot(arguments.plot, results.rows, title=arguments.path.resolve().name))


def _plot(output: Path, rows: Iterable[Row], *, title: str) -> str:
    spectra = [row.spectrum for row in rows if row.spectrum is not None]
    if not spectra:
        return "no picture: no matrix in a layer could be analysed"
    suffix = output.suffix.lower()
    return _write(output, lambda path: save_picture(spectra, path, suffix=suffix, title=title))


def _write(output: Path, write: Callable[[Path], None]) -> str:
    try:
        write_atomically(output, write)
    except OSError as error:
        raise _CommandError(f"{output}: cannot be written ({error.strerror or error})") from error
    return f"wrote {output}"


def _count(number: int, singular: str, plural: str) -> str:
    return f"{number} {singular if number == 1 else plural}"


if __name__ == "__main__":
    sys.exit(main())
