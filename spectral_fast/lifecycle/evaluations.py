"""What was evaluated already: one JSON line for each set of removed blocks, model and text.

A run that is killed leaves at most one torn line, the last, which the next one takes away and writes anew.
The file is locked while it is open, so that a second process cannot evaluate the same sets beside the first.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

FORMAT = 1

Floats = NDArray[np.float64]
Removed = frozenset[int]


class Evaluations:
    """An open file of evaluations; a context manager.

    Args:
        path: the file; made if it is missing, in a folder that exists.

    Raises:
        OSError: it cannot be read or written.
        ValueError: another process has it open, or a line that is not the last cannot be read.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self._file = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o666)
        try:
            self._lock()
            self._found = self._read()
        except BaseException:
            os.close(self._file)
            raise

    def __enter__(self) -> Evaluations:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the file and unlock it; what was added is in it."""
        os.close(self._file)

    def get(self, model: str, text: str, removed: Removed) -> Floats | None:
        """Nats a token in each window, (W,), of the model without these blocks; None if it is not there.

        model, text: fingerprints.
        """
        return self._found.get((model, text, removed))

    def add(self, model: str, text: str, removed: Removed, nats: Floats) -> None:
        """Add an evaluation; when this returns it outlives the process (not a loss of power)."""
        record = {
            **{"format": FORMAT, "model": model, "text": text},
            **{"removed": sorted(removed), "nats": nats.tolist()},
        }
        line = memoryview((json.dumps(record, allow_nan=False) + "\n").encode())
        while line:
            line = line[os.write(self._file, line) :]
        self._found[model, text, removed] = nats

    def _lock(self) -> None:
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ValueError(
                f"{self.path}: another process is evaluating; wait for it, or give another folder"
            ) from error

    def _read(self) -> dict[tuple[str, str, Removed], Floats]:
        content = self.path.read_bytes()
        whole = content.rfind(b"\n") + 1
        if whole < len(content):
            os.ftruncate(self._file, whole)
        lines = content[:whole].splitlines()
        return dict(self._parsed(number, line) for number, line in enumerate(lines, 1))

    def _parsed(self, number: int, line: bytes) -> tuple[tuple[str, str, Removed], Floats]:
        try:
            record: dict[str, Any] = json.loads(line)
            if record["format"] != FORMAT:
                raise ValueError(f"format {record['format']} is another version's")
            removed: Iterable[int] = record["removed"]
            nats = np.array(record["nats"], dtype=np.float64)
            return (record["model"], record["text"], frozenset(removed)), nats
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(
                f"{self.path}: line {number} is no evaluation ({error}); delete the file to start anew"
            ) from error
