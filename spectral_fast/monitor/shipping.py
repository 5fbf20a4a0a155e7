"""Sending the parts of sharded matrices to one rank."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.distributed as dist
from torch import Tensor

from spectral_fast.models import WeightMatrix
from spectral_fast.monitor import sharding
from spectral_fast.monitor.groups import Group
from spectral_fast.monitor.sharding import Layout, RowShards


class Shipment:
    """What ranks send to one another at one time. All of them add the same groups in the same order."""

    def __init__(self, rank: int, process_group: dist.ProcessGroup) -> None:
        self._rank = rank
        self._process_group = process_group
        self._transfers: list[dist.P2POp] = []
        self._arrived: list[tuple[Tensor, Tensor]] = []  # where it belongs, and where it was received

    def add(
        self, group: Group, owner: int, placed: Sequence[RowShards | Sequence[Layout | None]]
    ) -> Callable[[], Tensor] | None:
        """Send a group to its owner. There it gives the batch (matrices, rows, cols), once `send` is over.

        placed: for each matrix where its rows are, or if they are in pieces, the layouts of its tensors.
        """
        first = group.matrices[0]
        batch = None
        if owner == self._rank:
            batch = torch.empty((len(group.matrices), *first.shape), dtype=first.dtype, device=group.device)
        in_pieces: list[tuple[int, list[Tensor]]] = []
        for i, (matrix, place) in enumerate(zip(group.matrices, placed, strict=True)):
            if isinstance(place, RowShards):
                self._add_rows(matrix, place, owner, None if batch is None else batch[i])
            else:
                in_pieces.append((i, self._add_pieces(matrix, place, owner)))

        def finished() -> Tensor:
            assert batch is not None
            for i, entries in in_pieces:
                batch[i] = group.matrices[i].made_of(entries)
            return batch

        return None if batch is None else finished

    def send(self) -> None:
        """Send and receive everything."""
        if self._transfers:
            for work in dist.batch_isend_irecv(self._transfers):
                work.wait()
        for region, received in self._arrived:
            region.copy_(received)

    def _add_rows(self, matrix: WeightMatrix, shards: RowShards, owner: int, into: Tensor | None) -> None:
        """Of a matrix sharded by rows, rows of the matrix itself: not a column of the tensor around it."""
        for source, rows in shards.rows.items():
            region = None if into is None else into[rows]
            if rows.start < rows.stop:
                part = sharding.rows_here(matrix, shards, source) if source == self._rank else None
                self._add(source, owner, part, region)

    def _add_pieces(self, matrix: WeightMatrix, layouts: Sequence[Layout | None], owner: int) -> list[Tensor]:
        """The entries that a matrix is made of; on its owner, filled by `send`."""
        entries = []
        for number, (piece, layout) in enumerate(zip(matrix.pieces, layouts, strict=True)):
            if layout is None:
                entries.append(sharding.parameter(matrix, number).detach()[piece.start : piece.stop])
                continue
            local = sharding.local_part(matrix, number)
            whole = None
            if owner == self._rank:
                whole = local.new_empty((piece.stop - piece.start, *layout.shape[1:]))
                entries.append(whole)
            for source, box in sharding.boxes(layout, owner).items():
                start, stop = max(box[0].start, piece.start), min(box[0].stop, piece.stop)
                if start >= stop or any(side.start >= side.stop for side in box):
                    continue
                part = local[start - box[0].start : stop - box[0].start] if source == self._rank else None
                at = (slice(start - piece.start, stop - piece.start), *box[1:])
                self._add(source, owner, part, None if whole is None else whole[at])
        return entries

    def _add(self, source: int, owner: int, part: Tensor | None, region: Tensor | None) -> None:
        if source == self._rank and owner == self._rank:
            assert part is not None
            assert region is not None
            region.copy_(part)
        elif source == self._rank:
            assert part is not None
            self._transfers.append(dist.P2POp(dist.isend, part.contiguous(), owner, self._process_group))
        elif owner == self._rank:
            assert region is not None
            received = region
            if not region.is_contiguous():
                received = torch.empty(region.shape, dtype=region.dtype, device=region.device)
            self._transfers.append(dist.P2POp(dist.irecv, received, source, self._process_group))
            if received is not region:
                self._arrived.append((region, received))
