"""ParquetSink: the looks of a run as a dataset that survives kill -9; read_run reads it, also while it grows.

A run is a directory. A look is first appended to a journal (see :mod:`spectral_fast.monitor.journal`); a
journal that has grown becomes a Parquet part. Readers of datasets pass over names that begin with "_" or ".":

    part-000000.parquet     sealed looks
    _journal-000001         looks not yet sealed; part 1 once it is
    _lock                   held by the process that writes
    .part-000001.parquet    a part being written

Journal N is removed only after part N has its name, and a reader that finds both takes the part: there is no
moment at which a look is in neither or in both.

Each opening of a sink is an attempt at the run, numbered in the parts' metadata. The first step of an
attempt tells where the run was resumed: looks of earlier attempts beyond it belong to a past that was given
up, and :func:`read_run` leaves them out. Nothing is deleted.
"""

from __future__ import annotations

import fcntl
import json
import os
import re
import weakref
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

import numpy as np
from numpy.typing import NDArray

from spectral_fast.monitor.record import ESTIMATED, Kind, Look
from spectral_fast.stats import scalar_fields

try:
    import pyarrow as pa
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    from spectral_fast.monitor.journal import Journal, read_journal
except ImportError as error:
    raise ImportError(
        "ParquetSink and read_run need pyarrow, which the extra 'parquet' brings: "
        "pip install 'spectral_fast[parquet]'"
    ) from error

# Raised when a column changes its name or meaning; new columns do not raise it.
SCHEMA_VERSION = 1

_PART = re.compile(r"part-(\d{6,})\.parquet")
_JOURNAL = re.compile(r"_journal-(\d{6,})")
_METADATA = b"spectral_fast"
# A part takes 0.1 s to seal and a few MiB to hold; 10,000 looks at 72 matrices make some thirty.
_PART_BYTES = 16 * 2**20


class RunError(Exception):
    """A directory that cannot be read or written as a run; the message says what to do."""


def schema() -> pa.Schema:
    """The columns of a run, one row a matrix and look; ``kind`` is that of the row, not of the whole look.

    What a tracked look estimates has a column <name>_error, too.
    """
    of_look = [
        ("step", pa.int64()), ("kind", pa.string()), ("time", pa.float64()), ("seconds", pa.float64()),
        ("share", pa.float64()), ("every", pa.int64()), ("track_every", pa.int64()),
    ]  # fmt: skip
    of_matrix = [
        ("name", pa.string()), ("layer", pa.int64()), ("role", pa.string()), ("rows", pa.int64()),
        ("cols", pa.int64()), ("dtype", pa.string()),
    ]  # fmt: skip
    numbers = [(name, pa.float64()) for name in (*scalar_fields(), *map(_error_of, ESTIMATED))]
    lists = [("held", pa.list_(pa.string())), ("svdvals", pa.list_(pa.float32()))]
    return pa.schema([*of_look, *of_matrix, *numbers, *lists])


class ParquetSink:
    """Writes every look it is called with into a run directory, and goes on with one that is there.

    A call that has returned has handed the look to the operating system: it survives the death of this
    process at any moment. A loss of power may take the looks since the last sealed part, those at the end
    first; a part is on the disk before it counts.

    Args:
        path: the run's directory; made if it is missing.

    Raises:
        RunError: another process writes to the directory, it holds something else, or a newer version of this
            package wrote it.
        OSError: the directory cannot be made or written.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self.path.mkdir(parents=True, exist_ok=True)
        self._journal: Journal | None = None
        self._lock: int | None = _locked(self.path)
        try:
            self._recover()
        except BaseException:
            self._release()
            raise
        _open_sinks.add(self)
        # The first array has pyarrow import pandas where it is there, half a second: not in the first look.
        pa.array([0])

    def __call__(self, look: Look) -> None:
        """Write a look. A matrix looked at again, at the same step and by the same kind of look, takes the
        place of what was found first.

        Raises:
            OSError: such as a full disk. The look was not written and can be given again; those before are
                safe.
            ValueError: the sink is closed, or the look has a statistic or an error of unknown name.
        """
        if self._lock is None:
            raise ValueError(f"the sink of {self.path} is closed (a forked process needs a sink of its own)")
        if not look.matrices:
            return
        batch = _batch(look, self._schema)
        # Before the look is written: sealing may fail, and then this look must not be in the journal.
        if self._journal is not None and self._journal.size >= _PART_BYTES:
            self._seal_current()
        if self._journal is None:
            self._journal = Journal(_journal_path(self.path, self._number), self._schema)
        self._journal.append(batch)

    def close(self) -> None:
        """Seal what was written and let another process write. A second call does nothing.

        Raises:
            OSError: the last part could not be sealed. Its looks stay readable and the next sink seals them.
        """
        if self._lock is None:
            return
        try:
            if self._journal is not None:
                self._seal_current()
        finally:
            self._release()

    def _recover(self) -> None:
        """Seal the journals of a process that died, and find the numbers to go on with."""
        for leftover in self.path.glob(".part-*.parquet"):
            leftover.unlink()
        for number in _files(self.path):
            _seal(self.path, number)
        parts = _files(self.path)
        self._number, attempt = 0, 0
        if parts:
            self._number = max(parts) + 1
            with _opened_part(parts[max(parts)]) as newest:
                attempt = _about(newest.schema_arrow)["attempt"] + 1
        about = {"schema_version": SCHEMA_VERSION, "attempt": attempt}
        self._schema = schema().with_metadata({_METADATA: json.dumps(about)})

    def _seal_current(self) -> None:
        _seal(self.path, self._number)
        assert self._journal is not None
        self._journal.close()
        self._journal = None
        self._number += 1

    def _release(self) -> None:
        """Close the files; the lock goes with its last descriptor."""
        if self._journal is not None:
            self._journal.close()
            self._journal = None
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None


_open_sinks: weakref.WeakSet[ParquetSink] = weakref.WeakSet()


def _release_in_child() -> None:
    # A forked worker of a data loader would hold the lock after the training process has died.
    for sink in list(_open_sinks):
        sink._release()


os.register_at_fork(after_in_child=_release_in_child)


def read_run(path: str | os.PathLike[str], columns: Sequence[str] | None = None) -> pa.Table:
    """The looks of a run, sorted by step, each once; also of a run that is being written or was killed.

    Args:
        path: the run's directory.
        columns: those wanted, in this order; all by default. See :func:`schema`.

    Returns:
        One row a matrix and look; of those of the same step, name and kind, the one written last. Where the
        run was resumed from an older step, what was written before and lies beyond that step is left out.

    Raises:
        RunError: the directory is no run, is missing, or a newer version of this package wrote it.
        ValueError: a column of unknown name.
    """
    run, full = Path(path), schema()
    names = full.names if columns is None else list(columns)
    unknown = [name for name in names if name not in full.names]
    if unknown:
        raise ValueError(f"read_run: no such column: {', '.join(unknown)}; there are {', '.join(full.names)}")
    parts = _read_files(run, [*names, *(name for name in ("step", "kind", "name") if name not in names)])
    if not parts:
        return full.empty_table().select(names)
    rows = pa.concat_tables(part for _, part in parts)
    attempts = np.repeat([attempt for attempt, _ in parts], [len(part) for _, part in parts])
    return _current(rows, attempts).select(names)


def unsealed(path: str | os.PathLike[str]) -> bool:
    """Whether a run has looks in a journal: it is being written, or its process died."""
    return any(_JOURNAL.fullmatch(file.name) for file in _files(Path(path)).values())


def _current(rows: pa.Table, attempts: NDArray[np.int64]) -> pa.Table:
    """The rows that count, sorted by step; attempts: that of each row, in the order they were written."""
    step = rows["step"].to_numpy()
    kinds = get_args(Kind)
    kind = pc.index_in(rows["kind"], value_set=pa.array(kinds)).to_numpy()
    name = rows["name"].combine_chunks().dictionary_encode().indices.to_numpy()
    current = np.ones(len(step), dtype=bool)
    for number in np.unique(attempts):
        current &= (attempts >= number) | (step < step[attempts == number].min())
    candidates = np.flatnonzero(current)[::-1]
    key = (step * len(kinds) + kind) * (name.max() + 1) + name
    _, newest = np.unique(key[candidates], return_index=True)
    kept = np.sort(candidates[newest])
    order = kept[np.argsort(step[kept], kind="stable")]
    in_order = len(order) == len(rows) and bool((order[1:] > order[:-1]).all())
    return rows if in_order else rows.take(pa.array(order))


def _read_files(run: Path, names: Sequence[str]) -> list[tuple[int, pa.Table]]:
    """Attempt and rows of every part and journal that has any, in the order they were written."""
    files = _files(run)
    while True:
        try:
            return [
                (_about(part.schema)["attempt"], _conformed(part, names))
                for file in files.values()
                if (part := _read_file(file, names)) is not None and len(part) > 0
            ]
        except FileNotFoundError:
            before, files = files, _files(run)  # a journal was sealed meanwhile
            if files == before:
                raise


def _read_file(file: Path, names: Sequence[str]) -> pa.Table | None:
    if _PART.fullmatch(file.name):
        # Not read_table, which would take "lr=1" in the path for a column.
        with _opened_part(file) as part:
            return part.read(columns=[name for name in names if name in part.schema_arrow.names])
    batches = read_journal(file)
    return pa.Table.from_batches(batches) if batches else None


def _conformed(part: pa.Table, names: Sequence[str]) -> pa.Table:
    """The columns asked for; null where an older version of this package did not write them."""
    full = schema()
    columns = [
        part[name] if name in part.column_names else pa.nulls(len(part), full.field(name).type)
        for name in names
    ]
    return pa.table(columns, names=list(names))


def _opened_part(file: Path) -> pq.ParquetFile:
    try:
        return pq.ParquetFile(file)
    except pa.ArrowInvalid as error:
        raise RunError(f"{file}: is no Parquet file ({error}); move it away to read the rest") from error


def _about(file_schema: pa.Schema) -> Any:
    about = json.loads((file_schema.metadata or {}).get(_METADATA, b"{}"))
    if "schema_version" not in about:
        raise RunError("the run has a part that no ParquetSink wrote; move it away to read the rest")
    if about["schema_version"] > SCHEMA_VERSION:
        raise RunError(
            f"the run was written with version {about['schema_version']} of its schema, this package knows "
            f"{SCHEMA_VERSION}; install a newer spectral_fast"
        )
    return about


def _files(run: Path) -> dict[int, Path]:
    """Part or journal of each number, in order; a part before a journal that it was sealed from.

    Raises:
        RunError: no such directory, or it is no run.
    """
    names, before = _names(run), None
    while names != before:  # a listing taken while a journal is sealed may show neither
        names, before = _names(run), names
    files = {}
    for pattern in (_JOURNAL, _PART):
        for name in names:
            if match := pattern.fullmatch(name):
                files[int(match[1])] = run / name
    if not files and "_lock" not in names:
        raise RunError(f"{run}: is no run; give the directory that a ParquetSink wrote")
    return dict(sorted(files.items()))


def _names(run: Path) -> list[str]:
    try:
        return sorted(os.listdir(run))
    except (FileNotFoundError, NotADirectoryError) as error:
        raise RunError(f"{run}: is no directory; give the one that a ParquetSink wrote") from error


def _journal_path(run: Path, number: int) -> Path:
    return run / f"_journal-{number:06d}"


def _locked(run: Path) -> int:
    """Take the run's lock and return its descriptor."""
    visible = [name for name in os.listdir(run) if not name.startswith(("_", "."))]
    others = [name for name in visible if not _PART.fullmatch(name)]
    if others and not (run / "_lock").exists():
        raise RunError(f"{run}: holds other files, such as {others[0]}; give a directory for this run alone")
    lock = os.open(run / "_lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.ftruncate(lock, 0)
        os.pwrite(lock, str(os.getpid()).encode(), 0)
    except BlockingIOError as error:
        writer = os.pread(lock, 20, 0).decode()
        os.close(lock)
        raise RunError(
            f"{run}: process {writer} writes to this run; end it, or give another directory"
        ) from error
    except OSError:
        os.close(lock)
        raise
    return lock


def _seal(run: Path, number: int) -> None:
    """Make a Parquet part of a journal, if that has not been done, and remove the journal."""
    journal, part = _journal_path(run, number), run / f"part-{number:06d}.parquet"
    if not part.exists() and (batches := read_journal(journal)):
        rows = pa.Table.from_batches(batches)
        _write_part(_current(rows, np.zeros(len(rows), dtype=np.int64)), part)
    journal.unlink(missing_ok=True)


def _write_part(looks: pa.Table, part: Path) -> None:
    hidden = part.with_name(f".{part.name}")
    try:
        with hidden.open("wb") as file:
            repeated = ["kind", "name", "role", "dtype", "held.list.element"]
            pq.write_table(looks, file, compression="zstd", use_dictionary=repeated)
            file.flush()
            os.fsync(file.fileno())
        hidden.replace(part)
    finally:
        hidden.unlink(missing_ok=True)
    directory = os.open(part.parent, os.O_RDONLY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


def _batch(look: Look, columns: pa.Schema) -> pa.RecordBatch:
    matrices = look.matrices
    values: dict[str, Any] = {
        name: [getattr(look, name)] * len(matrices)
        for name in ("step", "time", "seconds", "share", "every", "track_every")
    }
    for name in ("kind", "name", "layer", "role", "rows", "cols", "dtype", "held"):
        values[name] = [getattr(matrix, name) for matrix in matrices]
    for name in scalar_fields():
        values[name] = [matrix.statistics.get(name) for matrix in matrices]
    for name in ESTIMATED:
        values[_error_of(name)] = [matrix.errors.get(name) for matrix in matrices]
    _require_known(look)
    arrays = [pa.array(values[c.name], c.type) for c in columns if c.name != "svdvals"]
    ends = np.cumsum([0, *(len(matrix.svdvals) for matrix in matrices)], dtype=np.int32)
    svdvals = np.concatenate([matrix.svdvals for matrix in matrices]).astype(np.float32, copy=False)
    arrays.append(pa.ListArray.from_arrays(pa.array(ends), pa.array(svdvals)))
    return pa.record_batch(arrays, schema=columns)


def _require_known(look: Look) -> None:
    for matrix in look.matrices:
        unknown = matrix.statistics.keys() - set(scalar_fields())
        unknown |= {_error_of(name) for name in matrix.errors.keys() - set(ESTIMATED)}
        if unknown:
            raise ValueError(
                f"{matrix.name} at step {look.step}: a run has no column for {', '.join(sorted(unknown))}"
            )


def _error_of(statistic: str) -> str:
    return f"{statistic}_error"
