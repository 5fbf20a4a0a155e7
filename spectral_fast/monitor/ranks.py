"""What a monitor asks of the processes that train together. Here: one process."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, TypeVar

from spectral_fast.models import WeightMatrix
from spectral_fast.monitor.groups import Group
from spectral_fast.monitor.record import Kind
from spectral_fast.tracker import Matrices, SpectralTracker

T = TypeVar("T")


class Ranks(Protocol):
    """The processes of a training run, as a monitor sees them.

    Each rank has its own monitor, and every method is called on all ranks in the same order with the same
    groups: any of them may be a collective. Which looks are made is decided from numbers of `largest` and
    `gather` alone, so that all ranks decide alike. A step at which no look is considered calls nothing.

    Attributes:
        rank: this process; 0 delivers to the sinks.
        size: how many there are.
    """

    rank: int
    size: int

    def divide(self, matrices: Sequence[WeightMatrix]) -> list[int]:
        """For each matrix the rank that owns it. Asked once, and again when the model's matrices change."""

    def tracker(self, group: Group) -> SpectralTracker:
        """A new tracker of a group, on every rank; asked when the groups change and after a failed look."""

    def begin(self, exact: Sequence[Group]) -> None:
        """A look begins, an exact one at these groups. Their snapshots come next, in this order."""

    def snapshot(self, group: Group, kind: Kind) -> Matrices | None:
        """The group's matrices as they are now, for this rank's ``tracker.exact`` or ``tracker.track``.

        A batch (matrices, m, n), or the matrices one by one, that nobody else writes to while the look runs;
        None where this rank has nothing to compute. For an exact look only the owner may get one. For a
        tracked look several ranks may get their shards; the owner then reports. On CUDA it copies, on the
        stream of the monitor's on which it is called.
        """

    def together(self, group: Group) -> bool:
        """Whether several ranks follow the group, so that ``tracker.track`` talks to them.

        On CUDA such a look is made by the thread that calls the monitor, all else by another one.
        """

    def anchored(self, group: Group, tracker: SpectralTracker) -> None:
        """Called on every rank after an exact look at a group, also one that failed on its owner.

        Before ``gather``, and only if there will be tracked looks. Where ranks track together, the owner's
        anchors go to the others here.
        """

    def largest(self, numbers: Sequence[float]) -> list[float]:
        """Elementwise the largest over all ranks."""

    def gather(self, mine: T) -> list[T]:
        """What every rank gave, in the order of the ranks, on every rank. Plain data, picklable."""

    def close(self) -> None:
        """Nothing more will be asked."""


class OneProcess:
    """The ranks of a run that is not distributed."""

    rank = 0
    size = 1

    def divide(self, matrices: Sequence[WeightMatrix]) -> list[int]:
        return [0] * len(matrices)

    def tracker(self, group: Group) -> SpectralTracker:
        return SpectralTracker()

    def begin(self, exact: Sequence[Group]) -> None:
        pass

    def snapshot(self, group: Group, kind: Kind) -> Matrices | None:
        # On the host nobody writes while we look: no copy.
        return group.stacked() if group.device.type == "cuda" else [m.tensor for m in group.matrices]

    def together(self, group: Group) -> bool:
        return False

    def anchored(self, group: Group, tracker: SpectralTracker) -> None:
        pass

    def largest(self, numbers: Sequence[float]) -> list[float]:
        return list(numbers)

    def gather(self, mine: T) -> list[T]:
        return [mine]

    def close(self) -> None:
        pass
