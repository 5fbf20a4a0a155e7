"""Making a look: groups of matrices, the trackers that follow them, and this rank's part in it."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

from spectral_fast.monitor import matrices
from spectral_fast.monitor.groups import Group, Weights
from spectral_fast.monitor.matrices import Found
from spectral_fast.monitor.ranks import Ranks
from spectral_fast.monitor.record import MatrixLook
from spectral_fast.monitor.streams import SideStreams, Work, run_on_host
from spectral_fast.tracker import Matrices, SpectralTracker

Report = Callable[[str, object], None]
"""Told what went wrong, and why."""


@dataclass(eq=False)
class _Followed:
    """A group and what follows it. All ranks agree on all but the tracker."""

    group: Group
    tracker: SpectralTracker
    anchored: bool = False  # the tracker has an exact look to start from
    failed: bool = False  # the last exact look left none; the next try is at the next exact look of all
    wants_exact: bool = False

    @property
    def wanting(self) -> bool:
        return self.wants_exact if self.anchored else not self.failed


@dataclass(frozen=True)
class Started:
    """A look in work. exact: the groups that are looked at exactly, of those looked at."""

    looked: Sequence[int]
    exact: frozenset[int]
    work: Work


@dataclass(frozen=True)
class Part:
    """What one rank has found: plain data, for all ranks."""

    found: Sequence[tuple[int, MatrixLook]]  # with places in the model's order
    failed: Collection[int]  # groups
    wants_exact: Collection[int]


class Following:
    """The matrices of a model and a tracker for each group of them."""

    def __init__(self, weights: Weights, ranks: Ranks, report: Report) -> None:
        self._weights = weights
        self._ranks = ranks
        self._report = report
        self._regroup()

    def changed(self) -> bool:
        """Whether this rank sees other matrices than those that are followed."""
        self._changed |= self._weights.changed()
        return self._changed

    def start_anew(self) -> None:
        """Follow the matrices that the model has now."""
        if not self._weights.matrices:
            raise ValueError("the model has no weight matrices any more")
        self._report("the model's weights are others than before", "those of now are looked at")
        self._regroup()

    @property
    def wanting(self) -> frozenset[int]:
        """The groups that need an exact look, because of their errors or because they never had one."""
        return frozenset(i for i, one in enumerate(self._followed) if one.wanting)

    @property
    def refresh(self) -> float:
        """The share of those groups in the work of an exact look at all."""
        work = [one.group.work for one in self._followed]
        return sum(work[i] for i in self.wanting) / sum(work)

    @property
    def blank(self) -> bool:
        """Nothing has had an exact look yet."""
        return not any(one.anchored or one.failed for one in self._followed)

    @property
    def all(self) -> frozenset[int]:
        return frozenset(range(len(self._followed)))

    def start(self, exact: frozenset[int]) -> Started:
        """Look at these groups exactly, and track the others that can be."""
        tracked = [i for i, one in enumerate(self._followed) if one.anchored and i not in exact]
        looked = sorted(exact) + tracked
        self._ranks.begin([self._followed[i].group for i in sorted(exact)])
        followed = {id(self._followed[i].group): (self._followed[i], i in exact) for i in looked}
        uncopied: dict[int, Exception] = {}

        def copy(group: Group) -> Matrices | None:
            try:
                return self._ranks.snapshot(group, "exact" if followed[id(group)][1] else "tracked")
            except Exception as error:
                uncopied[id(group)] = error
                return None

        def compute(group: Group, A: Matrices | None) -> Found | None:
            one, is_exact = followed[id(group)]
            found = None
            if id(group) in uncopied:
                self._report(f"copying {_names(group)} failed", uncopied[id(group)])
                found = matrices.nothing(group, "exact" if is_exact else "tracked")
            elif A is not None:
                found = self._exact(one, A) if is_exact else self._tracked(one, A)
            if is_exact:
                self._ranks.anchored(group, one.tracker)
            return found if group.owner == self._ranks.rank else None

        return Started(looked, exact, self._run([self._followed[i].group for i in looked], copy, compute))

    def part(self, started: Started) -> Part:
        """This rank's part of a look; its work was waited for."""
        found: list[tuple[int, MatrixLook]] = []
        failed, wants_exact = [], []
        for i, one in zip(started.looked, started.work.found, strict=True):
            if one is None:
                continue
            group = self._followed[i].group
            found += zip(group.places, matrices.records(group, one), strict=True)
            if one.failed:
                failed.append(i)
            elif "wants_exact" in one.tensors and bool(one.tensors["wants_exact"].any()):
                wants_exact.append(i)
        return Part(found, failed, wants_exact)

    def finish(self, started: Started, parts: Sequence[Part]) -> list[MatrixLook]:
        """The records of all ranks in the model's order; note which groups can be tracked."""
        failed = {i for part in parts for i in part.failed}
        wants_exact = {i for part in parts for i in part.wants_exact}
        for i in started.looked:
            one = self._followed[i]
            one.anchored = i not in failed
            one.failed = i in failed and i in started.exact
            one.wants_exact = i in wants_exact
        found = sorted((pair for part in parts for pair in part.found), key=lambda pair: pair[0])
        return [record for _, record in found]

    def _regroup(self) -> None:
        self._changed = False
        groups = self._weights.groups(self._ranks.divide(self._weights.matrices))
        self._followed = [_Followed(group, self._ranks.tracker(group)) for group in groups]
        cuda = dict.fromkeys(group.device for group in groups if group.device.type == "cuda")
        self._run = SideStreams(cuda).run if cuda else run_on_host

    def _exact(self, one: _Followed, A: Matrices) -> Found:
        try:
            return matrices.exact(one.tracker.exact(A))
        except Exception as error:
            self._report(f"an exact look at {_names(one.group)} failed", error)
            one.tracker = self._ranks.tracker(one.group)
            return matrices.one_by_one(A)

    def _tracked(self, one: _Followed, A: Matrices) -> Found:
        try:
            return matrices.tracked(one.tracker.track(A))
        except Exception as error:
            self._report(f"tracking {_names(one.group)} failed", error)
            one.tracker = self._ranks.tracker(one.group)
            return matrices.nothing(one.group, "tracked")


def _names(group: Group) -> str:
    first, *others = group.matrices
    return f"{first.name} and {len(others)} like it" if others else first.name
