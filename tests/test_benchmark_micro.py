"""The micro-benchmarks run, and their names stay: saved times are compared by them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from benchmarks import test_micro as micro

ROOT = Path(__file__).parents[1]

OPERATIONS = """\
svdvals-512x512 svdvals-768x768 svdvals-1024x1024 svdvals-2048x2048 svdvals-3072x768 svdvals-4096x32x32
svdvals-1024x64x64 svdvals-256x128x128 svdvals-352x352 svdvals-352x1408 svdvals-1408x352 svdvals-1088x1088
svdvals-768x3072 svdvals-1280x1280 svdvals-512x512-float64 svdvals-3072x768-float64
spectral_stats-256x128x128 spectral_stats-768x768 spectral_stats-3072x768
fit_powerlaw-768-float64 fit_powerlaw-2048-float64 fit_powerlaw-48x768-float64
gram_product-768x768 gram_product-3072x768
tracked_look-768x768 tracked_look-3072x768 tracked_look-4x512x512
tail_stats-768x768 tail_stats-2048x2048 tail_stats-384x384
"""
STAGES = """\
load-128x128 bidiagonal-128x128 values-128x128
load-384x384 band-384x384 bidiagonal-384x384 values-384x384
load-1536x384 reduce-1536x384 band-1536x384 bidiagonal-1536x384 values-1536x384
load-384x384-float64 band-384x384-float64 bidiagonal-384x384-float64 values-384x384-float64
"""


def test_names() -> None:
    assert [micro._id(operation) for operation in micro.WATCHED] == OPERATIONS.split()
    assert [case.id for case in micro._stage_cases()] == STAGES.split()


def test_they_run() -> None:
    """Each kind and stage once, without timing, on the smaller matrices."""
    done = subprocess.run(
        [
            *(
                sys.executable,
                "-m",
                "pytest",
                "benchmarks",
                "-v",
                "--benchmark-disable",
                "-p",
                "no:cacheprovider",
            ),
            *("-k", "384 or 4x512 or gram_product-768x768 or 352x352 or 48x768 or 256x128x128"),
        ],
        cwd=ROOT,
        capture_output=True,
        encoding="utf-8",
        check=False,
    )
    assert done.returncode == 0, done.stdout
    ran = {line.split()[0] for line in done.stdout.splitlines() if " PASSED " in line}
    stages = [name for name in STAGES.split() if "384" in name]
    assert {f"benchmarks/test_micro.py::test_stage[{name}]" for name in stages} <= ran
    kinds = {name.partition("[")[2].partition("-")[0] for name in ran if "test_operation" in name}
    assert kinds == {operation.kind for operation in micro.WATCHED}
