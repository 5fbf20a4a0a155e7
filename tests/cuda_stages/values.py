"""Stage values.cu: bidiagonal matrices to their singular values."""

from __future__ import annotations

import torch
from torch import Tensor

from spectral_fast.cuda.sources import Types
from tests.cuda_emulator import Emulator

TYPES = (
    Types(torch.float32, torch.float64),
    Types(torch.float64, torch.float64),
    Types(torch.float32, torch.float32),
)
WARP = 32
UNROLL = 4  # a row of the squares is padded to a multiple of it


def values(
    emulate: Emulator, types: Types, d: Tensor, e: Tensor, exponent: Tensor, info: Tensor
) -> dict[str, Tensor]:
    """All that the kernels write. d, e: (B, n) of the wide type; exponent, info: (B,) int32."""
    B, n = d.shape
    squares = torch.empty(B, -(-n // UNROLL) * UNROLL, 2, dtype=types.wide)
    bounds = torch.empty(B, 2, dtype=types.wide)
    counts = torch.empty(B, n, dtype=torch.int32)
    slopes = torch.empty(B, n, 2, dtype=types.wide)
    roots = torch.empty(B, n, dtype=types.wide)
    out = torch.empty(B, n, dtype=types.scalar)
    warps = (B, -(-n // WARP))
    emulate("values", "squares", types, (B, 1), WARP, [d, e, n, squares, bounds])
    emulate("values", "count_grid", types, warps, WARP, [squares, bounds, n, counts, slopes])
    emulate("values", "bisect", types, warps, WARP, [squares, bounds, counts, slopes, n, roots])
    emulate("values", "finish", types, (B, 1), WARP, [roots, exponent, info, n, out])
    return {
        "squares": squares,
        "bounds": bounds,
        "counts": counts,
        "slopes": slopes,
        "roots": roots,
        "out": out,
    }


def run(emulate: Emulator, types: Types) -> dict[str, Tensor]:
    """A Gaussian and a graded matrix, a failed one with clusters; more values than finish scans at once."""
    outputs = {}
    for n in (9, 3 * WARP + 5, 9 * WARP + 3):
        generator = torch.Generator().manual_seed(n)
        d, e = torch.randn(2, 3, n, generator=generator, dtype=types.wide)
        d[1] *= 10.0 ** -torch.linspace(0, 12, n)
        d[2], e[2] = 1, 1e-6
        e[:, -1] = 0
        exponent = torch.tensor([3, -4, 0], dtype=torch.int32)
        info = torch.tensor([0, 0, 1], dtype=torch.int32)
        for name, tensor in values(emulate, types, d, e, exponent, info).items():
            outputs[f"{name} {n}"] = tensor
    return outputs
