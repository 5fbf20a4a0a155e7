"""Reading checkpoint files one matrix at a time.

A reader is a function from a path to the list of tensors in it; `open_checkpoint` looks at the
first bytes of the file and picks the reader. No reader ever runs code from a file.
"""

import json
import re
import warnings
import zipfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch

from spectral_fast.models.matrices import is_matrix, without_ties

_TORCH_SUFFIXES = (".pt", ".pth", ".bin", ".ckpt", ".pkl")
_SUPPORTED = "a .safetensors file or a PyTorch checkpoint (.pt, .pth, .bin, .ckpt) is expected"

# The keys under which training scripts keep the state dict of the model.
_STATE_DICT_KEYS = ("state_dict", "model_state_dict", "model", "module", "net", "weights")

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
        dtype: its dtype as stored.
    """

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    _load: Callable[[], torch.Tensor] = field(repr=False)

    def load(self) -> torch.Tensor:
        """Read the tensor, on the CPU, in the stored dtype.

        Where the file can be memory-mapped the result shares its pages with the file: do not write
        to it.
        """
        return self._load()


@dataclass(frozen=True)
class Checkpoint:
    """The tensors of one checkpoint, in the file's order; iterating it reads no weights."""

    path: Path
    tensors: tuple[CheckpointTensor, ...]

    def __iter__(self) -> Iterator[CheckpointTensor]:
        return iter(self.tensors)

    def __len__(self) -> int:
        return len(self.tensors)

    def matrices(self) -> list[CheckpointTensor]:
        """The weight matrices among the tensors: two dimensions, floating point, not empty."""
        return [tensor for tensor in self.tensors if is_matrix(tensor.shape, tensor.dtype)]


def open_checkpoint(path: str | Path) -> Checkpoint:
    """Open a checkpoint for reading its tensors one by one.

    Reads safetensors files and PyTorch checkpoints that hold a state dict, at the top or under a
    usual key such as "state_dict" or "model"; the content decides which it is. Weights stay on
    disk until `CheckpointTensor.load`, except for PyTorch's old format (before version 1.6), which
    cannot be mapped and is read at once. Tied tensors of a PyTorch checkpoint are listed once, as
    `weight_matrices` lists them. Pickles are read with ``weights_only=True``: code in the file is
    refused, never run.

    Args:
        path: the file.

    Returns:
        A `Checkpoint`, iterable over `CheckpointTensor`.

    Raises:
        CheckpointError: the file is missing, empty, damaged, of another kind, holds objects other
            than tensors and plain containers, or has no weight matrix in it.
    """
    path = Path(path)
    try:
        reader = _choose_reader(path)
        checkpoint = Checkpoint(path, tuple(reader(path)))
    except OSError as error:
        reason = error.strerror or str(error)
        raise CheckpointError(
            path, f"cannot be read ({reason})", "Check the path and your rights to read it"
        ) from error
    if not checkpoint.matrices():
        raise CheckpointError(
            path,
            f"holds no weight matrix ({len(checkpoint)} tensors, none of them two-dimensional and "
            "floating point)",
            "Give the checkpoint of a model with unquantized weights",
        )
    return checkpoint


_Reader = Callable[[Path], list[CheckpointTensor]]


def _choose_reader(path: Path) -> _Reader:
    if path.is_dir():
        raise CheckpointError(
            path, "is a directory, not a file", "Give the path of one checkpoint file inside it"
        )
    if not path.exists():
        raise CheckpointError(path, "does not exist", "Check the path")
    if not path.is_file():
        raise CheckpointError(path, "is not a regular file", f"Of files, {_SUPPORTED}")
    with path.open("rb") as file:
        head = file.read(64)
    if not head:
        raise CheckpointError(path, "is empty (0 bytes)", "Download or save it again")
    if head.startswith(b"version https://git-lfs"):
        raise CheckpointError(path, "is a Git LFS pointer, not the weights", "Fetch them with 'git lfs pull'")
    if head.startswith(b"PK\x03\x04"):
        if path.suffix == ".safetensors":  # torch.load would believe the suffix
            raise CheckpointError(path, "is a zip archive, not a safetensors file", "Rename it to .pt")
        return _read_torch_zip
    # Eight bytes of header length, then the header, a JSON object.
    if head[8:9] == b"{" or path.suffix == ".safetensors":
        return _read_safetensors
    if head.startswith(b"\x80"):
        return _read_torch_legacy
    if path.suffix in _TORCH_SUFFIXES:
        raise CheckpointError(
            path,
            "is not a PyTorch checkpoint (neither a zip archive nor a pickle)",
            "The file may be damaged or of another kind: download or save it again",
        )
    raise CheckpointError(path, "is of an unknown kind", f"Of files, {_SUPPORTED}")


def _read_safetensors(path: Path) -> list[CheckpointTensor]:
    from safetensors import SafetensorError, safe_open

    _check_safetensors_size(path)
    try:
        file = safe_open(str(path), framework="pt")
        names = list(file.keys())
    except SafetensorError as error:
        raise CheckpointError(
            path,
            f"is not a valid safetensors file ({error})",
            "The file is damaged: download or save it again",
        ) from error
    tensors = []
    for name in names:
        stored = file.get_slice(name)
        dtype = _SAFETENSORS_DTYPES.get(stored.get_dtype())
        if dtype is None:
            raise CheckpointError(
                path,
                f"tensor {name!r} has the dtype {stored.get_dtype()}, which is not supported",
                "Save the weights in float32, float16 or bfloat16",
            )
        tensors.append(
            CheckpointTensor(name, tuple(stored.get_shape()), dtype, partial(file.get_tensor, name))
        )
    return tensors


def _check_safetensors_size(path: Path) -> None:
    """Tell a truncated file from other damage, which safetensors itself does not."""
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
            return
        try:
            header = json.loads(file.read(header_size))
            ends = [entry["data_offsets"][1] for name, entry in header.items() if name[:2] != "__"]
            expected = 8 + header_size + max(ends, default=0)
        except (ValueError, TypeError, KeyError, IndexError, AttributeError, RecursionError):
            return  # safe_open says what is wrong with the header
    if expected > size:
        raise CheckpointError(
            path,
            f"is truncated (its header promises {expected} bytes, the file has {size})",
            "Download or save it again",
        )


def _read_torch_zip(path: Path) -> list[CheckpointTensor]:
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.namelist()
    except (zipfile.BadZipFile, ValueError, NotImplementedError) as error:
        raise CheckpointError(
            path,
            f"is a truncated or damaged zip archive ({error})",
            "Download or save it again",
        ) from error
    if not any(member.endswith("/data.pkl") for member in members):
        raise CheckpointError(
            path, "is a zip archive, but not a PyTorch checkpoint", f"Of files, {_SUPPORTED}"
        )
    if any(member.endswith("/constants.pkl") for member in members):
        raise CheckpointError(
            path,
            "is a TorchScript archive, a program rather than weights",
            "Load it yourself and save its state_dict() with torch.save",
        )
    return _read_pickle(path, mmap=True)


def _read_torch_legacy(path: Path) -> list[CheckpointTensor]:
    return _read_pickle(path, mmap=False)


def _read_pickle(path: Path, *, mmap: bool) -> list[CheckpointTensor]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch comments on the pickle protocol
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)
    except OSError:
        raise
    except Exception as error:  # a damaged pickle can raise anything
        raise _pickle_error(path, error) from error
    return [
        CheckpointTensor(name, tuple(tensor.shape), tensor.dtype, tensor.detach)
        for name, tensor in without_ties(_state_dict(path, content).items()).items()
    ]


def _pickle_error(path: Path, error: Exception) -> CheckpointError:
    code = re.search(r"GLOBAL (\S+)", str(error))
    if code:
        return CheckpointError(
            path,
            f"holds more than tensors: it asks for {code[1]!r}, which was refused as it could run code",
            "If you trust its author, load it yourself and save only the model's state_dict()",
        )
    if isinstance(error, EOFError) or "EOF" in str(error):
        reason = "it ends too early"
    elif isinstance(error, RuntimeError):
        # The first sentence says what happened; the rest of torch's text is advice.
        reason = re.split(r"[.\n]", str(error), maxsplit=1)[0]
    else:
        reason = "its pickle is damaged or was not made by torch.save"
    return CheckpointError(
        path,
        f"is no readable PyTorch checkpoint ({reason})",
        "The file is damaged or of another kind: download or save it again",
    )


def _state_dict(path: Path, content: Any) -> Mapping[str, Any]:
    """Find the mapping from names to tensors in what a checkpoint holds."""
    if not isinstance(content, Mapping):
        raise CheckpointError(
            path,
            f"holds a {type(content).__name__}, not a state dict",
            "Save model.state_dict() with torch.save",
        )
    for key in _STATE_DICT_KEYS:
        if isinstance(content.get(key), Mapping):
            return _state_dict(path, content[key])
    state = {str(name): value for name, value in content.items()}
    if not any(isinstance(value, torch.Tensor) for value in state.values()):
        raise CheckpointError(
            path,
            f"holds no tensors (its keys: {', '.join(list(state)[:5]) or 'none'})",
            f"Save model.state_dict(), alone or under one of {', '.join(_STATE_DICT_KEYS)}",
        )
    return state
