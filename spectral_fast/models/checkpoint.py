"""Opening a checkpoint: one file, a sharded one, or a Hugging Face folder.

`open_checkpoint` looks at the first bytes of a file and picks the reader. No reader ever runs code
from a file.
"""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from spectral_fast.models.files import (
    CheckpointError,
    CheckpointTensor,
    read_npy,
    read_safetensors,
    unreadable,
)
from spectral_fast.models.fused import Config
from spectral_fast.models.matrices import WeightMatrices, find_matrices
from spectral_fast.models.pickles import read_torch_legacy, read_torch_zip

_TORCH_SUFFIXES = (".pt", ".pth", ".bin", ".ckpt", ".pkl")
_SUPPORTED = (
    "a .safetensors file, a PyTorch checkpoint (.pt, .pth, .bin, .ckpt), an .index.json or a .npy array "
    "is expected"
)
_INDEX_SUFFIX = ".index.json"
# What a Hugging Face folder keeps its weights in, the preferred one first.
_FOLDER_FILES = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
    "adapter_model.safetensors",
    "adapter_model.bin",
)


@dataclass(frozen=True)
class Checkpoint:
    """The tensors of one checkpoint, in the file's order; iterating it reads no weights.

    Attributes:
        path: the file or folder.
        tensors: all tensors in it.
        config: the content of the config.json next to the weights, {} if there is none.
        warnings: what was wrong but did not keep the checkpoint from being read.
    """

    path: Path
    tensors: tuple[CheckpointTensor, ...]
    config: Config = field(default_factory=dict)
    warnings: tuple[str, ...] = ()

    def __iter__(self) -> Iterator[CheckpointTensor]:
        return iter(self.tensors)

    def __len__(self) -> int:
        return len(self.tensors)

    def matrices(self) -> WeightMatrices:
        """The weight matrices in the tensors, split as `weight_matrices` splits those of a model.

        Each is read from its file whenever its ``tensor`` is asked for.
        """
        return find_matrices(self.tensors, lambda name: self.config)


def open_checkpoint(path: str | Path) -> Checkpoint:
    """Open a checkpoint for reading its tensors one by one.

    Reads safetensors files; PyTorch checkpoints that hold a state dict, at the top or under a usual
    key such as "state_dict" or "model"; .npy files with a matrix or a stack of matrices; the
    .index.json of a sharded checkpoint; and Hugging Face folders with one of these. Except for
    .index.json the content decides which it is. Weights stay on disk until `CheckpointTensor.load`,
    except for PyTorch's old format (before version 1.6), which is read at once, and for PyTorch
    checkpoints under torch 2.9, which are memory-mapped. Tied tensors of a
    PyTorch checkpoint are listed once, as `weight_matrices` lists them. Pickles are read with
    ``weights_only=True``: code in the file is refused, never run. A config.json next to the weights
    tells how fused weights are laid out; one that cannot be read is ignored with a warning.

    Args:
        path: the file or folder.

    Returns:
        A `Checkpoint`, iterable over `CheckpointTensor`.

    Raises:
        CheckpointError: the file is missing, empty, damaged, of another kind, holds objects other
            than tensors and plain containers, names shards that are missing or outside its folder,
            or has no weight matrix in it.
    """
    path = Path(path)
    file = path
    try:
        file = _weights_in(path) if path.is_dir() else path
        tensors = _read_index(file) if file.name.endswith(_INDEX_SUFFIX) else _choose_reader(file)(file)
        config, warnings = _read_config(file.parent / "config.json")
    except OSError as error:
        raise unreadable(file, error) from error
    checkpoint = Checkpoint(path, tuple(tensors), config, warnings)
    matrices = checkpoint.matrices()
    if not matrices:
        reasons = sorted({skipped.reason for skipped in matrices.skipped})
        raise CheckpointError(
            path,
            f"holds no weight matrix ({len(checkpoint)} tensors, "
            + (f"skipped: {'; '.join(reasons)})" if reasons else "none of them a floating-point matrix)"),
            "Give the checkpoint of a model with unquantized weights",
        )
    return checkpoint


def _weights_in(folder: Path) -> Path:
    found = next((folder / name for name in _FOLDER_FILES if (folder / name).exists()), None)
    if found is None:
        files = sorted(
            file.name for file in folder.iterdir() if file.suffix in (".safetensors", *_TORCH_SUFFIXES)
        )
        raise CheckpointError(
            folder,
            f"is a folder without {', '.join(_FOLDER_FILES[:-1])} or {_FOLDER_FILES[-1]}",
            f"Give the path of one file in it, such as {files[0]}" if files else "Check the path",
        )
    return found


_Reader = Callable[[Path], list[CheckpointTensor]]


def _choose_reader(path: Path) -> _Reader:
    if not path.exists():
        raise CheckpointError(path, "does not exist", "Check the path; nothing is downloaded")
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
        return read_torch_zip
    if head.startswith(b"\x93NUMPY"):
        return read_npy
    # Eight bytes of header length, then the header, a JSON object.
    if head[8:9] == b"{" or path.suffix == ".safetensors":
        return read_safetensors
    if head.startswith(b"\x80"):
        return read_torch_legacy
    if path.suffix in _TORCH_SUFFIXES:
        raise CheckpointError(
            path,
            "is not a PyTorch checkpoint (neither a zip archive nor a pickle)",
            "The file may be damaged or of another kind: download or save it again",
        )
    raise CheckpointError(path, "is of an unknown kind", f"Of files, {_SUPPORTED}")


def _read_index(path: Path) -> list[CheckpointTensor]:
    """The tensors of a sharded checkpoint, in the order of its index."""
    places = _weight_map(path)
    shards: dict[str, dict[str, CheckpointTensor]] = {}
    for shard in dict.fromkeys(places.values()):
        file = path.parent / shard
        if not file.exists():
            raise CheckpointError(
                path, f"names the shard {shard!r}, which is missing", "Download the missing shard"
            )
        try:
            shards[shard] = {tensor.name: tensor for tensor in _choose_reader(file)(file)}
        except OSError as error:
            raise unreadable(file, error) from error
    tensors = []
    for name, shard in places.items():
        if name not in shards[shard]:
            raise CheckpointError(
                path,
                f"places the tensor {name!r} in {shard!r}, which does not hold it",
                "Index and shards do not belong together: download both again",
            )
        tensors.append(shards[shard][name])
    return tensors


def _weight_map(path: Path) -> dict[str, str]:
    """The map of an index from tensor names to shards, all of them inside its folder."""
    index = _read_json(path)
    places = index.get("weight_map") if isinstance(index, dict) else None
    if not isinstance(places, dict) or not places or not all(isinstance(p, str) for p in places.values()):
        raise CheckpointError(
            path, "has no weight_map from tensor names to shard files", "Download or save it again"
        )
    for shard in places.values():
        parts = PurePosixPath(shard)
        if parts.is_absolute() or ".." in parts.parts or "\0" in shard or not parts.name:
            raise CheckpointError(
                path,
                f"names the shard {shard!r}, which is not inside its folder; refused",
                "Download it again from a source you trust",
            )
    return places


def _read_config(path: Path) -> tuple[Config, tuple[str, ...]]:
    if not path.is_file():
        return {}, ()
    try:
        config = _read_json(path)
    except (CheckpointError, OSError) as error:
        return {}, (f"ignored: {error}",)
    if not isinstance(config, dict):
        return {}, (f"ignored: {path}: holds no JSON object",)
    return config, ()


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise CheckpointError(path, f"is not valid JSON ({error})", "Download or save it again") from error
