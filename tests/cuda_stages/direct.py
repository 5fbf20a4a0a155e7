"""Stage direct.cu: small matrices to bidiagonal ones."""

from __future__ import annotations

import torch
from torch import Tensor

from spectral_fast.cuda.sources import Types
from tests.cuda_emulator import Emulator
from tests.cuda_stages.values import TYPES as TYPES
from tests.cuda_stages.values import WARP


def direct(emulate: Emulator, types: Types, a: Tensor) -> tuple[Tensor, Tensor]:
    """d, e (B, n) of a (B, m, n), of any strides whose last is one."""
    B, m, n = a.shape
    d, e = torch.empty(2, B, n, dtype=types.wide)
    shared = m * ((n + 1) | 1) * types.wide.itemsize
    arguments = [a, a.stride(0), a.stride(1), m, n, d, e]
    emulate("direct", "direct", types, (B, 1), -(-m // WARP) * WARP, arguments, shared)
    return d, e


def run(emulate: Emulator, types: Types) -> dict[str, Tensor]:
    """Three warps of columns or rows and a remainder; one warp; the largest."""
    outputs = {}
    for m, n in ((3 * WARP + 4, 37), (11, 11), (128, 64)):
        generator = torch.Generator().manual_seed(m)
        a = 2 * torch.rand(2, m, n, generator=generator, dtype=types.scalar) - 1
        outputs[f"d {m} x {n}"], outputs[f"e {m} x {n}"] = direct(emulate, types, a)
    return outputs
