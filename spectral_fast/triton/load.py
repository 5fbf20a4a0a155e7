"""Reading a batch of matrices on a GPU: finiteness, scale, conversion, padding.

    dst = 2^-exponent A,   exponent = floor(log2 max |a_ij|)

so the largest entry comes to lie in [1, 2): exact, but for entries below 2^-126 (2^-1022 in float64) that
come to lie among the subnormals or below (LAPACK xGESDD scales so outside its safe range). The largest
magnitude and "is anything not finite" are one question: the bits of |x| order like |x|, infinity and NaN on
top (csrc/cpu/load.inl). A matrix that is not finite becomes zero, exponent 0, and has info set.

A (B, m, n), m >= n, float16, bfloat16, float32 or float64, any strides -> dst (B, rows, cols), zero outside
m x n, in float32 or float64; exponent and info (B,). Two launches, nothing waits:
1. `peak_kernel`, up to CHUNKS programs a matrix: the largest bits of a part each. Reads A.
2. `load_kernel`, a program for TILE x TILE of dst: the largest of those, the power of two, the copy.
   Reads A, writes dst. The programs that hold no entry of A write zeros.
Neither depends on order, so a matrix has the same bits in any batch.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from spectral_fast._ops import INFO_NONFINITE, INFO_OK

# Not tuned: no GPU has run these. 16 or 32 entries a thread, so that many loads are in flight in the
# registers there are (peak_kernel keeps a 64-bit address for each: with 32, 186 registers and more). At most
# CHUNKS parts a matrix: every program of load_kernel reads their peaks, two a thread, and a launch is saved.
PEAK_ROWS, PEAK_COLS = 32, 64
TILE = 64
CHUNKS = 256
WARPS = 4

OK = tl.constexpr(INFO_OK)
NONFINITE = tl.constexpr(INFO_NONFINITE)


@triton.jit
def _extended(x: tl.tensor) -> tl.tensor:
    """float16 and bfloat16 as float32; the others as they are."""
    if x.dtype == tl.bfloat16:
        # The upper half of a float32. Spelled out: triton's interpreter makes zeros of bfloat16 subnormals.
        return (x.to(tl.int16, bitcast=True).to(tl.int32) << 16).to(tl.float32, bitcast=True)
    elif x.dtype == tl.float16:
        return x.to(tl.float32)
    else:
        return x


@triton.jit
def _magnitude(x: tl.tensor) -> tl.tensor:
    """The bits of |x|."""
    if x.dtype == tl.float64:
        return x.to(tl.int64, bitcast=True) & 0x7FFFFFFFFFFFFFFF
    else:
        return x.to(tl.int32, bitcast=True) & 0x7FFFFFFF


@triton.jit(
    do_not_specialize=["outer", "inner", "batch_stride", "outer_stride", "inner_stride", "chunks"],
    do_not_specialize_on_alignment=["a"],
)
def peak_kernel(
    a: tl.tensor,
    outer: tl.int32,
    inner: tl.int32,
    batch_stride: tl.int64,
    outer_stride: tl.int64,
    inner_stride: tl.int64,
    peaks: tl.tensor,
    chunks: tl.int32,
    ROWS: tl.constexpr,
    COLS: tl.constexpr,
) -> None:
    """The largest magnitude, as bits, of `chunks` parts of each outer x inner matrix: peaks (B, chunks)."""
    program = tl.program_id(0)
    chunk = program % chunks
    a += (program // chunks).to(tl.int64) * batch_stride
    largest = tl.zeros((ROWS, COLS), peaks.dtype.element_ty)
    for first in range(chunk * ROWS, outer, chunks * ROWS):
        i = first + tl.arange(0, ROWS)[:, None]
        for start in range(0, inner, COLS):
            j = start + tl.arange(0, COLS)[None, :]
            x = tl.load(
                a + (i.to(tl.int64) * outer_stride + j.to(tl.int64) * inner_stride),
                mask=(i < outer) & (j < inner),
                other=0.0,
            )
            largest = tl.maximum(largest, _magnitude(_extended(x)))
    tl.store(peaks + program, tl.max(tl.max(largest, 1), 0))


@triton.jit
def _exponent(bits: tl.tensor, MANTISSA: tl.constexpr, BIAS: tl.constexpr) -> tl.tensor:
    """floor(log2 x) of the finite x > 0 with these bits, int32."""
    exponent = (bits >> MANTISSA) - BIAS
    # A subnormal number is its bits, as an integer, times 2^(1 - BIAS - MANTISSA).
    if MANTISSA == 52:
        integer = bits.to(tl.float64).to(tl.int64, bitcast=True)
    else:
        integer = bits.to(tl.float32).to(tl.int32, bitcast=True)
    subnormal = (integer >> MANTISSA) - BIAS + (1 - BIAS - MANTISSA)
    return tl.where(exponent == -BIAS, subnormal, exponent).to(tl.int32)


@triton.jit
def _power_of_two(exponent: tl.tensor, MANTISSA: tl.constexpr, BIAS: tl.constexpr) -> tl.tensor:
    if MANTISSA == 52:
        return ((exponent + BIAS).to(tl.int64) << MANTISSA).to(tl.float64, bitcast=True)
    else:
        return ((exponent + BIAS) << MANTISSA).to(tl.float32, bitcast=True)


@triton.jit(
    do_not_specialize=["m", "n", "batch_stride", "row_stride", "col_stride", "chunks", "rows"],
    do_not_specialize_on_alignment=["a"],
)
def load_kernel(
    a: tl.tensor,
    m: tl.int32,
    n: tl.int32,
    batch_stride: tl.int64,
    row_stride: tl.int64,
    col_stride: tl.int64,
    peaks: tl.tensor,
    chunks: tl.int32,
    dst: tl.tensor,
    rows: tl.int32,
    cols: tl.int32,
    exponents: tl.tensor,
    infos: tl.tensor,
    BY_COLUMNS: tl.constexpr,
    TILE: tl.constexpr,
    CHUNKS: tl.constexpr,
) -> None:
    """A scaled into TILE x TILE of dst. BY_COLUMNS: neighbours in memory are in one column of A."""
    MANTISSA: tl.constexpr = 52 if dst.dtype.element_ty == tl.float64 else 23
    BIAS: tl.constexpr = 1023 if dst.dtype.element_ty == tl.float64 else 127
    tiles_across = tl.cdiv(cols, TILE)
    tiles = tl.cdiv(rows, TILE) * tiles_across
    program = tl.program_id(0)
    matrix = (program // tiles).to(tl.int64)
    tile = program % tiles

    part = tl.arange(0, CHUNKS)
    largest = tl.max(tl.load(peaks + matrix * chunks + part, mask=part < chunks, other=0), 0)
    finite = (largest >> MANTISSA) <= 2 * BIAS
    exponent = tl.where(finite & (largest > 0), _exponent(largest, MANTISSA, BIAS), 0)
    tl.store(exponents + matrix, exponent, mask=tile == 0)
    tl.store(infos + matrix, tl.where(finite, OK, NONFINITE), mask=tile == 0)

    lane = tl.arange(0, TILE)
    i = tile // tiles_across * TILE + lane
    j = tile % tiles_across * TILE + lane
    a += matrix * batch_stride
    row_offset, col_offset = i.to(tl.int64) * row_stride, j.to(tl.int64) * col_stride
    if BY_COLUMNS:
        inside = (j < n)[:, None] & (i < m)[None, :]
        x = tl.load(a + (col_offset[:, None] + row_offset[None, :]), mask=inside, other=0.0)
        x = tl.trans(_extended(x))
    else:
        inside = (i < m)[:, None] & (j < n)[None, :]
        x = tl.load(a + (row_offset[:, None] + col_offset[None, :]), mask=inside, other=0.0)
        x = _extended(x)
    # In two factors, since one alone may not be representable.
    half = -exponent >> 1
    x = x * _power_of_two(half, MANTISSA, BIAS) * _power_of_two(-exponent - half, MANTISSA, BIAS)
    dst += (matrix * rows + i[:, None]) * cols + j[None, :]
    tl.store(dst, tl.where(finite, x, 0.0), mask=(i < rows)[:, None] & (j < cols)[None, :])


def load(A: Tensor, rows: int, cols: int) -> tuple[Tensor, Tensor, Tensor]:
    """A (B, m, n), m >= n -> dst (B, rows, cols), int32 exponent and info (B,). On torch's current device."""
    batch, m, n = A.shape
    batch_stride, row_stride, col_stride = A.stride()
    by_columns = row_stride < col_stride
    dtype, bits = (torch.float64, torch.int64) if A.dtype == torch.float64 else (torch.float32, torch.int32)

    outer, inner = (n, m) if by_columns else (m, n)
    outer_stride, inner_stride = (col_stride, row_stride) if by_columns else (row_stride, col_stride)
    chunks = min(triton.cdiv(outer, PEAK_ROWS), CHUNKS)
    peaks = A.new_empty((batch, chunks), dtype=bits)
    peak_kernel[(batch * chunks,)](
        A,
        outer,
        inner,
        batch_stride,
        outer_stride,
        inner_stride,
        peaks,
        chunks,
        ROWS=PEAK_ROWS,
        COLS=PEAK_COLS,
        num_warps=WARPS,
    )

    dst = A.new_empty((batch, rows, cols), dtype=dtype)
    exponent, info = (A.new_empty((batch,), dtype=torch.int32) for _ in range(2))
    load_kernel[(batch * triton.cdiv(rows, TILE) * triton.cdiv(cols, TILE),)](
        A,
        m,
        n,
        batch_stride,
        row_stride,
        col_stride,
        peaks,
        chunks,
        dst,
        rows,
        cols,
        exponent,
        info,
        BY_COLUMNS=by_columns,
        TILE=TILE,
        CHUNKS=CHUNKS,
        num_warps=WARPS,
    )
    return dst, exponent, info
