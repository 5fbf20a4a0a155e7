"""How well and how fast SpectralTracker follows a real training run.

The example's GPT is trained with AdamW; after every step every weight matrix is tracked, and every `every`
steps looked at exactly. At random steps that the tracker cannot foresee, and 5 and `every` steps after each
exact look, its statistics are audited against all singular values of the same weights. Next to it run
trackers without exponents: of 16 leading values, and of the stable rank alone. At some audits
torch.linalg.svdvals of one matrix of each shape is timed right after the look.

The gate: sigma_1 and the stable rank within 1e-3 and the other leading values within 1e-2 at every audit.
Without it no time is printed.
"""

from __future__ import annotations

import dataclasses
import math
import random
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from benchmarks.budget import INTERRUPTED
from benchmarks.measure import NOT_MEASURED
from benchmarks.report import SCHEMA_VERSION, time_cells
from benchmarks.timing import Spread, failure_status, spread
from examples.train_gpt import Size, Training, corpus
from spectral_fast import (
    SpectralStats,
    SpectralTracker,
    WeightMatrix,
    fit_powerlaw,
    spectral_stats,
    weight_matrices,
)

EXPONENTS = ("alpha_hill", "alpha", "alpha_ranksize")
GATED = {
    "spectral_norm": 1e-3,
    "stable_rank": 1e-3,
    "leading": 1e-2,
    "leading alone": 1e-2,
    "stable_rank alone": 1e-3,
}
# What is followed: everything, no exponents, the stable rank and nothing else.
TRACKERS: dict[str, dict[str, Any]] = {
    "all": {},
    "leading alone": {"exponents": False},
    "stable rank alone": {"k": 1, "exponents": False},
}
WRONG = "beyond the tolerance"
_NEAR = 5
# Of all audits, how many are followed by a timing of torch.
_TIMED_SHARE = 0.25


@dataclass
class Audits:
    """Of one statistic: for each audited matrix the steps since its exact look, and relative errors.

    error: of what the tracker says; held: of the last exact value; stated: the standard error it states.
    """

    distance: list[int] = field(default_factory=list)
    error: list[float] = field(default_factory=list)
    held: list[float] = field(default_factory=list)
    stated: list[float] = field(default_factory=list)

    def add(self, distance: int, said: Tensor, truth: Tensor, last: Tensor | None, stated: Tensor) -> None:
        self.distance += [distance] * said.numel()
        self.error += ((said - truth) / truth).flatten().tolist()
        held = torch.full_like(said, torch.nan) if last is None else (last - truth) / truth
        self.held += held.flatten().tolist()
        self.stated += (stated / truth.abs()).flatten().tolist()


@dataclass(frozen=True)
class Summary:
    """Root mean squares, and how many of the stated 95 % intervals hold the truth.

    width: the mean width of the intervals over that of the best constant one, 2 x 1.96 x rms error.
    """

    trials: int
    largest: float
    rms: float
    rms_held: float
    covered: float
    width: float


@dataclass
class Shape:
    """The matrices of one shape: seconds a matrix.

    By tracker: its looks, torch's time over them, and at how many of them it asked for an exact look.
    """

    rows: int
    cols: int
    count: int
    tracked: dict[str, list[float]] = field(default_factory=lambda: {name: [] for name in TRACKERS})
    ratios: dict[str, list[float]] = field(default_factory=lambda: {name: [] for name in TRACKERS})
    asked: dict[str, int] = field(default_factory=lambda: dict.fromkeys(TRACKERS, 0))
    exact: list[float] = field(default_factory=list)
    torch: list[float] = field(default_factory=list)


@dataclass
class TrackingRun:
    """``status`` is "ok", or says why there are no times."""

    size: Size
    lr: float
    steps: int
    every: int
    status: str = "ok"
    shapes: list[Shape] = field(default_factory=list)
    audits: dict[str, Audits] = field(default_factory=dict)
    held: dict[str, int] = field(default_factory=dict)
    losses: list[float] = field(default_factory=list)

    @property
    def failed(self) -> bool:
        return self.status.startswith((WRONG, "failed"))

    def summary(self, name: str, distance: int | None = None) -> Summary:
        """Of one statistic: all audits, or those of one distance from the exact look."""
        found = self.audits[name]
        chosen = np.array([distance is None or d == distance for d in found.distance], dtype=bool)
        error, held, stated = (np.array(x)[chosen] for x in (found.error, found.held, found.stated))
        rms = float(np.sqrt(np.mean(error**2)))
        return Summary(
            trials=len(error),
            largest=float(np.abs(error).max()),
            rms=rms,
            rms_held=float(np.sqrt(np.mean(held**2))),
            covered=float(np.mean(np.abs(error) <= 1.96 * stated)),
            width=float(np.mean(stated)) / rms if rms else math.nan,
        )


class _Group:
    """The matrices of one shape, their trackers, and their last exact look."""

    def __init__(self, matrices: Sequence[WeightMatrix]) -> None:
        self.matrices = matrices
        self.trackers = {name: SpectralTracker(**options) for name, options in TRACKERS.items()}
        self.last: SpectralStats | None = None
        self.shape = Shape(*matrices[0].shape, len(matrices))

    def weights(self) -> list[Tensor]:
        return [matrix.tensor for matrix in self.matrices]

    def look_exactly(self) -> None:
        weights = self.weights()
        began = time.perf_counter()
        self.last = self.trackers["all"].exact(weights)
        self.shape.exact.append((time.perf_counter() - began) / len(weights))
        for name, tracker in self.trackers.items():
            if name != "all":
                tracker.anchor(weights, self.last)


def measure_tracking(
    size: Size,
    *,
    lr: float,
    steps: int,
    every: int,
    share: float,
    progress: Callable[[str], None],
    max_seconds: float | None = None,
) -> TrackingRun:
    """The whole run. share: of the steps that are audited.

    max_seconds: ends it after the exact look that comes then; ``steps`` says where.
    """
    found = TrackingRun(size, lr, steps, every)
    try:
        _measure(found, share, max_seconds, progress)
    except KeyboardInterrupt:
        found.status = f"{NOT_MEASURED}: {INTERRUPTED}"
    except Exception as error:
        found.status = failure_status(error)
    return found


def _measure(
    found: TrackingRun, share: float, max_seconds: float | None, progress: Callable[[str], None]
) -> None:
    end = None if max_seconds is None else time.monotonic() + max_seconds
    training = Training(found.size, corpus(), lr=found.lr)
    by_shape: dict[tuple[int, int], list[WeightMatrix]] = {}
    for matrix in weight_matrices(training.model):
        if not matrix.is_embedding:
            by_shape.setdefault(matrix.shape, []).append(matrix)
    groups = [_Group(matrices) for matrices in by_shape.values()]
    found.shapes = [group.shape for group in groups]
    for group in groups:
        group.look_exactly()
    chance = random.Random(0)
    for step in range(1, found.steps + 1):
        found.losses.append(training.step())
        distance = (step - 1) % found.every + 1
        audited = chance.random() < share or distance in (_NEAR, found.every)
        timed = audited and chance.random() < _TIMED_SHARE
        for group in groups:
            _look(found, group, distance, audited=audited, timed=timed)
            if distance == found.every:
                group.look_exactly()
        over = end is not None and distance == found.every and time.monotonic() >= end
        if over:
            found.steps = step
        if step % 50 == 0 or step == found.steps:
            norm, hill = found.summary("spectral_norm"), found.summary("alpha_hill")
            progress(
                f"{step}/{found.steps} steps, {found.losses[-1]:.2f} bits a byte, {norm.trials} audits; "
                f"sigma_1 within {norm.largest:.1e}, alpha_hill {hill.rms:.2%} off, held {hill.rms_held:.2%}"
            )
            if worst := _worst(found):
                found.status = f"{WRONG} by step {step}: {worst}"
                return
        if over:
            return


def _worst(found: TrackingRun) -> str:
    off = {name: found.summary(name).largest for name in GATED}
    return ", ".join(f"{name} {off[name]:.1e}" for name, limit in GATED.items() if off[name] > limit)


def _look(found: TrackingRun, group: _Group, distance: int, *, audited: bool, timed: bool) -> None:
    weights, shape = group.weights(), group.shape
    looks = {}
    for name, tracker in group.trackers.items():
        began = time.perf_counter()
        looks[name] = tracker.track(weights)
        shape.tracked[name].append((time.perf_counter() - began) / len(weights))
        shape.asked[name] += bool(looks[name].needs_exact.any())
    tracked, alone = looks["all"], looks["stable rank alone"]
    if timed:
        seconds = min(_torch_seconds(weights[0], threads) for threads in {1, torch.get_num_threads()})
        shape.torch.append(seconds)
        for name, times in shape.tracked.items():
            shape.ratios[name].append(seconds / times[-1])
    if not audited:
        return
    exact, last = spectral_stats(torch.stack(weights), return_svdvals=True), group.last
    assert exact.svdvals is not None
    assert last is not None
    audits = {name: found.audits.setdefault(name, Audits()) for name in (*GATED, *EXPONENTS)}
    for name in ("spectral_norm", "stable_rank"):
        stated = getattr(tracked, name + "_error")
        audits[name].add(distance, getattr(tracked, name), getattr(exact, name), getattr(last, name), stated)
    leading = exact.svdvals[:, : tracked.leading.shape[-1]].double()
    for name, look in (("leading", tracked), ("leading alone", looks["leading alone"])):
        audits[name].add(distance, look.leading, leading, None, look.leading_error)
    audits["stable_rank alone"].add(
        distance, alone.stable_rank, exact.stable_rank, last.stable_rank, alone.stable_rank_error
    )
    # CSN with the xmin of the last exact look: the search for another jumps.
    frozen = fit_powerlaw(exact.svdvals.double().square(), xmin=tracked.xmin).alpha
    for name in EXPONENTS:
        truth = frozen if name == "alpha" else getattr(exact, name)
        stated = getattr(tracked, name + "_error")
        audits[name].add(distance, getattr(tracked, name), truth, getattr(last, name), stated)
        found.held[name] = found.held.get(name, 0) + (name in tracked.held) * len(weights)


def _torch_seconds(weight: Tensor, threads: int) -> float:
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        began = time.perf_counter()
        torch.linalg.svdvals(weight)
        return time.perf_counter() - began
    finally:
        torch.set_num_threads(before)


def tracking_document(found: TrackingRun, facts: dict[str, Any]) -> dict[str, Any]:
    """The whole run as plain data; null for what is no number."""

    def plain(x: Any) -> Any:
        if isinstance(x, dict):
            return {key: plain(value) for key, value in x.items()}
        if isinstance(x, list):
            return [plain(value) for value in x]
        return None if isinstance(x, float) and not math.isfinite(x) else x

    return {"schema_version": SCHEMA_VERSION, **facts, **plain(dataclasses.asdict(found))}


def print_tracking(found: TrackingRun, console: Console) -> None:
    """Accuracy, and times where it holds."""
    size = found.size
    console.print(
        f"{size.layers} layers of width {size.width}, {size.batch * size.context} tokens a step, AdamW "
        f"{found.lr:g}, {found.steps} steps, an exact look every {found.every}: {found.status}",
        markup=False,
    )
    if not found.audits:
        return
    _print_accuracy(found, console)
    if found.status == "ok":
        _print_times(found, console)


def _print_accuracy(found: TrackingRun, console: Console) -> None:
    table = _table(
        "relative error", "steps", "trials", "largest", "rms", "holding", "rms / holding", "in 95 %"
    )
    table.add_column("width / ideal", justify="right")
    for name in found.audits:
        for distance in (None, _NEAR, found.every) if name in EXPONENTS else (None,):
            if distance is not None and distance not in found.audits[name].distance:
                continue
            one = found.summary(name, distance)
            held, ratio = f"{one.rms_held:.2%}", f"{one.rms / one.rms_held:.2f}"
            if not np.isfinite(one.rms_held):
                held = ratio = ""
            table.add_row(
                name,
                "any" if distance is None else f"{distance}",
                f"{one.trials}",
                f"{one.largest:.1e}",
                f"{one.rms:.3%}",
                held,
                ratio,
                f"{one.covered:.1%}",
                f"{one.width:.2f}",
            )
    console.print(table)
    held = ", ".join(f"{name} {count}" for name, count in found.held.items() if count)
    console.print(f"audits at which the last exact value was held: {held or 'none'}", markup=False)


def _print_times(found: TrackingRun, console: Console) -> None:
    table = _table("seconds a matrix", "tracker", "tracked", "mean", "exact look", "torch", "torch / tracked")
    for heading in ("asked", "with those", "with all looks"):
        table.add_column(heading, justify="right", no_wrap=True)
    for shape in found.shapes:
        if len(shape.torch) < 2:
            continue
        times = spread(shape.torch)
        for name, tracked in shape.tracked.items():
            mean, exact = statistics.fmean(tracked), statistics.fmean(shape.exact)
            asked = mean + exact * shape.asked[name] / len(tracked)
            table.add_row(
                f"{shape.count} x {shape.rows}x{shape.cols}",
                name,
                time_cells(spread(tracked))[0],
                f"{mean * 1e3:.3g} ms",
                time_cells(spread(shape.exact))[0],
                time_cells(times)[0],
                _ratio(spread(shape.ratios[name])),
                f"{shape.asked[name]}",
                f"{times.median / asked:.0f}",
                f"{times.median / (mean + exact / found.every):.0f}",
            )
    console.print(table)


def _ratio(ratios: Spread) -> str:
    return f"{ratios.median:.0f} ({ratios.q1:.0f} to {ratios.q3:.0f})"


def _table(*headings: str) -> Table:
    table = Table(box=None, header_style="bold", pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column(headings[0], no_wrap=True)
    for heading in headings[1:]:
        table.add_column(heading, justify="right", no_wrap=True)
    return table
