"""The command ``spectral-fast``: the spectra of a checkpoint's weight matrices, as a table."""

import argparse
import csv
import dataclasses
import importlib.util
import os
import statistics
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch

import spectral_fast
from spectral_fast.linalg import svdvals
from spectral_fast.models.checkpoint import Checkpoint, CheckpointError, open_checkpoint
from spectral_fast.models.roles import EMBEDDING_ROLES, reading_order, role_and_layer
from spectral_fast.plots import PICTURE_SUFFIXES, LayerSpectrum, save_picture
from spectral_fast.stats import SpectralStats, stats_from_svdvals

if TYPE_CHECKING:
    from rich.table import Table

_EXIT_CODES = """\
exit codes:
  0  all matrices were analysed
  1  some matrices could not be analysed (the others are listed), or --compare found an error
     beyond the accuracy bound
  2  bad usage, or a file that cannot be read or written
"""

_DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
_REPEATS = 3
# Matrices before and after the layers, left out unless asked for.
_OUTSIDE_ROLES = EMBEDDING_ROLES | {"pooler", "head"}
_STATISTICS = tuple(f.name for f in dataclasses.fields(SpectralStats) if f.name != "svdvals")


class _CommandError(Exception):
    """A request that cannot be carried out: exit code 2."""


@dataclass(frozen=True)
class _Row:
    """One analysed matrix; without statistics, `note` says why."""

    name: str
    layer: int | None
    role: str
    shape: tuple[int, int]
    svdvals: torch.Tensor | None = None
    stats: SpectralStats | None = None
    note: str = ""

    def value(self, statistic: str) -> float:
        return float("nan") if self.stats is None else float(getattr(self.stats, statistic))


@dataclass(frozen=True)
class _Comparison:
    """Times in seconds and errors over sigma_1 of spectral_fast and torch on one matrix."""

    name: str
    seconds: float
    seconds_torch: float
    error: float
    error_torch: float
    error_bound: float


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code (see ``spectral-fast analyze --help``).

    Args:
        argv: the arguments after the program's name; None takes them from the process.

    Raises:
        SystemExit: from argparse, with code 2 for bad usage and 0 for --help and --version.
    """
    arguments = _parser().parse_args(argv)
    try:
        code = _analyze(arguments)
        sys.stdout.flush()
        return code
    except (CheckpointError, _CommandError) as error:
        print(f"spectral-fast: error: {error}", file=sys.stderr)
        return 2
    except BrokenPipeError:
        # The reader of the table, such as head, has seen enough; keep the interpreter from
        # flushing into the closed pipe once more.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="spectral-fast",
        description="Singular-value spectra of neural-network weights.",
        epilog=_EXIT_CODES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"spectral-fast {spectral_fast.__version__}")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    analyze = commands.add_parser(
        "analyze",
        help="list the spectral statistics of every weight matrix of a checkpoint",
        description=(
            "List the spectral statistics of every weight matrix of a checkpoint: the largest\n"
            "singular value sigma_1, the stable rank (sum of sigma^2) / sigma_1^2, the power-law\n"
            "exponent alpha of the density of sigma^2 in its tail with its standard error, the\n"
            "Kolmogorov-Smirnov distance of that fit, and the number of values in the tail."
        ),
        epilog=_EXIT_CODES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    analyze.add_argument(
        "path", metavar="PATH", type=Path, help="a .safetensors file or a PyTorch checkpoint"
    )
    analyze.add_argument("--csv", metavar="FILE", type=Path, help="write all statistics, one row a matrix")
    analyze.add_argument(
        "--plot",
        metavar="FILE",
        type=Path,
        help=f"draw spectra and statistics over depth ({', '.join(PICTURE_SUFFIXES)})",
    )
    analyze.add_argument(
        "--embeddings", action="store_true", help="analyse embeddings, pooler and head too"
    )
    analyze.add_argument(
        "--compare",
        action="store_true",
        help="time torch.linalg.svdvals on the same matrices and compare the errors",
    )
    return parser


def _analyze(arguments: argparse.Namespace) -> int:
    for output in (arguments.csv, arguments.plot):
        if output is not None:
            _check_output(output, arguments.path)
    checkpoint = open_checkpoint(arguments.path)
    pending = _select(checkpoint, embeddings=arguments.embeddings)
    if arguments.plot is not None:
        _check_plot(arguments.plot, pending)

    stored = {tensor.name: tensor for tensor in checkpoint}
    rows: list[_Row] = []
    comparisons: list[_Comparison] = []
    # A progress bar redraws from a thread of its own, which would disturb the timing.
    for row in pending if arguments.compare else _with_progress(pending):
        matrix = stored[row.name].load()
        rows.append(_analyze_matrix(row, matrix))
        if arguments.compare and rows[-1].stats is not None:
            comparisons.append(_compare(row.name, matrix, ours_first=len(rows) % 2 == 0))

    # Files first, so that a reader who closes the pipe still gets them; the report in any case.
    messages: list[str] = []
    try:
        if arguments.csv is not None:
            messages.append(_write_atomically(arguments.csv, lambda path: _write_csv(path, rows)))
        if arguments.plot is not None:
            messages.append(_plot(arguments.plot, rows, title=arguments.path.name))
    finally:
        _print_table(rows)
        left_out = len(checkpoint.matrices()) - len(rows)
        if left_out:
            print(
                f"{_count(left_out, 'matrix', 'matrices')} outside the layers left out "
                "(embeddings, pooler, head); see --embeddings"
            )
        for row in rows:
            if row.note:
                print(f"not analysed: {row.name}: {row.note}")
        accurate = _print_comparison(comparisons) if arguments.compare else True
        for message in messages:
            print(message)
    return 0 if accurate and not any(row.note for row in rows) else 1


def _check_output(output: Path, checkpoint: Path) -> None:
    if not output.parent.is_dir():
        raise _CommandError(f"{output}: the directory {output.parent} does not exist; create it")
    if output.is_dir():
        raise _CommandError(f"{output}: is a directory; give the name of a file to write")
    if output.exists() and checkpoint.exists() and output.samefile(checkpoint):
        raise _CommandError(f"{output}: is the checkpoint itself; write to another file")


def _check_plot(output: Path, rows: Iterable[_Row]) -> None:
    if output.suffix.lower() not in PICTURE_SUFFIXES:
        raise _CommandError(f"{output}: --plot writes {', '.join(PICTURE_SUFFIXES)} files only")
    if importlib.util.find_spec("matplotlib") is None:
        raise _CommandError(
            "--plot needs matplotlib, which the extra 'demo' brings: pip install 'spectral-fast[demo]'"
        )
    if all(row.layer is None for row in rows):
        raise _CommandError(
            "--plot draws the spectra over depth, but no matrix has a layer number in its name"
        )


def _select(checkpoint: Checkpoint, *, embeddings: bool) -> list[_Row]:
    """The rows of the table, in reading order, still without statistics."""
    rows = []
    for tensor in checkpoint.matrices():
        role, layer = role_and_layer(tensor.name)
        if embeddings or role not in _OUTSIDE_ROLES:
            rows.append(_Row(tensor.name, layer, role, (tensor.shape[0], tensor.shape[1])))
    if not rows:
        raise CheckpointError(
            checkpoint.path, "holds embeddings, poolers and heads only", "Give --embeddings to analyse them"
        )
    return sorted(rows, key=lambda row: reading_order(row.role, row.layer))


def _with_progress(rows: list[_Row]) -> Iterable[_Row]:
    from rich.console import Console
    from rich.progress import track

    return track(
        rows,
        description="analysing",
        console=Console(stderr=True),
        transient=True,
        disable=not sys.stderr.isatty(),
    )


def _analyze_matrix(row: _Row, matrix: torch.Tensor) -> _Row:
    if matrix.dtype not in _DTYPES:
        dtype = str(matrix.dtype).removeprefix("torch.")
        return dataclasses.replace(row, note=f"{dtype} entries need scales that are stored apart")
    try:
        values = svdvals(matrix)
    except torch.linalg.LinAlgError as error:  # type: ignore[attr-defined]
        bad = int((~torch.isfinite(matrix)).sum())
        total = matrix.numel()
        note = f"{bad} of its {total} entries are NaN or infinite" if bad else str(error)
        return dataclasses.replace(row, note=note)
    return dataclasses.replace(row, svdvals=values, stats=stats_from_svdvals(values, shape=row.shape))


def _compare(name: str, matrix: torch.Tensor, *, ours_first: bool) -> _Comparison:
    if matrix.dtype in (torch.float16, torch.bfloat16):
        matrix = matrix.float()  # torch refuses 16-bit input
    functions = (svdvals, torch.linalg.svdvals)
    order = (0, 1) if ours_first else (1, 0)
    results = [function(matrix) for function in functions]  # the warm-up
    seconds: tuple[list[float], list[float]] = ([], [])
    for _ in range(_REPEATS):
        for which in order:
            start = time.perf_counter()
            functions[which](matrix)
            seconds[which].append(time.perf_counter() - start)
        order = order[::-1]
    exact = torch.linalg.svdvals(matrix.double())
    largest = max(float(exact[0]), torch.finfo(torch.float64).tiny)
    error, error_torch = (float((s.double() - exact).abs().max()) / largest for s in results)
    # The package's promise: twice torch's error, or c * eps.
    size = min(matrix.shape)
    floor = (2 if size <= 128 else 4 if size <= 1024 else 8) * torch.finfo(matrix.dtype).eps
    if matrix.dtype == torch.float64:
        floor *= 2  # the oracle is no more exact than what it judges
    return _Comparison(
        name,
        statistics.median(seconds[0]),
        statistics.median(seconds[1]),
        error,
        error_torch,
        max(2 * error_torch, floor),
    )


def _print_comparison(comparisons: list[_Comparison]) -> bool:
    """Print the comparison in one line; False, and no speed-up, if accuracy was missed."""
    if not comparisons:
        print("nothing to compare: no matrix could be analysed")
        return True
    for comparison in comparisons:
        # Written so that a NaN fails.
        if not comparison.error <= comparison.error_bound:
            print(
                f"accuracy missed, so no times are given: {comparison.name}: error / sigma_1 "
                f"{comparison.error:.1e}, allowed {comparison.error_bound:.1e}"
            )
            return False
    seconds = sum(c.seconds for c in comparisons)
    seconds_torch = sum(c.seconds_torch for c in comparisons)
    threads = torch.get_num_threads()
    print(
        f"{_count(len(comparisons), 'matrix', 'matrices')}: spectral_fast {seconds:.3g} s, "
        f"torch.linalg.svdvals {seconds_torch:.3g} s ({seconds_torch / seconds:.1f}x, "
        f"{_count(threads, 'thread', 'threads')}); max error / sigma_1: "
        f"{max(c.error for c in comparisons):.1e} vs "
        f"{max(c.error_torch for c in comparisons):.1e}"
    )
    return True


def _count(number: int, singular: str, plural: str) -> str:
    return f"{number} {singular if number == 1 else plural}"


def _print_table(rows: Sequence[_Row]) -> None:
    from rich.console import Console

    table = _table(rows)
    console = Console(highlight=False)
    # Rich squeezes a table into the width of the console, 80 columns where there is no terminal.
    unlimited = console.options.update(max_width=10_000)
    console.width = max(console.width, console.measure(table, options=unlimited).maximum)
    # Printed by Python itself: rich would exit with code 1 on a closed pipe.
    with console.capture() as text:
        console.print(table)
    print(text.get(), end="")


def _table(rows: Sequence[_Row]) -> "Table":
    from rich.table import Table

    table = Table(box=None, header_style="bold", pad_edge=False, padding=(0, 2, 0, 0))
    places = Counter((row.layer, row.role) for row in rows)
    with_names = "other" in {row.role for row in rows} or max(places.values()) > 1
    headings = ["layer", "role", "shape", "σ₁", "stable rank", "α ± error", "KS", "tail"]
    for heading in headings:
        text = heading in ("role", "shape")
        table.add_column(_encodable(heading), justify="left" if text else "right", no_wrap=True)
    if with_names:
        table.add_column("name", no_wrap=True)
    for row in rows:
        cells = [
            "–" if row.layer is None else str(row.layer),
            row.role,
            f"{row.shape[0]}×{row.shape[1]}",
            _number(row.value("spectral_norm"), 3),
            _number(row.value("stable_rank"), 2),
            f"{_number(row.value('alpha'), 2)} ± {_number(row.value('alpha_stderr'), 2)}",
            _number(row.value("ks_distance"), 3),
            "–" if row.stats is None else str(int(row.stats.n_tail)),
        ]
        table.add_row(*map(_encodable, cells), *([row.name] if with_names else []))
    return table


def _number(value: float, decimals: int) -> str:
    if value != value:
        return "–"
    if value == 0 or 10.0 ** (1 - decimals) <= value < 1e6:
        return f"{value:.{decimals}f}"
    return f"{value:.3g}"


def _encodable(text: str) -> str:
    """The text itself, or spelled in ASCII where standard output cannot show it."""
    try:
        text.encode(sys.stdout.encoding or "ascii")
    except UnicodeEncodeError:
        for symbol, plain in (
            ("σ₁", "sigma_1"), ("α", "alpha"), ("±", "+-"), ("–", "-"), ("×", "x"),
        ):  # fmt: skip
            text = text.replace(symbol, plain)
    return text


def _plot(output: Path, rows: Iterable[_Row], *, title: str) -> str:
    spectra = [
        LayerSpectrum(row.layer, row.role, row.svdvals, row.stats)
        for row in rows
        if row.layer is not None and row.svdvals is not None and row.stats is not None
    ]
    if not spectra:
        return "no picture: no matrix in a layer could be analysed"
    suffix = output.suffix.lower()
    return _write_atomically(output, lambda path: save_picture(spectra, path, suffix=suffix, title=title))


def _write_csv(path: Path, rows: Iterable[_Row]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["name", "layer", "role", "rows", "cols", *_STATISTICS, "note"])
        for row in rows:
            values = [_exactly(row, statistic) for statistic in _STATISTICS]
            layer = "" if row.layer is None else row.layer
            writer.writerow([row.name, layer, row.role, *row.shape, *values, row.note])


def _exactly(row: _Row, statistic: str) -> str:
    return "" if row.stats is None else repr(getattr(row.stats, statistic).item())


def _write_atomically(output: Path, write: Callable[[Path], None]) -> str:
    """Write to a neighbouring name first, so that no reader ever sees half a file; say what was done."""
    temporary = output.with_name(f".{output.name}.{os.getpid()}.tmp")
    try:
        write(temporary)
        os.replace(temporary, output)
    except OSError as error:
        raise _CommandError(f"{output}: cannot be written ({error.strerror or error})") from error
    finally:
        temporary.unlink(missing_ok=True)
    return f"wrote {output}"


if __name__ == "__main__":
    sys.exit(main())
