"""capabilities() and explain(): what was built, what this machine runs, which path a call takes."""

from __future__ import annotations

from typing import Any

import torch

from spectral_fast import _cpu
from spectral_fast._version import __version__
from spectral_fast.backends import cuda, triton
from spectral_fast.heuristics import Plan, available_drivers, choose


def capabilities() -> dict[str, Any]:
    """What was built and what this machine can run, as plain data (JSON-ready).

    Keys: version, torch, cpu (built, runnable and current instruction set, threads), cuda (and ROCm:
    devices torch sees; whether CuPy and triton are installed; kernels: the operators with kernels of ours
    there, the others being plain torch; no_kernels: by operator, why it has none), drivers (by device type).

    Imports triton and CuPy where they are installed, to see whether that works.
    """
    kernels: list[str] = []
    no_kernels: dict[str, str] = {}
    for backend in (cuda, triton):
        loaded, missing = backend.load()
        if loaded is None:
            no_kernels |= dict.fromkeys(backend.OPERATORS, missing)
        else:
            kernels += backend.OPERATORS
    devices = []
    if torch.cuda.is_available():
        devices = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return {
        "version": __version__,
        "torch": torch.__version__,
        "cpu": {
            "built_isas": _cpu.built_isas(),
            "runnable_isas": _cpu.runnable_isas(),
            "isa": _cpu.current_isa(),
            "threads": torch.get_num_threads(),
        },
        "cuda": {
            "devices": devices,
            "cupy": cuda.installed(),
            "triton": triton.installed(),
            "kernels": kernels,
            "no_kernels": no_kernels,
        },
        "drivers": {
            "cpu": available_drivers("cpu"),
            "cuda": available_drivers("cuda", cuda_missing=cuda.load()[1]),
        },
    }


def explain(
    shape: tuple[int, ...],
    dtype: torch.dtype = torch.float32,
    device: str | torch.device = "cpu",
    driver: str | None = None,
) -> Plan:
    """Which path svdvals takes for such a call, and why. ``print(explain(...))`` is one line.

    shape: (\\*, m, n) of the tensor; the length of the batch counts.
    dtype, device, driver: of the call. A device needs not be there: what would run is said, but whether CUDA
        kernels load is found out on this machine.

    Raises ValueError where the call would be refused: the shape, the dtype, the driver; TypeError for a
    tensor in place of its shape.
    """
    if isinstance(shape, torch.Tensor):
        raise TypeError(
            "explain() takes no tensor but what describes one: explain(A.shape, A.dtype, A.device)"
        )
    kind = torch.device(device).type
    missing = cuda.load()[1] if kind == "cuda" else ""
    return choose(tuple(shape), dtype, kind, driver, cuda_missing=missing)
