"""Where the parts of a sharded weight are: which rank holds which entries, and which rows of a matrix."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor
from torch.distributed.tensor import DTensor, Shard

from spectral_fast.models import WeightMatrix
from spectral_fast.models.matrices import LiveTensor

Box = tuple[slice, ...]
"""Entries from start to stop in every dimension of a tensor."""


@dataclass(frozen=True)
class Layout:
    """How a DTensor is laid out, as plain data.

    Attributes:
        shape: of the whole tensor.
        mesh: the mesh's shape.
        ranks: on the mesh, flattened.
        cuts: which mesh dimension shards which dimension, in the order in which they cut the tensor.
    """

    shape: tuple[int, ...]
    mesh: tuple[int, ...]
    ranks: tuple[int, ...]
    cuts: tuple[tuple[int, int], ...]


def layouts(matrix: WeightMatrix) -> tuple[Layout | None, ...]:
    """The layout of each tensor that the matrix is made of; None for ordinary ones.

    Raises ValueError for a placement that no boxes describe.
    """
    found = []
    for i in range(len(matrix.pieces)):
        tensor, layout = parameter(matrix, i), None
        if isinstance(tensor, DTensor):
            mesh = tensor.device_mesh
            ranks = tuple(mesh.mesh.flatten().tolist())
            layout = Layout(tuple(tensor.shape), tuple(mesh.shape), ranks, _cuts(matrix.name, tensor))
        found.append(layout)
    return tuple(found)


def parameter(matrix: WeightMatrix, piece: int) -> Tensor:
    """The tensor that a piece of a model's matrix is part of."""
    stored = matrix.pieces[piece].stored
    assert isinstance(stored, LiveTensor)
    return stored.tensor


def local_part(matrix: WeightMatrix, piece: int) -> Tensor:
    """What this rank holds of the DTensor that a piece of a matrix is part of."""
    tensor = parameter(matrix, piece)
    assert isinstance(tensor, DTensor)
    return tensor.to_local().detach()  # in this order: detaching a DTensor costs 40 us


def _cuts(name: str, tensor: DTensor) -> tuple[tuple[int, int], ...]:
    """First to last in the mesh; but a strided shard cuts what the later ones have left.

    FSDP comes first in the mesh and shards what tensor parallelism has sharded.
    """
    mesh = tensor.device_mesh
    placements: list[Any] = list(tensor.placements)
    plain = [(i, p.dim) for i, p in enumerate(placements) if type(p) is Shard]
    # torch has no public name for it.
    strided = [(i, p.dim) for i, p in enumerate(placements) if type(p).__name__ == "_StridedShard"]
    ahead = [math.prod(mesh.size(j) for j, d in plain if j > i and d == dim) for i, dim in strided]
    if (
        len(plain) + len(strided) + sum(p.is_replicate() for p in placements) < len(placements)
        or len(strided) > 1
        or any(placements[i].split_factor != size for (i, _), size in zip(strided, ahead, strict=True))
    ):
        raise ValueError(
            f"{name} has the placements {tensor.placements}; known are replicas, shards, and FSDP over one "
            "dimension of tensor parallelism. Redistribute it, or leave it out of the model handed over"
        )
    return (*plain, *strided)


def boxes(layout: Layout, beside: int) -> dict[int, Box]:
    """Rank -> what it holds: every entry once. Of replicas, those on the side of rank ``beside``."""
    at = dict(zip(layout.ranks, np.ndindex(*layout.mesh), strict=True))
    replica = at[beside] if beside in at else at[layout.ranks[0]]
    across = {mesh_dim for mesh_dim, _ in layout.cuts}
    found = {}
    for rank, coordinate in at.items():
        if any(coordinate[i] != replica[i] for i in range(len(replica)) if i not in across):
            continue
        bounds = [(0, size) for size in layout.shape]
        for mesh_dim, dim in layout.cuts:
            start, stop = bounds[dim]
            chunk = -(-(stop - start) // layout.mesh[mesh_dim])  # as torch.chunk
            first = min(start + coordinate[mesh_dim] * chunk, stop)
            bounds[dim] = first, min(first + chunk, stop)
        found[rank] = tuple(slice(*bound) for bound in bounds)
    return found


@dataclass(frozen=True)
class RowShards:
    """A matrix whose rows lie on several ranks.

    Attributes:
        ranks: those that hold all rows once, in order, the owner among them.
        rows: of the matrix, those on each rank.
        entries: of each rank's part of the tensor, those that these rows are made of.
    """

    ranks: tuple[int, ...]
    rows: Mapping[int, slice]
    entries: Mapping[int, slice]


def row_shards(matrix: WeightMatrix, layout: Layout | None, owner: int) -> RowShards | None:
    """How the rows of a matrix are shared out beside its owner; None if it is not sharded by rows alone."""
    if not matrix.by_rows or layout is None or any(dim != 0 for _, dim in layout.cuts):
        return None
    held = {rank: box[0] for rank, box in boxes(layout, owner).items()}
    if len(held) < 2:
        return None
    piece = matrix.pieces[0]
    rows, entries = {}, {}
    for rank, here in held.items():
        start = min(max(here.start, piece.start), here.stop)
        stop = max(min(here.stop, piece.stop), start)
        rows[rank] = slice(start - piece.start, stop - piece.start) if start < stop else slice(0, 0)
        entries[rank] = slice(start - here.start, stop - here.start)
    return RowShards(tuple(sorted(held)), rows, entries)


def rows_here(matrix: WeightMatrix, shards: RowShards, rank: int) -> Tensor:
    """This rank's rows of a matrix, a view of its shard where strides allow it."""
    return matrix.made_of([local_part(matrix, 0)[shards.entries[rank]]])
