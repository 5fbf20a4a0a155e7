"""The report of a run: a page and its pictures."""

from __future__ import annotations

import os
from functools import partial
from pathlib import Path

from spectral_fast.export import write_atomically
from spectral_fast.monitor.parquet import RunError
from spectral_fast.monitor.report.curves import audits, costs, largest_values, spectra
from spectral_fast.monitor.report.history import Audit, History
from spectral_fast.monitor.report.maps import heat_maps
from spectral_fast.monitor.report.page import html_page
from spectral_fast.monitor.report.panels import Section, save_png
from spectral_fast.monitor.report.words import STATISTICS

_MAP_CAPTION = (
    "A row a layer, each role with colours of its own. Hatched where there was no look, or no such matrix."
)


def write_report(run: str | os.PathLike[str], out: str | os.PathLike[str]) -> list[Path]:
    """Draw a run: ``report.html``, which needs no other file, and the pictures as PNG files.

    Args:
        run: the directory of a :class:`spectral_fast.monitor.parquet.ParquetSink`; it may still be written.
        out: a directory for the files; made if it is missing. Files of the same names are replaced.

    Returns:
        The files written, the page first.

    Raises:
        RunError: there is no run, or no look in it yet.
        OSError: the files cannot be written.
        ImportError: matplotlib is not installed.
    """
    history = History(run)
    if len(history.steps) == 0:
        raise RunError(f"{run}: has no look yet; wait for the first one")
    found = {name: history.audit(name) for name in STATISTICS}
    found = {name: audit for name, audit in found.items() if len(audit.gap)}
    sections = _sections(history, found)
    folder = Path(out)
    folder.mkdir(parents=True, exist_ok=True)
    page = html_page(Path(run).resolve().name, history, sections, found)
    written = [folder / "report.html"]
    write_atomically(written[0], partial(_write_text, page))
    for section in sections:
        if section.panels:
            written.append(folder / f"{section.name}.png")
            write_atomically(written[-1], partial(save_png, section))
    return written


def _write_text(text: str, path: Path) -> None:
    path.write_text(text, encoding="utf-8")


def _sections(history: History, found: dict[str, Audit]) -> list[Section]:
    missing = "No look of this run has it."
    maps = [
        Section(
            name,
            f"{title} over layers and steps",
            f"{meaning} {_MAP_CAPTION}",
            heat_maps(history, name, "stable rank" if name == "stable_rank" else "α"),
            missing,
        )
        for name, (title, meaning) in STATISTICS.items()
        if name != "spectral_norm"
    ]
    return [
        *maps,
        Section(
            "spectra",
            "Spectra over time",
            "Singular values of exact looks, on logarithmic axes, at up to nine steps; of deep models the "
            "first and the last layer of each role and two between. The smallest tenth of the values is cut "
            "off.",
            spectra(history),
            missing="No exact look was made, and others do not see whole spectra.",
        ),
        Section(
            "sigma_1",
            "σ₁ over steps",
            "The largest singular value of each matrix. Bands are 95 % intervals of estimates; most are "
            "thinner than the line.",
            largest_values(history),
            missing,
        ),
        Section(
            "cost",
            "What looking cost",
            "The monitor widens its intervals to keep within its budget. The share of the first looks, "
            "before much else has happened, may be off the top.",
            costs(history),
        ),
        Section(
            "audit",
            "Estimates against exact values",
            "Wherever an exact look follows a tracked one of the same matrix: how far apart "
            "they were, and whether that is within the 95 % interval stated. The distance includes what the "
            "weights did in the steps between.",
            audits(found),
            missing="No exact look follows an estimate.",
        ),
    ]
