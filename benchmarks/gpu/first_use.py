"""What the first call costs: import, context, compiling.

``python -m benchmarks.gpu.first_use DEVICE`` prints it as JSON. A process of its own, since only the first
call compiles; the report starts it twice, with empty caches and with those that the first one filled.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

# One call for each path: two stages, tall, small.
SHAPES = ((2, 160, 160), (2, 480, 160), (64, 32, 32))


def first_use(device_name: str) -> dict[str, Any]:
    """Seconds of the import, of making the device ready, and of two calls of each shape."""
    start = time.perf_counter()
    import torch

    import spectral_fast

    imported = time.perf_counter()
    torch.ones(1, device=device_name).sum().item()
    ready = time.perf_counter()
    calls = []
    for shape in SHAPES:
        for dtype in (torch.float32, torch.float64):
            A = torch.randn(shape, dtype=dtype).to(device_name)
            took = []
            for _ in range(2):
                begin = time.perf_counter()
                spectral_fast.spectral_stats(A).alpha.sum().item()  # waits for the device
                took.append(time.perf_counter() - begin)
            name = str(dtype).removeprefix("torch.")
            calls.append({"shape": shape, "dtype": name, "first": took[0], "second": took[1]})
    return {"import": imported - start, "device": ready - imported, "calls": calls}


def measure_first_use(device_name: str, seconds: float) -> dict[str, Any]:
    """With empty caches and with filled ones. Raises RuntimeError where a process fails or takes too long."""
    with tempfile.TemporaryDirectory() as folder:
        caches = {
            name: str(Path(folder, name))
            for name in ("CUPY_CACHE_DIR", "TRITON_CACHE_DIR", "CUDA_CACHE_PATH")
        }
        return {when: _in_new_process(device_name, seconds / 2, caches) for when in ("cold", "warm")}


def _in_new_process(device_name: str, seconds: float, caches: Mapping[str, str]) -> dict[str, Any]:
    command = [sys.executable, "-m", "benchmarks.gpu.first_use", device_name]
    done = subprocess.run(
        command,
        cwd=Path(__file__).parents[2],
        env={**os.environ, **caches},
        capture_output=True,
        encoding="utf-8",
        check=False,
        timeout=seconds,
    )
    if done.returncode:
        raise RuntimeError(f"the first call failed: {done.stderr.strip().splitlines()[-1:]}")
    found: dict[str, Any] = json.loads(done.stdout)
    return found


if __name__ == "__main__":
    print(json.dumps(first_use(sys.argv[1])))
