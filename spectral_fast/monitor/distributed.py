"""The monitor on torch.distributed: replicated weights (DDP) and sharded ones (FSDP2, DTensor).

Each matrix has one owner, the rank that looks at it exactly and reports; owners are chosen so that all have
about the same to do. A replicated weight is simply read by its owner. The parts of a sharded one are sent to
the owner, in rounds: in each, every rank gets one group of its own, so that all of them compute
at the same time and none ever has more of the model than that. Between exact looks the rows of a sharded
weight stay where they are: the ranks that hold them follow it together, each with its rows, and sum
their products.

Everything is sent in process groups of the monitor's own, and only in steps at which a look is considered.
"""

from __future__ import annotations

import datetime
import logging
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise, zip_longest
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor
from torch.utils import _pytree as pytree

from spectral_fast.models import WeightMatrix
from spectral_fast.monitor import sharding
from spectral_fast.monitor.groups import Group, exact_work
from spectral_fast.monitor.record import Kind
from spectral_fast.monitor.sharding import Layout, RowShards
from spectral_fast.monitor.shipping import Shipment
from spectral_fast.monitor.summed import SharedTracker, SummedProducts
from spectral_fast.stats import SpectralStats
from spectral_fast.tracker import LEAST_TRACKED, Matrices, SpectralTracker

_log = logging.getLogger(__name__)
T = TypeVar("T")

# Equal shapes are given to ranks in lots of at most this part of a rank's fair share (or one matrix): few
# batches, and no rank gets more than that above its share.
_LOT = 0.25


class RanksError(RuntimeError):
    """The ranks of a monitor lost one another, and it cannot look any more. Training may go on."""


class DistributedRanks:
    """The :class:`spectral_fast.monitor.ranks.Ranks` of torch.distributed's default group.

    Made by every rank at the same time, after init_process_group. Every method is called by all ranks at the
    same point. Where one does not come, the others wait for at most ``timeout`` (None: torch's own, 30
    minutes with gloo, 10 with NCCL), and then raise RanksError, from then on at each call; NCCL may end
    the process instead, as it does when ranks of the training lose one another.
    """

    def __init__(self, timeout: datetime.timedelta | None = None) -> None:
        self.rank = dist.get_rank()
        self.size = dist.get_world_size()
        self._timeout = timeout
        self._lost: RuntimeError | None = None
        # Numbers and records go from host to host; weights in the backend of their device.
        self._control = dist.new_group(backend="gloo", timeout=timeout)
        on_hosts = dist.get_backend() == "gloo"
        self._data = self._control if on_hosts else dist.new_group(timeout=timeout)
        self._subgroups = {tuple(range(self.size)): self._data}
        self._layouts: dict[str, tuple[Layout | None, ...]] = {}
        self._shards: dict[str, RowShards | None] = {}
        self._rounds: list[dict[int, Group]] = []
        self._sent = 0  # rounds
        self._anchors: list[tuple[Group, SharedTracker]] = []

    def divide(self, matrices: Sequence[WeightMatrix]) -> list[int]:
        """The owner of each matrix, so that no rank has much more than its share of the work.

        A sharded matrix is owned by one of the ranks that hold it. Raises RuntimeError on all ranks where
        they have different models, ValueError for placements of DTensors that the monitor does not know.
        """
        found = self._agree(matrices)
        able = [_holders(layouts) or tuple(range(self.size)) for layouts in found]
        owners = longest_first(matrices, able)
        self._layouts, self._shards = {}, {}
        for matrix, layouts, owner in zip(matrices, found, owners, strict=True):
            self._layouts[matrix.name] = layouts
            shards = self._shards[matrix.name] = sharding.row_shards(matrix, layouts[0], owner)
            # Known to all ranks, which all have to take part in making a group.
            if shards is not None and shards.ranks not in self._subgroups:
                self._subgroups[shards.ranks] = dist.new_group(list(shards.ranks), timeout=self._timeout)
        return owners

    def tracker(self, group: Group) -> SpectralTracker:
        """A tracker, of rows with products summed where ranks follow the group together."""
        followers = self._followers(group)
        if self.rank not in followers:
            return SpectralTracker()
        process_group = self._subgroups[followers]

        def total(x: Tensor) -> None:
            with self._talking("the products of shards were being summed"):
                dist.all_reduce(x, group=process_group)

        return SharedTracker(SummedProducts(total))

    def begin(self, exact: Sequence[Group]) -> None:
        """A look starts, at these groups exactly: plan the rounds in which their shards are sent."""
        self._rounds, self._sent = [], 0
        for group in exact:
            if self._sharded(group):
                free = next((r for r in self._rounds if group.owner not in r), None)
                if free is None:
                    self._rounds.append(free := {})
                free[group.owner] = group

    def snapshot(self, group: Group, kind: Kind) -> Matrices | None:
        """This rank's part of a group: the owner's, all of it; for a tracked look, the rows that are here.

        Of a look, all exact snapshots come before the first tracked one.
        """
        if kind == "exact":
            for number, one in enumerate(self._rounds):
                if one.get(self.rank) is group:
                    return self._send_until(number)
        else:
            self._finish_exact()
            if followers := self._followers(group):
                return self._rows_here(group) if self.rank in followers else None
            if self._sharded(group):
                return self._send({group.owner: group})
        if group.owner != self.rank:
            return None
        return group.stacked() if group.device.type == "cuda" else [m.tensor for m in group.matrices]

    def together(self, group: Group) -> bool:
        """Whether the ranks that hold the group's rows follow it together."""
        return bool(self._followers(group))

    def anchored(self, group: Group, tracker: SpectralTracker) -> None:
        """An exact look at the group is over; its anchors go to the other ranks that follow it."""
        # Not now: others have rounds of this look to send yet.
        if isinstance(tracker, SharedTracker):
            self._anchors.append((group, tracker))

    def largest(self, numbers: Sequence[float]) -> list[float]:
        """Elementwise the largest over all ranks."""
        most = torch.tensor(numbers, dtype=torch.float64)
        with self._talking("a look was being considered"):
            dist.all_reduce(most, dist.ReduceOp.MAX, group=self._control)
        return most.tolist()

    def gather(self, mine: T) -> list[T]:
        """What every rank gave, in the order of the ranks, on every rank."""
        self._finish_exact()
        everyone: list[Any] = [None] * self.size
        with self._talking("the results of a look were being gathered"):
            dist.all_gather_object(everyone, mine, group=self._control)
        return everyone

    def close(self) -> None:
        """Give the process groups back."""
        for group in {self._control, *self._subgroups.values()} - {dist.GroupMember.NON_GROUP_MEMBER}:
            dist.destroy_process_group(group)

    def _agree(self, matrices: Sequence[WeightMatrix]) -> list[tuple[Layout | None, ...]]:
        """How each matrix is laid out, as rank 0 sees it.

        With tensor parallelism, weights that only FSDP shards lie on another mesh for each rank of it.
        """
        problem, seen = "", []
        try:
            seen = [sharding.layouts(matrix) for matrix in matrices]
        except ValueError as error:
            problem = str(error)
        mine = [
            (w.name, w.shape, str(w.dtype), *(s and (s.shape, s.mesh, s.cuts) for s in layouts))
            for w, layouts in zip(matrices, seen, strict=False)
        ]
        everyone = self.gather((problem, mine, seen if self.rank == 0 else []))
        if problems := [problem for problem, _, _ in everyone if problem]:
            raise ValueError(problems[0])
        _, first, of_first = everyone[0]
        for rank, (_, theirs, _) in enumerate(everyone):
            if theirs != first:
                only = next(one for one in zip_longest(first, theirs) if one[0] != one[1])
                raise RuntimeError(
                    f"ranks 0 and {rank} have different weight matrices, {only[0]} and {only[1]}: a monitor "
                    "needs the same model on all ranks, replicated or sharded (no pipeline stages)"
                )
        return of_first

    def _followers(self, group: Group) -> tuple[int, ...]:
        """The ranks that follow the group together, each with its rows of every matrix; none: the owner."""
        if min(group.matrices[0].shape) < LEAST_TRACKED:
            return ()
        placed = [self._shards[matrix.name] for matrix in group.matrices]
        ranks = {shards.ranks if shards else () for shards in placed}
        return next(iter(ranks)) if len(ranks) == 1 else ()

    def _sharded(self, group: Group) -> bool:
        return any(_holders(self._layouts[matrix.name]) for matrix in group.matrices)

    def _rows_here(self, group: Group) -> Tensor:
        """A batch of the rows that are here; rows of zeros, where a matrix has fewer, add nothing."""
        parts = []
        for matrix in group.matrices:
            shards = self._shards[matrix.name]
            assert shards is not None
            parts.append(sharding.rows_here(matrix, shards, self.rank))
        most = max(1, *map(len, parts))
        batch = parts[0].new_zeros((len(parts), most, parts[0].shape[1]))
        for rows, part in zip(batch, parts, strict=True):
            rows[: len(part)] = part
        return batch

    def _send_until(self, number: int) -> Tensor | None:
        """Send the rounds up to this one, which alone may bring this rank a group."""
        mine = None
        for one in self._rounds[self._sent : number + 1]:
            mine = self._send(one)
        self._sent = number + 1
        return mine

    def _send(self, owned: dict[int, Group]) -> Tensor | None:
        """Every rank sends its parts of each group to the group's owner; this rank's own group."""
        shipment = Shipment(self.rank, self._data)
        mine = None
        for owner, group in owned.items():
            names = [matrix.name for matrix in group.matrices]
            batch = shipment.add(group, owner, [self._shards[name] or self._layouts[name] for name in names])
            mine = batch if owner == self.rank else mine
        with self._talking("shards were being sent to their owners"):
            shipment.send()
        return None if mine is None else mine()

    def _finish_exact(self) -> None:
        """What is left when this rank has made its exact looks: others' rounds, and the anchors."""
        self._send_until(len(self._rounds))
        self._rounds, self._sent = [], 0
        anchors, self._anchors = self._anchors, []
        for group, tracker in anchors:
            found = [tracker.found and _moved(tracker.found, torch.device("cpu"))]
            with self._talking("an exact look was being sent to those who follow it"):
                dist.broadcast_object_list(
                    found, group.owner, group=self._subgroups[self._followers(group)], device=group.device
                )
            tracker.found = None
            if found[0] is not None:  # the look did not fail
                try:
                    tracker.anchor(self._rows_here(group), _moved(found[0], group.device))
                except RanksError:
                    raise
                except Exception:  # on all of them: they have computed the same
                    _log.warning("%s cannot be followed", group.matrices[0].name, exc_info=True)

    @contextmanager
    def _talking(self, what: str) -> Iterator[None]:
        """Around collectives. After one failed nobody knows who has missed which: none is tried again."""
        if self._lost is not None:
            raise RanksError(f"no look is possible any more: {self._lost}") from self._lost
        try:
            yield
        except RuntimeError as error:
            self._lost = RanksError(
                f"rank {self.rank} lost the others while {what}; is the monitor's step() called on every "
                "rank after every optimizer step, and do all ranks still run?"
            )
            raise self._lost from error


def _moved(stats: SpectralStats, device: torch.device) -> SpectralStats:
    return pytree.tree_map(lambda x: x.to(device), stats)


def _holders(layouts: Sequence[Layout | None]) -> tuple[int, ...]:
    """The ranks that hold parts of a matrix, in order; none if it is not made of DTensors."""
    return tuple(sorted({rank for layout in layouts if layout is not None for rank in layout.ranks}))


def longest_first(matrices: Sequence[WeightMatrix], able: Sequence[Sequence[int]]) -> list[int]:
    """For each matrix one of the ranks able to own it: the largest lot of work to the rank with least.

    Lots are runs of matrices of one shape, dtype and choice of ranks. Source: Graham, SIAM J. Appl. Math. 17
    (1969), whose bound it keeps: the most loaded rank has at most its fair share and one lot.
    """
    alike: dict[tuple[Any, ...], list[int]] = {}
    for place, matrix in enumerate(matrices):
        alike.setdefault((matrix.shape, matrix.dtype, tuple(able[place])), []).append(place)
    lots: list[list[int]] = []
    for (_, _, ranks), places in alike.items():
        work = exact_work(matrices[places[0]])
        fair = sum(map(exact_work, matrices)) / len(ranks)
        count = min(len(places), math.ceil(len(places) * work / (_LOT * fair)))
        cuts = [len(places) * i // count for i in range(count + 1)]
        lots += [places[start:stop] for start, stop in pairwise(cuts)]
    owners = [0] * len(matrices)
    load: dict[int, float] = {}
    for lot in sorted(lots, key=lambda lot: -len(lot) * exact_work(matrices[lot[0]])):
        owner = min(able[lot[0]], key=lambda rank: (load.get(rank, 0.0), rank))
        load[owner] = load.get(owner, 0.0) + len(lot) * exact_work(matrices[lot[0]])
        for place in lot:
            owners[place] = owner
    return owners
