"""The numbers of the GPU kernels, without a GPU: tests/*_interpreted*.py under TRITON_INTERPRET."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
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


class Run:
    """The tests of a file, in a process of their own."""

    def __init__(self, file: str, marked: str, folder: Path) -> None:
        self._log = folder / f"{file}.log"
        command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-m", marked]
        # 0/0 and ln 0 are results here, numpy's warnings of them are not
        command += ["-W", "ignore::RuntimeWarning", str(Path(__file__).with_name(file))]
        with self._log.open("w") as log:
            environment = {**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
            self._process = subprocess.Popen(command, env=environment, stdout=log, stderr=subprocess.STDOUT)

    def check(self) -> None:
        code = self._process.wait()
        output = self._log.read_text()
        assert code == 0, output
        summary = output.strip().splitlines()[-1]
        assert re.search(r"\b[1-9]\d* passed", summary), output
        assert "skipped" not in summary, output

    def end(self) -> None:
        self._process.kill()
        self._process.wait()


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Run]]:
    """All side by side: each is one thread."""
    folder = tmp_path_factory.mktemp("interpreted")
    found = {file: Run(file, "not slow", folder) for file in FILES}
    yield found
    for run in found.values():
        run.end()


@pytest.mark.timeout(900)  # together they take three minutes of an idle core
@pytest.mark.parametrize("file", FILES)
def test_kernels_under_the_interpreter(file: str, runs: dict[str, Run]) -> None:
    runs[file].check()


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_rest_of_the_zoo(tmp_path: Path) -> None:
    """In float64, whose oracle takes seconds, and on a chip whose float64 is slow."""
    Run("cuda_pipeline_interpreted.py", "slow", tmp_path).check()
