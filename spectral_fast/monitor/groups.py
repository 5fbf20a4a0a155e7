"""Which matrices a monitor looks at, and which of them together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from spectral_fast._dtensor import is_dtensor
from spectral_fast.models import WeightMatrix, weight_matrices

# Of one batch. On the CPU it is also the memory that a look takes: it copies one batch at a time. On CUDA all
# weights are copied first, and many matrices cost little more than one.
BATCH_BYTES = 64 * 2**20
CUDA_BATCH_BYTES = 2**30

# Components that torch.compile, FSDP and activation checkpointing add to names.
_WRAPPERS = frozenset({"_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"})

_Parameters = list[tuple[str, Tensor, torch.Size, torch.dtype, torch.device]]


@dataclass(frozen=True, eq=False)
class Group:
    """Matrices of one shape, dtype and device that one rank looks at as one batch.

    On CUDA an m x n and an n x m matrix are of one shape: their singular values are one batch's.

    Attributes:
        places: their positions in the model's order.
        matrices: as `weight_matrices` found them, in that order; every rank has the same.
        device: where they are.
        owner: the rank that looks at them exactly and reports what was found.
    """

    places: tuple[int, ...]
    matrices: tuple[WeightMatrix, ...]
    device: torch.device
    owner: int

    @property
    def work(self) -> float:
        """What an exact look at the group costs, up to a constant factor."""
        return len(self.matrices) * exact_work(self.matrices[0])

    def stacked(self) -> Tensor:
        """A copy of the matrices, (matrices, m, n); wide ones are transposed."""
        tensors = [matrix.tensor for matrix in self.matrices]
        return torch.stack([t.mT if t.shape[0] < t.shape[1] else t for t in tensors])


def exact_work(matrix: WeightMatrix) -> float:
    """What an exact look at a matrix costs, up to a constant factor: flops go as m n min(m, n)."""
    rows, cols = matrix.shape
    return float(rows * cols * min(rows, cols))


class Weights:
    """The weight matrices of a model that is being trained, found anew when its parameters change."""

    def __init__(self, model: torch.nn.Module, embeddings: bool) -> None:
        self._model = model
        self._embeddings = embeddings
        # With the tensors themselves: while they are held no other tensor has their ids.
        self._known: _Parameters = []
        self.matrices: list[WeightMatrix] = []
        self._devices: list[torch.device] = []

    def changed(self) -> bool:
        """Look the parameters up; True if they are others than at the last call, or of other shapes."""
        model = _unwrapped(self._model)
        named = model.named_parameters(remove_duplicate=False)
        now: _Parameters = [(name, p, p.shape, p.dtype, p.device) for name, p in named]
        if len(now) == len(self._known) and all(
            a[1] is b[1] and a[0] == b[0] and a[2:] == b[2:] for a, b in zip(now, self._known, strict=True)
        ):
            return False
        found = [w for w in weight_matrices(model) if self._embeddings or not w.is_embedding]
        self.matrices = [replace(w, name=_plain(w.name)) for w in found]
        devices = {device for *_, device in now}
        # Asking each matrix is dear where it is gathered from parts, and needed only where there are several.
        self._devices = [next(iter(devices)) if len(devices) == 1 else w.tensor.device for w in found]
        self._known = now
        return True

    def groups(self, owners: Sequence[int]) -> list[Group]:
        """Batches of equal shape, dtype, device and owner, in the order of their first matrices."""
        alike: dict[tuple[object, torch.device, int], list[int]] = {}
        for place, matrix in enumerate(self.matrices):
            device, shape = self._devices[place], tuple(matrix.shape)
            if device.type == "cuda" and not is_dtensor(matrix.tensor):  # shards are of rows or of columns
                shape = tuple(sorted(shape, reverse=True))
            key = (shape, matrix.dtype), device, owners[place]
            alike.setdefault(key, []).append(place)
        groups = []
        for (_, device, owner), places in alike.items():
            one = self.matrices[places[0]]
            limit = CUDA_BATCH_BYTES if device.type == "cuda" else BATCH_BYTES
            most = max(1, limit // (one.shape[0] * one.shape[1] * one.dtype.itemsize))
            for start in range(0, len(places), most):
                chunk = tuple(places[start : start + most])
                groups.append(Group(chunk, tuple(self.matrices[p] for p in chunk), device, owner))
        return sorted(groups, key=lambda group: group.places)


def _unwrapped(model: torch.nn.Module) -> torch.nn.Module:
    """Without the module around it that adds to the names of all parameters."""
    if isinstance(model, torch.nn.parallel.DistributedDataParallel | torch.nn.DataParallel):
        return _unwrapped(model.module)
    return model


def _plain(name: str) -> str:
    return ".".join(part for part in name.split(".") if part not in _WRAPPERS)
