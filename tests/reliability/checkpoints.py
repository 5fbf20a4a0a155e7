"""Malformed checkpoints through `spectral-fast analyze`: refused in words, or analysed; nothing else.

What is checked of each: it ends within LIMIT_SECONDS and takes no more than LIMIT_BYTES beyond what the
process had; exit code 0, 1 or 2; with 2, a message that names a file of the mutant; no exception; no canary.
"""

from __future__ import annotations

import contextlib
import io
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from pathlib import Path
from typing import Any

from spectral_fast import cli
from tests.reliability.mutants import MUTATIONS, canary

CHUNK = 240
LIMIT_SECONDS = 20
LIMIT_BYTES = 256 << 20


class _TooLong(BaseException):
    """Not an Exception, let alone the OSError that TimeoutError is: the readers turn those into words."""


def check_chunk(seed: int, chunk: int, mutants: int = CHUNK) -> dict[str, Any]:
    """Mutants of every kind by turns, through the command's function in this process."""
    found: dict[str, Any] = {
        "mutants": 0,
        "refused": 0,
        "analysed": 0,
        "kinds": {},
        "failures": [],
        "slowest": 0.0,
    }
    for index in range(mutants):
        kind = list(MUTATIONS)[index % len(MUTATIONS)]
        start = time.perf_counter()
        code, problem = check(seed, chunk, index)
        found["slowest"] = max(found["slowest"], time.perf_counter() - start)
        found["mutants"] += 1
        found["refused" if code == 2 else "analysed"] += 1
        of_kind = found["kinds"].setdefault(kind, [0, 0])
        of_kind[code != 2] += 1
        if problem:
            found["failures"].append({"case": f"{seed}-{chunk}-{index}", "kind": kind, "problem": problem})
    return found


def check(seed: int, chunk: int, index: int, *, by_process: bool = False) -> tuple[int | None, str]:
    """The exit code for one mutant, and what is wrong with how it was met ("" if nothing)."""
    rng = random.Random(f"{seed}-{chunk}-{index}")
    mutate = list(MUTATIONS.values())[index % len(MUTATIONS)]
    folder = Path(tempfile.mkdtemp(prefix="mutant-"))
    try:
        path = mutate(folder, rng)
        code, errors, grown = (_by_process if by_process else _here)(path)
        if isinstance(code, str):
            return None, code
        if code not in (0, 1, 2):
            return code, f"exit code {code}: {errors[-500:]}"
        if code == 2 and not (errors.startswith("spectral-fast: error: ") and str(folder) in errors):
            return code, f"the error names no file: {errors[-500:]}"
        if grown > LIMIT_BYTES:
            return code, f"{grown >> 20} MiB were taken"
        if canary(folder).exists():
            return code, "code from the file was run"
        return code, ""
    finally:
        shutil.rmtree(folder)


def _here(path: Path) -> tuple[int | str, str, int]:
    """Exit code or what was raised, standard error, growth of the process's largest size in bytes."""
    out, errors = io.StringIO(), io.StringIO()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

    def too_long(*_: Any) -> None:
        raise _TooLong(f"more than {LIMIT_SECONDS} seconds")

    was = signal.signal(signal.SIGALRM, too_long)
    signal.alarm(LIMIT_SECONDS)
    code: int | str
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(errors):
            code = cli.main(["analyze", str(path)])
    except BaseException:  # SystemExit, too: nothing but an exit code is allowed
        code = traceback.format_exc(limit=-4)
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, was)
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024
    return code, errors.getvalue(), grown


def _by_process(path: Path) -> tuple[int | str, str, int]:
    try:
        done = subprocess.run(
            [sys.executable, "-m", "spectral_fast.cli", "analyze", str(path)],
            capture_output=True,
            text=True,
            errors="replace",
            timeout=3 * LIMIT_SECONDS,
            check=False,
            env={**os.environ, "PYTHONIOENCODING": "utf-8"},
        )
    except subprocess.TimeoutExpired:
        return f"more than {3 * LIMIT_SECONDS} seconds", "", 0
    return done.returncode, done.stderr, 0
