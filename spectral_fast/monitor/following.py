"""Making a look: groups of matrices, the trackers that follow them, and this rank's part in it."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

import torch

from spectral_fast._info import capabilities
from spectral_fast.monitor import matrices
from spectral_fast.monitor.groups import Group, Weights
from spectral_fast.monitor.matrices import Found
from spectral_fast.monitor.ranks import Ranks
from spectral_fast.monitor.record import MatrixLook
from spectral_fast.monitor.streams import SideStreams, Work, run_on_host
from spectral_fast.stats import spectral_stats
from spectral_fast.tracker import LEAST_TRACKED, Matrices, SpectralTracker

Report = Callable[[str, object], None]
"""Told what went wrong, and why."""


@dataclass(eq=False)
class _Followed:
    """A group and what follows it. All ranks agree on all but the tracker."""

    group: Group
    tracker: SpectralTracker
    anchored: bool = False  # there was an exact look, for the tracker to start from
    failed: bool = False  # the last exact look left none; the next try is at the next exact look of all
    wants_exact: bool = False

    @property
    def wanting(self) -> bool:
        return self.wants_exact if self.anchored else not self.failed


@dataclass(frozen=True)
class Problem:
    """What went wrong with a group of a look."""

    group: int
    what: str
    error: Exception


@dataclass(frozen=True)
class Started:
    """A look in work. exact: the groups that are looked at exactly, of those looked at.

    problems: what went wrong; complete when the work was waited for.
    """

    looked: Sequence[int]
    exact: frozenset[int]
    work: Work
    problems: list[Problem]


@dataclass(frozen=True)
class Part:
    """What one rank has found: plain data, for all ranks."""

    found: Sequence[tuple[int, MatrixLook]]  # with places in the model's order
    failed: Collection[int]  # groups
    wants_exact: Collection[int]


class Following:
    """The matrices of a model and a tracker for each group of them.

    track: whether there will be tracked looks. clock: of the thread that calls, in seconds.
    """

    def __init__(
        self, weights: Weights, ranks: Ranks, report: Report, track: bool, clock: Callable[[], float]
    ) -> None:
        self._weights = weights
        self._ranks = ranks
        self._report = report
        self._track = track
        self._clock = clock
        self._streams: SideStreams | None = None
        self._switching = False
        self._warm: set[tuple[torch.device, torch.dtype]] = set()
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
        groups = [self._followed[i].group for i in looked]
        self._ranks.begin(groups[: len(exact)])
        numbers = {id(group): i for group, i in zip(groups, looked, strict=True)}
        problems: list[Problem] = []
        uncopied: set[int] = set()

        def copy(group: Group) -> Matrices | None:
            i = numbers[id(group)]
            try:
                return self._ranks.snapshot(group, "exact" if i in exact else "tracked")
            except Exception as error:
                problems.append(Problem(i, f"copying {_names(group)} failed", error))
                uncopied.add(i)
                return None

        def compute(group: Group, A: Matrices | None) -> Found | None:
            # On CUDA in another thread: it reads and moves trackers, and nothing else of ours.
            i = numbers[id(group)]
            found = None
            if i in uncopied:
                found = matrices.nothing(group, "exact" if i in exact else "tracked")
            elif A is not None:
                try:
                    found = self._exact(i, A) if i in exact else self._tracked(i, A)
                except Exception as error:
                    what = "an exact look at" if i in exact else "tracking"
                    problems.append(Problem(i, f"{what} {_names(group)} failed", error))
                    found = matrices.one_by_one(A) if i in exact else matrices.nothing(group, "tracked")
            return found if group.owner == self._ranks.rank else None

        def here(group: Group) -> bool:
            if not self._track:
                return False
            talks = numbers[id(group)] not in exact and self._ranks.together(group)
            return talks or self._switching

        if self._streams is None:
            work: Work = run_on_host(groups, copy, compute)
        else:
            work = self._streams.run(groups, copy, compute, here, self._warm_up)
        return Started(looked, exact, work, problems)

    def part(self, started: Started) -> Part:
        """This rank's part of a look; its work was waited for."""
        if self._track:
            for i in sorted(started.exact):
                self._ranks.anchored(self._followed[i].group, self._followed[i].tracker)
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
            if i in failed or any(problem.group == i for problem in started.problems):
                one.tracker = self._ranks.tracker(one.group)  # on all ranks alike
        found = sorted((pair for part in parts for pair in part.found), key=lambda pair: pair[0])
        return [record for _, record in found]

    def close(self) -> None:
        """End what computes beside the training."""
        if self._streams is not None:
            self._streams.close()

    def _regroup(self) -> None:
        self._changed = False
        groups = self._weights.groups(self._ranks.divide(self._weights.matrices))
        self._followed = [_Followed(group, self._ranks.tracker(group)) for group in groups]
        cuda = dict.fromkeys(group.device for group in groups if group.device.type == "cuda")
        self.close()
        self._streams = None
        if cuda:
            self._streams = SideStreams(cuda, clock=self._clock)
            # Torch's products switch TF32 off for the process, training and all: not beside it.
            self._switching = "gram_product" not in capabilities()["cuda"]["kernels"]

    def _exact(self, i: int, A: Matrices) -> Found:
        if self._track:
            return matrices.exact(self._followed[i].tracker.exact(A))
        whole = A if isinstance(A, torch.Tensor) else torch.stack(list(A))
        return matrices.exact(spectral_stats(whole.detach(), return_svdvals=True))

    def _tracked(self, i: int, A: Matrices) -> Found:
        return matrices.tracked(self._followed[i].tracker.track(A))

    def _warm_up(self, group: Group) -> None:
        """The first look of a dtype on a device compiles for seconds, which are not the device's."""
        kind = group.device, group.matrices[0].dtype
        if kind in self._warm:
            return
        self._warm.add(kind)
        generator = torch.Generator().manual_seed(0)
        A = torch.randn(2, 2 * LEAST_TRACKED, LEAST_TRACKED, generator=generator).to(*kind)
        # What fails here fails again in the look, and is told of there.
        with contextlib.suppress(Exception):
            if self._track:
                tracker = SpectralTracker()
                tracker.exact(A)
                tracker.track(A)
            else:
                spectral_stats(A, return_svdvals=True)


def _names(group: Group) -> str:
    first, *others = group.matrices
    return f"{first.name} and {len(others)} like it" if others else first.name
