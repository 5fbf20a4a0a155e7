"""Peak memory of one call beyond its input, each in a fresh process.

The kernel keeps the most that a process ever had resident (VmHWM) and forgets it when asked to (clear_refs).
A small call first loads the libraries and starts their threads, which every program pays once.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.baselines import BASELINES, ours
from benchmarks.budget import INTERRUPTED
from benchmarks.cases import Case
from benchmarks.machine import ROOT
from benchmarks.measure import NOT_MEASURED

METHODS = ("ours", "torch", "gram", "numpy", "scipy-gesdd")
_STATUS, _FORGET = Path("/proc/self/status"), Path("/proc/self/clear_refs")
_WARM_UP = 160  # columns: two stages, as large matrices take
CALL_SECONDS = 120.0


def peak_of(call: Callable[[], Any]) -> int:
    """Bytes that this process had resident during the call at most, beyond those before it (Linux)."""
    before = _resident("VmRSS")
    _FORGET.write_text("5", encoding="ascii")
    result = call()
    peak = _resident("VmHWM") - before
    del result
    return max(0, peak)


def _resident(field: str) -> int:
    for line in _STATUS.read_text(encoding="ascii").splitlines():
        if line.startswith(f"{field}:"):
            return 1024 * int(line.split()[1])
    raise RuntimeError(f"{_STATUS} has no {field}: this needs Linux")


def _child(method: str, count: int, m: int, n: int, dtype: str, threads: int) -> int:
    """In the fresh process."""
    torch.set_num_threads(threads)
    small, case = Case(_WARM_UP, _WARM_UP), Case(m, n, count, ("batch",))
    for one in (small, case):
        A = one.matrices(getattr(torch, dtype), torch.device("cpu"))
        if method == "ours":
            call = ours(A, "single", threads).call
        else:
            baseline = BASELINES[method]
            prepared = baseline.prepare(A)

            def call(values: Any = baseline.values, matrices: Any = prepared) -> Any:
                return values(matrices)

        peak = peak_of(call)
    return peak


def measure_memory(
    stacks: Sequence[tuple[int, int, int]],
    threads: int,
    max_seconds: float,
    progress: Callable[[str], None],
) -> list[dict[str, Any]]:
    """A row for each stack (count, m, n) of float32 matrices: bytes of every method."""
    end = time.monotonic() + max_seconds
    rows, why = [], ""
    for count, m, n in stacks:
        case = Case(m, n, count, ("batch",))
        row: dict[str, Any] = {"matrices": count, "m": m, "n": n, "dtype": "float32", "threads": threads}
        row |= {"input_bytes": case.input_bytes(torch.float32), "methods": []}
        for method in METHODS:
            found: dict[str, Any] = {"method": method, "bytes": None}
            if not why and time.monotonic() >= end:
                why = f"not in the budget of {max_seconds:.0f} s"
            if why:
                found["status"] = f"{NOT_MEASURED}: {why}"
            elif obstacle := _obstacle(method):
                found["status"] = obstacle
            else:
                progress(f"memory of {method}, {case}")
                try:
                    found |= _in_fresh_process(method, count, m, n, "float32", threads)
                except KeyboardInterrupt:
                    why = INTERRUPTED
                    found["status"] = f"{NOT_MEASURED}: {why}"
            row["methods"].append(found)
        row["status"] = row["methods"][0]["status"]
        rows.append(row)
    return rows


def _obstacle(method: str) -> str:
    return "" if method == "ours" else BASELINES[method].obstacle(torch.device("cpu"))


def _in_fresh_process(*arguments: str | int) -> dict[str, Any]:
    command = [sys.executable, "-m", "benchmarks.singular_values.memory", json.dumps(arguments)]
    try:
        done = subprocess.run(
            command, cwd=ROOT, capture_output=True, encoding="utf-8", check=False, timeout=CALL_SECONDS
        )
    except subprocess.TimeoutExpired:
        return {"status": f"{NOT_MEASURED}: not done after {CALL_SECONDS:.0f} s"}
    if done.returncode:
        last = (done.stderr.strip() or f"exit code {done.returncode}").splitlines()[-1]
        return {"status": f"failed: {last}"}
    return {"status": "ok", "bytes": int(done.stdout)}


if __name__ == "__main__":
    print(_child(*json.loads(sys.argv[1])))
