"""When looks are made: simulated runs on a clock of their own."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spectral_fast.monitor.schedule import Account, Numbers, Schedule


@dataclass
class Run:
    """A training run: seconds of a step and of each look, by the step's number."""

    schedule: Schedule
    step: Callable[[int], float] = lambda step: 1.0
    exact: Callable[[int], float] = lambda step: 0.1
    tracked: Callable[[int], float] = lambda step: 0.01
    now: float = 0.0
    looks: list[tuple[int, str]] = field(default_factory=list)
    considered: list[int] = field(default_factory=list)
    overdrawn: list[float] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.account = Account(lambda: self.now)
        self.steps = 0

    def go(self, steps: int) -> Run:
        for _ in range(steps):
            self.steps += 1
            self.now += self.step(self.steps)
            with self.account.spending():
                self.account.step()
                if self.schedule.due(self.steps):
                    self._consider()
        return self

    def _consider(self) -> None:
        self.considered.append(self.steps)
        account = self.account
        numbers = Numbers(account.spent, account.elapsed, account.step_seconds)
        choice = self.schedule.choose(self.steps, numbers)
        if choice is None:
            return
        if self.looks and self.schedule.budget is not None:
            known = numbers.spent + self.schedule.cost(choice.kind)
            self.overdrawn.append(known - self.schedule.budget * numbers.elapsed)
        seconds = (self.exact if choice.kind == "exact" else self.tracked)(self.steps)
        self.now += seconds
        self.schedule.made(self.steps, choice.kind)
        self.schedule.record(choice.kind, seconds)
        self.looks.append((self.steps, choice.kind))

    def of(self, kind: str) -> list[int]:
        return [step for step, what in self.looks if what == kind]

    @property
    def share(self) -> float:
        return self.account.spent / self.account.elapsed


def test_all_looks_where_the_budget_allows_them() -> None:
    run = Run(Schedule(25, 1, 0.02), exact=lambda s: 0.1, tracked=lambda s: 0.005).go(500)
    # The first look is a debt of 0.1 s, paid in 5 steps of 1 s.
    assert run.of("exact") == [1, *range(25, 501, 25)]
    assert len(run.of("tracked")) >= 500 - 21 - 12
    assert run.schedule.every == 25
    assert run.schedule.track_every == 1
    assert run.share < 0.02


def test_no_budget_no_limit() -> None:
    run = Run(Schedule(10, 2, None), exact=lambda s: 50.0, tracked=lambda s: 7.0).go(40)
    assert run.of("exact") == [1, 10, 20, 30, 40]
    assert run.of("tracked") == [s for s in range(2, 40, 2) if s % 10]


def test_tracked_looks_can_be_left_out() -> None:
    run = Run(Schedule(10, 0, None)).go(30)
    assert run.looks == [(1, "exact"), (10, "exact"), (20, "exact"), (30, "exact")]
    assert run.considered == [1, 10, 20, 30]


def test_expensive_exact_looks_are_made_less_often() -> None:
    # One look a second of budget: 1 s every 25 steps of 1 s is 4 %, and half of the budget is 1 %.
    run = Run(Schedule(25, 1, 0.02), exact=lambda s: 1.0, tracked=lambda s: 0.004).go(3000)
    # At least 100 steps apart, a tenth more for the margin, in multiples of what was asked for.
    assert run.schedule.every == 125
    assert "every is 125 now instead of 25" in run.schedule.reason
    late = [step for step in run.of("exact") if step > 500]
    assert late == [step for step in range(501, 3001) if step % 125 == 0]
    assert len(run.of("tracked")) > 2200
    assert run.share <= 0.02


def test_expensive_tracked_looks_are_made_less_often() -> None:
    run = Run(Schedule(25, 1, 0.02), exact=lambda s: 0.1, tracked=lambda s: 0.1).go(2000)
    # 0.4 % for exact looks leaves 1.6 %: 0.1 s every 6.25 steps. Where both cost the same, exact ones are
    # made.
    assert run.schedule.track_every == 7
    assert run.share <= 0.02
    assert run.of("exact")[-1] == 2000


def test_tracked_looks_do_not_starve_exact_ones() -> None:
    run = Run(Schedule(50, 1, 0.02), exact=lambda s: 0.45, tracked=lambda s: 0.03).go(2000)
    exact = run.of("exact")
    # 0.45 s every 50 steps is 0.9 %, just less than half of the budget.
    assert run.schedule.every == 50
    settled = [step for step in exact if step > 200]
    assert settled == [step for step in range(201, 2001) if step % 50 == 0]
    assert run.of("tracked")
    assert run.share <= 0.02


def test_a_slow_first_look_widens_nothing() -> None:
    run = Run(
        Schedule(25, 1, 0.02),
        exact=lambda s: 3.0 if s == 1 else 0.1,
        tracked=lambda s: 0.5 if s < 200 else 0.005,
    )
    run.go(160)
    assert run.looks[:1] == [(1, "exact")]
    assert all(step > 150 for step, _ in run.looks[1:])  # 3 s are 150 steps' budget
    run.go(1000)
    assert run.schedule.track_every == 1
    assert run.schedule.every == 25
    assert run.schedule.reason == ""
    assert run.share <= 0.02


def test_a_slow_first_look_does_not_widen_tracking() -> None:
    # Tracked looks take 1.6 %; exact ones as slow as the first would leave 1.4 % for them.
    run = Run(Schedule(25, 1, 0.02), exact=lambda s: 0.15 if s == 1 else 0.05, tracked=lambda s: 0.016)
    run.go(200)
    assert run.of("exact")[-4:] == [125, 150, 175, 200]
    assert run.schedule.track_every == 1
    assert run.schedule.reason == ""


def test_intervals_narrow_when_steps_take_longer() -> None:
    run = Run(Schedule(25, 1, 0.02), step=lambda s: 0.1 if s < 4000 else 2.0, tracked=lambda s: 0.004)
    run.go(3999)
    assert run.schedule.every == 125
    assert run.schedule.track_every > 1
    run.go(1000)
    assert (run.schedule.every, run.schedule.track_every) == (25, 1)


def test_steps_that_evaluate_do_not_count_as_usual() -> None:
    run = Run(Schedule(25, 1, 0.02), step=lambda s: 600.0 if s % 40 == 0 else 0.1).go(2000)
    # Ten minutes of evaluation are income for the account, but the plan is made for what steps take.
    assert run.schedule.every == 125


def test_what_is_denied_is_considered_seldom() -> None:
    run = Run(Schedule(25, 1, 0.02), exact=lambda s: 40.0).go(1000)
    assert run.looks == [(1, "exact")]  # the debt is paid after 2000 steps
    assert len(run.considered) < 20


def test_a_wanted_exact_look_waits_until_it_is_affordable() -> None:
    schedule = Schedule(100, 1, 0.02)
    schedule.made(1, "exact")
    for kind, seconds in (("exact", 1.0), ("tracked", 0.01)) * 2:
        schedule.record(kind, seconds)
    # Spent: 1 s. At step 60 of 1 s, 0.59 s should lie aside for the exact look at 100; 0.01 s for this look.
    poor = schedule.choose(60, Numbers(1.0, (1.0 + 0.61 + 0.49) / 0.02, 1.0), refresh=0.5)
    rich = schedule.choose(60, Numbers(1.0, (1.0 + 0.61 + 0.51) / 0.02, 1.0), refresh=0.5)
    assert poor is not None
    assert rich is not None
    assert (poor.kind, poor.refresh) == ("tracked", False)
    assert (rich.kind, rich.refresh) == ("tracked", True)


def test_weights_that_cannot_be_tracked_are_looked_at_exactly() -> None:
    schedule = Schedule(100, 1, None)
    schedule.made(1, "exact")
    choice = schedule.choose(2, Numbers(0.0, 1.0, 1.0), refresh=1.0, blank=True)
    assert choice is not None
    assert choice.kind == "exact"


def test_resuming() -> None:
    before = Run(Schedule(25, 1, 0.02), exact=lambda s: 1.0).go(1000).schedule
    assert before.every == 125
    same, other = Schedule(25, 1, 0.02), Schedule(50, 1, 0.02)
    same.load_state_dict(before.state_dict())
    other.load_state_dict(before.state_dict())
    assert same.every == 125
    assert other.every == 50  # asked for anew
    assert same.due(1001)
    choice = same.choose(1001, Numbers(0.0, 0.0, 0.0))
    assert choice is not None
    assert choice.kind == "exact"


def test_a_schedule_that_ran_goes_back_to_what_is_loaded() -> None:
    schedule = Run(Schedule(25, 1, None)).go(110).schedule
    schedule.load_state_dict(Schedule(25, 1, None).state_dict())
    assert schedule.due(31)
    choice = schedule.choose(31, Numbers(0.0, 1.0, 1.0))
    assert choice is not None
    assert choice.kind == "exact"


@settings(deadline=None, max_examples=40)
@given(
    every=st.integers(1, 60),
    track_every=st.integers(0, 7),
    budget=st.floats(1e-3, 0.3),
    step=st.floats(1e-3, 10),
    exact=st.floats(1e-4, 100),
    tracked=st.floats(1e-5, 10),
    noise=st.lists(st.floats(0.5, 2), min_size=1, max_size=7),
)
def test_no_look_after_the_first_overdraws_the_account(
    every: int, track_every: int, budget: float, step: float, exact: float, tracked: float, noise: list[float]
) -> None:
    def varied(seconds: float) -> Callable[[int], float]:
        return lambda s: seconds * noise[s % len(noise)]

    run = Run(Schedule(every, track_every, budget), varied(step), varied(exact), varied(tracked)).go(400)
    # By what was known: 1e-9 of an elapsed time of up to 1e4 s are rounding errors.
    assert all(over <= 1e-9 * run.now for over in run.overdrawn)
    assert run.looks[0] == (1, "exact")
    # The last look may have cost up to four times what the median said.
    first = exact * noise[1 % len(noise)]
    assert run.account.spent <= max(first, budget * run.now + 4 * max(exact, tracked)) + 1e-9
    assert run.schedule.every % every == 0


def test_the_account_sees_training_and_looking_apart() -> None:
    now = [100.0]
    account = Account(lambda: now[0])
    assert account.elapsed == account.spent == account.step_seconds == 0.0

    def spend(seconds: float, step: bool) -> None:
        with account.spending():
            if step:
                account.step()
            now[0] += seconds

    spend(1.0, True)
    now[0] += 10
    spend(0.5, False)  # a look between two steps
    now[0] += 4
    spend(0.25, True)
    assert account.step_seconds == 14.0
    assert account.spent == 1.75
    assert account.elapsed == 15.75
    account.charge(0.25)
    assert account.spent == 2.0
    with account.spending():
        now[0] += 3
        account.excuse(2.5)  # for kernels of the training: a step's time
    now[0] += 11.5
    spend(0.0, True)
    assert account.spent == 2.5
    assert account.step_seconds == 14.0
    assert account.elapsed == 30.25


def test_ranks_with_different_clocks_decide_alike() -> None:
    """Each rank has its own times; what they decide by is reduced, as the monitor does it."""
    schedules = [Schedule(10, 1, 0.05) for _ in range(2)]
    accounts: list[Account] = []
    now = [0.0, 1000.0]
    for rank in range(2):
        accounts.append(Account(lambda rank=rank: now[rank]))
    made: list[list[tuple[int, str]]] = [[], []]
    for step in range(1, 300):
        now = [now[0] + 0.2, now[1] + 0.3 + 0.1 * (step % 3)]
        with accounts[0].spending(), accounts[1].spending():
            for account in accounts:
                account.step()
            assert schedules[0].due(step) == schedules[1].due(step)
            if not schedules[0].due(step):
                continue
            numbers = Numbers(
                max(a.spent for a in accounts),
                min(a.elapsed for a in accounts),
                min(a.step_seconds for a in accounts),
            )
            for rank, schedule in enumerate(schedules):
                if (choice := schedule.choose(step, numbers)) is not None:
                    cost = 0.3 if choice.kind == "exact" else 0.005
                    now[rank] += cost * (1 + rank)
                    schedule.made(step, choice.kind)
                    schedule.record(choice.kind, 2 * cost)
                    made[rank].append((step, choice.kind))
    assert made[0] == made[1]
    assert len(made[0]) > 10


@pytest.mark.parametrize("kind", ["exact", "tracked"])
def test_the_cost_of_a_look_is_a_median(kind: str) -> None:
    schedule = Schedule(25, 1, 0.02)
    assert schedule.cost(kind) == 0.0
    for seconds in (9.0, 1.0, 1.2):
        schedule.record(kind, seconds)
    assert schedule.cost(kind) == 1.2
