"""``python -m benchmarks check``: has a stage lost time since its ratio to torch was stored?

A ratio is the median over several processes (:mod:`benchmarks.regression.stage_ratios`), its spread their
quartiles. A stage has lost where its lower quartile is more than the margin above the stored upper one, and
again when it is measured once more in other processes: what happens to the machine for a while is no
regression.

A ratio belongs to a CPU model, an instruction set and a version of torch: on others nothing is judged.
"""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from benchmarks.machine import ROOT, cpu_model
from benchmarks.regression.stage_ratios import CASES
from benchmarks.report import SCHEMA_VERSION, write_json
from benchmarks.timing import Spread, spread
from spectral_fast import _cpu

STORED = Path("docs/measured/ratios.json")
MARGIN = 0.10
PROCESSES = 5

Samples = dict[str, list[float]]  # a ratio of each process, by "case stage"


class StoredError(Exception):
    """The stored ratios cannot be judged by here; the message says why and what to do."""


class MeasureError(Exception):
    """Wrong values, or a process that failed: there are no ratios."""


@dataclass(frozen=True)
class Verdict:
    """One stage: as stored, as found, and as found again where the first finding was too slow."""

    name: str
    stored: Spread
    found: Spread
    again: Spread | None = None

    @property
    def lost(self) -> bool:
        return self.again is not None and slower(self.found, self.stored) and slower(self.again, self.stored)

    @property
    def change(self) -> float:
        """Of the median, relative: above 0 where time was lost."""
        return (self.again or self.found).median / self.stored.median - 1


def slower(found: Spread, stored: Spread) -> bool:
    return found.q1 > (1 + MARGIN) * stored.q3


def measure(cases: Sequence[str], progress: Callable[[str], None]) -> Samples:
    """The ratios of fresh processes, one after the other. Raises MeasureError."""
    samples: Samples = {}
    for number in range(PROCESSES):
        progress(f"process {number + 1}/{PROCESSES}: {', '.join(cases)}")
        for name, ratio in one_process(cases).items():
            samples.setdefault(name, []).append(ratio)
    return samples


def one_process(cases: Sequence[str]) -> dict[str, float]:
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.regression.stage_ratios", *cases],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        encoding="utf-8",
        check=False,
    )
    if done.returncode:
        raise MeasureError(f"a measuring process ended with {done.returncode}; its messages are above")
    found = json.loads(done.stdout)
    if "wrong" in found:
        raise MeasureError(f"accuracy gate failed: {found['wrong']}")
    ratios: dict[str, float] = found["ratios"]
    return ratios


def judge(stored: dict[str, Spread], progress: Callable[[str], None]) -> list[Verdict]:
    """Measures every stage, and those that seem slower once more.

    Raises MeasureError, and StoredError where other stages are stored than there are.
    """
    found = {name: spread(ratios) for name, ratios in measure(CASES, progress).items()}
    if odd := sorted(found.keys() ^ stored.keys()):
        raise StoredError(f"stored or measured, but not both: {', '.join(odd)}; store anew with --write")
    suspects = [name for name in found if slower(found[name], stored[name])]
    again: dict[str, Spread] = {}
    if suspects:
        progress(f"once more, for {', '.join(suspects)}")
        cases = [case for case in CASES if any(_case(name) == case for name in suspects)]
        again = {name: spread(ratios) for name, ratios in measure(cases, progress).items()}
    return [
        Verdict(name, stored[name], found[name], again[name] if name in suspects else None) for name in found
    ]


def _case(name: str) -> str:
    return name.rpartition(" ")[0]


def here() -> dict[str, str]:
    """What a ratio belongs to."""
    return {"cpu": _cpu_identity(), "isa": _cpu.current_isa(), "torch": torch.__version__}


def _cpu_identity() -> str:
    """The model with its numbers where Linux tells them: a virtual machine may show the name of a family."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines() if cpuinfo.exists() else []
    facts = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}
    numbers = [f"{name} {facts[name]}" for name in ("cpu family", "model", "stepping") if name in facts]
    return ", ".join([cpu_model(), *numbers])


def store(path: Path, samples: Samples, facts: dict[str, Any]) -> None:
    """Write the ratios; the folder is made where it is missing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, {"schema_version": SCHEMA_VERSION, **facts, "here": here(), "ratios": samples})


def load(path: Path) -> dict[str, Spread]:
    """The stored ratios. Raises StoredError where there are none, or none of this machine's kind."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        version, stored_here = data["schema_version"], data["here"]
        ratios = {name: spread(samples) for name, samples in data["ratios"].items()}
    except OSError as error:
        raise StoredError(f"{path}: {error.strerror}; store ratios with --write") from None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise StoredError(f"{path} is no file of ratios ({error!r}); store them with --write") from None
    if version != SCHEMA_VERSION:
        raise StoredError(
            f"{path} has schema version {version}, not {SCHEMA_VERSION}; store anew with --write"
        )
    for name, value in here().items():
        if stored_here.get(name) != value:
            raise StoredError(
                f"{path} belongs to {name} {stored_here.get(name)!r}, and here it is {value!r}: a ratio says "
                "nothing elsewhere; give another file with --against, or store this machine's with --write"
            )
    return ratios


def check_document(verdicts: Sequence[Verdict], facts: dict[str, Any]) -> dict[str, Any]:
    """The whole run as plain data."""
    rows = [
        {**dataclasses.asdict(verdict), "change": verdict.change, "lost": verdict.lost}
        for verdict in verdicts
    ]
    return {"schema_version": SCHEMA_VERSION, **facts, "margin": MARGIN, "rows": rows}


def print_verdicts(verdicts: Sequence[Verdict], console: Console) -> None:
    table = Table(box=None, header_style="bold", pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column("stage", no_wrap=True)
    for heading in ("stored", "quartiles", "now", "quartiles", "change"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("")
    for verdict in verdicts:
        note = "lost" if verdict.lost else "" if verdict.again is None else "slower at first, not again"
        cells = [*_cells(verdict.stored), *_cells(verdict.again or verdict.found)]
        table.add_row(verdict.name, *cells, f"{100 * verdict.change:+.1f} %", note)
    console.print(table)
    for verdict in verdicts:
        if verdict.lost and verdict.again is not None:
            medians = (verdict.found.median, verdict.again.median, verdict.stored.median)
            first, second, before = (f"{median:.3g}" for median in medians)
            console.print(
                f"{verdict.name}: {first} and {second} of torch's time in two measurements, stored {before}",
                markup=False,
                highlight=False,
                soft_wrap=True,
            )
    lost = sum(verdict.lost for verdict in verdicts)
    console.print(
        f"{lost} of {len(verdicts)} stages lost more than {MARGIN:.0%} beyond their spread",
        markup=False,
        highlight=False,
    )


def _cells(ratio: Spread) -> tuple[str, str]:
    return f"{ratio.median:.3g}", f"{ratio.q1:.3g}–{ratio.q3:.3g}"
