"""Reading one file of a checkpoint, tensor by tensor: safetensors and .npy.

A tensor's bytes are read when it is loaded and belong to nobody else, so that memory holds what is in
use and no more. A memory map would keep every page it ever showed in the process's resident size, and
would kill the process if the file shrank.
"""

import json
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch

_MAX_HEADER = 100_000_000  # bytes; safetensors refuses longer headers

_SAFETENSORS_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E4M3FNUZ": torch.float8_e4m3fnuz,
    "F8_E5M2": torch.float8_e5m2,
    "F8_E5M2FNUZ": torch.float8_e5m2fnuz,
    "F8_E8M0": torch.float8_e8m0fnu,
    "C64": torch.complex64,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U64": torch.uint64,
    "U32": torch.uint32,
    "U16": torch.uint16,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
_NUMPY_DTYPES = {"f2": torch.float16, "f4": torch.float32, "f8": torch.float64}


class CheckpointError(ValueError):
    """A checkpoint cannot be read; the message names the file, what is wrong and what to do."""

    def __init__(self, path: Path, problem: str, remedy: str) -> None:
        super().__init__(f"{path}: {problem}. {remedy}.")


@dataclass(frozen=True)
class CheckpointTensor:
    """One tensor of a checkpoint, not yet in memory.

    Attributes:
        name: its name in the checkpoint.
        shape: its shape.
        dtype: its dtype as stored; uint8 for one that torch does not have.
        problem: why its values cannot be read, "" if they can.
    """

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    _load: Callable[[int, int], torch.Tensor] = field(repr=False)
    problem: str = ""

    def load(self, start: int = 0, stop: int | None = None) -> torch.Tensor:
        """Read the tensor, or its entries start to stop along the first dimension, as a slice has them.

        Returns:
            A tensor on the CPU, in the stored dtype, that nothing else shares.

        Raises:
            CheckpointError: the file has changed or cannot be read any more.
        """
        if not self.shape:
            return self._load(0, 1)
        # What a slice leaves out is in the file too, as another tensor's bytes.
        start, stop, _ = slice(start, stop).indices(self.shape[0])
        return self._load(start, max(start, stop))


def read_array(
    path: Path, offset: int, shape: tuple[int, ...], dtype: torch.dtype, start: int, stop: int
) -> torch.Tensor:
    """Read entries start to stop (first dimension) of a row-major array that begins at a byte of a file."""
    if shape:
        shape = (stop - start, *shape[1:])
    size = math.prod(shape) * dtype.itemsize
    if size == 0:
        return torch.empty(shape, dtype=dtype)
    if shape:
        offset += start * (size // shape[0])
    try:
        if offset + size > path.stat().st_size:  # before room is made for what a damaged file promises
            raise CheckpointError(path, "is truncated or damaged", "Download or save it again")
        buffer = bytearray(size)
        with path.open("rb", buffering=0) as file:
            file.seek(offset)
            done = 0
            while done < size:  # one call reads 2 GiB at most
                count = file.readinto(memoryview(buffer)[done:])
                if not count:
                    raise CheckpointError(path, "shrank while it was read", "Read it when it is complete")
                done += count
    except OSError as error:
        raise unreadable(path, error) from error
    return torch.frombuffer(buffer, dtype=dtype).reshape(shape)


def unreadable(path: Path, error: OSError) -> CheckpointError:
    """The error for a file that the operating system does not let us read."""
    reason = error.strerror or str(error)
    return CheckpointError(path, f"cannot be read ({reason})", "Check the path and your rights to read it")


def read_safetensors(path: Path) -> list[CheckpointTensor]:
    """The tensors of a safetensors file."""
    from safetensors import SafetensorError, safe_open

    header, data = _safetensors_header(path)
    try:
        with safe_open(str(path), framework="pt") as file:
            names = list(file.keys())
    except SafetensorError as error:
        raise CheckpointError(
            path,
            f"is not a valid safetensors file ({error})",
            "The file is damaged: download or save it again",
        ) from error
    tensors = []
    for name in names:
        entry = header[name]
        dtype = _SAFETENSORS_DTYPES.get(entry["dtype"])
        shape = tuple(entry["shape"])
        problem = (
            "" if dtype else f"{entry['dtype']} entries, which torch does not have; dequantize the model"
        )
        read = partial(read_array, path, data + entry["data_offsets"][0], shape, dtype or torch.uint8)
        tensors.append(CheckpointTensor(name, shape, dtype or torch.uint8, read, problem))
    return tensors


def _safetensors_header(path: Path) -> tuple[dict[str, Any], int]:
    """The header, {} where safetensors shall say what is wrong with it, and the byte where data begins.

    Tells a truncated file from other damage, which safetensors itself does not.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        header_size = int.from_bytes(file.read(8), "little")
        if size < 8 or header_size > size - 8:
            raise CheckpointError(
                path,
                f"is no safetensors file, or is cut off inside its header (the header should have "
                f"{header_size} bytes, the whole file has {size})",
                "Download or save it again",
            )
        if header_size > _MAX_HEADER:
            return {}, 0
        try:
            header = json.loads(file.read(header_size))
            ends = [entry["data_offsets"][1] for name, entry in header.items() if name[:2] != "__"]
            expected = 8 + header_size + max(ends, default=0)
        except (ValueError, TypeError, KeyError, IndexError, AttributeError, RecursionError):
            return {}, 0
    if expected > size:
        raise CheckpointError(
            path,
            f"is truncated (its header promises {expected} bytes, the file has {size})",
            "Download or save it again",
        )
    return header, 8 + header_size


def read_npy(path: Path) -> list[CheckpointTensor]:
    """The matrix in a .npy file, named after the file, or the matrices of a stack (n, rows, cols)."""
    import numpy as np

    try:
        with path.open("rb") as file:
            version = np.lib.format.read_magic(file)
            if version == (1, 0):
                shape, fortran_order, dtype = np.lib.format.read_array_header_1_0(file)
            else:
                shape, fortran_order, dtype = np.lib.format.read_array_header_2_0(file)
            data = file.tell()
            if min(shape, default=0) < 0:
                raise ValueError(f"shape {shape}")
    except OSError:
        raise
    except Exception as error:  # numpy evaluates the header as a literal, which can raise anything
        raise CheckpointError(
            path, f"has a damaged .npy header ({error})", "Save the matrix again with numpy.save"
        ) from error
    if dtype.hasobject:
        raise CheckpointError(
            path, "holds Python objects, a pickle that could run code", "Save a plain array of floating point"
        )
    stored = _NUMPY_DTYPES.get(dtype.str[1:])
    if len(shape) not in (2, 3) or stored is None:
        raise CheckpointError(
            path,
            f"holds an array of shape {shape} and dtype {dtype}",
            "One matrix (rows, cols) or a stack (n, rows, cols) of float16, float32 or float64 is expected",
        )
    if dtype.str[0] == ">" or (fortran_order and len(shape) == 3):
        raise CheckpointError(
            path,
            "is stored in big-endian order" if dtype.str[0] == ">" else "is a stack in Fortran order",
            "Save numpy.ascontiguousarray(array, dtype='<f4') instead",
        )
    expected = data + math.prod(shape) * stored.itemsize
    if (size := path.stat().st_size) < expected:
        raise CheckpointError(
            path,
            f"is truncated (its header promises {expected} bytes, the file has {size})",
            "Download or save it again",
        )
    if fortran_order:  # the transpose, row by row
        read = partial(_read_transposed, path, data, shape, stored)
        return [CheckpointTensor(path.stem, shape, stored, read)]
    if len(shape) == 2:
        return [CheckpointTensor(path.stem, shape, stored, partial(read_array, path, data, shape, stored))]
    matrix = shape[1:]
    step = math.prod(matrix) * stored.itemsize
    return [
        CheckpointTensor(
            f"{path.stem}[{index}]",
            matrix,
            stored,
            partial(read_array, path, data + index * step, matrix, stored),
        )
        for index in range(shape[0] if step else 0)  # of empty ones a header may promise any number
    ]


def _read_transposed(
    path: Path, offset: int, shape: tuple[int, ...], dtype: torch.dtype, start: int, stop: int
) -> torch.Tensor:
    return read_array(path, offset, shape[::-1], dtype, 0, shape[1]).mT[start:stop]
