"""Every CUDA stage runs under AddressSanitizer and UndefinedBehaviorSanitizer."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.test_cuda_stages import STAGES

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

_PREAMBLE = """
import torch
from tests.cuda_emulator import Emulator
torch.use_deterministic_algorithms(True)  # torch.empty gives NaN
"""


def sanitized(code: str) -> subprocess.CompletedProcess[str]:
    """Runs code in a process that has the sanitizers' runtime."""
    command = ["g++", "-print-file-name=libasan.so"]
    asan = subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    if not Path(asan).is_absolute():
        pytest.skip("g++ comes without AddressSanitizer")
    environment = {
        **os.environ,
        "LD_PRELOAD": asan,
        # Python leaks, and a fiber has but the stack it is given.
        "ASAN_OPTIONS": "detect_leaks=0:detect_stack_use_after_return=0",
        "UBSAN_OPTIONS": "print_stacktrace=1",
        "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
    }
    command = [sys.executable, "-c", _PREAMBLE + code]
    return subprocess.run(command, env=environment, capture_output=True, text=True)


@pytest.mark.parametrize("stage", STAGES)
def test_nothing_undefined(stage: str) -> None:
    result = sanitized(
        f"from tests.cuda_stages import {stage} as stage\n"
        "for types in stage.TYPES: stage.run(Emulator(sanitize=True), types)\n"
        "print('done')"
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout == "done\n"


KERNEL = """
from spectral_fast.cuda.sources import Types
text = '''extern "C" __global__ void test(int* out, long long n) {{
  int* shared = static_cast<int*>(shared_memory());
  int local[3];
  shared[threadIdx.x] = n;
  __syncthreads();
  {body}
}}'''
emulate = Emulator(sanitize=True, sources={{"test": text}})
out = torch.zeros(40, dtype=torch.int32)
emulate("test", "test", Types(torch.float32, torch.float64), (2, 1), 33, [out, {n}], 132)
print("done")
"""


@pytest.mark.parametrize(
    ("body", "n", "report"),
    [
        ("out[threadIdx.x] = shared[32 - threadIdx.x];", 3, ""),
        ("out[0] = shared[n];", 33, "heap-buffer-overflow.*READ of size 4"),
        ("out[n] = 1;", 40, "heap-buffer-overflow.*WRITE of size 4"),
        ("for (int i = 0; i < n; ++i) local[i] = i; out[0] = local[n - 1];", 4, "index 3 out of bounds"),
        ("out[0] = shared[0] << n;", 32, "shift exponent 32 is too large"),
        ("out[0] = shared[0] + n > 0 ? int(n) * int(n) : 0;", 1 << 16, "signed integer overflow"),
        ("out[0] = *reinterpret_cast<long long*>(out + n);", 1, "misaligned address"),
    ],
)
def test_the_sanitizers_see(body: str, n: int, report: str) -> None:
    result = sanitized(KERNEL.format(body=body, n=n))
    if not report:
        assert (result.returncode, result.stdout) == (0, "done\n"), result.stderr
        return
    assert result.returncode != 0
    for part in report.split(".*"):
        assert part in result.stderr
