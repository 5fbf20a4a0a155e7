"""The GPUs that costs are predicted for: what NVIDIA states about each, and a bandwidth it does not state."""

from __future__ import annotations

from dataclasses import dataclass

import torch

KIB, MIB = 2**10, 2**20


@dataclass(frozen=True)
class Chip:
    """One GPU.

    Attributes:
        sms: streaming multiprocessors. boost_hz: the highest clock.
        fp32_lanes, fp64_lanes: fused multiply-adds of an SM in a clock.
        fp64_dot_lanes: those of tl.dot in float64: tensor cores on sm_80 and sm_90, else the FP64 lanes.
        memory_rate: bytes per second. l2_bytes, l2_rate: size, and bytes per second, which no data sheet has.
        shared_bytes: of dynamic shared memory that a block can have.
    """

    name: str
    capability: tuple[int, int]
    sms: int
    boost_hz: float
    fp32_lanes: int
    fp64_lanes: int
    fp64_dot_lanes: int
    memory_rate: float
    l2_bytes: int
    l2_rate: float
    shared_bytes: int

    @property
    def fp32_flops(self) -> float:
        return 2 * self.fp32_lanes * self.sms * self.boost_hz

    @property
    def fp64_flops(self) -> float:
        return 2 * self.fp64_lanes * self.sms * self.boost_hz

    @property
    def slow_double(self) -> bool:
        """Consumer chips: a 64th of the float32 rate; others have a half."""
        return self.fp64_lanes * 8 < self.fp32_lanes

    def wide(self, dtype: torch.dtype) -> torch.dtype:
        """What the small, sequential stages calculate in (csrc/cuda/kernels.h)."""
        if self.slow_double and dtype != torch.float64:
            return torch.float32
        return torch.float64


# NVIDIA's figures. H100 SXM5 80 GB, data sheet: 67 TF/s float32, 34 float64, 67 on tensor cores, 3.35 TB/s;
# white paper: 132 SMs, 50 MB of L2. A100 SXM4 80 GB, data sheet: 19.5, 9.7 and 19.5 TF/s, 2.04 TB/s, 40 MB.
# RTX 4090, Ada white paper: 128 SMs, 82.6 TF/s, 1.01 TB/s, 72 MB. HGX B200, data sheet: 75 and 37 TF/s, 8
# TB/s; 148 SMs and 126 MB are published elsewhere. Lanes and shared memory: CUDA C++ Programming Guide,
# arithmetic throughput and compute capabilities. Rates of L2 are assumed: 5.5 TB/s is what others have read
# on H100s, the rest is about as much for an SM and a clock.
CHIPS = {
    "h100": Chip(
        *("H100 SXM", (9, 0), 132, 1.98e9, 128, 64, 128),
        *(3.35e12, 50 * MIB, 5.5e12, 227 * KIB),
    ),
    "a100": Chip(
        *("A100 SXM 80 GB", (8, 0), 108, 1.41e9, 64, 32, 64),
        *(2.04e12, 40 * MIB, 3.5e12, 163 * KIB),
    ),
    "rtx4090": Chip(
        *("RTX 4090", (8, 9), 128, 2.52e9, 128, 2, 2),
        *(1.01e12, 72 * MIB, 5.0e12, 99 * KIB),
    ),
    "b200": Chip(
        *("B200", (10, 0), 148, 1.965e9, 128, 64, 64),
        *(8.0e12, 126 * MIB, 8.0e12, 227 * KIB),
    ),
}


def chip_of(name: str, capability: tuple[int, int]) -> Chip | None:
    """The chip of a device as CUDA names it; None where nothing is known about it."""
    for key, chip in CHIPS.items():
        if chip.capability == capability and key.removeprefix("rtx") in name.lower().replace(" ", ""):
            return chip
    return None
