"""The operator gram_product on a GPU: Z = A^T (A X) and |A|_F^2, for a batch of matrices and a few vectors.

A (B, m, n), any strides; X (B, n, s) contiguous; both float32 or float64. Two products, each of a matrix
H (outer x inner), A and then A^T, with a block of vectors, and each in two launches:

    product_kernel    partial[p] = H[:, part p] X[part p]    parts of LENGTH columns of H
    total_kernel      the sum over p, in its order

and what the first reads of A it squares and adds up. For s <= COLUMNS:

    kernel            programs a matrix                   flops      bytes, 4 an entry
    product_kernel    outer / TILE  x  inner / LENGTH     2 m n s    4 m n (1 + s / TILE + s / LENGTH)
    total_kernel      outer s / SUMMED                               4 m n s / LENGTH

of which s / TILE is X, from L2. One matrix of 768 x 768 is 72 programs of four warps, on more than half of
an H100's multiprocessors; undivided they would be 12. The parts depend on the shape alone and there are no
atomics: a matrix has the same bits in any batch.

float32 is multiplied as such, whatever torch's switches say: they are the process's, and the training's.
Sums begin anew every STEP terms (band.py says why) and every LENGTH. Squares are added up in the dtype of the
matrix, LENGTH / STEP to a chain, the chains in float64. Matrices in half precisions are converted before: of
a product with one that it converts itself triton makes one of tensor cores on sm_100, whatever precision was
asked for.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from spectral_fast.triton.band import multiply

# Not tuned on a GPU. With half of the threads ptxas takes 254 registers; half of the tile reads twice as much
# of X. float64 has twice the threads. STAGES - 1 steps of loads are in flight.
TILE, WARPS = 64, 4
REGISTERS = 168  # so that three programs share a multiprocessor's; with 128 they spill on some chips
STEP = 16
LENGTH = 128
STAGES = 4
COLUMNS = 48
SUMMED, SUM_WARPS = 512, 4
# Of the entries alone a power of two would be padded: 48 vectors are 32 and 16.
WIDTHS = {16: (16, 0), 32: (32, 0), 48: (32, 16)}


@triton.jit(
    do_not_specialize=["outer", "inner", "batch_stride", "outer_stride", "inner_stride", "cols", "parts"],
    do_not_specialize_on_alignment=["a", "x"],
)
def product_kernel(
    a: tl.tensor,
    outer: tl.int32,
    inner: tl.int32,
    batch_stride: tl.int64,
    outer_stride: tl.int64,
    inner_stride: tl.int64,
    x: tl.tensor,
    cols: tl.int32,
    partial: tl.tensor,
    squares: tl.tensor,
    parts: tl.int32,
    ACROSS: tl.constexpr,
    SQUARES: tl.constexpr,
    FIRST: tl.constexpr,
    SECOND: tl.constexpr,
    TILE: tl.constexpr,
    STEP: tl.constexpr,
    LENGTH: tl.constexpr,
) -> None:
    """FIRST + SECOND columns of TILE rows of one part of H X. ACROSS: neighbours in memory are in columns."""
    blocks = tl.maximum(tl.cdiv(cols, FIRST + SECOND), 1)
    tiles = tl.cdiv(outer, TILE)
    program = tl.program_id(0)
    block = program % blocks
    tile = program // blocks % tiles
    place = (program // blocks // tiles).to(tl.int64)  # of the part, among all matrices'
    matrix = place // parts
    begin = (place % parts).to(tl.int32) * LENGTH

    i = tile * TILE + tl.arange(0, TILE)
    k = tl.arange(0, STEP)
    j = block * (FIRST + SECOND) + tl.arange(0, FIRST)
    a += matrix * batch_stride + begin * inner_stride
    rows = i.to(tl.int64) * outer_stride
    steps = k.to(tl.int64) * inner_stride
    a_step = a + (steps[:, None] + rows[None, :]) if ACROSS else a + (rows[:, None] + steps[None, :])
    x += (matrix * inner + begin) * cols
    x_step = x + (k[:, None] * cols + j[None, :])
    dtype = partial.dtype.element_ty
    one = tl.zeros((TILE, FIRST), dtype)
    if SECOND:
        j_second = block * (FIRST + SECOND) + FIRST + tl.arange(0, SECOND)
        second_step = x + (k[:, None] * cols + j_second[None, :])
        two = tl.zeros((TILE, SECOND), dtype)
    square = tl.zeros((STEP, TILE) if ACROSS else (TILE, STEP), dtype)
    rest = inner - begin
    for first in range(0, min(LENGTH, rest), STEP):
        inside = k < rest - first
        if ACROSS:
            h = tl.load(a_step, mask=inside[:, None] & (i < outer)[None, :], other=0.0)
        else:
            h = tl.load(a_step, mask=(i < outer)[:, None] & inside[None, :], other=0.0)
        if SQUARES:
            square += h * h
        if ACROSS:
            h = tl.trans(h)
        # Begun at zero and subtracted: see the top of band.py.
        y = tl.load(x_step, mask=inside[:, None] & (j < cols)[None, :], other=0.0)
        one -= multiply(h, y, tl.zeros_like(one))
        if SECOND:
            y = tl.load(second_step, mask=inside[:, None] & (j_second < cols)[None, :], other=0.0)
            two -= multiply(h, y, tl.zeros_like(two))
            second_step += STEP * cols
        a_step += STEP * inner_stride
        x_step += STEP * cols

    partial += place * outer * cols
    out = partial + (i.to(tl.int64)[:, None] * cols + j[None, :])
    tl.store(out, -one, mask=(i < outer)[:, None] & (j < cols)[None, :])
    if SECOND:
        out = partial + (i.to(tl.int64)[:, None] * cols + j_second[None, :])
        tl.store(out, -two, mask=(i < outer)[:, None] & (j_second < cols)[None, :])
    if SQUARES:  # noqa: SIM102  (a constant, and a value)
        if block == 0:
            tl.store(squares + program // blocks, tl.sum(square.to(tl.float64)))


@triton.jit(do_not_specialize=["size", "parts", "chunks"])
def total_kernel(
    partial: tl.tensor,
    out: tl.tensor,
    size: tl.int64,
    parts: tl.int32,
    squares: tl.tensor,
    energy: tl.tensor,
    chunks: tl.int32,
    SQUARES: tl.constexpr,
    SUMMED: tl.constexpr,
) -> None:
    """out (B, size) from partial (B, parts, size); the energy (B) from squares (B, chunks)."""
    pieces = tl.maximum(tl.cdiv(size, SUMMED), 1)
    program = tl.program_id(0).to(tl.int64)
    matrix, piece = program // pieces, program % pieces
    i = piece * SUMMED + tl.arange(0, SUMMED)
    partial += matrix * parts * size
    total = tl.zeros((SUMMED,), out.dtype.element_ty)
    for _ in range(parts):
        total += tl.load(partial + i, mask=i < size, other=0.0)
        partial += size
    tl.store(out + matrix * size + i, total, mask=i < size)
    if SQUARES:  # noqa: SIM102
        if piece == 0:
            k = tl.arange(0, SUMMED)
            squares += matrix * chunks
            sums = tl.zeros((SUMMED,), tl.float64)
            for first in range(0, chunks, SUMMED):
                sums += tl.load(squares + first + k, mask=first + k < chunks, other=0.0)
            tl.store(energy + matrix, tl.sum(sums, 0))


def gram_product(A: Tensor, X: Tensor) -> tuple[Tensor, Tensor]:
    """A (B, m, n), any strides; X (B, n, s) contiguous, of the same dtype -> Z (B, n, s), energy (B) float64.

    On torch's current device. None of B, m, n is 0.
    """
    energy = A.new_empty(A.shape[0], dtype=torch.float64)
    return _product(A.mT, _product(A, X, energy)), energy


def _product(H: Tensor, X: Tensor, energy: Tensor | None = None) -> Tensor:
    """H X (B, outer, s), and the sums of squares of H."""
    batch, outer, inner = H.shape
    cols = X.shape[-1]
    batch_stride, outer_stride, inner_stride = H.stride()
    first, second = WIDTHS[max(16, min(COLUMNS, -(-cols // 16) * 16))]
    tiles, parts = triton.cdiv(outer, TILE), triton.cdiv(inner, LENGTH)
    partial = X.new_empty((batch, parts, outer, cols))
    squares = None if energy is None else X.new_empty((batch, parts * tiles), dtype=torch.float64)
    product_kernel[(batch * parts * tiles * max(1, triton.cdiv(cols, first + second)),)](
        H,
        outer,
        inner,
        batch_stride,
        outer_stride,
        inner_stride,
        X,
        cols,
        partial,
        squares,
        parts,
        ACROSS=outer_stride < inner_stride,
        SQUARES=energy is not None,
        FIRST=first,
        SECOND=second,
        TILE=TILE,
        STEP=STEP,
        LENGTH=LENGTH,
        num_warps=WARPS * (2 if X.dtype == torch.float64 else 1),
        num_stages=STAGES,
        **({"maxnreg": REGISTERS} if torch.version.hip is None else {}),
    )
    product = X.new_empty((batch, outer, cols))
    total_kernel[(batch * max(1, triton.cdiv(outer * cols, SUMMED)),)](
        partial,
        product,
        outer * cols,
        parts,
        squares,
        energy,
        parts * tiles,
        SQUARES=energy is not None,
        SUMMED=SUMMED,
        num_warps=SUM_WARPS,
    )
    return product
