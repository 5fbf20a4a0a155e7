"""The files that ``spectral-fast analyze`` writes: CSV, JSON and Parquet, whole or not at all."""

import csv
import json
import math
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from spectral_fast.analyze import Row
from spectral_fast.models import SkippedTensor
from spectral_fast.stats import scalar_fields

# Raised when a field changes its name or meaning; new fields do not raise it.
SCHEMA_VERSION = 1


@dataclass(frozen=True)
class Results:
    """All that goes into a file.

    Attributes:
        run: what was asked for and where it ran, JSON-ready.
        rows: the matrices, as far as they were reached.
        skipped: the tensors that could not be read.
    """

    run: dict[str, Any]
    rows: Sequence[Row]
    skipped: Sequence[SkippedTensor]


def write_atomically(output: Path, write: Callable[[Path], None]) -> None:
    """Write to a neighbouring name first, so that no reader ever sees half a file.

    Raises:
        OSError: the file cannot be written; an older one of its name is still there.
    """
    temporary = output.with_name(f".{output.name}.{os.getpid()}.tmp")
    try:
        write(temporary)
        os.replace(temporary, output)
    finally:
        temporary.unlink(missing_ok=True)


def write_csv(results: Results, path: Path) -> None:
    """One line a matrix: its description, all statistics with full precision, its note."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(_columns())
        for record in _records(results.rows):
            writer.writerow("" if value is None else value for value in record.values())


def write_json(results: Results, path: Path) -> None:
    """The run, one record a matrix and the skipped tensors; numbers JSON does not have are null."""
    content = {
        "schema_version": SCHEMA_VERSION,
        **results.run,
        "matrices": [
            {key: _finite(value) for key, value in record.items()} for record in _records(results.rows)
        ],
        "skipped": [vars(tensor) for tensor in results.skipped],
    }
    path.write_text(json.dumps(content, indent=1, allow_nan=False) + "\n", encoding="utf-8")


def write_parquet(results: Results, path: Path) -> None:
    """The table of the CSV with types; the rest of the JSON under "spectral_fast" in its metadata.

    Raises:
        ImportError: pyarrow is not installed.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    whole, text = ("layer", "rows", "cols", "n_tail"), ("name", "role", "dtype", "note")
    types = {**dict.fromkeys(whole, pa.int64()), **dict.fromkeys(text, pa.string())}
    schema = pa.schema([(column, types.get(column, pa.float64())) for column in _columns()])
    about = {
        "schema_version": SCHEMA_VERSION,
        **results.run,
        "skipped": [vars(tensor) for tensor in results.skipped],
    }
    schema = schema.with_metadata({"spectral_fast": json.dumps(about)})
    pq.write_table(pa.Table.from_pylist(list(_records(results.rows)), schema=schema), path)


def _columns() -> list[str]:
    return ["name", "layer", "role", "rows", "cols", "dtype", *scalar_fields(), "note"]


def _records(rows: Iterable[Row]) -> Iterable[dict[str, Any]]:
    for row in rows:
        matrix = row.matrix
        described = [matrix.name, matrix.layer, matrix.role, *matrix.shape]
        dtype = str(matrix.dtype).removeprefix("torch.")
        values = [None if row.statistics is None else row.statistics[s] for s in scalar_fields()]
        yield dict(zip(_columns(), [*described, dtype, *values, row.note], strict=True))


def _finite(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value
