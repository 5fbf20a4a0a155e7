"""Part ``fit``: fit_powerlaw against the packages that defined it, over a zoo of spectra."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any

import numpy as np
import torch
from rich.table import Table

import spectral_fast
from benchmarks.measure import NOT_MEASURED
from benchmarks.report import digits, time_cells
from benchmarks.rows import GateError, NotMeasured, Target, TimedRow, pair_data, require
from benchmarks.statistics.gate import NOT_WIDER, WIDER, FitCheck, Scan, check_fits, scan
from benchmarks.statistics.peers import PEERS, Call, Peer, not_installed
from benchmarks.statistics.spectra import ZOO, Spectrum, draw, minilm_spectra, mixture
from benchmarks.suites import SuiteError
from benchmarks.timing import (
    Contestant,
    Spread,
    Timing,
    failure_status,
    host_clock,
    interleave,
    paired_ratio,
    spread,
)

SIZES = (768, 2048)
BATCH = 48

# Of wrong answers in a peer's line: no ratio, since it would compare answers to different questions.
OTHER_ANSWER = "another answer"


@dataclass
class Comparison:
    """One peer on one row, sampled in turn with ours. ``status`` is "ok", or says why there is no time."""

    peer: Peer
    status: str = "ok"
    note: str = ""
    ours: Timing | None = None
    theirs: Timing | None = None

    @property
    def ratio(self) -> Spread | None:
        """The peer's time over ours."""
        if self.ours is None or self.theirs is None:
            return None
        return paired_ratio(self.theirs, self.ours)


@dataclass
class FitRow(TimedRow):
    """One spectrum, or a batch of them in one call of ours and a loop of the peer's."""

    name: str
    n: int
    draw: Callable[[], list[Spectrum]] = field(repr=False)
    peers: tuple[Peer, ...]
    threads: int
    count: int = 1
    status: str = "ok"
    check: FitCheck | None = None
    comparisons: list[Comparison] = field(default_factory=list)

    def __str__(self) -> str:
        return f"{self.name}, {self.count}×{self.n}" if self.count > 1 else f"{self.name}, n = {self.n}"

    def clear(self) -> None:
        self.comparisons.clear()

    def measure(self, repeats: int | None) -> None:
        if not WIDER:
            raise NotMeasured(NOT_WIDER)
        torch.set_num_threads(self.threads)
        evals = [spectrum.evals for spectrum in self.draw()]
        batch = torch.from_numpy(np.stack(evals) if self.count > 1 else evals[0])
        got = spectral_fast.fit_powerlaw(batch)
        scans = [scan(one) for one in evals]
        self.check = check_fits(got, scans)
        if not self.check.holds:
            raise GateError(self.check.failure)
        judged = partial(_judged, scans=scans, xmins=got.xmin.reshape(-1).tolist())

        calls: list[tuple[Comparison, Call]] = []
        for peer in self.peers:
            comparison = Comparison(peer)
            self.comparisons.append(comparison)
            try:
                call = peer.load()
                answers = [call(one) for one in evals] if peer.required else []
            except ImportError:
                comparison.status = not_installed(peer)
            except Exception as error:  # its line, not the end of ours
                comparison.status = failure_status(error)
            else:
                if answers and (wrong := judged(peer, answers)[0]):
                    raise GateError(f"{peer.name}: {wrong}")
                calls.append((comparison, call))

        for comparison, call in calls:
            self._compare(comparison, call, batch, evals, repeats)
            if comparison.theirs is not None:
                wrong, comparison.note = judged(comparison.peer, comparison.theirs.result)
                if wrong:
                    comparison.status = f"{OTHER_ANSWER}: {wrong}"
                    comparison.ours = comparison.theirs = None

    def _compare(
        self,
        comparison: Comparison,
        call: Call,
        batch: torch.Tensor,
        evals: list[Any],
        repeats: int | None,
    ) -> None:
        ours, theirs = interleave(
            [
                Contestant("ours", lambda: spectral_fast.fit_powerlaw(batch), self.threads),
                Contestant(comparison.peer.name, lambda: [call(one) for one in evals]),
            ],
            host_clock,
            repeats if comparison.peer.repeats is None else comparison.peer.repeats,
        )
        require(ours)
        comparison.status = theirs.status
        if theirs.ok:
            comparison.ours, comparison.theirs = ours, theirs

    @property
    def our_spread(self) -> Spread | None:
        """Ours, of the comparison with most samples."""
        timings = [one.ours for one in self.comparisons if one.ours is not None]
        return spread(max(timings, key=lambda one: len(one.seconds)).seconds) if timings else None

    def data(self) -> dict[str, Any]:
        return {
            "spectrum": self.name,
            "n": self.n,
            "spectra": self.count,
            "status": self.status,
            "gate": self.check and {**asdict(self.check), "holds": self.check.holds},
            "comparisons": [
                {"peer": one.peer.name, "status": one.status, "note": one.note}
                | (pair_data(one.theirs, one.ours) if one.theirs and one.ours else {})
                for one in self.comparisons
            ],
        }


def fit_rows(sizes: Sequence[int], threads: int) -> list[FitRow]:
    """The zoo at each size, MiniLM's weights, and a batch of the smallest size."""
    rows = [FitRow(name, n, partial(_one, name, n), PEERS, threads) for n in sizes for name in ZOO]
    try:
        for spectrum in minilm_spectra():
            rows.append(FitRow(spectrum.name, spectrum.n, partial(list, [spectrum]), PEERS, threads))
    except SuiteError as error:
        missing = FitRow("MiniLM", 0, list, PEERS, threads)
        missing.status = f"{NOT_MEASURED}: {error}"
        rows.append(missing)
    # powerlaw would take half a minute for each sample of it.
    few = tuple(peer for peer in PEERS if peer.required)
    least = min(sizes)
    rows.append(FitRow("batch of the zoo", least, partial(mixture, BATCH, least), few, threads, BATCH))
    return rows


def _judged(peer: Peer, answers: Sequence[Any], scans: list[Scan], xmins: list[float]) -> tuple[str, str]:
    """The first error in a peer's answers, and the first note."""
    found = [peer.judge(*one) for one in zip(answers, scans, xmins, strict=True)]
    wrong = next((f"spectrum {i}: {error}" for i, (error, _) in enumerate(found) if error), "")
    return wrong, next((note for _, note in found if note), "")


def _one(name: str, n: int) -> list[Spectrum]:
    return [draw(name, n)]


@dataclass(frozen=True)
class FitSummary:
    """The single spectra of one size against one peer."""

    peer: str
    n: int
    spectra: int
    worst_spectrum: str
    targets: tuple[Target, ...]

    def __str__(self) -> str:
        return (
            f"{self.peer} / ours, n = {self.n}, {self.spectra} spectra: "
            + ", ".join(f"{target.what} {target}" for target in self.targets)
            + f"; worst: {self.worst_spectrum}"
        )

    def data(self) -> dict[str, Any]:
        return {**asdict(self), "targets": [target.data() for target in self.targets]}


def fit_summary(rows: Sequence[FitRow]) -> list[FitSummary]:
    """Worst and median ratio of every size and peer."""
    ratios: dict[tuple[str, int], list[tuple[float, str]]] = {}
    for row in rows:
        for one in row.comparisons:
            if one.ratio is not None and row.count == 1:
                ratios.setdefault((one.peer.name, row.n), []).append((one.ratio.median, row.name))
    peers = {peer.name: peer for peer in PEERS}
    found = []
    for (name, n), pairs in ratios.items():
        peer, (worst, spectrum) = peers[name], min(pairs)
        targets = [Target("worst", worst, peer.worst, "×")]
        if peer.median is not None:
            median = statistics.median(ratio for ratio, _ in pairs)
            targets.append(Target("median", median, peer.median, "×"))
        found.append(FitSummary(name, n, len(pairs), spectrum, tuple(targets)))
    return found


def fit_table(rows: Sequence[FitRow]) -> Table:
    """One line a spectrum; times are per spectrum."""
    table = Table(box=None, header_style="bold", pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column("spectrum", no_wrap=True)
    for heading in ("n", "ours", "quartiles"):
        table.add_column(heading, justify="right", no_wrap=True)
    for peer in PEERS:
        for heading in (peer.name, "× ours", "quartiles"):
            table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("note")
    for row in rows:
        ours = row.our_spread
        size = f"{row.count}×{row.n}" if row.count > 1 else str(row.n or "")
        cells = ["", ""] if ours is None else time_cells(per_spectrum(ours, row.count))
        notes = [] if row.status == "ok" else [row.status]
        compared: list[str] = []
        by_peer = {one.peer.name: one for one in row.comparisons}
        for peer in PEERS:
            one = by_peer.get(peer.name)
            if one is None or one.theirs is None or one.ratio is None:
                compared += ["", "", ""]
            else:
                theirs = per_spectrum(spread(one.theirs.seconds), row.count)
                ratio = one.ratio
                quartiles = f"{digits(ratio.q1)}–{digits(ratio.q3)}"
                compared += [time_cells(theirs)[0], digits(ratio.median), quartiles]
            if one is not None and one.status not in ("ok", not_installed(peer)):
                notes.append(f"{peer.name}: {one.status}")
            elif one is not None and one.note:
                notes.append(f"{peer.name}: {one.note}")
        table.add_row(row.name, size, *cells, *compared, "; ".join(notes))
    return table


def missing_peers(rows: Sequence[FitRow]) -> list[str]:
    """A line for each peer that is not installed."""
    found = {one.peer.name: one.status for row in rows for one in row.comparisons}
    return [
        f"{peer.name}: {found[peer.name]}" for peer in PEERS if found.get(peer.name) == not_installed(peer)
    ]


def per_spectrum(times: Spread, count: int) -> Spread:
    return Spread(*(value / count for value in (times.median, times.min, times.q1, times.q3, times.max)))
