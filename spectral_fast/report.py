"""What ``spectral-fast analyze`` prints: the table, and what a reader should know about it."""

import sys
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from spectral_fast.analyze import Row
from spectral_fast.models import SkippedTensor

if TYPE_CHECKING:
    from rich.table import Table

_MAX_NAMES = 3  # of those that share a note


def print_table(rows: Sequence[Row]) -> None:
    """Print one line a matrix, never squeezed, in the symbols that standard output can show."""
    from rich.console import Console

    table = _table(rows)
    console = Console(highlight=False)
    # Rich squeezes a table into the width of the console, 80 columns where there is no terminal.
    unlimited = console.options.update(max_width=10_000)
    console.width = max(console.width, console.measure(table, options=unlimited).maximum)
    # Printed by Python itself: rich would exit with code 1 on a closed pipe.
    with console.capture() as text:
        console.print(table)
    for line in text.get().splitlines():
        print(line.rstrip())


def print_notes(rows: Iterable[Row], skipped: Iterable[SkippedTensor]) -> None:
    """Print what was not analysed, what was skipped and what was analysed with a reservation."""
    notes = [
        ("not analysed" if row.statistics is None else "note", row.note, row.matrix.name) for row in rows
    ]
    notes += [("skipped", tensor.reason, tensor.name) for tensor in skipped]
    grouped: dict[tuple[str, str], list[str]] = defaultdict(list)
    for kind, note, name in notes:
        if note:
            # The parts of one tensor share its note.
            grouped[kind, note].append(name)
    for (kind, note), names in sorted(grouped.items(), key=lambda group: group[0][0]):
        shown = ", ".join(names[:_MAX_NAMES])
        more = f" and {len(names) - _MAX_NAMES} more" if len(names) > _MAX_NAMES else ""
        print(encodable(f"{kind}: {shown}{more}: {note}"))


def _table(rows: Sequence[Row]) -> "Table":
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, header_style="bold", pad_edge=False, padding=(0, 2, 0, 0))
    places = Counter((row.matrix.layer, row.matrix.role) for row in rows)
    with_names = "other" in {row.matrix.role for row in rows} or max(places.values(), default=0) > 1
    headings = ["layer", "role", "shape", "σ₁", "stable rank", "α ± error", "KS", "tail"]
    for heading in headings:
        text = heading in ("role", "shape")
        table.add_column(encodable(heading), justify="left" if text else "right", no_wrap=True)
    if with_names:
        table.add_column("name", no_wrap=True)
    for row in rows:
        matrix = row.matrix
        cells = [
            "–" if matrix.layer is None else str(matrix.layer),
            matrix.role,
            f"{matrix.shape[0]}×{matrix.shape[1]}",
            _number(row.value("spectral_norm"), 3),
            _number(row.value("stable_rank"), 2),
            f"{_number(row.value('alpha'), 2)} ± {_number(row.value('alpha_stderr'), 2)}",
            _number(row.value("ks_distance"), 3),
            "–" if row.statistics is None else str(row.statistics["n_tail"]),
        ]
        # Text: rich would take the brackets in a name for markup.
        table.add_row(*map(encodable, cells), *([Text(encodable(matrix.name))] if with_names else []))
    return table


def _number(value: float, decimals: int) -> str:
    if value != value:
        return "–"
    if value == 0 or 10.0 ** (1 - decimals) <= value < 1e6:
        return f"{value:.{decimals}f}"
    return f"{value:.3g}"


def encodable(text: str) -> str:
    """The text itself, or spelled in ASCII where standard output cannot show it."""
    encoding = sys.stdout.encoding or "ascii"
    try:
        text.encode(encoding)
    except UnicodeEncodeError:
        for symbol, plain in (
            ("σ₁", "sigma_1"), ("α", "alpha"), ("±", "+-"), ("–", "-"), ("×", "x"),
        ):  # fmt: skip
            text = text.replace(symbol, plain)
        text = text.encode(encoding, "backslashreplace").decode(encoding)
    return text
