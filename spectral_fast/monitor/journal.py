"""An append-only file of Arrow record batches that can be cut off anywhere and still be read.

The file is a row of frames: ``<magic, length, CRC-32 of the payload>`` and the payload. The first frame
holds the schema, every other one a batch, each as an Arrow IPC message. Reading stops at the first frame
that is not whole, which is where a writer was killed, ran out of disk or lost power; what comes before it
is right, because the checksum says so. (Arrow's own stream format has no checksum: a block that a power
loss left full of zeros would be read as values.)
"""

from __future__ import annotations

import os
import struct
import zlib
from pathlib import Path
from typing import Any

import pyarrow as pa

_HEADER = struct.Struct("<4sII")
_MAGIC = b"SFJ1"


class Journal:
    """The writing end of a journal: what :meth:`append` has returned for is in the file.

    In the file means handed to the operating system: it outlives the process, not a loss of power.

    Raises:
        OSError: the file exists or cannot be written; then there is none.
    """

    def __init__(self, path: Path, schema: pa.Schema) -> None:
        self.path = path
        self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
        self.size = 0
        """bytes of whole frames"""
        try:
            self._append(schema.serialize())
        except BaseException:
            self.close()
            path.unlink()
            raise

    def append(self, batch: pa.RecordBatch) -> None:
        """Add a batch of the journal's schema.

        Raises:
            OSError: it was not added; the journal is as before and can be appended to again.
        """
        self._append(batch.serialize())

    def close(self) -> None:
        """Close the file; it stays where it is."""
        os.close(self._file)

    def _append(self, payload: pa.Buffer) -> None:
        frame = memoryview(_HEADER.pack(_MAGIC, len(payload), zlib.crc32(payload)) + payload.to_pybytes())
        written = 0
        try:
            while written < len(frame):
                written += os.pwrite(self._file, frame[written:], self.size + written)
        except OSError:
            # Readers stop at a torn frame and the next one is written over it; this only gives the disk its
            # space back.
            os.ftruncate(self._file, self.size)
            raise
        self.size += len(frame)


def read_journal(path: Path) -> list[pa.RecordBatch] | None:
    """All whole batches, in order; None where not even the schema is whole.

    Raises:
        OSError: the file cannot be read.
    """
    content = pa.py_buffer(path.read_bytes())
    payloads = _payloads(content)
    if not payloads:
        return None
    schema = pa.ipc.read_schema(payloads[0])
    return [pa.ipc.read_record_batch(payload, schema) for payload in payloads[1:]]


def _payloads(content: pa.Buffer) -> list[Any]:
    payloads, at = [], 0
    while at + _HEADER.size <= content.size:
        magic, length, checksum = _HEADER.unpack(content.slice(at, _HEADER.size))
        start = at + _HEADER.size
        if magic != _MAGIC or start + length > content.size:
            break
        payload = content.slice(start, length)
        if zlib.crc32(payload) != checksum:
            break
        payloads.append(payload)
        at = start + length
    return payloads
