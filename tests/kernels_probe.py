"""Every path of the kernels, without torch: tests/test_build.py runs this with other builds of _cpu.

    python kernels_probe.py PATH_OF_THE_MODULE

Checks values and that no thread count changes a bit. Prints a digest of all values for each instruction set.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import sys
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

SHAPES = [
    *((m, n) for m in range(1, 21) for n in range(1, 21)),
    *((1, 90), (90, 1), (17, 33), (140, 130), (70, 300), (1500, 20), (129, 400), (300, 270)),
]
GRAM_SHAPES = [(129, 400), (300, 140)]  # chunks of 128 rows, strips of up to 24 columns


def load(path: str) -> Any:
    spec = importlib.util.spec_from_file_location("spectral_fast._cpu", path)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def svdvals(cpu: Any, a: Any, threads: int, gram: bool = False) -> Any:
    *batch, m, n = a.shape
    s, info = np.empty((*batch, min(m, n)), a.dtype), np.empty(batch, np.int32)
    strides = tuple(x // a.itemsize for x in a.strides)
    element = cpu.element_types[a.dtype.name]
    addresses = (s.ctypes.data, info.ctypes.data)
    assert cpu.svdvals(a.ctypes.data, element, a.shape, strides, *addresses, threads, gram)
    return s


def gram_product(cpu: Any, a: Any, x: Any, threads: int) -> tuple[Any, Any]:
    z, energy = np.empty_like(x), np.empty(len(a))
    strides = tuple(size // a.itemsize for size in a.strides)
    element, (x_at, z_at, energy_at) = (
        cpu.element_types[a.dtype.name],
        (v.ctypes.data for v in (x, z, energy)),
    )
    cpu.gram_product(a.ctypes.data, element, a.shape, strides, x_at, x.shape[-1], z_at, energy_at, threads)
    return z, energy


def digest_of_products(cpu: Any) -> bytes:
    """Every tile, in place and copied: strips of 24 or 48, copies of 16, 48 or 96 rows, pieces of 192."""
    rng = np.random.default_rng(6)
    bits = b""
    for m, n in ((1, 1), (17, 50), (400, 49), (30, 1400)):
        for columns in (1, 2, 3, 8, 17, 40, 66):
            for dtype, tolerance in ((np.float16, 1e-5), (np.float32, 1e-5), (np.float64, 1e-14)):
                x = rng.standard_normal((3, n, columns)).astype(
                    np.float64 if dtype == np.float64 else np.float32
                )
                a = rng.standard_normal((3, m, n)).astype(dtype)
                wide, of_x = a.astype(np.float64), x.astype(np.float64)
                turned = np.swapaxes(wide, 1, 2)
                exact = turned @ (wide @ of_x)
                bound = tolerance * (abs(turned) @ (abs(wide) @ abs(of_x)))
                by_columns = np.swapaxes(np.ascontiguousarray(np.swapaxes(a, 1, 2)), 1, 2)
                for laid_out in (a, by_columns, np.repeat(a, 2, axis=2)[:, :, ::2]):
                    z, energy = gram_product(cpu, laid_out, x, 2)
                    assert (abs(z - exact) <= bound).all(), (m, n, columns, dtype)
                    squares = (wide**2).sum((-2, -1))
                    assert (abs(energy - squares) <= tolerance * squares).all(), (m, n, columns, dtype)
                    for threads in (1, 4):
                        for one in range(3):
                            again = gram_product(cpu, laid_out[one : one + 1], x[one : one + 1], threads)
                            assert (again[0] == z[one]).all(), (m, n, columns, threads)
                            assert again[1] == energy[one]
                    bits += z.tobytes() + energy.tobytes()
    return bits


def look(cpu: Any, a: Any, v: Any, probes: Any, images: Any, fresh: Any, threads: int) -> list[Any]:
    """Three products of each of these matrices."""
    count, n, s = v.shape
    lines = np.tile([0.3, 0.2], (count, 1))
    out = [
        np.empty((count, s)),
        np.empty((count, s)),
        np.empty_like(v),
        np.empty(count),
        np.empty((count, 2)),
    ]
    status = np.empty(count, np.int32)
    places = [(one.ctypes.data, one.strides[0] // a.itemsize, one.strides[1] // a.itemsize) for one in a]
    at = [x.ctypes.data if x.size else 0 for x in (v, fresh, probes, images, lines)]
    element, counts = cpu.element_types[a.dtype.name], (s, probes.shape[2], images.shape[2])
    out_at = [x.ctypes.data for x in (*out, status)]
    cpu.look(places, element, a.shape[1], n, counts, at[:2], at[2:], (0.0, 1, 3), out_at, threads)
    assert not status.any()
    return out if probes.size else out[:-1]


def digest_of_looks(cpu: Any) -> bytes:
    """Pieces of 128 rows, the last of any length; vectors and probes of any number."""
    rng = np.random.default_rng(7)
    bits = b""
    for m, n, s, p, d in ((40, 30, 2, 0, 0), (130, 129, 33, 5, 1), (500, 300, 16, 16, 4)):
        for dtype, tolerance in ((np.float32, 1e-4), (np.float64, 1e-12)):
            a = (rng.standard_normal((3, m, n)) / np.arange(1, n + 1) ** 0.3).astype(dtype)
            _, sigma, right = np.linalg.svd(a.astype(np.float64))
            v = np.ascontiguousarray(np.swapaxes(right[:, :s], 1, 2).astype(dtype))
            probes, images = (rng.standard_normal((3, n, count)).astype(dtype) for count in (p, d))
            rest = (v, probes, images, rng.standard_normal((3, n)).astype(dtype))
            found = look(cpu, a, *rest, 2)
            # From the exact vectors: all directions stay there.
            assert (abs(found[0] / sigma[:, :s] ** 2 - 1) < tolerance).all(), (m, n, s)
            assert np.isfinite(found[-1]).all()
            for threads in (1, 4):
                for one in range(3):
                    again = look(cpu, a[one : one + 1], *(x[one : one + 1] for x in rest), threads)
                    for x, y in zip(again, found, strict=True):
                        assert (x[0] == y[one]).all(), (m, n, s, threads)
            bits += b"".join(x.tobytes() for x in found)
    return bits


def lanczos(cpu: Any, a: Any, start: Any, steps: int, threads: int) -> list[Any]:
    count, s = len(a), start.shape[1]
    out = [np.empty((count, steps, s, s)) for _ in range(3)] + [np.empty(count)]
    strides = [stride // a.itemsize for stride in a.strides]
    at = [x.ctypes.data for x in out]
    element = cpu.element_types[a.dtype.name]
    cpu.block_lanczos(a.ctypes.data, element, a.shape, strides, start.ctypes.data, s, steps, *at, threads)
    return out


def digest_of_lanczos(cpu: Any) -> bytes:
    """As many vectors as half a register, a whole one and more hold; an exhausted space."""
    rng = np.random.default_rng(8)
    bits = b""
    for m, n, s, steps in ((1, 1, 1, 2), (40, 30, 8, 5), (130, 129, 5, 3), (500, 300, 16, 4)):
        for dtype, tolerance in ((np.float32, 1e-5), (np.float64, 1e-13)):
            a = rng.standard_normal((3, m, n)).astype(dtype)
            start = np.ascontiguousarray(np.linalg.qr(rng.standard_normal((n, s)))[0].astype(dtype))
            found = lanczos(cpu, a, start, steps, 2)
            image = a.astype(np.float64) @ start.astype(np.float64)
            size = np.linalg.norm(a.astype(np.float64), axis=(1, 2))[:, None, None] ** 2
            assert (abs(found[0][:, 0] - np.swapaxes(image, 1, 2) @ image) < tolerance * size).all()
            for threads in (1, 4):
                for one in range(3):
                    again = lanczos(cpu, a[one : one + 1], start, steps, threads)
                    for x, y in zip(again, found, strict=True):
                        assert (x[0] == y[one]).all(), (m, n, s, threads)
            bits += b"".join(x.tobytes() for x in found)
    return bits


def statistics(cpu: Any, spectra: Any, threads: int) -> bytes:
    """Every kernel of statistics on contiguous rows of float32 or float64; the bits of all results."""
    count, n = spectra.shape
    arguments = (spectra.ctypes.data, cpu.element_types[spectra.dtype.name], count, n)
    smooth, fitted, fits, given = (np.empty((count, width)) for width in (11, 9, 4, 4))
    tails = np.empty((2, count), np.int64)
    slopes, alphas, thresholds = np.empty(count), np.empty(count), np.full(count, 0.25)
    cpu.stats_from_svdvals(*arguments, (1.5, 0.1), smooth.ctypes.data, fitted.ctypes.data, threads)
    cpu.fit_powerlaw(*arguments, 0, fits.ctypes.data, tails[0].ctypes.data, threads)
    cpu.fit_powerlaw(*arguments, thresholds.ctypes.data, given.ctypes.data, tails[1].ctypes.data, threads)
    cpu.hill_alpha(*arguments, 0, alphas.ctypes.data, threads)
    cpu.ranksize_slope(*arguments, slopes.ctypes.data, threads)
    return b"".join(result.tobytes() for result in (smooth, fitted, fits, given, tails, slopes, alphas))


def digest_of_statistics(cpu: Any) -> bytes:
    rng = np.random.default_rng(5)
    bits = b""
    for n in (*range(1, 40), 333, 1000):
        spectra = np.stack(
            [
                *(
                    rng.random(n),
                    (1 - rng.random(n)) ** -0.7,
                    np.round(rng.random(n), 1),
                    0.9 ** np.arange(n),
                ),
                *(np.ones(n), np.zeros(n), np.full(n, np.nan), rng.standard_normal(n), 1e300 * rng.random(n)),
            ]
        )
        for dtype in (np.float64, np.float32):
            with np.errstate(over="ignore"):
                rows = np.ascontiguousarray(spectra, dtype)
            results = [statistics(cpu, rows, threads) for threads in (1, 2, 4)]
            assert results[0] == results[1] == results[2], n
            bits += results[0]
    return bits


def digest(cpu: Any) -> str:
    rng = np.random.default_rng(1)
    digest = hashlib.sha256()
    for dtype, tolerance in ((np.float32, 1e-5), (np.float64, 1e-13)):
        for m, n in SHAPES:
            order = "CF"[(m + n) % 2]
            a = np.array(rng.standard_normal((5, m, n)), dtype=dtype, order=order)
            s = svdvals(cpu, a, 2)
            exact = np.linalg.svd(a.astype(np.float64), compute_uv=False)
            assert np.abs(s - exact).max() <= tolerance * exact.max(), (m, n)
            digest.update(s.tobytes())
            for threads in (1, 4):
                assert (svdvals(cpu, a, threads) == s).all(), (m, n, threads)
            if m * n > 400:
                assert (svdvals(cpu, a[:1], 2) == s[:1]).all(), (m, n)
        for m, n in GRAM_SHAPES:
            a = np.asarray(rng.standard_normal((2, m, n)), dtype)
            a[0, m // 3 :] = 0  # rank-deficient
            s = svdvals(cpu, a, 2, gram=True)
            exact = np.linalg.svd(a.astype(np.float64), compute_uv=False)
            assert np.abs(s - exact)[1].max() <= tolerance * exact.max(), (m, n)
            assert np.abs(s**2 - exact**2).max() <= tolerance * exact.max() ** 2, (m, n)
            digest.update(s.tobytes())
            for threads in (1, 4):
                for one in (0, 1):
                    assert (svdvals(cpu, a[one : one + 1], threads, gram=True) == s[one]).all(), (
                        m,
                        n,
                        threads,
                    )
        for order in (63, 64):  # the longest groups
            group = np.asarray(rng.standard_normal((33, order, order)), dtype)
            digest.update(svdvals(cpu, group, 2).tobytes())
    digest.update(digest_of_statistics(cpu))
    digest.update(digest_of_products(cpu))
    digest.update(digest_of_looks(cpu))
    digest.update(digest_of_lanczos(cpu))
    return digest.hexdigest()


def callers_at_once(cpu: Any) -> None:
    a = np.random.default_rng(2).standard_normal((9, 60, 40))
    one = np.random.default_rng(3).standard_normal((1, 260, 260))
    expected = svdvals(cpu, a, 1), svdvals(cpu, one, 1)

    def call(_: int) -> bool:
        return all(
            (svdvals(cpu, a, 3) == expected[0]).all() and (svdvals(cpu, one, 2) == expected[1]).all()
            for _ in range(5)
        )

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(call, range(4)))


def fork(cpu: Any) -> None:
    a = np.random.default_rng(4).standard_normal((9, 60, 40))
    expected = svdvals(cpu, a, 3)
    # TSan does not know threads that a child of several threads starts.
    threads = 1 if "tsan" in os.environ.get("LD_PRELOAD", "") else 3
    child = os.fork()
    if child == 0:
        os._exit(0 if (svdvals(cpu, a, threads) == expected).all() else 1)
    assert os.waitpid(child, 0)[1] == 0


def main() -> None:
    cpu = load(sys.argv[1])
    digests = {}
    for isa in cpu.runnable_isas():
        cpu.use_isa(isa)
        digests[isa] = digest(cpu)
    callers_at_once(cpu)
    fork(cpu)
    print(json.dumps(digests))


if __name__ == "__main__":
    main()
