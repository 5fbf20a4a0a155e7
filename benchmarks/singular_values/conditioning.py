"""Accuracy against conditioning: what is left of the values as sigma_1 / sigma_n grows from 1 to 1e14.

The matrices are U diag(s) V^T with random orthogonal factors and s falling evenly in ln s from 1 to
1/condition, rounded to the dtype: beyond 1/eps the rounding itself fills up the small values. Errors are
against the values of the rounded matrix (float32: LAPACK in float64; float64: Jacobi in extended precision).
Nothing is timed.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

import spectral_fast
from benchmarks.baselines import BASELINES
from benchmarks.budget import INTERRUPTED
from benchmarks.measure import NOT_MEASURED
from benchmarks.timing import failure_status
from tests.oracles.accuracy import exact_values


def gram_as_is(A: Tensor) -> Tensor:
    """The usual shortcut: eigenvalues of AᵀA in A's own dtype."""
    return torch.linalg.eigvalsh(A.mT @ A).flip(-1).clamp(min=0).sqrt()


METHODS: dict[str, Callable[[Tensor], Tensor]] = {
    "ours": lambda A: spectral_fast.svdvals(A),
    "ours, driver gram": lambda A: spectral_fast.svdvals(A, driver="gram"),
    "torch": BASELINES["torch"].values,
    "eigvalsh(AᵀA)": gram_as_is,
    "eigvalsh(AᵀA) in float64": BASELINES["gram"].values,
}


def conditioned(m: int, n: int, condition: float, dtype: torch.dtype, seed: int) -> Tensor:
    """(m, n), m >= n, with this condition number but for the rounding to dtype. The same in every run."""
    generator = torch.Generator().manual_seed(seed)
    left, right = (
        torch.linalg.qr(torch.randn(rows, n, dtype=torch.float64, generator=generator)).Q for rows in (m, n)
    )
    values = torch.logspace(0, -np.log10(condition), n, dtype=torch.float64)
    return ((left * values) @ right.mT).to(dtype)


def measure_conditioning(
    shape: tuple[int, int],
    conditions: Sequence[float],
    seeds: int,
    max_seconds: float,
    progress: Callable[[str], None],
) -> list[dict[str, Any]]:
    """A row for each dtype and condition number: of every method the largest errors over the seeds.

    error: of any value, in eps sigma_1. smallest: of sigma_n, relative. The condition numbers are visited
    from the ends inwards, so that a cut leaves the whole range.
    """
    end = time.monotonic() + max_seconds
    rows, why = [], ""
    for dtype, condition in _ordered(conditions):
        row = {"dtype": str(dtype).removeprefix("torch."), "m": shape[0], "n": shape[1], "asked": condition}
        if not why and time.monotonic() >= end:
            why = f"not in the budget of {max_seconds:.0f} s"
        if not why:
            progress(f"{row['dtype']} {shape[0]}×{shape[1]}, condition number {condition:g}")
            try:
                row |= _measure(shape, condition, dtype, seeds)
            except KeyboardInterrupt:
                why = INTERRUPTED
            except Exception as error:
                row["status"] = failure_status(error)
        rows.append({"status": f"{NOT_MEASURED}: {why}", "methods": [], **row})
    return sorted(rows, key=lambda row: (row["dtype"], row["asked"]))


def _ordered(conditions: Sequence[float]) -> Iterator[tuple[torch.dtype, float]]:
    left = sorted(conditions)
    while left:
        for place in (-1, 0) if len(left) > 1 else (0,):
            condition = left.pop(place)
            for dtype in (torch.float32, torch.float64):
                yield dtype, condition


def _measure(shape: tuple[int, int], condition: float, dtype: torch.dtype, seeds: int) -> dict[str, Any]:
    eps = torch.finfo(dtype).eps
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in METHODS}
    stored = []
    for seed in range(seeds):
        A = conditioned(*shape, condition, dtype, seed)
        exact = exact_values(A)
        stored.append(float(exact[0] / exact[-1]))
        for name, method in METHODS.items():
            error = np.abs(method(A).numpy().astype(np.longdouble) - exact)
            found[name].append((float(error.max() / (eps * exact[0])), float(error[-1] / exact[-1])))
    methods = [
        {"method": name, "error": max(e for e, _ in pairs), "smallest": max(r for _, r in pairs)}
        for name, pairs in found.items()
    ]
    return {"status": "ok", "seeds": seeds, "stored": max(stored), "methods": methods}
