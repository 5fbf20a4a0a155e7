"""Operators on a DTensor: each rank computes the matrices it holds whole.

A batch sharded over its batch dimensions stays as it is: local work, and the results are sharded alike. Where
a matrix itself is in pieces (sharded over rows or columns, or a partial sum), the mesh dimension over
which it is is replicated first, and each rank of it computes the same. So no placement gives other bits than
one process has: the kernels give a matrix the same bits whatever its place in a batch.

This stands above the dispatcher, rather than in DTensor's table of sharding rules: those replicate a
batch that is smaller than the mesh, know no strided shards, and would leave derivatives to DTensor's
linalg, which replicates everything.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, TypeGuard

import torch
from torch import Tensor

if TYPE_CHECKING:
    from torch.distributed.tensor import DTensor, Placement


def is_dtensor(x: Any) -> TypeGuard[DTensor]:
    """Whether x is a DTensor. Imports nothing: where torch.distributed.tensor is not loaded, none exists."""
    if type(x) is Tensor:
        return False
    module = sys.modules.get("torch.distributed.tensor")
    return module is not None and isinstance(x, module.DTensor)


def local_work(x: DTensor, batch_dims: int) -> tuple[Placement, ...]:
    """The placements of x with everything replicated that is no plain shard of a batch dimension."""
    from torch.distributed.tensor import Replicate, Shard

    return tuple(p if type(p) is Shard and p.dim < batch_dims else Replicate() for p in x.placements)


def on_shards(function: Callable[..., Any], x: DTensor, rest: Iterable[Any], event_dims: int) -> Any:
    """function(x, *rest) on each rank's part of a batch.

    x: (\\*, event), the last event_dims dimensions being one matrix or spectrum. Every other tensor among
    ``rest`` and the results has the same batch in front.
    """
    from torch.distributed.tensor import DTensor, distribute_tensor

    mesh, batch = x.device_mesh, x.shape[: x.dim() - event_dims]
    placements = local_work(x, len(batch))
    # A rank outside of the mesh takes part with no matrices.
    outside = mesh.get_coordinate() is None

    def local(value: Any) -> Any:
        if isinstance(value, list | tuple):
            return type(value)(map(local, value))
        if not isinstance(value, Tensor):
            return value
        if not is_dtensor(value):  # the same on every rank, such as a threshold
            value = distribute_tensor(value, mesh, placements, src_data_rank=None)
        if outside:
            return value.to_local().new_empty((0, *value.shape[len(batch) :]))
        return value.redistribute(placements=placements).to_local()

    def wrapped(value: Tensor | None) -> DTensor | None:
        if value is None:
            return None
        shape = (*batch, *value.shape[1 if outside else len(batch) :])
        return DTensor.from_local(
            value, mesh, placements, run_check=False, shape=torch.Size(shape), stride=_contiguous(shape)
        )

    result = function(*map(local, (x, *rest)))
    return tuple(map(wrapped, result)) if isinstance(result, tuple) else wrapped(result)


def _contiguous(shape: tuple[int, ...]) -> tuple[int, ...]:
    strides, step = [], 1
    for size in reversed(shape):
        strides.append(step)
        step *= max(size, 1)
    return tuple(reversed(strides))
