"""The numbers of the GPU kernels, without a GPU: tests/*_interpreted*.py under TRITON_INTERPRET."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests import gates

gates.module("triton")

FILES = (
    "triton_interpreted.py",
    "triton_interpreted_band.py",
    "triton_interpreted_products.py",
    "cuda_pipeline_interpreted.py",
    "cuda_first_call_interpreted.py",
)


def run(file: str, marked: str, folder: Path) -> None:
    """The tests of a file, in a process of their own: they pass, and all of them run."""
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-p",
        "no:cacheprovider",
        "-p",
        "tests.quick_interpreter",
    ]
    # 0/0 and ln 0 are results here, numpy's warnings of them are not
    command += ["-m", marked, "-W", "ignore::RuntimeWarning", str(Path(__file__).with_name(file))]
    environment = {**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    log = folder / "log"  # not a pipe: a process that hangs leaves what it said
    with log.open("w") as output:
        code = subprocess.run(command, env=environment, stdout=output, stderr=subprocess.STDOUT).returncode
    said = log.read_text()
    assert code == 0, said
    summary = said.strip().splitlines()[-1]
    assert re.search(r"\b[1-9]\d* passed", summary), said
    assert "skipped" not in summary, said


@pytest.mark.timeout(900)
@pytest.mark.parametrize("file", FILES)
def test_kernels_under_the_interpreter(file: str, tmp_path: Path) -> None:
    run(file, "not slow", tmp_path)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_rest_of_the_zoo(tmp_path: Path) -> None:
    """In float64, whose oracle takes seconds, and on a chip whose float64 is slow."""
    run("cuda_pipeline_interpreted.py", "slow", tmp_path)
