"""SpectralMonitor: looks at the weights of a model while it trains."""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any

import torch

from spectral_fast.monitor.delivery import Delivery, Sink
from spectral_fast.monitor.following import Following, Part, Started
from spectral_fast.monitor.groups import Weights
from spectral_fast.monitor.ranks import OneProcess, Ranks
from spectral_fast.monitor.record import Kind, Look
from spectral_fast.monitor.schedule import Account, Numbers, Schedule
from spectral_fast.monitor.streams import HostWork, undisturbed

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class MonitorReport:
    """What a monitor has done so far, on this rank.

    Attributes:
        step: optimizer steps made.
        elapsed, spent: seconds since the first step or look, and of those in looks and sinks.
        share: spent / elapsed.
        looks: how many, by kind.
        every, track_every: the intervals in force, in steps.
        asked: the intervals asked for.
        reason: of the last widening, in words; "" if there was none.
        waiting, dropped: looks that sinks have not taken yet, and that they never will.
    """

    step: int
    elapsed: float
    spent: float
    share: float
    looks: Mapping[str, int]
    every: int
    track_every: int
    asked: tuple[int, int]
    reason: str
    waiting: int
    dropped: int


@dataclass(frozen=True)
class _Pending:
    """A look whose results were not read yet. usual: its cost tells what such looks cost."""

    step: int
    kind: Kind
    usual: bool
    seconds: float
    started: Started


@dataclass(frozen=True)
class _Contribution:
    """What one rank gives to a look."""

    part: Part
    seconds: float
    spent: float
    elapsed: float


class SpectralMonitor:
    """Looks at every weight matrix of a model while it trains, within a budget of wall time.

    Call `step` after each optimizer step, or give the optimizer. Exact looks have all singular values and
    every field of :class:`spectral_fast.SpectralStats`; tracked ones follow the leading values and some
    statistics from the last exact look, with an error each. Sinks get them as
    :class:`spectral_fast.monitor.Look`. The training is not changed by a bit: no parameter, gradient, random
    state or setting of torch's is touched.

    model: searched with :func:`spectral_fast.weight_matrices`, and again when its parameters change. On
        torch.distributed every rank makes a monitor of its own.
    every, track_every: steps between exact looks, and between tracked ones (0: none).
    sinks: called with each look, on rank 0. One that raises is told of once, and gets the looks later.
    budget: the share of wall time that looks and sinks may take; intervals are widened so that it holds. The
        first look exceeds it, and nothing is looked at until that is paid back. None: no limit.
    optimizer: `step` is called after each of its steps.
    embeddings: look at embeddings too.
    ranks: the processes that train together; found out from torch.distributed if not given.
    clock: of wall time, in seconds. One that stands still while something else runs keeps that out of the
        share.

    Raises ValueError for a model without weight matrices, and for intervals or a budget that are none;
    TypeError for a sink that cannot be called.
    """

    def __init__(
        self,
        model: torch.nn.Module,
        *,
        every: int = 25,
        track_every: int = 1,
        sinks: Sequence[Sink] = (),
        budget: float | None = 0.02,
        optimizer: torch.optim.Optimizer | None = None,
        embeddings: bool = False,
        ranks: Ranks | None = None,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        _require_interval("every", every, 1)
        _require_interval("track_every", track_every, 0)
        if budget is not None and not 0 < budget <= 1:
            raise ValueError(f"SpectralMonitor: budget must be a share in (0, 1], or None, got {budget!r}")
        weights = Weights(model, embeddings)
        weights.changed()
        if not weights.matrices:
            raise ValueError("SpectralMonitor: the model has no weight matrices to look at")
        if wrong := [sink for sink in sinks if not callable(sink)]:
            raise TypeError(f"SpectralMonitor: a sink is called with each look, got {wrong[0]!r}")
        self._ranks = ranks if ranks is not None else _ranks()
        self._account = Account(clock)
        self._following = Following(weights, self._ranks, self._tell, track_every > 0, self._account.now)
        self._schedule = Schedule(every, track_every, budget)
        self._deliveries = [Delivery(sink) for sink in sinks] if self._ranks.rank == 0 else []
        self._step = 0
        self._looks: Counter[str] = Counter()
        self._pending: _Pending | None = None
        self._cost: tuple[Kind, float] | None = None  # of the last look, until the schedule has it
        self._told: set[str] = set()
        self._closed = False
        self._hook = None
        if optimizer is not None:
            # A compiled function that steps the optimizer breaks its graph here and does not trace the look.
            hook = torch.compiler.disable(lambda *_: self._stepped())
            self._hook = optimizer.register_step_post_hook(hook)

    @property
    def every(self) -> int:
        """Steps between exact looks, as now in force."""
        return self._schedule.every

    @property
    def track_every(self) -> int:
        """Steps between tracked looks, as now in force; 0: none."""
        return self._schedule.track_every

    @property
    def share(self) -> float:
        """What looks and sinks took of the wall time since the first step or look, on this rank."""
        return _share(self._account.spent, self._account.elapsed)

    def step(self) -> None:
        """An optimizer step was made: look if it is time.

        Does not raise because of a weight or a sink. Raises RuntimeError when the monitor is closed, and
        where it has the optimizer: the step would count twice.
        """
        self._require_open()
        if self._hook is not None:
            raise RuntimeError("this SpectralMonitor counts its optimizer's steps: leave out monitor.step()")
        self._stepped()

    def _stepped(self) -> None:
        with self._account.spending(), undisturbed():
            self._account.step()
            self._step += 1
            if not self._schedule.due(self._step):
                return
            try:
                self._consider()
            except Exception as error:
                self._tell("looking failed", error)
                self._schedule.again(self._step)

    def look(self) -> Look:
        """Look exactly now, whatever the budget. On torch.distributed all ranks have to call it.

        Returns the look, which the sinks have got too. Raises RuntimeError when the monitor is closed.
        """
        self._require_open()
        with self._account.spending(), undisturbed():
            self._collect()
            if self._ranks.largest([float(self._following.changed())])[0]:
                self._following.start_anew()
            self._start("exact", self._following.all)
            look = self._collect()
            assert look is not None
            return look

    def report(self) -> MonitorReport:
        """What was done so far."""
        return MonitorReport(
            step=self._step,
            elapsed=self._account.elapsed,
            spent=self._account.spent,
            share=self.share,
            looks=dict(self._looks),
            every=self.every,
            track_every=self.track_every,
            asked=self._schedule.asked,
            reason=self._schedule.reason,
            waiting=sum(delivery.waiting for delivery in self._deliveries),
            dropped=sum(delivery.dropped for delivery in self._deliveries),
        )

    def state_dict(self) -> dict[str, Any]:
        """The step and the intervals, for a run that goes on from a checkpoint."""
        return {"step": self._step, "schedule": self._schedule.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from `state_dict`. The next step looks exactly: what trackers know is not saved."""
        self._step = state["step"]
        self._schedule.load_state_dict(state["schedule"])

    def close(self) -> None:
        """Deliver what waits, close the sinks, let go of the optimizer. Again: nothing happens."""
        if self._closed:
            return
        self._closed = True
        if self._hook is not None:
            self._hook.remove()
        with self._account.spending(), undisturbed():
            try:
                self._collect()
            except Exception as error:
                self._tell("reading the last look failed", error)
            self._following.close()
            for delivery in self._deliveries:
                delivery.close()
            self._ranks.close()

    def __enter__(self) -> SpectralMonitor:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None and self._ranks.size > 1:
            self._pending = None  # the other ranks may never come to read it
        self.close()

    def _consider(self) -> None:
        """Look, if the schedule says so. All ranks come here at the same steps and decide alike."""
        account = self._account
        late = self._pending is not None and not self._pending.started.work.ready()
        spent, elapsed, step_seconds, seconds, any_late, any_changed = self._ranks.largest(
            [
                account.spent,
                -account.elapsed,
                -account.step_seconds,
                self._cost[1] if self._cost is not None else 0.0,
                float(late),
                float(self._following.changed()),
            ]
        )
        if any_late:
            self._schedule.again(self._step)
            return
        if self._cost is not None:
            self._schedule.record(self._cost[0], seconds)
            self._cost = None
        self._collect()
        if any_changed:
            self._following.start_anew()
        before = self.every, self.track_every
        choice = self._schedule.choose(
            self._step,
            Numbers(spent, -elapsed, -step_seconds),
            refresh=self._following.refresh,
            blank=self._following.blank,
        )
        if (self.every > before[0] or self.track_every > before[1]) and self._ranks.rank == 0:
            _log.warning("step %d: %s", self._step, self._schedule.reason)
        if choice is None:
            return
        if choice.kind == "exact":
            exact = self._following.all
        else:
            exact = self._following.wanting if choice.refresh else frozenset()
        self._start(choice.kind, exact)
        assert self._pending is not None
        if isinstance(self._pending.started.work, HostWork):
            self._collect()

    def _start(self, kind: Kind, exact: frozenset[int]) -> None:
        began = self._account.now()
        started = self._following.start(exact)
        self._account.excuse(started.work.waited)
        all_exact = exact == self._following.all
        usual = all_exact or not exact
        kind = "exact" if all_exact else kind
        seconds = self._account.now() - began - started.work.waited
        self._pending = _Pending(self._step, kind, usual, seconds, started)
        self._schedule.made(self._step, kind)

    def _collect(self) -> Look | None:
        """Read the pending look on all ranks, and deliver it."""
        if self._pending is None:
            return None
        pending, self._pending = self._pending, None
        began = self._account.now()
        took = pending.started.work.wait()
        self._account.excuse(took.waited)
        self._account.charge(took.beside)
        began += took.waited
        elsewhere = pending.seconds + took.beside
        for problem in pending.started.problems:
            self._tell(problem.what, problem.error, pending.step)
        part = self._following.part(pending.started)
        seconds = elsewhere + self._account.now() - began
        contributions = self._ranks.gather(
            _Contribution(part, seconds, self._account.spent, self._account.elapsed)
        )
        found = self._following.finish(pending.started, [one.part for one in contributions])
        look = Look(
            step=pending.step,
            kind=pending.kind,
            time=time.time(),
            seconds=max(one.seconds for one in contributions),
            share=_share(max(one.spent for one in contributions), min(one.elapsed for one in contributions)),
            every=self.every,
            track_every=self.track_every,
            matrices=found,
        )
        self._looks[look.kind] += 1
        for delivery in self._deliveries:
            delivery.deliver(look)
        if pending.usual:
            self._cost = pending.kind, elsewhere + self._account.now() - began
        return look

    def _tell(self, what: str, why: object, step: int | None = None) -> None:
        """Once for each thing that happens, at this step or at that of an earlier look."""
        if what not in self._told:
            self._told.add(what)
            cause = f"{type(why).__name__.lstrip('_')}: {why}" if isinstance(why, Exception) else why
            _log.warning("step %d: %s: %s (said once)", self._step if step is None else step, what, cause)

    def _require_open(self) -> None:
        if self._closed:
            raise RuntimeError("this SpectralMonitor is closed: make a new one to look on")


def _require_interval(name: str, value: Any, least: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise ValueError(f"SpectralMonitor: {name} must be a number of steps >= {least}, got {value!r}")


def _share(spent: float, elapsed: float) -> float:
    return spent / elapsed if elapsed else 0.0  # a coarse clock may not have moved


def _ranks() -> Ranks:
    distributed = torch.distributed
    if distributed.is_available() and distributed.is_initialized() and distributed.get_world_size() > 1:
        from spectral_fast.monitor.distributed import DistributedRanks

        return DistributedRanks()
    return OneProcess()
