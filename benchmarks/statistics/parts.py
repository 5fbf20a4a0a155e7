"""The statistics of a spectrum: ``python -m benchmarks stats``, its parts, what it prints and writes.

The parts: ``fit`` (one power law against the packages that defined it), ``share`` (all statistics against the
singular values they come from) and ``bootstrap`` (the goodness of fit).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from rich.console import Console

from benchmarks.machine import usable_cores
from benchmarks.report import SCHEMA_VERSION
from benchmarks.rows import TimedRow, blas_threads, measure_in_turn
from benchmarks.statistics import bootstrap, fit, share
from benchmarks.statistics.bootstrap import BootstrapRow, bootstrap_rows, bootstrap_summary, bootstrap_table
from benchmarks.statistics.fit import FitRow, fit_rows, fit_summary, fit_table, missing_peers
from benchmarks.statistics.peers import peer_versions
from benchmarks.statistics.share import ShareRow, has_kernel, share_rows, share_summary, share_table

PARTS = ("fit", "share", "bootstrap")
LEAST_N = 20  # below, WWFit takes another estimator


@dataclass
class StatsRun:
    """The rows of the parts asked for. ``note``: what about the run's threads is not as asked for."""

    threads: int
    fit: list[FitRow] = field(default_factory=list)
    share: list[ShareRow] = field(default_factory=list)
    bootstrap: list[BootstrapRow] = field(default_factory=list)
    note: str = ""

    @property
    def rows(self) -> list[TimedRow]:
        return [*self.fit, *self.share, *self.bootstrap]


def build_run(
    parts: Sequence[str], sizes: Sequence[int] | None, dtype: torch.dtype, threads: int
) -> StatsRun:
    """The rows of each part, nothing measured. sizes: None for every part's own."""
    run = StatsRun(threads)
    if "fit" in parts:
        run.fit = fit_rows(sizes or fit.SIZES, threads)
    if "share" in parts:
        run.share = share_rows(sizes or share.SIZES, dtype, threads)
    if "bootstrap" in parts:
        # Samples are independent: what all cores do together is what users wait for.
        run.bootstrap = bootstrap_rows(sizes or bootstrap.SIZES, usable_cores())
    return run


def measure_run(
    run: StatsRun, repeats: int | None, max_seconds: float | None, progress: Callable[[str], None]
) -> None:
    """Fill in the rows, one after the other."""
    with blas_threads(run.threads) as note:
        run.note = note
        measure_in_turn([row for row in run.rows if row.status == "ok"], repeats, max_seconds, progress)


def stats_document(run: StatsRun, facts: dict[str, Any]) -> dict[str, Any]:
    """The whole run as plain data."""
    return {
        "schema_version": SCHEMA_VERSION,
        **facts,
        "versions": facts["versions"] | peer_versions(),
        "note": run.note,
        "fit_kernel": has_kernel("fit_powerlaw"),
        "summary": {
            "fit": [one.data() for one in fit_summary(run.fit)],
            "share": [one.data() for one in share_summary(run.share)],
            "bootstrap": [one.data() for one in bootstrap_summary(run.bootstrap)],
        },
        "fit": [row.data() for row in run.fit],
        "share": [row.data() for row in run.share],
        "bootstrap": [row.data() for row in run.bootstrap],
    }


def print_run(run: StatsRun, console: Console) -> None:
    """A table and its summary for each part."""
    if run.fit:
        console.print(fit_table(run.fit))
        _explain(
            console,
            "times: per spectrum, medians. × ours: the peer's time over ours in the same repeat. A batch is "
            "one call of ours, a loop of the peer's.",
        )
        if not has_kernel("fit_powerlaw"):
            _say(console, "fit: ours is plain torch here: no kernel")
        for line in (*missing_peers(run.fit), *fit_summary(run.fit)):
            _say(console, f"fit: {line}")
    if run.share:
        console.print(share_table(run.share))
        _explain(
            console,
            "in % of the time of svdvals in the same repeat, quartiles too. spectral_stats: what it takes "
            "beyond svdvals. × ours: over stats_from_svdvals.",
        )
    for target in share_summary(run.share):
        _say(console, f"share: {target.what} {target}")
    if run.bootstrap:
        console.print(bootstrap_table(run.bootstrap))
        _explain(
            console,
            f"extrapolated: {bootstrap.SAMPLES} samples at the pace of {bootstrap.PEER_SAMPLES}. "
            f"plain p: of {bootstrap.GATE_SAMPLES} samples of a plain loop.",
        )
    for target in bootstrap_summary(run.bootstrap):
        _say(console, f"bootstrap: {target.what} {target}")
    if run.note:
        _say(console, run.note)


def _say(console: Console, line: str) -> None:
    console.print(line, markup=False, highlight=False, soft_wrap=True)


def _explain(console: Console, text: str) -> None:
    console.print(text, style="dim", highlight=False)
