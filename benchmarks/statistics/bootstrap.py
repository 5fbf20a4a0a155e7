"""Part ``bootstrap``: how long the goodness of fit of a power law takes, with 1000 synthetic spectra."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from rich.table import Table

import spectral_fast
from benchmarks.report import digits, time_cells
from benchmarks.rows import GateError, Target, TimedRow, pair_data, require
from benchmarks.statistics.gate import scan
from benchmarks.statistics.peers import WWFIT, Call, not_installed
from benchmarks.statistics.spectra import draw
from benchmarks.timing import Contestant, Spread, Timing, host_clock, interleave, paired_ratio, spread
from tests.oracles.stats_oracle import Fit

SIZES = (1024,)
# The first has no values below xmin, or few; the second has four fifths there.
SPECTRA = ("Pareto 2.5", "Pareto over bulk")
TARGET_SECONDS = 0.5

SAMPLES = 1000
GATE_SAMPLES = 200  # 20 ms each at n = 1024
PEER_SAMPLES = 5
SEED = 20260422

# Chance that the gate refuses a right p.
FALSE_ALARM = 1e-6


def synthetic(x: NDArray[np.float64], fit: Fit, g: np.random.Generator) -> NDArray[np.float64]:
    """A spectrum as the fit has it (Clauset, Shalizi, Newman 2009, section 4.1): above xmin the power law,
    below it the values themselves, drawn with replacement."""
    below = x[x < fit.xmin]
    tail = int(g.binomial(len(x), fit.n_tail / len(x)))
    above = fit.xmin * (1 - g.random(tail)) ** (-1 / (fit.alpha - 1))
    return np.concatenate([g.choice(below, len(x) - tail), above]) if tail < len(x) else above


def plain_p_value(x: NDArray[np.float64], samples: int, g: np.random.Generator) -> float:
    """The p-value by a loop over the scan, in float64: its D are off by 1e-13, and p by nothing."""
    fit = scan(x).right()[0]
    distances = [scan(synthetic(x, fit, g), np.float64).distance.min() for _ in range(samples)]
    return float(np.mean(np.array(distances) >= fit.ks_distance))


def p_tolerance(ours: int, plain: int) -> float:
    """How far two p-values of so many samples may be apart, by Hoeffding's inequality for each."""
    return sum(math.sqrt(math.log(4 / FALSE_ALARM) / (2 * count)) for count in (ours, plain))


@dataclass
class BootstrapRow(TimedRow):
    """One spectrum. The peer's time is that of PEER_SAMPLES samples, extrapolated to SAMPLES."""

    name: str
    n: int
    threads: int
    status: str = "ok"
    p_value: float | None = None
    plain_p_value: float | None = None
    peer_status: str = ""
    ours: Timing | None = None
    theirs: Timing | None = field(default=None, repr=False)

    def __str__(self) -> str:
        return f"{self.name}, n = {self.n}"

    def clear(self) -> None:
        self.ours = self.theirs = None

    def measure(self, repeats: int | None) -> None:
        torch.set_num_threads(self.threads)
        x = draw(self.name, self.n).evals
        evals = torch.from_numpy(x)

        def ours() -> Any:
            generator = torch.Generator().manual_seed(SEED)
            return spectral_fast.goodness_of_fit(evals, n_samples=SAMPLES, generator=generator)

        self.p_value = float(ours().p_value)
        self.plain_p_value = plain_p_value(x, GATE_SAMPLES, np.random.default_rng(SEED))
        allowed = p_tolerance(SAMPLES, GATE_SAMPLES)
        if not abs(self.p_value - self.plain_p_value) <= allowed:
            raise GateError(
                f"p is {self.p_value:.3g}, a plain bootstrap of {GATE_SAMPLES} samples gives "
                f"{self.plain_p_value:.3g}: more than {allowed:.2f} apart"
            )

        contestants = [Contestant("ours", ours, self.threads)]
        try:
            contestants.append(Contestant(WWFIT.name, peer_samples(WWFIT.load(), x)))
        except ImportError:
            self.peer_status = not_installed(WWFIT)
        timings = interleave(contestants, host_clock, repeats)
        require(timings[0])
        if (again := float(timings[0].result.p_value)) != self.p_value:
            raise GateError(f"from one state of the generator p was {self.p_value:.3g}, then {again:.3g}")
        self.ours = timings[0]
        if len(timings) > 1:
            self.peer_status = timings[1].status
            self.theirs = extrapolated(timings[1]) if timings[1].ok else None

    @property
    def ratio(self) -> Spread | None:
        if self.ours is None or self.theirs is None:
            return None
        return paired_ratio(self.theirs, self.ours)

    def data(self) -> dict[str, Any]:
        return {
            "spectrum": self.name,
            "n": self.n,
            "samples": SAMPLES,
            "threads": self.threads,
            "status": self.status,
            "p_value": None if self.p_value is None or math.isnan(self.p_value) else self.p_value,
            "plain_p_value": self.plain_p_value,
            "plain_samples": GATE_SAMPLES,
            "ours": self.ours and {"seconds": self.ours.seconds, "spread": asdict(spread(self.ours.seconds))},
            "extrapolated": {
                "peer": WWFIT.name,
                "status": self.peer_status,
                "from_samples": PEER_SAMPLES,
                **(pair_data(self.theirs, self.ours) if self.theirs and self.ours else {}),
            },
        }


def peer_samples(call: Call, x: NDArray[np.float64]) -> Any:
    """A call that draws and fits PEER_SAMPLES synthetic spectra with the peer."""
    right = scan(x).right()[0]

    def run() -> list[Any]:
        g = np.random.default_rng(SEED)
        return [call(synthetic(x, right, g)) for _ in range(PEER_SAMPLES)]

    return run


def extrapolated(timing: Timing) -> Timing:
    """What SAMPLES would take at the pace of PEER_SAMPLES."""
    seconds = [value * SAMPLES / PEER_SAMPLES for value in timing.seconds]
    return Timing(timing.name, timing.threads, calls_per_sample=timing.calls_per_sample, seconds=seconds)


def bootstrap_rows(sizes: Sequence[int], threads: int) -> list[BootstrapRow]:
    return [BootstrapRow(name, n, threads) for n in sizes for name in SPECTRA]


def bootstrap_summary(rows: Sequence[BootstrapRow]) -> list[Target]:
    """The slowest row of each size."""
    found = []
    for n in dict.fromkeys(row.n for row in rows):
        times = [(spread(row.ours.seconds).median, row) for row in rows if row.n == n and row.ours]
        if times:
            seconds, row = max(times, key=lambda pair: pair[0])
            threads = f"{row.threads} thread{'s' if row.threads > 1 else ''}"
            what = f"{SAMPLES} samples on {threads}, slowest ({row})"
            found.append(Target(what, seconds, TARGET_SECONDS, " s", at_least=False))
    return found


def bootstrap_table(rows: Sequence[BootstrapRow]) -> Table:
    table = Table(box=None, header_style="bold", pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column("spectrum", no_wrap=True)
    for heading in ("n", "threads", "p", "plain p", "ours", "quartiles"):
        table.add_column(heading, justify="right", no_wrap=True)
    for heading in (f"{WWFIT.name}, extrapolated", "× ours", "quartiles"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("note")
    for row in rows:
        cells = [""] * 7
        if row.p_value is not None and row.plain_p_value is not None:
            cells[:2] = [f"{row.p_value:.3f}", f"{row.plain_p_value:.3f}"]
        if row.ours is not None:
            cells[2:4] = time_cells(spread(row.ours.seconds))
        if row.theirs is not None and row.ratio is not None:
            ratio = row.ratio
            cells[4] = time_cells(spread(row.theirs.seconds))[0]
            cells[5:] = [digits(ratio.median), f"{digits(ratio.q1)}–{digits(ratio.q3)}"]
        notes = [row.status] if row.status != "ok" else []
        if row.peer_status not in ("", "ok"):
            notes.append(f"{WWFIT.name}: {row.peer_status}")
        table.add_row(row.name, str(row.n), str(row.threads), *cells, "; ".join(notes))
    return table
