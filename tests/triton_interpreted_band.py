"""The Triton kernels of `load` and `band` under the interpreter; test_triton_numerics.py runs this file.

Every product is compared with the same formula in float64 (float64 itself: in long double), entry by entry:
a sum of k products of factors good to an eps errs by at most k + 2 halves of an eps times the sum of the
magnitudes (Higham, Accuracy and Stability of Numerical Algorithms, 2002, section 3.1). Memory that is not to
be read is NaN, and memory that is not to be written is seen to keep its bits.
"""

from __future__ import annotations

import math
import mmap

import numpy as np
import pytest
import torch
from torch import Tensor

from spectral_fast._ops import INFO_NONFINITE, INFO_OK
from spectral_fast.triton import band
from spectral_fast.triton import load as loading
from tests.oracles import zoo
from tests.oracles.accuracy import exact_values

b = band.BLOCK
REAL = (torch.float32, torch.float64)
LOADED = (torch.float16, torch.bfloat16, *REAL)
WIDE = {torch.float32: np.float64, torch.float64: np.longdouble}


def wide(x: Tensor) -> np.ndarray:
    return x.numpy().astype(WIDE[x.dtype])


def same_bits(x: Tensor, y: Tensor) -> bool:
    kind = {2: torch.int16, 4: torch.int32, 8: torch.int64}[x.element_size()]
    return torch.equal(x.contiguous().view(kind), y.contiguous().view(kind))


def layouts(A: Tensor) -> dict[str, Tensor]:
    """The same matrices in other places of memory; gaps and what is before and after are NaN."""
    batch, m, n = A.shape
    gaps = torch.full((batch + 1, 2 * m + 1, 3 * n + 2), math.nan, dtype=A.dtype)[1:, 1::2, 2::3]
    by_columns = torch.full((batch, n, m + 3), math.nan, dtype=A.dtype)[:, :, 2:-1].transpose(1, 2)
    across = torch.full((m, n, batch), math.nan, dtype=A.dtype).permute(2, 0, 1)
    views = {"gaps": gaps, "by_columns": by_columns, "across": across}
    for view in views.values():
        view.copy_(A)
    return {"by_rows": A, **views}


def expected(A: Tensor, rows: int, cols: int) -> tuple[Tensor, list[int], list[int]]:
    """dst, exponents and infos, by exact arithmetic but for one rounding."""
    batch, m, n = A.shape
    double = A.double().numpy()
    dst = np.zeros((batch, rows, cols))
    exponents, infos = [], []
    for i in range(batch):
        finite, largest = bool(np.isfinite(double[i]).all()), float(np.abs(double[i]).max())
        exponents.append(math.frexp(largest)[1] - 1 if finite and largest > 0 else 0)
        infos.append(INFO_OK if finite else INFO_NONFINITE)
        if finite:
            dst[i, :m, :n] = np.ldexp(double[i], -exponents[-1])
    scalar = torch.float64 if A.dtype == torch.float64 else torch.float32
    return torch.from_numpy(dst).to(scalar), exponents, infos


def check_load(A: Tensor, rows: int, cols: int) -> Tensor:
    dst, exponent, info = loading.load(A, rows, cols)
    want, exponents, infos = expected(A, rows, cols)
    assert dst.is_contiguous()
    assert exponent.dtype == info.dtype == torch.int32
    assert exponent.tolist() == exponents
    assert info.tolist() == infos
    assert dst.dtype == want.dtype
    # Of subnormal numbers, two roundings: a unit of theirs.
    normal = want.abs() >= torch.finfo(want.dtype).tiny
    assert torch.equal(dst[normal], want[normal])
    assert ((dst - want).abs() <= torch.finfo(want.dtype).smallest_normal * torch.finfo(want.dtype).eps).all()
    return dst


def test_the_interpreter_runs_and_memory_is_poisoned() -> None:
    for kernel in (loading.load_kernel, band.update_kernel):
        assert type(kernel).__name__ == "InterpretedFunction"
    assert torch.empty(5).isnan().all()
    assert torch.ones(2).new_empty((3, 4), dtype=torch.int32).min() > 2**30


@pytest.mark.parametrize("layout", ["by_rows", "gaps", "by_columns", "across"])
@pytest.mark.parametrize("dtype", LOADED)
def test_load_from_anywhere(dtype: torch.dtype, layout: str) -> None:
    """Three tiles and a rest each way; the largest entry in the last row and column of one matrix."""
    A = torch.randn(2, 3 * loading.TILE + 37, 3 * loading.TILE + 5).to(dtype)
    A[0, -1, -1], A[1] = -300, A[1] / 1024
    view = layouts(A)[layout]
    before = view.clone()
    check_load(view, 256, 224)
    assert same_bits(view, before)


@pytest.mark.parametrize("shape", [(1, 1), (2, 1), (33, 1), (33, 32), (64, 64), (65, 31), (160, 1)])
@pytest.mark.parametrize("dtype", LOADED)
def test_load_of_small_matrices(dtype: torch.dtype, shape: tuple[int, int]) -> None:
    A = torch.randn(2, *shape).to(dtype)
    for view in layouts(A).values():
        check_load(view, *(-(-size // b) * b for size in shape))


@pytest.mark.parametrize("dtype", LOADED)
def test_load_of_every_scale(dtype: torch.dtype) -> None:
    """The largest entry the first and the last number of a power of two: the smallest, some, the greatest."""
    info = torch.finfo(dtype)
    lowest = info.smallest_normal * info.eps
    exponents = range(round(math.log2(lowest)), math.frexp(info.max)[1])
    some = [*exponents[:12], *exponents[12:-4:29], *exponents[-4:]]
    some += [round(math.log2(info.smallest_normal)) + i for i in (-1, 0, 1)]
    first = torch.tensor([2.0**e for e in some], dtype=dtype)
    last = first[first >= info.smallest_normal].double() * (2 - info.eps)
    top = torch.cat([first, last.to(dtype), torch.tensor([lowest * 3, info.max], dtype=dtype)])
    assert (top > 0).all()
    assert top.isfinite().all()
    A = torch.zeros(len(top), 3, 2, dtype=dtype)
    A[:, 1, 1] = -top
    A[:, 2, 0] = top / 3
    A[:, 0, 1] = lowest
    dst = check_load(A, 32, 32)
    assert ((dst.abs().amax((1, 2)) >= 1) & (dst.abs().amax((1, 2)) < 2)).all()


@pytest.mark.parametrize("dtype", LOADED)
def test_load_of_what_is_not_finite(dtype: torch.dtype) -> None:
    """Anywhere, it makes the matrix zero and is told of; a zero matrix and the others are as without it."""
    A = torch.randn(7, 101, 70).to(dtype)
    clean = check_load(A, 128, 96)
    A[1], clean[1] = 0, 0
    values = (math.nan, -math.nan, math.inf, -math.inf)
    for i, place, value in zip((0, 2, 4, 5), ((0, 0), (100, 69), (64, 3), (50, 64)), values, strict=True):
        A[i, *place] = value
        clean[i] = 0
    assert same_bits(check_load(A, 128, 96), clean)


@pytest.mark.parametrize("chunks", [1, 4])
def test_load_with_more_tiles_than_chunks(monkeypatch: pytest.MonkeyPatch, chunks: int) -> None:
    """A program of peak_kernel then reads several: the largest entry is found in each of them."""
    monkeypatch.setattr(loading, "CHUNKS", chunks)
    rows, tile = loading.PEAK_ROWS * 9 + 5, loading.PEAK_ROWS
    A = torch.rand(10, rows, 40)
    for i in range(10):
        A[i, min(tile * i + tile - 1, rows - 1), 4 * i] = 2.0 ** (i + 1)
    check_load(A, 320, 64)


MAP_NORESERVE = 0x4000  # Linux; the module mmap has no name for it


def virtual(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """Zeros that take memory only where they are written."""
    size = math.prod(shape) * dtype.itemsize
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | MAP_NORESERVE
    return torch.frombuffer(mmap.mmap(-1, size, flags=flags), dtype=dtype).view(shape)


def test_load_with_strides_beyond_32_bits() -> None:
    far = virtual((3, 2**31 + 11), torch.float16)
    A = torch.randn(3, 3, 3).to(torch.float16)
    for view in (
        far[:, :5].as_strided((3, 3, 3), (1, far.shape[1], 7)),
        far[:, :5].as_strided((3, 3, 3), (1, 7, far.shape[1])),
        far[:, :5].as_strided((3, 3, 3), (far.shape[1], 3, 1)),
    ):
        view.copy_(A)
        check_load(view, 32, 32)
        view.zero_()


class Panels:
    """Operands of one block for the kernels, by the contract: NaN wherever none may look.

    The panels need not be factored ones: the formulas hold for any V, T and V2.
    """

    def __init__(self, dtype: torch.dtype, batch: int, rows: int, cols: int, top: int, seed: int = 0) -> None:
        g = torch.Generator().manual_seed(seed)

        def random(*shape: int) -> Tensor:
            return torch.randn(*shape, dtype=torch.float64, generator=g).to(dtype)

        self.top, self.below = top, top + b
        self.a = torch.full((batch, rows, cols), math.nan, dtype=dtype)
        self.left = torch.full((batch, rows, 2 * b), math.nan, dtype=dtype)
        self.right = torch.full((batch, 2 * b, cols), math.nan, dtype=dtype)
        self.a[:, top:, self.below :] = random(batch, rows - top, cols - self.below)
        self.left[:, top:, :b] = random(batch, rows - top, b)
        self.t = random(batch, b, b).triu()
        self.t2 = random(batch, b, b).triu()
        self.more = random(batch, rows, 2 * b), random(batch, 2 * b, cols)

    def right_panel(self) -> None:
        self.right[:, :, self.below :] = self.more[1][:, :, self.below :]

    def both(self, rank: int) -> None:
        self.left[:, self.below :, :rank] = self.more[0][:, self.below :, :rank]
        self.right[:, :rank, self.below :] = self.more[1][:, :rank, self.below :]


def near(got: Tensor, want: np.ndarray, magnitude: np.ndarray, terms: int) -> None:
    """Within terms + 2 roundings of the magnitude."""
    bound = (terms + 2) * torch.finfo(got.dtype).eps / 2 * magnitude
    error = np.abs(wide(got) - want)
    assert np.isfinite(error).all()
    assert (error <= bound).all(), (error / bound).max()


# rows, cols, top: up to three tiles of 64 and a rest, each way; one tile; half a tile.
SIZES = [(288, 288, 32), (352, 256, 64), (320, 288, 0), (256, 64, 0), (96, 96, 0), (96, 96, 32)]


@pytest.mark.parametrize(("rows", "cols", "top"), SIZES)
@pytest.mark.parametrize("dtype", REAL)
def test_left_product(dtype: torch.dtype, rows: int, cols: int, top: int) -> None:
    p = Panels(dtype, 3, rows, cols, top)
    a, left, right, t = p.a.clone(), p.left.clone(), p.right.clone(), p.t.clone()
    band.left_product(a, left, right, t, top)
    A, V, T = wide(p.a[:, top:, p.below :]), wide(p.left[:, top:, :b]), wide(p.t)
    W = T.swapaxes(1, 2) @ (V.swapaxes(1, 2) @ A)
    size = np.abs(T).swapaxes(1, 2) @ (np.abs(V).swapaxes(1, 2) @ np.abs(A))
    near(right[:, :b, p.below :], W, size, rows - top + b)
    # Against the W that was written: the row panel less V W.
    written = wide(right[:, :b, p.below :])
    V, A = V[:, :b], A[:, :b]
    near(a[:, top : p.below, p.below :], A - V @ written, np.abs(A) + np.abs(V) @ np.abs(written), b)

    p.right[:, :b, p.below :] = right[:, :b, p.below :]
    p.a[:, top : p.below, p.below :] = a[:, top : p.below, p.below :]
    for got, want in ((a, p.a), (left, p.left), (right, p.right), (t, p.t)):
        assert same_bits(got, want)


@pytest.mark.parametrize(("rows", "cols", "top"), SIZES)
@pytest.mark.parametrize("dtype", REAL)
def test_right_product(dtype: torch.dtype, rows: int, cols: int, top: int) -> None:
    p = Panels(dtype, 3, rows, cols, top)
    p.right_panel()
    p.a[:, top : p.below] = math.nan  # the row panel is done with
    p.left[:, top : p.below] = math.nan
    a, left, right, t2 = p.a.clone(), p.left.clone(), p.right.clone(), p.t2.clone()
    band.right_product(a, left, right, t2, top)
    A, V = wide(p.a[:, p.below :, p.below :]), wide(p.left[:, p.below :, :b])
    W, V2 = wide(p.right[:, :b, p.below :]), wide(p.right[:, b:, p.below :]).swapaxes(1, 2)
    T2 = wide(p.t2)
    Y = (A @ V2 - V @ (W @ V2)) @ T2
    size = (np.abs(A) @ np.abs(V2) + np.abs(V) @ (np.abs(W) @ np.abs(V2))) @ np.abs(T2)
    near(left[:, p.below :, b:], Y, size, cols - p.below + 2 * b)

    p.left[:, p.below :, b:] = left[:, p.below :, b:]
    for got, want in ((a, p.a), (left, p.left), (right, p.right), (t2, p.t2)):
        assert same_bits(got, want)


@pytest.mark.parametrize("rank", [b, 2 * b])
@pytest.mark.parametrize(("rows", "cols", "top"), SIZES)
@pytest.mark.parametrize("dtype", REAL)
def test_update(dtype: torch.dtype, rows: int, cols: int, top: int, rank: int) -> None:
    p = Panels(dtype, 3, rows, cols, top)
    p.left[:] = math.nan
    p.both(rank)
    p.a[:, top : p.below] = math.nan
    a, left, right = p.a.clone(), p.left.clone(), p.right.clone()
    band.update(a, left, right, top, rank)
    A = wide(p.a[:, p.below :, p.below :])
    X, Z = wide(p.left[:, p.below :, :rank]), wide(p.right[:, :rank, p.below :])
    # The sum of products first: A is rounded once.
    near(a[:, p.below :, p.below :], A - X @ Z, np.abs(X) @ np.abs(Z) + np.abs(A) / (rank + 2), rank)

    p.a[:, p.below :, p.below :] = a[:, p.below :, p.below :]
    for got, want in ((a, p.a), (left, p.left), (right, p.right)):
        assert same_bits(got, want)


@pytest.mark.parametrize("dtype", REAL)
def test_a_batch_is_its_matrices(dtype: torch.dtype) -> None:
    """Bit for bit, and a NaN stays in its matrix."""
    p = Panels(dtype, 3, 224, 160, 32)
    p.a[1, 100, 100] = math.nan

    def block(i: slice) -> tuple[Tensor, ...]:
        a, left, right, t, t2 = (x[i].clone() for x in (p.a, p.left, p.right, p.t, p.t2))
        band.left_product(a, left, right, t, 32)
        right[:, b:, 64:] = p.more[1][i, b:, 64:]
        band.right_product(a, left, right, t2, 32)
        band.update(a, left, right, 32, 2 * b)
        return a, left, right

    whole = block(slice(0, 3))
    for i in range(3):
        for got, want in zip(whole, block(slice(i, i + 1)), strict=True):
            assert same_bits(got[i], want[0])
    for i in (0, 2):
        assert whole[0][i, 64:, 64:].isfinite().all()


def test_no_columns_left() -> None:
    """After the last block nothing is launched or written."""
    p = Panels(torch.float32, 2, 96, 64, 32)
    a, left, right = p.a.clone(), p.left.clone(), p.right.clone()
    band.left_product(a, left, right, p.t, 32)
    band.update(a, left, right, 32, b)
    for got, want in ((a, p.a), (left, p.left), (right, p.right)):
        assert same_bits(got, want)


def test_offsets_beyond_32_bits() -> None:
    """The last block of a matrix of 2^31 entries and more, against the same block of a small one."""
    n = 46400
    assert n * n > 2**31
    dtype, top = torch.float32, n - 2 * b
    p = Panels(dtype, 1, 2 * b, 2 * b, 0)
    small = [x.clone() for x in (p.a, p.left, p.right)]
    large = virtual((1, n, n), dtype), virtual((1, n, 2 * b), dtype), virtual((1, 2 * b, n), dtype)

    def corners() -> list[Tensor]:
        a, left, right = large
        return [a[:, top:, top:], left[:, top:], right[:, :, top:]]

    for corner, x in zip(corners(), small, strict=True):
        corner.copy_(x)
    for (a, left, right), k in ((small, 0), (large, top)):
        band.left_product(a, left, right, p.t, k)
        right[:, b:, k + b :] = p.more[1][:, b:, b:]
        band.right_product(a, left, right, p.t2, k)
        band.update(a, left, right, k, 2 * b)
    for corner, x in zip(corners(), small, strict=True):
        assert same_bits(corner, x)


def householder_panel(x: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """R, V and T of a tall panel: x = (I - V T V^T) [R; 0] (LAPACK xGEQRT)."""
    x = x.copy()
    rows, V, T = len(x), np.zeros_like(x), np.zeros((b, b), x.dtype)
    for j in range(b):
        v = x[:, j].copy()
        v[:j] = 0
        norm = np.sqrt((v * v).sum())
        if norm > 0 and j < rows - 1:
            v[j] += np.copysign(norm, v[j])
            v /= v[j]
            tau = 2 / (v * v).sum()
        else:
            v[:], v[j], tau = 0, 1, 0
        x -= tau * np.outer(v, v @ x)
        V[:, j] = v
        T[:j, j], T[j, j] = -tau * T[:j, :j] @ (V[:, :j].T @ v), tau
    return np.triu(x[:b]), V, T


def reduce_to_band(a: Tensor, both_sides: bool) -> Tensor:
    """The whole stage, its panels in long double: the band, or the triangle of a QR."""
    batch, rows, cols = a.shape
    left, right = torch.full((batch, rows, 2 * b), math.nan), torch.full((batch, 2 * b, cols), math.nan)
    left, right = left.to(a.dtype), right.to(a.dtype)
    t, result = torch.empty(batch, b, b, dtype=a.dtype), torch.zeros(batch, cols, cols, dtype=torch.float64)

    def exact(x: Tensor) -> np.ndarray:
        return x.numpy().astype(np.longdouble)

    def put(place: Tensor, x: np.ndarray) -> None:
        place.copy_(torch.from_numpy(x.astype(np.float64)))

    for k in range(0, cols, b):
        for i in range(batch):
            R, V, T = householder_panel(exact(a[i, k:, k : k + b]))
            put(result[i, k : k + b, k : k + b], R)
            put(left[i, k:, :b], V)
            put(t[i], T)
        if k + b == cols:
            return result
        band.left_product(a, left, right, t, k)
        if not both_sides:
            result[:, k : k + b, k + b :] = a[:, k : k + b, k + b :]
            band.update(a, left, right, k, b)
            continue
        for i in range(batch):
            R, V, T = householder_panel(exact(a[i, k : k + b, k + b :]).T)
            put(result[i, k : k + b, k + b : k + 2 * b], R.T)
            put(right[i, b:, k + b :], V.T)
            put(t[i], T)
        band.right_product(a, left, right, t, k)
        band.update(a, left, right, k, 2 * b)
    raise AssertionError("cols is not a multiple of b")


@pytest.mark.parametrize("make", [zoo.gaussian, zoo.graded, zoo.one_huge_entry, zoo.rank_deficient])
@pytest.mark.parametrize("both_sides", [True, False])
@pytest.mark.parametrize("dtype", REAL)
def test_the_values_survive(dtype: torch.dtype, both_sides: bool, make: zoo.Maker) -> None:
    """The stage as a whole, to half of the package's 4 eps sigma_1: other stages err too."""
    if dtype == torch.float32:
        m, n = (160, 160) if both_sides else (256, 96)
    else:  # the oracle in long double is slow
        m, n = (96, 96) if both_sides else (128, 64)
    A = make(m, n, torch.Generator().manual_seed(5))[None].to(dtype)
    a, _, _ = loading.load(A, m, n)
    want, got = (
        torch.linalg.svdvals(x.double()).numpy() if dtype == torch.float32 else exact_values(x)
        for x in (a[0].clone(), reduce_to_band(a, both_sides)[0])
    )
    assert np.abs(got - want).max() <= 2 * torch.finfo(dtype).eps * want[0]
