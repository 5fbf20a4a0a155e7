"""The products and updates of the stage `band` (and of the blocked QR of a tall matrix) on a GPU.

One block of b = BLOCK columns at k = `top`, for a batch of matrices a (B, rows, cols), after panel.cu has
factored the columns k .. k + b of the rows k .. into I - V T V^T, and later the rows k .. k + b of the
columns k + b .. into I - V2 T2 V2^T:

    W = T^T (V^T A)                     left_product_kernel: rows k .., columns k + b ..; and the row panel,
    A_top <- A_top - V_top W            b rows, which the right panel factors next
    Y = (A V2 - V (W V2)) T2            right_product_kernel: rows k + b ..
    A <- A - V W - Y V2^T               update_kernel: rows k + b .., columns k + b ..

which is Q1^T A Q2 (Grosser and Lang 1999; csrc/cpu/band.inl). The products with A are summed before A is
touched, so an entry is rounded once a block. With V W alone it is a step of the QR.

Layout (csrc/cuda/kernels.h): left (B, rows, 2 b) has V and Y side by side, right (B, 2 b, cols) has W above
V2^T; rows above k and columns left of k + b are not read, nor are rows k .. k + b of Y.

For r rows and c columns of the trailing matrix, s bytes an entry:

    kernel         programs a matrix      flops                         bytes of a read and written
    left_product   c / LEFT_TILE          2 b r c + 4 b^2 c             s r c, 2 s b c
    right_product  r / RIGHT_TILE         2 b r c (1 + b / RIGHT_TILE)  s r c
    update         r c / UPDATE_TILE^2    4 b r c (half in a QR)        2 s r c

W V2 (b x b) is summed again by every program of right_product: a launch for it alone would cost more than
the half of a product that this adds. The order of every sum depends on the shape alone, and there are no
atomics: a matrix has the same bits in any batch. float32 is multiplied as such, never as TF32, nor as tf32x3:
tensor cores truncate, which may exceed what svdvals promises (benchmarks/tf32x3.py).

A product is one chain of FMAs, and its error grows with the root of its length. V^T A, A V2 and W V2, as long
as the matrix, are therefore added up from sums of STEP terms that begin at zero: one addition for 16 FMAs. As
chains they make 2 to 4 times the error of `band` at n = 512 and 768, and with equal values 1.2 times what
svdvals promises, at n = 256 (benchmarks/gpu_accuracy.py, benchmarks/tf32x3.py). They are subtracted, because
the compiler turns dot(x, y, 0) + z into the chain dot(x, y, z).
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

BLOCK = 32  # as in csrc/cuda/kernels.h

# What tests/test_triton_compile.py reads sets the limits (triton 3.7.1): no spills, and at most 56 KiB of
# shared memory, so that every chip takes them. In float32 a thread has 4 x 4 entries of a product or more,
# and 7 multiply-adds or more for each 16 bytes loaded from shared memory; with 4 warps left_product has 2.7
# for 8 bytes. right_product reads shared memory across its rows, which is what binds it (ncu: 93 % busy):
# with two warps and all of a thread's registers it took 11.2 ms on an H100 for 16 x 2048 x 2048, with four
# 22.8, with 32 rows 16 to 18, with 128 15 (24 x 1024 x 1024: 2.4, 4.4, 3.1 to 3.7, 3.5). float64 needs twice
# the registers, hence twice the threads: with as many as float32, or with STEP = 32, some spill on chips
# that multiply by FMA. STAGES - 1 steps of loads are in flight: two or more change nothing. STEP and
# LEFT_TILE divide BLOCK.
LEFT_TILE, LEFT_WARPS = 32, 2
RIGHT_TILE, RIGHT_WARPS = 64, {torch.float32: 2, torch.float64: 8}
UPDATE_TILE, UPDATE_WARPS = 64, 4
STEP = 16
STAGES = 4


@triton.jit
def multiply(x: tl.tensor, y: tl.tensor, total: tl.tensor) -> tl.tensor:
    return tl.dot(x, y, total, input_precision="ieee", out_dtype=total.dtype)


@triton.jit
def left_product_kernel(
    a: tl.tensor,
    left: tl.tensor,
    right: tl.tensor,
    t: tl.tensor,
    rows: tl.int32,
    cols: tl.int32,
    top: tl.int32,
    BLOCK: tl.constexpr,
    TILE: tl.constexpr,
    STEP: tl.constexpr,
) -> None:
    """W of TILE columns into the upper half of right, and V_top W off the first BLOCK rows."""
    tiles = (cols - top - BLOCK) // TILE
    program = tl.program_id(0)
    matrix = (program // tiles).to(tl.int64)
    first = top + BLOCK + program % tiles * TILE
    a += (matrix * rows + top) * cols + first
    left += (matrix * rows + top) * (2 * BLOCK)
    right += matrix * (2 * BLOCK) * cols + first
    t += matrix * (BLOCK * BLOCK)

    i = tl.arange(0, BLOCK)
    j = tl.arange(0, TILE)
    k = tl.arange(0, STEP)
    v_step = left + k[None, :] * (2 * BLOCK) + i[:, None]
    a_step = a + k[:, None] * cols + j[None, :]
    z = tl.zeros((BLOCK, TILE), a.dtype.element_ty)
    for _ in range(top, rows, STEP):
        z -= multiply(tl.load(v_step), tl.load(a_step), tl.zeros_like(z))
        v_step += STEP * 2 * BLOCK
        a_step += STEP * cols
    t_transposed = tl.load(t + i[None, :] * BLOCK + i[:, None])
    w = -multiply(t_transposed, z, tl.zeros_like(z))
    tl.store(right + i[:, None] * cols + j[None, :], w)
    v_top = tl.load(left + i[:, None] * (2 * BLOCK) + i[None, :])
    a_top = a + i[:, None] * cols + j[None, :]
    tl.store(a_top, tl.load(a_top) - multiply(v_top, w, tl.zeros_like(w)))


@triton.jit
def right_product_kernel(
    a: tl.tensor,
    left: tl.tensor,
    right: tl.tensor,
    t: tl.tensor,
    rows: tl.int32,
    cols: tl.int32,
    top: tl.int32,
    BLOCK: tl.constexpr,
    TILE: tl.constexpr,
    STEP: tl.constexpr,
) -> None:
    """Y of TILE rows into the right half of left."""
    tiles = tl.cdiv(rows - top - BLOCK, TILE)
    program = tl.program_id(0)
    matrix = (program // tiles).to(tl.int64)
    first = top + BLOCK + program % tiles * TILE
    a += (matrix * rows + first) * cols + top + BLOCK
    left += (matrix * rows + first) * (2 * BLOCK)
    right += matrix * (2 * BLOCK) * cols + top + BLOCK
    t += matrix * (BLOCK * BLOCK)

    i = tl.arange(0, TILE)
    j = tl.arange(0, BLOCK)
    k = tl.arange(0, STEP)
    inside = (first + i < rows)[:, None]
    a_step = a + i[:, None] * cols + k[None, :]
    w_step = right + j[:, None] * cols + k[None, :]
    v2_step = right + (BLOCK + j)[None, :] * cols + k[:, None]
    y = tl.zeros((TILE, BLOCK), a.dtype.element_ty)
    wv = tl.zeros((BLOCK, BLOCK), a.dtype.element_ty)
    for _ in range(top + BLOCK, cols, STEP):
        v2 = tl.load(v2_step)
        y -= multiply(tl.load(a_step, mask=inside, other=0.0), v2, tl.zeros_like(y))
        wv -= multiply(tl.load(w_step), v2, tl.zeros_like(wv))
        a_step += STEP
        w_step += STEP
        v2_step += STEP
    v_tile = left + i[:, None] * (2 * BLOCK) + j[None, :]
    v = tl.load(v_tile, mask=inside, other=0.0)
    y -= multiply(v, wv, tl.zeros_like(y))
    triangle = tl.load(t + j[:, None] * BLOCK + j[None, :])
    tl.store(v_tile + BLOCK, -multiply(y, triangle, tl.zeros_like(y)), mask=inside)


@triton.jit
def update_kernel(
    a: tl.tensor,
    left: tl.tensor,
    right: tl.tensor,
    rows: tl.int32,
    cols: tl.int32,
    top: tl.int32,
    BLOCK: tl.constexpr,
    RANK: tl.constexpr,
    TILE: tl.constexpr,
    STEP: tl.constexpr,
) -> None:
    """A -= left[:, :RANK] right[:RANK] in a TILE x TILE piece: [V Y] [W; V2^T], or V W."""
    tiles_across = tl.cdiv(cols - top - BLOCK, TILE)
    tiles = tl.cdiv(rows - top - BLOCK, TILE) * tiles_across
    program = tl.program_id(0)
    matrix = (program // tiles).to(tl.int64)
    tile = program % tiles
    first_row = top + BLOCK + tile // tiles_across * TILE
    first_col = top + BLOCK + tile % tiles_across * TILE
    a += (matrix * rows + first_row) * cols + first_col
    left += (matrix * rows + first_row) * (2 * BLOCK)
    right += matrix * (2 * BLOCK) * cols + first_col

    i = tl.arange(0, TILE)
    k = tl.arange(0, STEP)
    inside_rows = (first_row + i < rows)[:, None]
    inside_cols = (first_col + i < cols)[None, :]
    left_step = left + i[:, None] * (2 * BLOCK) + k[None, :]
    right_step = right + k[:, None] * cols + i[None, :]
    taken = tl.zeros((TILE, TILE), a.dtype.element_ty)
    for _ in range(0, RANK, STEP):
        x = tl.load(left_step, mask=inside_rows, other=0.0)
        y = tl.load(right_step, mask=inside_cols, other=0.0)
        taken = multiply(x, y, taken)
        left_step += STEP
        right_step += STEP * cols
    a_tile = a + i[:, None] * cols + i[None, :]
    inside = inside_rows & inside_cols
    tl.store(a_tile, tl.load(a_tile, mask=inside, other=0.0) - taken, mask=inside)


def left_product(a: Tensor, left: Tensor, right: Tensor, t: Tensor, top: int) -> None:
    """W into right[:, :b], and the row panel a[:, top : top + b, top + b :] less V W."""
    batch, rows, cols = a.shape
    left_product_kernel[(batch * ((cols - top - BLOCK) // LEFT_TILE),)](
        a, left, right, t, rows, cols, top, BLOCK=BLOCK, TILE=LEFT_TILE, STEP=STEP, **_launch(a, LEFT_WARPS)
    )


def right_product(a: Tensor, left: Tensor, right: Tensor, t2: Tensor, top: int) -> None:
    """Y into left[:, :, b:], from row top + b on."""
    batch, rows, cols = a.shape
    right_product_kernel[(batch * triton.cdiv(rows - top - BLOCK, RIGHT_TILE),)](
        a,
        left,
        right,
        t2,
        rows,
        cols,
        top,
        BLOCK=BLOCK,
        TILE=RIGHT_TILE,
        STEP=STEP,
        num_warps=RIGHT_WARPS[a.dtype],
        num_stages=STAGES,
    )


def update(a: Tensor, left: Tensor, right: Tensor, top: int, rank: int) -> None:
    """a less left[:, :, :rank] right[:, :rank], from row and column top + b on."""
    batch, rows, cols = a.shape
    down, across = (triton.cdiv(size - top - BLOCK, UPDATE_TILE) for size in (rows, cols))
    update_kernel[(batch * down * across,)](
        a,
        left,
        right,
        rows,
        cols,
        top,
        BLOCK=BLOCK,
        RANK=rank,
        TILE=UPDATE_TILE,
        STEP=STEP,
        **_launch(a, UPDATE_WARPS),
    )


def _launch(a: Tensor, warps: int) -> dict[str, int]:
    return {"num_warps": warps * (2 if a.dtype == torch.float64 else 1), "num_stages": STAGES}
