"""Tables of plain text for the terminal."""

from __future__ import annotations

from collections.abc import Sequence

from spectral_fast.report import encodable


def print_columns(headings: Sequence[str], rows: Sequence[Sequence[str]], left: int = 1) -> None:
    """Aligned columns, two spaces apart; the first `left` are text, the others numbers."""
    cells = [[encodable(cell) for cell in row] for row in (headings, *rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    for row in cells:
        aligned = (
            cell.ljust(width) if place < left else cell.rjust(width)
            for place, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        print("  ".join(aligned).rstrip())


def number(value: float, digits: int = 3) -> str:
    """With so many significant digits; nothing for NaN."""
    return "" if value != value else f"{value:.{digits}g}"
