"""The pipeline on a GPU: load -> reduce (if tall) -> band -> bidiagonal -> values, for a batch of equal shapes.

All matrices go through every step together, so that the sequential steps, which take the time of one matrix,
are paid once a batch. Nothing here waits for the device or looks at a value; launches go to torch's current
stream on its current device, workspaces come from torch's allocator. csrc/cuda/kernels.h has the layouts.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from spectral_fast.cuda.launch import Argument, launch
from spectral_fast.cuda.sources import Types
from spectral_fast.cuda.workspace import (
    FAST_FLOAT64,
    Chip,
    band_size,
    chunk,
    padded,
    panel_bytes,
    panel_scratch,
)
from spectral_fast.heuristics import CUDA_BLOCK as BLOCK
from spectral_fast.heuristics import cuda_direct, cuda_reduce
from spectral_fast.triton import band as products
from spectral_fast.triton.load import load


class Pipeline(NamedTuple):
    """What the stages of one call share."""

    types: Types
    chip: Chip

    def launch(
        self,
        stage: str,
        kernel: str,
        grid: tuple[int, int],
        threads: int,
        args: Sequence[Argument],
        shared: int = 0,
    ) -> None:
        launch(stage, kernel, self.types, grid, threads, args, shared)


@functools.cache
def chip_of(device: torch.device) -> Chip:
    """What the driver says of a device."""
    found = torch.cuda.get_device_properties(device)
    return Chip(found.shared_memory_per_block_optin, (found.major, found.minor) in FAST_FLOAT64)


def types_for(scalar: torch.dtype, chip: Chip) -> Types:
    """float32 is chased and counted in float64 too, but where the chip would take 32 times as long for it."""
    return Types(scalar, torch.float64 if chip.fast_float64 else scalar)


def svdvals(A: Tensor, S: Tensor, info: Tensor, chip: Chip) -> None:
    """The singular values of A (batch, m, n), m >= n > 0, any strides, into S (batch, n); their state into info.

    S is contiguous, float32 or, for float64 matrices, float64; info is int32. The batch goes through in chunks
    whose workspace fits workspace.WORKSPACE_BYTES.
    """
    batch, m, n = A.shape
    types = types_for(S.dtype, chip)
    pipeline = Pipeline(types, chip)
    size = chunk(m, n, types, chip)
    for first in range(0, batch, size):
        part = slice(first, first + size)
        _values_of(pipeline, A[part], S[part], info[part])


def _values_of(pipeline: Pipeline, A: Tensor, S: Tensor, info: Tensor) -> None:
    _, m, n = A.shape
    rows, cols = (m, n) if cuda_direct(m, n) else (padded(m), padded(n))
    a, exponent, found = load(A, rows, cols)
    info.copy_(found)
    if not cuda_direct(m, n):
        panels = _Panels(pipeline, a)
        if cuda_reduce(m, n):
            a, m = _reduce(panels, a), n
        if not cuda_direct(m, n):
            _band(panels, a)
    stage = _direct if cuda_direct(m, n) else _bidiagonal
    d, e = stage(pipeline, a, m, n)
    _values(pipeline, d, e, exponent, info, S)


class _Panels:
    """Factors panels of a, of what is below and right of them, and keeps what the updates need."""

    def __init__(self, pipeline: Pipeline, a: Tensor) -> None:
        batch, rows, cols = a.shape
        self.pipeline = pipeline
        self.left = a.new_empty((batch, rows, 2 * BLOCK))
        self.right = a.new_empty((batch, 2 * BLOCK, cols))
        self.t = a.new_empty((batch, BLOCK, BLOCK))
        size = panel_scratch(rows, a.dtype, pipeline.chip)
        self.scratch = a.new_empty((batch, size // a.itemsize)) if size else None

    def shorten(self, rows: int) -> None:
        """For matrices of fewer rows."""
        batch, _, width = self.left.shape
        self.left = self.left.flatten()[: batch * rows * width].view(batch, rows, width)

    def columns(self, a: Tensor, top: int) -> None:
        """QR of columns top ... of rows top ...: I - V T V^T from the left. V goes to `left`."""
        self._factor(a[:, top:, top:], self.left[:, top:, :BLOCK])

    def rows(self, a: Tensor, top: int) -> None:
        """The same for rows top ... of the columns after them, from the right. V^T goes to `right`."""
        self._factor(a[:, top:, top + BLOCK :].mT, self.right[:, BLOCK:, top + BLOCK :].mT)

    def _factor(self, panel: Tensor, v: Tensor) -> None:
        batch, rows, _ = panel.shape
        shared = panel_bytes(rows, panel.dtype)
        fits = shared <= self.pipeline.chip.shared_bytes
        args = (panel, *panel.stride(), rows, v, *v.stride(), self.t, None if fits else self.scratch)
        self.pipeline.launch("panel", "panel", (batch, 1), PANEL_THREADS, args, shared if fits else 0)


PANEL_THREADS = BLOCK * 32  # a warp for each column


def _reduce(panels: _Panels, a: Tensor) -> Tensor:
    """QR: a (batch, rows, cols) -> its triangle (batch, cols, cols)."""
    _, _, cols = a.shape
    for top in range(0, cols, BLOCK):
        panels.columns(a, top)
        if top + BLOCK < cols:
            products.left_product(a, panels.left, panels.right, panels.t, top)
            products.update(a, panels.left, panels.right, top, rank=BLOCK)
    panels.shorten(cols)
    return torch.triu(a[:, :cols])


def _band(panels: _Panels, a: Tensor) -> None:
    """a (batch, rows, cols) -> upper band of width BLOCK, in place; what is outside the band is left over."""
    _, rows, cols = a.shape
    for top in range(0, cols, BLOCK):
        panels.columns(a, top)
        if top + BLOCK < cols:
            products.left_product(a, panels.left, panels.right, panels.t, top)
            panels.rows(a, top)
            if top + BLOCK < rows:
                products.right_product(a, panels.left, panels.right, panels.t, top)
                products.update(a, panels.left, panels.right, top, rank=2 * BLOCK)


def _bidiagonal(pipeline: Pipeline, a: Tensor, m: int, n: int) -> tuple[Tensor, Tensor]:
    batch, _, ld = a.shape
    wide = {"dtype": pipeline.types.wide}
    band = a.new_empty((batch, band_size(n)), **wide)
    pipeline.launch("bidiagonal", "pack_band", (PACK, batch), 256, (a, a.stride(0), ld, n, band))
    d, e = a.new_empty((batch, n), **wide), a.new_empty((batch, n), **wide)
    pipeline.launch("bidiagonal", "chase", (batch, 1), 32 * 1, (band, n, d, e), 0)
    return d, e


def _direct(pipeline: Pipeline, a: Tensor, m: int, n: int) -> tuple[Tensor, Tensor]:
    batch, _, ld = a.shape
    d, e = (a.new_empty((batch, n), dtype=pipeline.types.wide) for _ in range(2))
    args = (a, a.stride(0), ld, m, n, d, e)
    pipeline.launch("direct", "direct", (batch, 1), padded(m), args, 0)
    return d, e


def _values(pipeline: Pipeline, d: Tensor, e: Tensor, exponent: Tensor, info: Tensor, S: Tensor) -> None:
    batch, n = d.shape
    squares, roots = d.new_empty((batch, 3, n)), torch.empty_like(d)
    bounds, counts = d.new_empty((batch, 2)), d.new_empty((batch, n), dtype=torch.int32)
    lanes = (-(-n // VALUES_THREADS), batch)
    pipeline.launch("values", "squares", (batch, 1), 256, (d, e, n, squares, bounds))
    pipeline.launch("values", "count_grid", lanes, VALUES_THREADS, (squares, bounds, n, counts))
    pipeline.launch("values", "bisect", lanes, VALUES_THREADS, (squares, bounds, counts, n, roots))
    pipeline.launch("values", "finish", (batch, 1), 256, (roots, bounds, exponent, info, n, S))


VALUES_THREADS = 128
