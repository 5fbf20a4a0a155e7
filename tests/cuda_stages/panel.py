"""Stage `panel`: the kernel's host side for the tests, and its small runs."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from spectral_fast.cuda.sources import Types
from tests.cuda_emulator import Emulator

BLOCK = 32
THREADS = 512

TYPES = (
    Types(torch.float32, torch.float64),
    Types(torch.float64, torch.float64),
    Types(torch.float32, torch.float32),
)


class Factors(NamedTuple):
    """The panel with R in its top rows, V and T; `storage` is what the first two lie in."""

    a: Tensor
    v: Tensor
    t: Tensor
    storage: tuple[Tensor, Tensor]


def shared_bytes(rows: int, dtype: torch.dtype, *, scratch: bool) -> int:
    size = dtype.itemsize
    tail = 0 if scratch else max(0, rows - 4096 // size)
    return 16448 + 1280 * size + (BLOCK + 2) * tail * size


def scratch_size(rows: int, dtype: torch.dtype) -> int:
    """Scalars for each matrix."""
    return (BLOCK + 2) * max(0, rows - 2048 // dtype.itemsize)


def factor(emulate: Emulator, types: Types, panel: Tensor, *, right: bool, scratch: bool) -> Factors:
    """QR of B x rows x 32, from matrices in which it is a block of columns or, transposed, of rows."""
    batch, rows, _ = panel.shape
    margin = 8
    shape = (batch, BLOCK + margin, rows) if right else (batch, rows, BLOCK + margin)
    strides = (1, rows) if right else (BLOCK + margin, 1)

    def view(x: Tensor) -> Tensor:
        return x[:, :BLOCK].mT if right else x[:, :, :BLOCK]

    storage = tuple(torch.full(shape, float("nan"), dtype=types.scalar) for _ in range(2))
    a, v = storage
    view(a).copy_(panel)
    t = torch.empty(batch, BLOCK, BLOCK, dtype=types.scalar)
    matrix = shape[1] * shape[2]
    args = [a, matrix, *strides, rows, v, matrix, *strides, t]
    if scratch:
        args.append(torch.empty(batch * scratch_size(rows, types.scalar), dtype=types.scalar))
    emulate(
        "panel",
        "panel_scratch" if scratch else "panel",
        types,
        (batch, 1),
        THREADS,
        args,
        shared_bytes(rows, types.scalar, scratch=scratch),
    )
    return Factors(view(a), view(v), t, (a, v))


def run(emulate: Emulator, types: Types) -> dict[str, Tensor]:
    g = torch.Generator().manual_seed(1)
    out = {}
    resident = 4096 // types.scalar.itemsize
    # Tiles of 64 rows: three and a half; a tail of two and a half; scratch of more than one batch of four.
    for rows, right, scratch in (
        (224, False, False),
        (32, True, False),
        (resident + 160, True, False),
        (resident // 2 + 416, False, True),
    ):
        a = torch.randn(2, rows, BLOCK, dtype=torch.float64, generator=g).to(types.scalar)
        factors = factor(emulate, types, a, right=right, scratch=scratch)
        for name, x in zip(("a", "v", "t"), factors[:3], strict=True):
            out[f"{name} of {rows} {'scratch' if scratch else 'shared'}"] = x.contiguous()
    return out
