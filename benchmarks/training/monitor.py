"""What SpectralMonitor takes of the wall time of a training run, and that it changes no bit of it.

The example's training is run twice in one process, with the monitor and without, in alternating stretches
whose order is swapped from pair to pair. Both trainings compute the same, so that a pair differs by the looks
alone; after each pair all parameters, optimizer states and random states must be equal to the bit. The
monitor's clock stands still while the other training runs.
"""

from __future__ import annotations

import dataclasses
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch.utils import _pytree as pytree

from benchmarks.budget import INTERRUPTED
from benchmarks.measure import NOT_MEASURED
from benchmarks.report import SCHEMA_VERSION, time_cells
from benchmarks.timing import Spread, failure_status, spread
from examples.train_gpt import Size, Training, corpus
from spectral_fast import SpectralMonitor
from spectral_fast.monitor import Look

DIFFERS = "the trainings differ"


@dataclass(frozen=True)
class Stretch:
    """A stretch with the monitor and its twin without: seconds, and what the monitor says it spent."""

    watched_first: bool
    watched: float
    plain: float
    spent: float
    looks: dict[str, int]

    @property
    def by_difference(self) -> float:
        """The share of the wall time with the monitor that is gone without."""
        return (self.watched - self.plain) / self.watched

    @property
    def by_account(self) -> float:
        return self.spent / self.watched


@dataclass
class MonitorRun:
    """``status`` is "ok", or says why there are no shares."""

    size: Size
    every: int
    track_every: int
    budget: float
    status: str = "ok"
    matrices: int = 0
    first_look: float = 0.0
    stretches: list[Stretch] = field(default_factory=list)
    in_force: tuple[int, int] = (0, 0)
    by_difference: Spread | None = None
    by_account: Spread | None = None

    @property
    def failed(self) -> bool:
        return self.status.startswith((DIFFERS, "failed"))


class StoppableClock:
    """Seconds while it runs."""

    def __init__(self) -> None:
        self._before = 0.0
        self._since: float | None = None

    def __call__(self) -> float:
        return self._before + (0.0 if self._since is None else time.perf_counter() - self._since)

    def run(self) -> None:
        self._since = time.perf_counter()

    def stop(self) -> None:
        self._before, self._since = self(), None


def measure_monitor(
    size: Size,
    *,
    every: int,
    track_every: int,
    budget: float,
    steps: int,
    stretch: int,
    progress: Callable[[str], None],
    max_seconds: float | None = None,
) -> MonitorRun:
    """Both trainings, steps each; whatever fails is the status.

    max_seconds: ends them early, but not before two pairs that are measured.
    """
    found = MonitorRun(size, every, track_every, budget)
    try:
        _measure(found, steps, stretch, max_seconds, progress)
    except KeyboardInterrupt:
        found.status = f"{NOT_MEASURED}: {INTERRUPTED}"
    except Exception as error:
        found.status = failure_status(error)
    # Of the first two pairs one warms up and both pay the first look's debt.
    settled = found.stretches[2:]
    if found.status == "ok" or (found.status.endswith(INTERRUPTED) and len(settled) > 1):
        found.by_difference = spread([one.by_difference for one in settled])
        found.by_account = spread([one.by_account for one in settled])
    return found


def _measure(
    found: MonitorRun,
    steps: int,
    stretch: int,
    max_seconds: float | None,
    progress: Callable[[str], None],
) -> None:
    end = None if max_seconds is None else time.monotonic() + max_seconds
    text = corpus()
    clock = StoppableClock()
    watched, plain = Training(found.size, text), Training(found.size, text)
    looks: list[Look] = []
    monitor = SpectralMonitor(
        watched.model,
        every=found.every,
        track_every=found.track_every,
        budget=found.budget,
        sinks=[looks.append],
        clock=clock,
    )

    def with_monitor() -> float:
        clock.run()
        began = clock()
        for _ in range(stretch):
            watched.step()
            monitor.step()
        clock.stop()
        return clock() - began

    def without() -> float:
        began = time.perf_counter()
        for _ in range(stretch):
            plain.step()
        return time.perf_counter() - began

    with monitor:
        clock.run()
        found.first_look = monitor.look().seconds
        clock.stop()
        found.matrices = len(looks[0].matrices)
        for pair in range(steps // stretch):
            looks.clear()
            spent = monitor.report().spent
            watched_first = pair % 2 == 0
            if watched_first:
                seconds = with_monitor()
                twin = without()
            else:
                twin = without()
                seconds = with_monitor()
            kinds = Counter[str](look.kind for look in looks)
            one = Stretch(watched_first, seconds, twin, monitor.report().spent - spent, dict(kinds))
            found.in_force = monitor.every, monitor.track_every
            if names := _differing(watched, plain):
                found.status = f"{DIFFERS} after step {(pair + 1) * stretch}: {', '.join(names[:3])}"
                return
            found.stretches.append(one)
            progress(
                f"{(pair + 1) * stretch}/{steps} steps, equal to the bit; looks {one.looks}; "
                f"by difference {one.by_difference:.2%}, by the account {one.by_account:.2%}"
            )
            if end is not None and time.monotonic() >= end and len(found.stretches) >= 4:
                return


def _differing(a: Training, b: Training) -> list[str]:
    """What is not the same to the bit."""
    states = [
        {
            "model": training.model.state_dict(),
            "optimizer": training.optimizer.state_dict(),
            "generator": training.generator.get_state(),
        }
        for training in (a, b)
    ]
    leaves = [pytree.tree_leaves_with_path(state) for state in states]
    return [
        pytree.keystr(path)
        for (path, left), (_, right) in zip(*leaves, strict=True)
        if not (_same_bits(left, right) if isinstance(left, torch.Tensor) else left == right)
    ]


def _same_bits(a: torch.Tensor, b: torch.Tensor) -> bool:
    return torch.equal(a.reshape(-1).view(torch.uint8), b.reshape(-1).view(torch.uint8))


def monitor_document(found: MonitorRun, facts: dict[str, Any]) -> dict[str, Any]:
    """The whole run as plain data."""
    return {"schema_version": SCHEMA_VERSION, **facts, **dataclasses.asdict(found)}


def print_monitor(found: MonitorRun, console: Console) -> None:
    """The shares, or why there are none."""
    size = found.size
    model = f"{size.layers} layers of width {size.width}, {size.batch * size.context} tokens a step"
    if found.by_difference is None or found.by_account is None:
        console.print(f"{model}: {found.status}", markup=False)
        return
    table = Table(box=None, header_style="bold", pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column("share of wall time", no_wrap=True)
    for heading in ("median", "quartiles", "least", "most"):
        table.add_column(heading, justify="right", no_wrap=True)
    for name, shares in (("by difference", found.by_difference), ("by the account", found.by_account)):
        row = [f"{shares.median:.2%}", f"{shares.q1:.2%} to {shares.q3:.2%}", f"{shares.min:.2%}"]
        table.add_row(name, *row, f"{shares.max:.2%}")
    console.print(table)
    looks = {k: sum(one.looks.get(k, 0) for one in found.stretches[2:]) for k in ("exact", "tracked")}
    seconds = spread([one.plain for one in found.stretches])
    console.print(
        f"{model}: {found.matrices} matrices, {looks['exact']} exact and {looks['tracked']} tracked looks "
        f"in {len(found.stretches) - 2} stretches of {time_cells(seconds)[0]}; intervals "
        f"{found.in_force[0]} and {found.in_force[1]}, asked for {found.every} and {found.track_every}; "
        f"first look {found.first_look:.3g} s. Parameters, optimizer and random states equal to the bit."
    )
