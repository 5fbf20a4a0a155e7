"""What a figure depends on besides the code: the machine, the versions, the rate of its matrix product.

Nothing here names a user, a host or a path: results are meant to be published.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import platform
import subprocess
from pathlib import Path
from typing import Any

import torch

import spectral_fast
from benchmarks.timing import cuda_clock, host_clock

ROOT = Path(__file__).resolve().parents[1]  # of the checkout

GEMM_SIZE = 2048
GEMM_REPEATS = 5
_PACKAGES = ("numpy", "scipy", "cupy", "triton")


def machine() -> dict[str, Any]:
    gpus = [
        {"name": device.name, "memory_bytes": device.total_memory, "capability": [device.major, device.minor]}
        for device in map(torch.cuda.get_device_properties, range(torch.cuda.device_count()))
    ]
    return {
        "cpu": cpu_model(),
        "architecture": platform.machine(),
        "system": platform.system(),
        "cores": usable_cores(),
        "memory_bytes": host_memory(),
        "gpus": gpus,
    }


def cpu_model() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def usable_cores() -> int:
    """The cores this process may use, which a container can make fewer than the machine's."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def host_memory() -> int:
    """Bytes of memory this process may use: the machine's, or a container's limit if that is less."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limit = Path("/sys/fs/cgroup/memory.max")
    text = limit.read_text(encoding="ascii").strip() if limit.exists() else "max"
    return memory if text == "max" else min(memory, int(text))


def device_memory(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory
    return host_memory()


def versions() -> dict[str, Any]:
    found: dict[str, Any] = {
        "python": platform.python_version(),
        "spectral_fast": spectral_fast.__version__,
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
    }
    for module in _PACKAGES:
        found[module] = _module_version(module)
    commit = _git("rev-parse", "HEAD")
    found["git_commit"] = commit
    found["git_modified"] = bool(_git("status", "--porcelain")) if commit else None
    # The commit says nothing about a package installed elsewhere.
    found["package_in_checkout"] = Path(spectral_fast.__file__).resolve().parents[1] == ROOT
    return found


def _module_version(module: str) -> str | None:
    try:
        return importlib.metadata.version(module)
    except importlib.metadata.PackageNotFoundError:
        if importlib.util.find_spec(module) is None:
            return None
    # CuPy's distributions carry the CUDA version in their names. The search is slow, so it comes last.
    distributions = importlib.metadata.packages_distributions().get(module, [])
    return importlib.metadata.version(distributions[0]) if distributions else None


def _git(*arguments: str) -> str | None:
    command = ["git", "-C", str(ROOT), *arguments]
    try:
        done = subprocess.run(command, capture_output=True, encoding="utf-8", check=True, timeout=30)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


def gemm_rate(dtype: torch.dtype, device: torch.device) -> float:
    """Flops per second of torch.mm at n = 2048 with torch's current threads: the best of a few runs.

    The best, because it stands for what the machine can do. Half precisions are computed in float32.
    """
    compute = torch.float64 if dtype == torch.float64 else torch.float32
    a, b = (torch.randn(GEMM_SIZE, GEMM_SIZE, dtype=compute, device=device) for _ in range(2))
    out = torch.zeros_like(a)
    clock = cuda_clock if device.type == "cuda" else host_clock
    clock(lambda: torch.mm(a, b, out=out), 1)
    return 2 * GEMM_SIZE**3 / min(clock(lambda: torch.mm(a, b, out=out), 1) for _ in range(GEMM_REPEATS))
