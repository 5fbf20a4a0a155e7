"""A million calls of every kind in one process: what memory they leave behind, in bytes a call."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import random
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

import spectral_fast as sf

SAMPLES = 100
# A list or a tensor left behind in every call would be 56 bytes at least; in every hundredth call, 0.5.
FLAT_BYTES = 0.5


class Memory(NamedTuple):
    """Resident bytes, and what malloc has handed out."""

    resident: int
    allocated: int


def memory() -> Memory:
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return Memory(pages * 4096, _allocated())


class _Mallinfo2(ctypes.Structure):
    _fields_ = [(name, ctypes.c_size_t) for name in ("arena", "ordblks", "smblks", "hblks", "hblkhd")] + [
        (name, ctypes.c_size_t) for name in ("usmblks", "fsmblks", "uordblks", "fordblks", "keepcost")
    ]


def _allocated() -> int:
    """In all arenas and mappings, as glibc counts it; 0 with another C library."""
    try:
        call = ctypes.CDLL(None).mallinfo2
    except AttributeError:
        return 0
    call.restype = _Mallinfo2
    info = call()
    return int(info.uordblks + info.hblkhd)


def calls(seed: int) -> list[tuple[float, Callable[[], object]]]:
    """Calls with their weights; each draws its own shape, and some raise."""
    rng = random.Random(seed)
    dtypes = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
    pool = torch.randn(200_000, generator=torch.Generator().manual_seed(seed))
    generator = torch.Generator().manual_seed(seed)

    def matrix(most: int = 24) -> torch.Tensor:
        batch, m, n = rng.choice([1, 1, 1, 2, 5]), rng.randint(1, most), rng.randint(1, most)
        return pool[: batch * m * n].view(batch, m, n).to(rng.choice(dtypes))

    tracked = pool[: 2 * 20 * 16].view(2, 20, 16)
    tracker = sf.SpectralTracker(k=4, generator=torch.Generator().manual_seed(seed))
    tracker.exact(tracked)
    large = pool[: 300 * 290].view(300, 290)
    followed = sf.SpectralTracker(k=4, generator=torch.Generator().manual_seed(seed))
    followed.exact(large)

    def raises() -> None:
        bad = rng.choice(
            [torch.ones(3), torch.full((2, 3, 3), torch.nan), torch.ones(2, 2, dtype=torch.int64)]
        )
        with contextlib.suppress(Exception):
            sf.svdvals(bad)
            raise AssertionError("a bad argument was taken")

    return [
        (40, lambda: sf.svdvals(matrix())),
        (15, lambda: sf.svdvals_ex(matrix())),
        (15, lambda: sf.spectral_stats(matrix())),
        (10, lambda: sf.fit_powerlaw(pool[: rng.randint(2, 60)].square())),
        (5, lambda: sf.hill_alpha(pool[: rng.randint(2, 60)].square())),
        (3, lambda: sf.svdvals(matrix(70))),
        (2, lambda: tracker.track(tracked)),
        (0.1, lambda: followed.track(large)),
        (0.5, lambda: sf.tail_stats(tracked, generator=generator)),
        (10, raises),
    ]


class Soak(NamedTuple):
    """What was measured: calls, slopes in bytes a call with their 95 % half-widths, first and last memory."""

    calls: int
    resident_slope: tuple[float, float]
    allocated_slope: tuple[float, float]
    first: Memory
    last: Memory

    @property
    def flat(self) -> bool:
        """No slope is above FLAT_BYTES beyond its uncertainty."""
        return all(
            slope - width <= FLAT_BYTES for slope, width in (self.resident_slope, self.allocated_slope)
        )


def soak(count: int, seed: int = 1) -> Soak:
    """Make the calls; the first fifth warms allocators and caches up and is not measured."""
    made = calls(seed)
    weights, functions = zip(*made, strict=True)
    rng = random.Random(seed)
    block = max(1, count // SAMPLES)
    positions, found = [], []
    done = 0
    gc.freeze()  # what is there already need not be searched a hundred times
    try:
        while done < count:
            for function in rng.choices(functions, weights, k=block):
                function()
            done += block
            gc.collect()
            if done > count // 5:
                positions.append(done)
                found.append(memory())
    finally:
        gc.unfreeze()
    resident, allocated = (np.array(column, dtype=np.float64) for column in zip(*found, strict=True))
    x = np.array(positions, dtype=np.float64)
    return Soak(done, _slope(x, resident), _slope(x, allocated), found[0], found[-1])


def _slope(x: np.ndarray, y: np.ndarray) -> tuple[float, float]:
    """Least-squares slope, and the half-width of its 95 % interval.

    Through the means of ten blocks, since single samples hang together.
    """
    blocks = np.array_split(np.arange(len(x)), 10)
    bx, by = (np.array([v[block].mean() for block in blocks]) for v in (x, y))
    centred = bx - bx.mean()
    slope = float((centred * by).sum() / (centred**2).sum())
    residual = by - by.mean() - slope * centred
    error = float(np.sqrt((residual**2).sum() / (len(bx) - 2) / (centred**2).sum()))
    return slope, 2.306 * error  # Student's t, 8 degrees of freedom, 95 %
