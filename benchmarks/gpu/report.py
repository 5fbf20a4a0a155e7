"""The report of a GPU: its tests, then every benchmark, into one folder. ``python -m benchmarks gpu-report``.

The tests come first, then what is short, then the stacks of the nine models with the time that is left.
Whatever a section raises is its status, and the others go on.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import os
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.budget import INTERRUPTED
from benchmarks.cases import Case
from benchmarks.gpu.cases import CaseRow, measure_cases
from benchmarks.gpu.device import Gpu
from benchmarks.gpu.first_use import measure_first_use
from benchmarks.gpu.look import LOOK_MODEL, measure_look, measure_stages
from benchmarks.gpu.peers import PEERS
from benchmarks.machine import ROOT
from benchmarks.report import SCHEMA_VERSION, write_json
from benchmarks.suites import build_suite
from benchmarks.timing import failure_status

# Shares of the whole time that a section may take; stacks have the rest.
TESTS_SHARE, FIRST_USE_SHARE, LOOK_SHARE = 0.4, 0.1, 0.08
FLOAT32_SHARE = 0.6  # of the stacks' time; float64 has the rest, and what that left over
PLOTS_SECONDS = 15.0

Progress = Callable[[str], None]


def run_marked_tests(seconds: float, paths: Sequence[str] = ()) -> dict[str, Any]:
    """``pytest -m gpu``: counts, seconds, and the end of what it printed where it did not pass."""
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder, "junit.xml")
        command = [sys.executable, "-m", "pytest", "-q", "-m", "gpu", f"--junitxml={log}", *paths]
        if importlib.util.find_spec("xdist"):  # most of their time is the oracles', on the CPU
            command += ["-n", str(min(8, os.cpu_count() or 1))]
        start = time.monotonic()
        try:
            done = subprocess.run(
                command, cwd=ROOT, capture_output=True, encoding="utf-8", check=False, timeout=seconds
            )
        except subprocess.TimeoutExpired:
            return {"status": f"failed: not done after {seconds:.0f} s"}
        found: dict[str, Any] = {"seconds": time.monotonic() - start, "status": "ok"}
        if log.exists():
            suite = next(ElementTree.parse(log).getroot().iter("testsuite"))
            counts = {name: int(suite.get(name, 0)) for name in ("tests", "failures", "errors", "skipped")}
            bad = counts["failures"] + counts["errors"] + counts["skipped"]
            found |= {**counts, "passed": counts["tests"] - bad}
        if done.returncode:
            reason = (
                "no test is marked gpu" if done.returncode == 5 else f"pytest exited with {done.returncode}"
            )
            found |= {"status": f"failed: {reason}", "output": (done.stdout + done.stderr)[-4000:]}
        elif not found.get("passed"):
            found["status"] = "failed: every test was skipped"
    return found


def measure_report(
    gpu: Gpu,
    facts: dict[str, Any],
    *,
    seconds: float,
    suite: Sequence[Case],
    progress: Progress = lambda text: None,
) -> dict[str, Any]:
    """The whole report as plain data, measured within about `seconds`."""
    start = time.monotonic()
    data: dict[str, Any] = {"schema_version": SCHEMA_VERSION, **facts, "budget_seconds": seconds}
    data |= {"gpu": gpu.name, "chip": gpu.chip and dataclasses.asdict(gpu.chip), "peers": list(PEERS)}
    data["state_before"] = gpu.state()
    rows: list[CaseRow] = []
    look = [case for case in suite if LOOK_MODEL in case.models]
    stages = [case for case in suite if case in look or case.m == case.n]
    sections: dict[str, Callable[[], Any]] = {
        "tests": lambda: run_marked_tests(TESTS_SHARE * seconds),
        "first_use": lambda: measure_first_use(str(gpu.device), FIRST_USE_SHARE * seconds),
        "look": lambda: _plain(measure_look(gpu, look, LOOK_SHARE * seconds)),
        "stages": lambda: [_plain(measure_stages(gpu, case, torch.float32)) for case in stages],
    }
    try:
        for name, measure in sections.items():
            progress(name)
            try:
                data[name] = measure()
            except Exception as error:
                data[name] = {"status": failure_status(error)}
        end = start + seconds - PLOTS_SECONDS
        for dtype, share in ((torch.float32, FLOAT32_SHARE), (torch.float64, 1.0)):
            left = max(0.0, end - time.monotonic())
            rows += measure_cases(suite, dtype, gpu, list(PEERS), share * left, progress)
            if any(row.status.endswith(INTERRUPTED) for row in rows):
                raise KeyboardInterrupt
    except KeyboardInterrupt:
        data["status"] = INTERRUPTED
    data["cases"] = [_case_data(row) for row in rows]
    data["state_after"] = gpu.state()
    data["seconds"] = time.monotonic() - start
    if "status" not in data:
        data["status"] = verdict(data)
    return data


def verdict(data: dict[str, Any]) -> str:
    """What is wrong with a report; "ok" where nothing is. Stacks without time or memory are not wrong."""
    wrong = [
        f"{name}: {data[name]['status']}"
        for name in ("tests", "first_use", "look", "stages")
        if isinstance(data[name], dict) and data[name].get("status", "ok") != "ok"
    ]
    rows = [*data["cases"], *(data["stages"] if isinstance(data["stages"], list) else [])]
    bad = [row for row in rows if row["status"].startswith(("failed", "accuracy gate failed"))]
    if bad:
        wrong.append(f"{len(bad)} stacks, the first: {bad[0]['status']}")
    return "; ".join(wrong) if wrong else "ok"


def write_report(data: dict[str, Any], folder: Path) -> None:
    """report.json, report.md and its pictures: a folder that says everything by itself."""
    from benchmarks.gpu.markdown import markdown
    from benchmarks.gpu.plots import draw_all

    write_json(folder / "report.json", data)  # first: the measurements survive whatever drawing does
    pictures = draw_all(data, folder)
    (folder / "report.md").write_text(markdown(data, pictures), encoding="utf-8")


def nine_models() -> list[Case]:
    """Every distinct stack of the nine models, called as a batch."""
    return [dataclasses.replace(case, calls=("batch",)) for case in build_suite("nine-models")]


def _plain(row: Any) -> dict[str, Any]:
    return dataclasses.asdict(row)


def _case_data(row: CaseRow) -> dict[str, Any]:
    case = row.case
    return {
        "models": case.models,
        "roles": case.roles,
        "matrices": case.count,
        "m": case.m,
        "n": case.n,
        "dtype": str(row.dtype).removeprefix("torch."),
        "plan": row.plan,
        "backend": row.backend,
        "status": row.status,
        "gate": row.gate and {**dataclasses.asdict(row.gate), "holds": row.gate.holds},
        "predicted_seconds": row.predicted,
        "methods": [dataclasses.asdict(method) for method in row.methods],
    }
