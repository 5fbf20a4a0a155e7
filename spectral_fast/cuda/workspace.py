"""How much memory the pipeline takes on a GPU, and how many matrices it therefore takes at once."""

from __future__ import annotations

from typing import NamedTuple

import torch

from spectral_fast.cuda.sources import Types
from spectral_fast.heuristics import CUDA_BLOCK as BLOCK
from spectral_fast.heuristics import CUDA_DIRECT_SIZE, REDUCE_RATIO, cuda_direct

# Of a device's memory, what a call may take beside its input and output, from torch's allocator: a look must
# not crowd out the training step. 4 GB of 80 hold 180 matrices of 2048 x 2048 in float32.
WORKSPACE_SHARE = 1 / 20


class Chip(NamedTuple):
    """What decides about launches. The defaults are those of an H100 of 80 GB.

    shared_bytes: that a block of threads can have. workspace_bytes: that a call may take.
    """

    shared_bytes: int
    fast_float64: bool
    workspace_bytes: int = 4 << 30
    multiprocessors: int = 132


# Compute capabilities that do float64 at half the rate of float32. All others do it at 1/32 or 1/64.
FAST_FLOAT64 = {(6, 0), (7, 0), (8, 0), (9, 0), (10, 0)}


def padded(size: int) -> int:
    """The size that the kernels work on."""
    return -(-size // BLOCK) * BLOCK


def band_size(n: int) -> int:
    """Entries of the band of a matrix: `band_size` in csrc/cuda/kernels.h."""
    return (n + BLOCK) * 3 * BLOCK + 2 * BLOCK


def direct_shared_bytes(m: int, n: int, types: Types) -> int:
    """Shared memory of csrc/cuda/direct.cu."""
    return m * ((n + 1) | 1) * types.wide.itemsize


def direct(m: int, n: int, types: Types, chip: Chip) -> bool:
    """Whether a block of threads takes a matrix by itself. In double 128 x 64 are 65 KiB; sm_75 has 64."""
    return cuda_direct(m, n) and direct_shared_bytes(m, n, types) <= chip.shared_bytes


def reduce(m: int, n: int, types: Types, chip: Chip) -> bool:
    """Whether an m x n matrix goes through its QR factorization first."""
    return m > REDUCE_RATIO * n and not direct(m, n, types, chip)


def panel_shared_bytes(rows: int, scalar: torch.dtype) -> int:
    """Shared memory of csrc/cuda/panel.cu's `panel`; with rows = 0 that of `panel_scratch`."""
    size = scalar.itemsize
    return 16448 + 1280 * size + (BLOCK + 2) * max(0, rows * size - 4096)


def panel_scratch_bytes(rows: int, scalar: torch.dtype, chip: Chip) -> int:
    """Workspace of the longest panel of a matrix: zero where `panel` fits into shared memory."""
    if panel_shared_bytes(rows, scalar) <= chip.shared_bytes:
        return 0
    return (BLOCK + 2) * max(0, rows * scalar.itemsize - 2048)


def matrix_bytes(m: int, n: int, types: Types, chip: Chip) -> int:
    """The workspace of one m x n matrix, m >= n."""
    scalar, wide = types.scalar.itemsize, types.wide.itemsize
    values = n * (7 * wide + 4) + 8 * wide  # d, e, squares, slopes, roots; counts; range and padding
    values += min(-(-m // 32), 256) * scalar + 8  # peaks; exponent, info
    if direct(m, n, types, chip):
        return m * n * scalar + values
    rows, cols = padded(m), padded(n)
    size = rows * cols * scalar + values
    size += 2 * BLOCK * (rows + cols) * scalar + BLOCK * BLOCK * scalar  # left and right, t
    size += panel_scratch_bytes(rows, types.scalar, chip)
    if reduce(m, n, types, chip):
        size += cols * cols * scalar
        m = n
    if not direct(m, n, types, chip):
        size += band_size(n) * wide
    return size


def chunk(batch: int, m: int, n: int, types: Types, chip: Chip) -> int:
    """How many matrices are worked on together: no more than fit chip.workspace_bytes, but one at least.

    In two stages no more than there are multiprocessors either: the sequential kernels have one block a
    matrix, and fewer bands compete for the L2 cache. In equal parts: the sequential steps of a matrix left
    over would take as long as those of a whole chunk.
    """
    most = max(1, chip.workspace_bytes // matrix_bytes(m, n, types, chip))
    if n > CUDA_DIRECT_SIZE:
        most = min(most, chip.multiprocessors)
    return -(-batch // -(-batch // most))
