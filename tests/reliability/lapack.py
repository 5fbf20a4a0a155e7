"""The matrix types of LAPACK's own tests of its SVD drivers (xDRVBD, xCHKBD), made by code of ours.

`drv` types: zero; identity; U D V with evenly spaced D from 1 to ulp, as it is, near underflow and near
overflow. `bd` types: diagonals and dense matrices with evenly spaced, geometric and clustered values, some
times the square roots of under- and overflow; random entries, the same; a bidiagonal with entries from ulp^2
to ulp^-2. The measure is LAPACK's, |S - S_exact| / (min(m, n) ulp |S|), which its tests want below 50.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

import spectral_fast as sf
from spectral_fast import _cpu
from tests.oracles.accuracy import constant, exact_values
from tests.oracles.zoo import orthonormal
from tests.reliability.extended import singular_values_by_bisection
from tests.reliability.fuzz import EXTENDED

SMALL = [(1, 1), (1, 3), (3, 1), (2, 2), (10, 8), (12, 30), (33, 33)]
FULL = [*SMALL, (50, 10), (64, 64), (65, 64), (70, 130), (129, 129), (300, 140), (200, 333)]
DRIVERS = (None, "gram", "torch")
LAPACK_THRESHOLD = 50


class Result(NamedTuple):
    """One matrix: LAPACK's ratio, and what is wrong ("" if nothing)."""

    kind: str
    shape: tuple[int, int]
    dtype: torch.dtype
    isa: str
    driver: str | None
    ratio: float
    problem: str


Values = Callable[[int, float], Tensor]


def _evenly(k: int, ulp: float) -> Tensor:
    return torch.linspace(1, ulp if k > 1 else 1, k, dtype=torch.float64)


def _geometric(k: int, ulp: float) -> Tensor:
    return ulp ** torch.linspace(0, 1 if k > 1 else 0, k, dtype=torch.float64)


def _clustered(k: int, ulp: float) -> Tensor:
    return torch.cat([torch.ones(1, dtype=torch.float64), torch.full((k - 1,), ulp, dtype=torch.float64)])


def types(dtype: torch.dtype) -> dict[str, Callable[[int, int, torch.Generator], Tensor]]:
    """Makers of float64 matrices (m, n) for a dtype, whose thresholds they use."""
    info = torch.finfo(dtype)
    ulp, tiny, huge = info.eps, info.smallest_normal, info.max
    Make = Callable[[int, int, torch.Generator], Tensor]

    def diagonal(values: Values, factor: float = 1) -> Make:
        def make(m: int, n: int, g: torch.Generator) -> Tensor:
            d = values(min(m, n), ulp)
            signs = torch.randint(0, 2, d.shape, generator=g).double() * 2 - 1
            a = torch.zeros(m, n, dtype=torch.float64)
            a.diagonal().copy_(d * signs * factor)
            return a

        return make

    def dense(values: Values, factor: float = 1) -> Make:
        def make(m: int, n: int, g: torch.Generator) -> Tensor:
            k = min(m, n)
            return orthonormal(m, k, g) * values(k, ulp) @ orthonormal(n, k, g).T * factor

        return make

    def entries(factor: float = 1) -> Make:
        return lambda m, n, g: (2 * torch.rand(m, n, dtype=torch.float64, generator=g) - 1) * factor

    def bidiagonal(m: int, n: int, g: torch.Generator) -> Tensor:
        a = torch.zeros(m, n, dtype=torch.float64)
        for line in (a.diagonal(), a.diagonal(1)):
            line.copy_(ulp ** (4 * torch.rand(line.shape, dtype=torch.float64, generator=g) - 2))
        return a

    low, high = math.sqrt(tiny), math.sqrt(huge)
    found: dict[str, Make] = {
        "drv 1 zero": lambda m, n, g: torch.zeros(m, n, dtype=torch.float64),
        "drv 2 identity": lambda m, n, g: torch.eye(m, n, dtype=torch.float64),
        "drv 3 even": dense(_evenly),
        "drv 4 even, underflow / ulp": dense(_evenly, tiny / ulp),
        "drv 5 even, overflow * ulp": dense(_evenly, huge * ulp),
        "bd 16 bidiagonal, log": bidiagonal,
    }
    for number, (name, values) in enumerate(
        {"even": _evenly, "geometric": _geometric, "clustered": _clustered}.items()
    ):
        found[f"bd {3 + number} diagonal, {name}"] = diagonal(values)
        found[f"bd {8 + number} dense, {name}"] = dense(values)
    for number, (name, factor) in enumerate({"sqrt(overflow)": high, "sqrt(underflow)": low}.items()):
        found[f"bd {6 + number} diagonal, geometric, {name}"] = diagonal(_geometric, factor)
        found[f"bd {11 + number} dense, even, {name}"] = dense(_evenly, factor)
        found[f"bd {14 + number} entries, {name}"] = entries(factor)
    found["bd 13 entries"] = entries()
    return found


def check(shapes: list[tuple[int, int]]) -> Iterator[Result]:
    """Every type, shape, dtype, instruction set and driver; exact values are computed once for all."""
    before = _cpu.current_isa()
    try:
        for dtype in (torch.float32, torch.float64):
            for kind, make in types(dtype).items():
                for shape in shapes:
                    a = make(*shape, torch.Generator().manual_seed(sum(shape))).to(dtype)
                    extended = dtype == torch.float64 and min(shape) > EXTENDED
                    exact = singular_values_by_bisection(a) if extended else exact_values(a)
                    lapack = _error(torch.linalg.svdvals(a), exact)
                    for driver in DRIVERS:
                        for isa in _cpu.runnable_isas() if driver != "torch" else ["MKL"]:
                            if driver != "torch":
                                _cpu.use_isa(isa)
                            ratio, problem = _judge(sf.svdvals(a, driver=driver), exact, driver, lapack)
                            yield Result(kind, shape, dtype, isa, driver, ratio, problem)
    finally:
        _cpu.use_isa(before)


def _error(values: Tensor, exact: np.ndarray) -> np.longdouble:
    return np.abs(values.numpy().astype(np.longdouble) - exact).max()


def _judge(values: Tensor, exact: np.ndarray, driver: str | None, lapack: np.longdouble) -> tuple[float, str]:
    info, k = torch.finfo(values.dtype), len(exact)
    unit, rounding = np.longdouble(info.eps) * exact[0], np.longdouble(info.smallest_normal) * info.eps / 2
    error = _error(values, exact)
    ratio = float(error / (k * unit + rounding))
    if not (values.isfinite().all() and (values >= 0).all() and (values[:-1] >= values[1:]).all()):
        return ratio, "not finite, negative or out of order"
    if driver == "torch":  # LAPACK's own: its promise
        return ratio, "" if ratio <= LAPACK_THRESHOLD else "LAPACK's own threshold"
    allowed = max(constant(k) * unit, 2 * lapack)
    if driver == "gram":  # as its docstring says: sqrt(k eps) of the Gram matrix in float64, and the rounding
        allowed = max(allowed, math.sqrt(k * torch.finfo(torch.float64).eps) * exact[0] + unit)
    return (
        ratio,
        "" if error <= allowed + rounding else f"{float(error / (allowed + rounding)):.3f} times the bound",
    )
