"""``python -m benchmarks tail``: estimates from a few products, against all singular values.

A row is a stack of equal matrices with the spectra of :func:`stacks`, singular vectors random. Before
anything is timed its estimates are held to the targets over several sets of probes, on the very matrices that
are timed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

import spectral_fast
from benchmarks.report import SCHEMA_VERSION, digits, time_cells
from benchmarks.rows import (
    GateError,
    Target,
    TimedRow,
    blas_threads,
    measure_in_turn,
    pair_data,
    require,
)
from benchmarks.timing import Contestant, Spread, Timing, host_clock, interleave, paired_ratio, spread
from spectral_fast.tail import tail_stats

SIZES = (768, 1024, 2048)
PROBE_SETS = 4
STABLE_RANK_ERROR, HILL_RMS = 1e-3, 0.02
# Over torch's time; alpha_hill is not due below 1024 columns, and over our own exact path only there.
OVER_TORCH = {768: 15.0, 1024: 15.0, 2048: 40.0}
OVER_EXACT = {1024: 4.0}


def stacks(n: int) -> dict[str, np.ndarray[Any, np.dtype[np.float64]]]:
    """Singular values, one row of n for each matrix: Gaussian, power laws, spikes on a bulk, log-normal."""
    g = np.random.default_rng(n)
    k = np.arange(1, n + 1)
    gaussian = np.linalg.svd(g.standard_normal((n, n)), compute_uv=False)
    spiked = gaussian / gaussian[0]
    spiked[:5] = (10, 8, 6, 4, 2)
    tall = np.linalg.svd(g.standard_normal((4 * n, n)), compute_uv=False)
    return {
        "gaussian": gaussian,
        "tall": tall,
        "k^-0.35": k**-0.35,
        "k^-0.6": k**-0.6,
        "spiked": spiked,
        "log-normal": np.sort(np.exp(g.standard_normal(n)))[::-1],
    }


def matrices(n: int) -> Tensor:
    """(count, n, n) float32 with these spectra. One pair of random orthogonal factors serves them all."""
    g = torch.Generator().manual_seed(n)
    left, right = (torch.linalg.qr(torch.randn(n, n, generator=g)).Q for _ in range(2))
    values = torch.from_numpy(np.stack(list(stacks(n).values()))).to(torch.float32)
    return (left * values[:, None]) @ right


@dataclass
class TailRow(TimedRow):
    """A stack of one size. ``errors``: rms over sets of probes, relative, by spectrum."""

    n: int
    threads: int
    status: str = "ok"
    timings: dict[str, Timing] = field(default_factory=dict)
    errors: dict[str, dict[str, float]] = field(default_factory=dict)

    def __str__(self) -> str:
        return f"{len(stacks(8))} × {self.n}×{self.n}"

    def clear(self) -> None:
        self.timings.clear()

    def measure(self, repeats: int | None) -> None:
        torch.set_num_threads(self.threads)
        A = matrices(self.n)
        self._check(A)
        timings = interleave(
            [
                Contestant("tail_stats", lambda: tail_stats(A), self.threads),
                Contestant("spectral_stats", lambda: spectral_fast.spectral_stats(A), self.threads),
                Contestant("torch.linalg.svdvals", lambda: torch.linalg.svdvals(A), self.threads),
            ],
            host_clock,
            repeats,
        )
        for timing in timings:
            require(timing)
        self.timings = {timing.name: timing for timing in timings}

    def _check(self, A: Tensor) -> None:
        exact = spectral_fast.spectral_stats(A)
        found = [tail_stats(A, generator=torch.Generator().manual_seed(seed)) for seed in range(PROBE_SETS)]

        def relative(name: str) -> Tensor:
            truth: Tensor = getattr(exact, name)
            return torch.stack([getattr(one, name) / truth - 1 for one in found])

        stable_rank = relative("stable_rank").square().mean(0).sqrt()
        hill = relative("alpha_hill").square().mean(0).sqrt()
        slope = relative("alpha_ranksize").square().mean(0).sqrt()
        pairs = zip(stacks(8), stable_rank.tolist(), hill.tolist(), slope.tolist(), strict=True)
        self.errors = {
            name: {"stable_rank": a, "alpha_hill": b, "alpha_ranksize": c} for name, a, b, c in pairs
        }
        if not stable_rank.max() <= STABLE_RANK_ERROR:
            raise GateError(f"stable rank off by {stable_rank.max():.1e} rms, over {STABLE_RANK_ERROR:g}")
        rms = hill.square().mean().sqrt()
        if not rms <= HILL_RMS:
            raise GateError(f"alpha_hill off by {100 * rms:.2f} % rms, over {100 * HILL_RMS:g} %")

    def over(self, name: str) -> Spread:
        """The time of a peer over ours in the same repeat."""
        return paired_ratio(self.timings[name], self.timings["tail_stats"])

    def targets(self) -> list[Target]:
        if not self.timings:
            return []
        found = []
        for name, due in (("torch.linalg.svdvals", OVER_TORCH), ("spectral_stats", OVER_EXACT)):
            if self.n in due:
                found.append(Target(f"{self}: {name} over ours", self.over(name).median, due[self.n], "×"))
        return found

    def data(self) -> dict[str, Any]:
        ours = self.timings.get("tail_stats")
        return {
            "n": self.n,
            "status": self.status,
            "errors": self.errors,
            "peers": {
                name: pair_data(timing, ours)
                for name, timing in self.timings.items()
                if ours is not None and timing is not ours
            },
            "targets": [target.data() for target in self.targets()],
        }


def measure_tail(
    sizes: Sequence[int],
    threads: int,
    repeats: int | None,
    max_seconds: float | None,
    progress: Callable[[str], None],
) -> list[TailRow]:
    rows = [TailRow(n, threads) for n in sizes]
    with blas_threads(threads):
        measure_in_turn(rows, repeats, max_seconds, progress)
    return rows


def tail_document(rows: Sequence[TailRow], facts: dict[str, Any]) -> dict[str, Any]:
    """The whole run as plain data."""
    return {"schema_version": SCHEMA_VERSION, **facts, "rows": [row.data() for row in rows]}


def print_tail(rows: Sequence[TailRow], console: Console) -> None:
    table = Table(box=None, header_style="bold", pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column("stack", no_wrap=True)
    for heading in (
        *("stable rank, worst", "alpha_hill", "worst", "tail_stats", "quartiles"),
        *("spectral_stats ×", "quartiles", "torch ×", "quartiles"),
    ):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("note")
    for row in rows:
        if not row.timings:
            table.add_row(str(row), *[""] * 9, row.status)
            continue
        hill = np.array([error["alpha_hill"] for error in row.errors.values()])
        cells = [
            f"{max(error['stable_rank'] for error in row.errors.values()):.0e}",
            f"{100 * np.sqrt((hill**2).mean()):.2f} %",
            f"{100 * hill.max():.2f} %",
            *time_cells(spread(row.timings["tail_stats"].seconds)),
        ]
        for name in ("spectral_stats", "torch.linalg.svdvals"):
            ratio = row.over(name)
            cells += [digits(ratio.median), f"{digits(ratio.q1)}–{digits(ratio.q3)}"]
        table.add_row(str(row), *cells, "")
    console.print(table)
    for row in rows:
        for target in row.targets():
            console.print(f"{target.what} {target}", markup=False, highlight=False, soft_wrap=True)
