"""Part ``share``: what all statistics cost next to the singular values they are computed from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from rich.table import Table

import spectral_fast
from benchmarks.accuracy_gate import Gate, GateResult
from benchmarks.cases import Case
from benchmarks.report import digits, time_cells
from benchmarks.rows import GateError, NotMeasured, Target, TimedRow, require
from benchmarks.statistics.gate import NOT_WIDER, WIDER, check_fields
from benchmarks.timing import Contestant, Spread, Timing, host_clock, interleave, paired_ratio, spread
from spectral_fast.backends import reference_stats

SIZES = (256, 512, 768, 1024, 2048)
TARGET = 0.05

# Matrices a call: as many as take this much work, from 2 (a batch) to a deep stack.
CALL_FLOPS = 1e10
COUNT_LEAST, COUNT_MOST = 2, 48


@dataclass
class ShareRow(TimedRow):
    """A batch of equal matrices. Shares are of the time of svdvals in the same repeat."""

    case: Case
    dtype: torch.dtype
    threads: int
    status: str = "ok"
    gate: GateResult | None = None
    timings: dict[str, Timing] = field(default_factory=dict)
    shares: dict[str, Spread] = field(default_factory=dict)

    def __str__(self) -> str:
        return str(self.case)

    def clear(self) -> None:
        self.timings.clear()
        self.shares.clear()

    def measure(self, repeats: int | None) -> None:
        if not WIDER:
            raise NotMeasured(NOT_WIDER)
        torch.set_num_threads(self.threads)
        A = self.case.matrices(self.dtype, torch.device("cpu"))
        shape = (self.case.m, self.case.n)
        S = spectral_fast.svdvals(A)
        self._check(A, S, shape)

        timings = interleave(
            [
                Contestant("svdvals", lambda: spectral_fast.svdvals(A), self.threads),
                Contestant("spectral_stats", lambda: spectral_fast.spectral_stats(A), self.threads),
                Contestant(
                    "stats_from_svdvals",
                    lambda: spectral_fast.stats_from_svdvals(S, shape=shape),
                    self.threads,
                ),
                Contestant(
                    "plain torch", lambda: reference_stats.stats_from_svdvals(S, *shape), self.threads
                ),
            ],
            host_clock,
            repeats,
        )
        for timing in timings:
            require(timing)
        self.timings = {timing.name: timing for timing in timings}
        values, whole, alone, plain = timings
        pairs = zip(whole.seconds, values.seconds, strict=True)
        self.shares = {
            "spectral_stats": spread([(a - b) / b for a, b in pairs]),
            "stats_from_svdvals": paired_ratio(alone, values),
            "plain torch": paired_ratio(plain, values),
        }

    def _check(self, A: torch.Tensor, S: torch.Tensor, shape: tuple[int, int]) -> None:
        """The values as everywhere; the statistics of the first and the last matrix field by field."""
        self.gate = Gate(A).check(S)
        if not self.gate.holds:
            raise GateError(self.gate.failure)
        whole = spectral_fast.spectral_stats(A, return_svdvals=True)
        if whole.svdvals is None or not torch.equal(whole.svdvals, S):
            raise GateError("spectral_stats has other values than svdvals")
        alone = spectral_fast.stats_from_svdvals(S, shape=shape)
        for function, found in (("spectral_stats", whole), ("stats_from_svdvals", alone)):
            for number in (0, self.case.count - 1):
                if error := check_fields(found, S, shape, number):
                    raise GateError(f"{function}: {error}")

    @property
    def kernel(self) -> bool:
        """Whether the statistics have a compiled kernel; without one ours is the plain torch beside it."""
        return has_kernel("stats_from_svdvals")

    @property
    def speedup(self) -> Spread | None:
        """Plain torch's time over that of stats_from_svdvals; None where they are the same code."""
        if not self.timings or not self.kernel:
            return None
        return paired_ratio(self.timings["plain torch"], self.timings["stats_from_svdvals"])

    def data(self) -> dict[str, Any]:
        return {
            "matrices": self.case.count,
            "m": self.case.m,
            "n": self.case.n,
            "status": self.status,
            "gate": self.gate and {**asdict(self.gate), "holds": self.gate.holds},
            "kernel": self.kernel,
            "plan": str(spectral_fast.explain(self.case.shape, self.dtype, torch.device("cpu"))),
            "methods": [
                {
                    "method": name,
                    "seconds": timing.seconds,
                    "calls_per_sample": timing.calls_per_sample,
                    "spread": asdict(spread(timing.seconds)),
                    "share": asdict(self.shares[name]) if name in self.shares else None,
                }
                for name, timing in self.timings.items()
            ],
            "plain_torch_over_ours": self.speedup and asdict(self.speedup),
        }


def has_kernel(operator: str) -> bool:
    """Whether an operator runs compiled code on the CPU, not the plain torch of every device."""
    return torch._C._dispatch_has_kernel_for_dispatch_key(f"spectral_fast::{operator}", "CPU")


def share_rows(sizes: Sequence[int], dtype: torch.dtype, threads: int) -> list[ShareRow]:
    """Squares of every size, then four times as tall ones."""
    rows = []
    for factor in (1, 4):
        for n in sizes:
            flops = Case(factor * n, n).flops
            count = min(max(round(CALL_FLOPS / flops), COUNT_LEAST), COUNT_MOST)
            rows.append(ShareRow(Case(factor * n, n, count, calls=("batch",)), dtype, threads))
    return rows


def share_summary(rows: Sequence[ShareRow]) -> list[Target]:
    """The worst share of each way to get the statistics."""
    measured = [row for row in rows if row.shares]
    found = []
    for name in ("spectral_stats", "stats_from_svdvals"):
        if measured:
            worst = max(measured, key=lambda row: row.shares[name].median)
            share = 100 * worst.shares[name].median
            found.append(Target(f"{name}, worst ({worst})", share, 100 * TARGET, " %", at_least=False))
    return found


def share_table(rows: Sequence[ShareRow]) -> Table:
    table = Table(box=None, header_style="bold", pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column("batch", no_wrap=True)
    for heading in (
        *("svdvals", "quartiles", "spectral_stats adds", "quartiles", "stats_from_svdvals", "quartiles"),
        *("plain torch", "× ours"),
    ):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("note")
    for row in rows:
        if not row.shares:
            table.add_row(str(row), *[""] * 8, row.status)
            continue
        cells = [*time_cells(spread(row.timings["svdvals"].seconds))]
        for name in ("spectral_stats", "stats_from_svdvals"):
            share = row.shares[name]
            cells += [percent(share.median), f"{100 * share.q1:.1f}–{100 * share.q3:.1f}"]
        cells += [
            percent(row.shares["plain torch"].median),
            "" if row.speedup is None else digits(row.speedup.median),
        ]
        table.add_row(str(row), *cells, "" if row.kernel else "ours is plain torch here: no kernel")
    return table


def percent(share: float) -> str:
    return f"{100 * share:.1f} %"
