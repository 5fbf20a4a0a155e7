"""``python -m benchmarks all``: every section in turn, one report.

The sections share one budget. Each gets its share of what is left, so time that one does not need goes to
those after it, and an overrun of one case is taken from them.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

import spectral_fast
from benchmarks.baselines import BASELINES
from benchmarks.budget import INTERRUPTED
from benchmarks.machine import gemm_rate, machine, versions
from benchmarks.measure import GATE_FAILED, NOT_MEASURED
from benchmarks.report import SCHEMA_VERSION, write_json
from benchmarks.statistics.peers import peer_versions
from benchmarks.suites import SuiteError
from benchmarks.timing import failure_status
from benchmarks.training.monitor import DIFFERS
from benchmarks.training.tracking import WRONG
from benchmarks.whole import sections
from benchmarks.whole.sections import Scope
from benchmarks.whole.sizes import Sizes

REPORT_JSON, REPORT_MARKDOWN = "bench.json", "bench.md"

# Kept for pictures, and for cases that overrun.
RESERVE = 0.1
# How a status begins that is a failure of ours.
_FAILED = ("failed", GATE_FAILED, WRONG, DIFFERS)


@dataclass(frozen=True)
class Section:
    """One suite.

    share: of the time, relative to the others': about what it needs on 2 cores, in units of 22 s.
    least: seconds that it takes however small its share is; with less it is left out.
    """

    name: str
    title: str
    share: float
    measure: Callable[[Scope], dict[str, Any]]
    least: float = 1.0


SECTIONS = (
    Section("minilm", "Singular values of trained weights", 3, sections.minilm),
    Section("nine-models", "Singular values of the nine models' shapes", 30, sections.nine_models),
    Section("single", "Single matrices", 10, sections.single),
    Section("float64", "The nine models' shapes in float64", 6, sections.nine_models_float64),
    Section("growth", "Growth with n", 9, sections.growth),
    Section("batches", "Growth with the batch", 1, sections.batches),
    Section("threads", "Threads", 3, sections.threads),
    Section("conditioning", "Accuracy against conditioning", 3, sections.conditioning),
    Section("stages", "Stages against their bounds", 3, sections.stages),
    Section("memory", "Memory", 4, sections.memory),
    Section("fit", "Power-law fits", 8, sections.fit),
    Section("statistics", "All statistics beside the values", 4, sections.statistics),
    Section("goodness", "Goodness of fit", 2, sections.goodness),
    Section("operations", "Other operations", 2, sections.other_operations),
    Section("leading", "Leading values only", 2, sections.leading),
    Section("tail", "Estimates from a few products", 5, sections.tail),
    Section("weightwatcher", "WeightWatcher.analyze()", 10, sections.weightwatcher),
    Section("tracking", "Tracking a training run", 8, sections.tracking, 15.0),
    Section("monitor", "The monitor in a training run", 8, sections.monitor, 60.0),
)
NAMES = tuple(section.name for section in SECTIONS)


class ReportError(ValueError):
    """The report cannot be continued; the message says what to do."""


def measure_report(
    sizes: Sizes,
    *,
    full: bool,
    chosen: Sequence[str],
    seconds: float,
    folder: Path,
    progress: Callable[[str], None],
) -> dict[str, Any]:
    """Measure the chosen sections and write the JSON after each of them; returns the whole document.

    Sections that are not chosen stay as they are in the folder's JSON. Raises ReportError where that is of
    another machine, version or commit.
    """
    began = time.monotonic()
    file = folder / REPORT_JSON
    threads = torch.get_num_threads()
    data = _facts(full, threads)
    if len(chosen) < len(SECTIONS):
        data["sections"] = _kept(file, data, chosen)
    usable = (1 - RESERVE) * seconds
    left = [section for section in SECTIONS if section.name in chosen]
    interrupted = False
    while left:
        section = left.pop(0)
        spare = usable - (time.monotonic() - began)
        share = round(spare * section.share / (section.share + sum(one.share for one in left)), 1)
        start = time.monotonic()
        found: dict[str, Any]
        if interrupted:
            found = {"status": f"{NOT_MEASURED}: {INTERRUPTED}"}
        elif share < section.least:
            found = {"status": f"{NOT_MEASURED}: not in the budget of {seconds:g} s"}
        else:
            progress(f"{section.name}: about {share:.0f} s")
            found = _measured(section, Scope(sizes, share, threads, data["gemm"], progress))
            torch.set_num_threads(threads)
        interrupted = interrupted or any(status.endswith(INTERRUPTED) for status in statuses(found))
        taken = {"budget_seconds": max(share, 0.0), "seconds": time.monotonic() - start, "full": full}
        data["sections"][section.name] = {"title": section.title, **taken, **found}
        data["seconds"] = time.monotonic() - began
        data["status"] = verdict(data)
        write_json(file, data)
    return data


def _measured(section: Section, scope: Scope) -> dict[str, Any]:
    try:
        return section.measure(scope)
    except KeyboardInterrupt:  # between two cases; a suite handles those inside itself
        return {"status": f"{NOT_MEASURED}: {INTERRUPTED}"}
    except SuiteError as error:
        return {"status": f"{NOT_MEASURED}: {error}"}
    except Exception as error:  # a section's end, not the report's
        return {"status": failure_status(error)}


def _facts(full: bool, threads: int) -> dict[str, Any]:
    cpu = torch.device("cpu")
    return {
        "schema_version": SCHEMA_VERSION,
        "date_utc": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": machine(),
        "versions": versions() | peer_versions(),
        "capabilities": spectral_fast.capabilities(),
        "threads": threads,
        "full": full,
        "gemm": {name: gemm_rate(getattr(torch, name), cpu) for name in ("float32", "float64")},
        # All sections are on the CPU; a GPU has a report of its own.
        "gpu": "measured by `python -m benchmarks gpu-report`, not here"
        if torch.cuda.is_available()
        else "none here",
        "peers": {name: one.obstacle(cpu) or "timed" for name, one in BASELINES.items()},
        "sections": {},
    }


def _kept(file: Path, data: Mapping[str, Any], chosen: Sequence[str]) -> dict[str, Any]:
    """The sections of an earlier run that are not measured again."""
    if not file.exists():
        return {}
    try:
        earlier = json.loads(file.read_text(encoding="utf-8"))
        kept = {name: one for name, one in earlier["sections"].items() if name not in chosen}
        differing = [
            f"{what}.{key}: {earlier[what].get(key)} there, {value} here"
            for what in ("machine", "versions")
            for key, value in data[what].items()
            if earlier[what].get(key) != value
        ]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ReportError(f"{file} is no report of this command ({error!r}): move it away") from error
    if kept and differing:
        raise ReportError(
            f"{file} was measured elsewhere ({differing[0]}), and its other sections would stay in the "
            "report: give another --out, or measure all sections"
        )
    return kept


def statuses(data: Any) -> Iterator[str]:
    """Every status in a document."""
    if isinstance(data, Mapping):
        for key, value in data.items():
            if key == "status" and isinstance(value, str):
                yield value
            else:
                yield from statuses(value)
    elif isinstance(data, list):
        for value in data:
            yield from statuses(value)


def verdict(data: Mapping[str, Any]) -> str:
    """What failed, or that it was interrupted; "ok" otherwise, though time, memory or packages may lack."""
    wrong = []
    for name, section in data["sections"].items():
        # A row's own status; those of peers inside it are lines of the report.
        own = [section["status"], *(row["status"] for row in section.get("rows", []))]
        bad = [status for status in own if status.startswith(_FAILED)]
        wrong += [f"{name}: {bad[0]}"] if bad else []
    if wrong:
        return "; ".join(wrong)
    return INTERRUPTED if any(one.endswith(INTERRUPTED) for one in statuses(data["sections"])) else "ok"
