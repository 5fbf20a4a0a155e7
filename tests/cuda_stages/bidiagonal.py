"""Band to bidiagonal, on bands of three windows and a remainder."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from spectral_fast.cuda.sources import Types
from tests.cuda_emulator import Emulator

BLOCK = 32  # csrc/cuda/kernels.h
MAX_WARPS = {torch.float32: 16, torch.float64: 12}  # of bidiagonal.cu, by the dtype it calculates in
TYPES = (
    Types(torch.float32, torch.float64),
    Types(torch.float64, torch.float64),
    Types(torch.float32, torch.float32),
)


class Bidiagonal(NamedTuple):
    packed: Tensor
    band: Tensor  # what the chase makes of it
    d: Tensor
    e: Tensor


def bidiagonalize(emulate: Emulator, types: Types, a: Tensor, n: int, warps: int) -> Bidiagonal:
    """The band of the first n rows and columns of each matrix of `a` (B, rows, cols), and its d and e."""
    batch = len(a)
    band = torch.empty(batch, (n + BLOCK) * 3 * BLOCK + 2 * BLOCK, dtype=types.wide)
    d, e = (torch.empty(batch, n, dtype=types.wide) for _ in "de")
    emulate(
        "bidiagonal",
        "pack_band",
        types,
        (n + BLOCK + 1, batch),
        3 * BLOCK,
        [a, a.stride(0), a.stride(1), n, band],
    )
    packed = band.clone()
    shared = warps * 3 * (BLOCK + 8) * types.wide.itemsize
    emulate("bidiagonal", "chase", types, (batch, 1), BLOCK * warps, [band, n, d, e], shared)
    return Bidiagonal(packed, band, d, e)


def run(emulate: Emulator, types: Types) -> dict[str, Tensor]:
    n = 3 * BLOCK + 5
    g = torch.Generator().manual_seed(0)
    a = torch.randn(2, 4 * BLOCK, 4 * BLOCK, generator=g, dtype=torch.float64).to(types.scalar)
    return bidiagonalize(emulate, types, a, n, warps=3)._asdict()
