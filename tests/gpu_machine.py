"""A GPU of cardboard: real values, made-up times."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import spectral_fast
from benchmarks.baselines import Baseline
from benchmarks.cases import Case
from benchmarks.gpu.cases import CaseRow, measure_case
from benchmarks.gpu.chips import CHIPS
from benchmarks.gpu.device import Gpu, KernelTime
from benchmarks.gpu.peers import PEERS

SQUARE = Case(40, 40, 6, ("batch",), ("gpt2-124m",), ("q", "k", "v", "o"), 4)
WIDE = Case(30, 90, 6, ("batch",), ("gpt2-124m",), ("mlp_in",))
LARGE = Case(96, 96, 4, ("batch",), ("pythia-1b",), ("q", "k", "v", "o"), 4)
KERNELS = [
    KernelTime("distance_kernel", 1, 3e-3),
    KernelTime("void at::native::copy<float>(int)", 4, 1e-3),
]


class Machine:
    """A device of which every matrix takes a known time with every method, and its time of day."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.seconds = {"ours": 1e-3, "torch": 4e-3, "torch-loop": 5e-3, "gram": 2e-3}
        self.now, self.ran, self.memory = 0.0, ("", 0), 7 * 2**20
        self.patch = monkeypatch
        right = spectral_fast.svdvals
        for name in PEERS:
            devices = ("cpu",) if name in self.seconds else ("cuda",)
            monkeypatch.setitem(PEERS, name, Baseline(devices, self.method(name, right)))
        monkeypatch.setattr(spectral_fast, "svdvals", self.method("ours", right))
        monkeypatch.setattr(time, "monotonic", lambda: self.now)
        monkeypatch.setattr(time, "sleep", lambda seconds: None)
        self.gpu = Gpu(
            *(torch.device("cpu"), "NVIDIA H100 of cardboard"),
            *(self.clock, self.profile, self.peak, self.state, CHIPS["h100"]),
        )

    def method(self, name: str, values: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
        def call(A: Tensor) -> Tensor:
            self.ran = (name, len(A))
            return values(A)

        return call

    def clock(self, call: Callable[[], Any], count: int) -> float:
        for _ in range(count):
            call()
        name, matrices = self.ran
        each = self.seconds.get(name, 1e-3) * matrices
        self.now += count * each
        return each

    def profile(self, call: Callable[[], Any]) -> list[KernelTime]:
        call()
        return KERNELS

    def peak(self, call: Callable[[], Any]) -> int:
        call()
        return self.memory

    def state(self) -> dict[str, str]:
        return {"driver_version": "580.1", "clocks.sm": "1755 MHz"}

    def measure(self, case: Case, seconds: float, dtype: torch.dtype = torch.float32) -> CaseRow:
        return measure_case(case, dtype, self.gpu, list(PEERS), seconds)[0]


def methods(row: CaseRow) -> dict[str, Any]:
    return {method.name: method for method in row.methods}
