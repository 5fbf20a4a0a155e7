"""The pipeline on a GPU for batches of equal shapes: load, reduce (if tall), band, bidiagonal, values.

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
    WORKSPACE_SHARE,
    Chip,
    band_size,
    chunk,
    direct,
    direct_shared_bytes,
    padded,
    panel_scratch_bytes,
    panel_shared_bytes,
    reduce,
)
from spectral_fast.heuristics import CUDA_BLOCK as BLOCK
from spectral_fast.triton import band as products
from spectral_fast.triton.load import load

# What the kernels of csrc/cuda say of their launches, in their headers.
WARP = 32
PANEL_THREADS = 512
CHASE_WARPS = {torch.float64: 12, torch.float32: 16}
CHASE_NUMBERS = 120  # in shared memory, for each warp
STURM_UNROLL = 4


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
    shared: int = found.shared_memory_per_block_optin  # type: ignore[attr-defined]  # not in the stub
    fast_float64 = (found.major, found.minor) in FAST_FLOAT64
    memory = int(found.total_memory * WORKSPACE_SHARE)
    return Chip(shared, fast_float64, memory, found.multi_processor_count)


def types_for(scalar: torch.dtype, chip: Chip) -> Types:
    """float32 is chased and counted in float64 too, but where the chip would take 32 times as long for it."""
    return Types(scalar, torch.float64 if chip.fast_float64 else scalar)


def without_panel(chip: Chip, scalar: torch.dtype) -> Chip:
    """A chip that holds no panel in shared memory: to check on a small matrix what large ones need there."""
    return chip._replace(shared_bytes=panel_shared_bytes(0, scalar) - 1)


def svdvals(A: Tensor, S: Tensor, info: Tensor, chip: Chip) -> None:
    """The singular values of A (batch, m, n), m >= n > 0, any strides, into S (batch, n), and info (batch).

    S is contiguous, float32 or, for float64 matrices, float64; info is int32. The batch goes through in
    chunks whose workspace fits chip.workspace_bytes.
    """
    batch, m, n = A.shape
    types = types_for(S.dtype, chip)
    pipeline = Pipeline(types, chip)
    size = chunk(batch, m, n, types, chip)
    for first in range(0, batch, size):
        part = slice(first, first + size)
        _values_of(pipeline, A[part], S[part], info[part])


def _values_of(pipeline: Pipeline, A: Tensor, S: Tensor, info: Tensor) -> None:
    _, m, n = A.shape
    small = direct(m, n, *pipeline)
    rows, cols = (m, n) if small else (padded(m), padded(n))
    a, exponent, found = load(A, rows, cols)
    info.copy_(found)
    d, e = _direct(pipeline, a, m, n) if small else _by_panels(pipeline, a, m, n)
    _values(pipeline, d, e, exponent, info, S)


def _by_panels(pipeline: Pipeline, a: Tensor, m: int, n: int) -> tuple[Tensor, Tensor]:
    panels = _Panels(pipeline, a)
    if reduce(m, n, *pipeline):
        a, m = _reduce(panels, a), n
    if direct(m, n, *pipeline):
        return _direct(pipeline, a, m, n)
    _band(panels, a)
    return _bidiagonal(pipeline, a, n)


class _Panels:
    """Factors panels of a, of what is below and right of them, and keeps what the updates need."""

    def __init__(self, pipeline: Pipeline, a: Tensor) -> None:
        batch, rows, cols = a.shape
        self.pipeline = pipeline
        self.left = a.new_empty((batch, rows, 2 * BLOCK))
        self.right = a.new_empty((batch, 2 * BLOCK, cols))
        self.t = a.new_empty((batch, BLOCK, BLOCK))
        size = panel_scratch_bytes(rows, a.dtype, pipeline.chip)
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
        args: tuple[Argument, ...] = (panel, *panel.stride(), rows, v, *v.stride(), self.t)
        shared = panel_shared_bytes(rows, panel.dtype)
        if shared <= self.pipeline.chip.shared_bytes:
            self.pipeline.launch("panel", "panel", (batch, 1), PANEL_THREADS, args, shared)
        else:
            shared = panel_shared_bytes(0, panel.dtype)
            scratched = (*args, self.scratch)
            self.pipeline.launch("panel", "panel_scratch", (batch, 1), PANEL_THREADS, scratched, shared)


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
    _, _, cols = a.shape
    for top in range(0, cols, BLOCK):
        panels.columns(a, top)
        if top + BLOCK < cols:
            products.left_product(a, panels.left, panels.right, panels.t, top)
            panels.rows(a, top)
            products.right_product(a, panels.left, panels.right, panels.t, top)
            products.update(a, panels.left, panels.right, top, rank=2 * BLOCK)


def _bidiagonal(pipeline: Pipeline, a: Tensor, n: int) -> tuple[Tensor, Tensor]:
    batch, _, ld = a.shape
    wide = pipeline.types.wide
    band = a.new_empty((batch, band_size(n)), dtype=wide)
    d, e = (a.new_empty((batch, n), dtype=wide) for _ in range(2))
    every_row = (n + BLOCK + 1, batch)
    pipeline.launch("bidiagonal", "pack_band", every_row, 3 * BLOCK, (a, a.stride(0), ld, n, band))
    # A sweep is n / BLOCK steps long and two behind the one before: more warps would wait.
    warps = min(-(-n // (2 * BLOCK)), CHASE_WARPS[wide])
    shared = warps * CHASE_NUMBERS * wide.itemsize
    pipeline.launch("bidiagonal", "chase", (batch, 1), warps * WARP, (band, n, d, e), shared)
    return d, e


def _direct(pipeline: Pipeline, a: Tensor, m: int, n: int) -> tuple[Tensor, Tensor]:
    batch, _, ld = a.shape
    d, e = (a.new_empty((batch, n), dtype=pipeline.types.wide) for _ in range(2))
    threads, shared = -(-m // WARP) * WARP, direct_shared_bytes(m, n, pipeline.types)
    pipeline.launch("direct", "direct", (batch, 1), threads, (a, a.stride(0), ld, m, n, d, e), shared)
    return d, e


def _values(pipeline: Pipeline, d: Tensor, e: Tensor, exponent: Tensor, info: Tensor, S: Tensor) -> None:
    batch, n = d.shape
    squares = d.new_empty((batch, -(-n // STURM_UNROLL) * STURM_UNROLL, 2))
    bounds, slopes, roots = d.new_empty((batch, 2)), d.new_empty((batch, n, 2)), torch.empty_like(d)
    counts = d.new_empty((batch, n), dtype=torch.int32)
    each, lanes = (batch, 1), (batch, -(-n // WARP))
    pipeline.launch("values", "squares", each, WARP, (d, e, n, squares, bounds))
    pipeline.launch("values", "count_grid", lanes, WARP, (squares, bounds, n, counts, slopes))
    pipeline.launch("values", "bisect", lanes, WARP, (squares, bounds, counts, slopes, n, roots))
    pipeline.launch("values", "finish", each, WARP, (roots, exponent, info, n, S))
