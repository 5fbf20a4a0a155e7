"""When to look: intervals in steps, and an account of time that no look may overdraw.

Two layers. A plan widens the intervals until their looks fit the budget: exact looks get at most half of it,
tracked ones what is left. And a look is made only if what was spent, and what it is going to cost, is within
the budget of the time that has passed. The first look is the exception, a debt that is paid back before the
next.

Nothing here reads a clock but `Account`. A schedule's decisions follow from step numbers and from numbers
that are the same on all ranks of a run.
"""

from __future__ import annotations

import math
import statistics
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

from spectral_fast.monitor.record import Kind

# Costs and step times are medians of this many: the first look warms up, some steps evaluate or save.
_LOOKS, _STEPS = 9, 31
# Times vary: an interval that has to grow grows by this more, and shrinks only where it is this much too
# long.
_MARGIN, _TOO_LONG = 1.1, 1.5
# A look that was not affordable is considered again when it should be, by estimate, but no later than this.
_WAIT_MOST = 64


class Account:
    """Wall time since the first use, and what was spent of it."""

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self.now = clock
        self._began: float | None = None
        self._left = 0.0  # when time was last spent
        self._entered: float | None = None
        self._training = 0.0  # since the last step, without what was spent
        self._steps: deque[float] = deque(maxlen=_STEPS)
        self._spent = 0.0

    @contextmanager
    def spending(self) -> Iterator[None]:
        """What passes inside was spent."""
        now = self.now()
        if self._began is None:
            self._began = self._left = now
        self._training += now - self._left
        self._entered = now
        try:
            yield
        finally:
            self._left = self.now()
            self._spent += self._left - now
            self._entered = None

    def step(self) -> None:
        """A training step has ended. Inside of `spending`."""
        # Before the first one there may have been anything.
        if self._training > 0:
            self._steps.append(self._training)
        self._training = 0.0

    def charge(self, seconds: float) -> None:
        """Time spent elsewhere, on a device."""
        self._spent += seconds

    def excuse(self, seconds: float) -> None:
        """Inside of `spending`: so much of it passed waiting for the training's own work."""
        self._spent -= seconds
        self._training += seconds

    @property
    def elapsed(self) -> float:
        return 0.0 if self._began is None else self.now() - self._began

    @property
    def spent(self) -> float:
        return self._spent + (0.0 if self._entered is None else self.now() - self._entered)

    @property
    def step_seconds(self) -> float:
        """Median of a step's time without what was spent; 0 before the second step."""
        return statistics.median(self._steps) if self._steps else 0.0


@dataclass(frozen=True)
class Numbers:
    """Of all ranks: most spent, least elapsed, the shortest step; in seconds."""

    spent: float
    elapsed: float
    step_seconds: float


@dataclass(frozen=True)
class Choice:
    """A look to make now. refresh: in a tracked one, look exactly where that was asked for."""

    kind: Kind
    refresh: bool = False


class Schedule:
    """Which look to make at which step.

    Exact looks at the first occasion and at multiples of ``every``, tracked ones at multiples of
    ``track_every`` (0: never), each as soon after as the account allows. While time is saved up for the next
    exact look, tracked ones may not touch it.
    """

    def __init__(self, every: int, track_every: int, budget: float | None) -> None:
        self.budget = budget
        self.asked = (every, track_every)
        self.every, self.track_every = every, track_every
        self.reason = ""  # of the last widening, in words
        self._costs: dict[Kind, deque[float]] = {
            "exact": deque(maxlen=_LOOKS),
            "tracked": deque(maxlen=_LOOKS),
        }
        self._last: int | None = None  # step of the last look, and of the last exact one
        self._last_exact: int | None = None
        self._next = 0

    def due(self, step: int) -> bool:
        """Whether a look is to be considered at this step."""
        return step >= self._next

    def choose(self, step: int, now: Numbers, *, refresh: float = 0.0, blank: bool = False) -> Choice | None:
        """The look to make at a step that is due, or None.

        refresh: the share of an exact look's work for which exact looks are wanted out of turn.
        blank: nothing can be tracked, as after the weights' shapes changed.
        """
        self._plan(now.step_seconds)
        kind = self._kind(step, blank)
        if kind is None:
            self._next = self._next_due(step)
            return None
        if self.budget is None or self._last is None:
            return Choice(kind, refresh > 0)
        saved = self._saved(step) if kind == "tracked" else 0.0
        missing = now.spent + self.cost(kind) + saved - self.budget * now.elapsed
        if missing > 0:
            self._next = step + self._wait(step, missing, kind, now.step_seconds)
            return None
        return Choice(kind, refresh > 0 and missing + refresh * self.cost("exact") <= 0)

    def made(self, step: int, kind: Kind) -> None:
        """A look was made."""
        self._last = step
        if kind == "exact":
            self._last_exact = step
        self._next = self._next_due(step)

    def again(self, step: int) -> None:
        """Consider at the next step."""
        self._next = step + 1

    def state_dict(self) -> dict[str, tuple[int, int]]:
        """The intervals."""
        return {"asked": self.asked, "in_force": (self.every, self.track_every)}

    def load_state_dict(self, state: Mapping[str, tuple[int, int]]) -> None:
        """Begin with the intervals that were in force, if the same were asked for."""
        if tuple(state["asked"]) == self.asked:
            self.every, self.track_every = state["in_force"]
        self._last = self._last_exact = None
        self._next = 0

    def record(self, kind: Kind, seconds: float) -> None:
        """What a look has cost."""
        self._costs[kind].append(seconds)

    def cost(self, kind: Kind) -> float:
        """What a look is going to cost, in seconds; 0 before the first."""
        return statistics.median_low(self._costs[kind]) if self._costs[kind] else 0.0

    def _kind(self, step: int, blank: bool) -> Kind | None:
        if self._last_exact is None or self._last is None or blank:
            return "exact"
        if step // self.every > self._last_exact // self.every:
            return "exact"
        if self.track_every and step // self.track_every > self._last // self.track_every:
            return "tracked"
        return None

    def _next_due(self, step: int) -> int:
        intervals = [interval for interval in (self.every, self.track_every) if interval]
        return min(step - step % interval + interval for interval in intervals)

    def _next_exact(self) -> int:
        last = self._last_exact or 0
        return last - last % self.every + self.every

    def _saved(self, step: int) -> float:
        """Of the next exact look's cost, what should have been put by until now."""
        last = self._last_exact or 0
        return self.cost("exact") * min(1.0, (step - last) / (self._next_exact() - last))

    def _wait(self, step: int, missing: float, kind: Kind, step_seconds: float) -> int:
        """Steps until the missing seconds should be there."""
        assert self.budget is not None
        income = self.budget * step_seconds
        if kind == "tracked":
            income -= self.cost("exact") / self.every
            if income <= 0:  # all goes to the next exact look
                return self._next_exact() - step
        return min(math.ceil(missing / income), _WAIT_MOST) if income > 0 else 1

    def _plan(self, step_seconds: float) -> None:
        """Intervals whose looks take no more than the budget, by what looks and steps take."""
        if self.budget is None or not step_seconds:
            return
        # One sample alone is a warm-up, and tells nothing to plan by.
        exact, tracked = (self.cost(kind) if len(self._costs[kind]) > 1 else 0.0 for kind in self._costs)
        if exact:
            least = exact / (step_seconds * self.budget / 2)
            self.every = self._fitted("every", self.every, self.asked[0], least, exact, step_seconds)
        if self.track_every and tracked:
            rest = self.budget - min(self.budget / 2, exact / (self.every * step_seconds))
            least = tracked / (step_seconds * rest)
            self.track_every = self._fitted(
                "track_every", self.track_every, self.asked[1], least, tracked, step_seconds
            )

    def _fitted(
        self, name: str, current: int, asked: int, least: float, cost: float, step_seconds: float
    ) -> int:
        """A multiple of the interval asked for that is at least `least`; the current one while it serves."""
        wanted = asked * max(1, math.ceil(least * _MARGIN / asked)) if least > asked else asked
        if least > current:
            self.reason = (
                f"{name} is {wanted} now instead of {asked}: such a look takes {cost:.3g} s and a step "
                f"{step_seconds:.3g} s, so that at {asked} it would take {cost / (asked * step_seconds):.1%} "
                f"of the time, and all looks together may take {self.budget:.1%}"
            )
            return wanted
        return wanted if wanted * _TOO_LONG <= current else current
