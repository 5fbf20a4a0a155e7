"""Reading PyTorch checkpoints (torch.save) without running code from them.

The pickle is read with ``weights_only=True``, onto the meta device: it gives names, shapes and the
place of every tensor in the file, and the bytes are read when a tensor is loaded.
"""

import re
import warnings
import zipfile
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch

from spectral_fast.models.files import CheckpointError, CheckpointTensor, read_array
from spectral_fast.models.matrices import without_ties

# The keys under which training scripts keep the state dict of the model.
_STATE_DICT_KEYS = ("state_dict", "model_state_dict", "model", "module", "net", "weights")


def read_torch_zip(path: Path) -> list[CheckpointTensor]:
    """The tensors of a checkpoint in the format of torch 1.6 and later, a zip archive."""
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
            orders = [_start(archive, member) for member in members if member.filename.endswith("/byteorder")]
    except (zipfile.BadZipFile, ValueError, NotImplementedError, RuntimeError, EOFError) as error:
        raise CheckpointError(
            path,
            f"is a truncated or damaged zip archive ({error})",
            "Download or save it again",
        ) from error
    names = [member.filename for member in members]
    if not any(name.endswith("/data.pkl") for name in names):
        raise CheckpointError(
            path, "is a zip archive, but not a PyTorch checkpoint", "Give a file that torch.save wrote"
        )
    if any(name.endswith("/constants.pkl") for name in names):
        raise CheckpointError(
            path,
            "is a TorchScript archive, a program rather than weights",
            "Load it yourself and save its state_dict() with torch.save",
        )
    if b"big" in orders or any(member.compress_type != zipfile.ZIP_STORED for member in members):
        raise CheckpointError(
            path,
            "was written on a big-endian machine"
            if b"big" in orders
            else "was compressed after it was saved",
            "Load it yourself and save it again with torch.save",
        )
    try:
        return _read_pickle(path, map_location="meta")
    except NotImplementedError:  # quantized tensors of torch.ao, or an older torch: map the file instead
        return _read_pickle(path, map_location="cpu", mmap=True)


def _start(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> bytes:
    """The first bytes of a member; what a damaged or malicious one holds beyond them takes no memory."""
    with archive.open(member) as file:
        return file.read(8)


def read_torch_legacy(path: Path) -> list[CheckpointTensor]:
    """The tensors of a checkpoint in torch's old format, a bare pickle, which has to be read at once."""
    return _read_pickle(path, map_location="cpu")


def _read_pickle(path: Path, **options: Any) -> list[CheckpointTensor]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch comments on the pickle protocol
            content = torch.load(path, weights_only=True, **options)
    except (OSError, NotImplementedError):
        raise
    except Exception as error:  # a damaged pickle can raise anything
        raise _pickle_error(path, error) from error
    return [
        _checkpoint_tensor(path, name, tensor.detach())
        for name, tensor in without_ties(_state_dict(path, content).items()).items()
    ]


def _checkpoint_tensor(path: Path, name: str, tensor: torch.Tensor) -> CheckpointTensor:
    shape, problem = tuple(tensor.shape), ""
    if tensor.layout != torch.strided:
        layout = str(tensor.layout).removeprefix("torch.")
        problem = f"stored as {layout}, not dense"
    if tensor.is_meta and not problem:
        place = tensor.untyped_storage()._checkpoint_offset
        if place is None:
            raise NotImplementedError("torch 2.9 does not tell the place of a meta tensor in its file")
        return CheckpointTensor(name, shape, tensor.dtype, partial(_read_strided, path, tensor, place))
    return CheckpointTensor(name, shape, tensor.dtype, partial(_slice, tensor), problem)


def _slice(tensor: torch.Tensor, start: int, stop: int) -> torch.Tensor:
    return tensor[start:stop] if tensor.dim() else tensor


def _read_strided(path: Path, tensor: torch.Tensor, place: int, start: int, stop: int) -> torch.Tensor:
    """Read a tensor that torch.load left on the meta device; its storage begins at the byte `place`."""
    offset = place + int(tensor.storage_offset()) * tensor.dtype.itemsize
    if tensor.is_contiguous():
        return read_array(path, offset, tuple(tensor.shape), tensor.dtype, start, stop)
    # Transposed, or strided otherwise: the smallest stretch of the file that has all entries.
    span = 1 + sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
    flat = read_array(path, offset, (span,), tensor.dtype, 0, span)
    return flat.as_strided(tensor.shape, tensor.stride())[start:stop]


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
