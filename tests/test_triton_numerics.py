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


@pytest.mark.timeout(900)  # the slowest takes a minute of an idle machine
@pytest.mark.parametrize(
    "name", ["triton_interpreted.py", "triton_interpreted_band.py", "cuda_pipeline_interpreted.py"]
)
def test_kernels_under_the_interpreter(name: str) -> None:
    # 0/0 and ln 0 are results here, numpy's warnings of them are not
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-W", "ignore::RuntimeWarning"]
    run = subprocess.run(
        [*command, str(Path(__file__).with_name(name))],
        env={**os.environ, "TRITON_INTERPRET": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stdout + run.stderr
    summary = run.stdout.strip().splitlines()[-1]
    assert re.search(r"\b[1-9]\d* passed", summary), run.stdout
    assert "skipped" not in summary, run.stdout
