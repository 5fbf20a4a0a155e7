"""Random matrices against the oracle, under the promised bound; the statistics of each against numpy's.

Oracles: float32, bfloat16, float16 LAPACK in float64, whose error is 1e-8 of float32's eps. float64 up to
EXTENDED values: Jacobi in extended precision. float64 above, reported apart as `weak`: LAPACK in float64,
with room for LAPACK's own error (benchmarks/accuracy_gate.py derives the factor); beyond, extended precision.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

import numpy as np
import torch
from torch import Tensor

import spectral_fast as sf
from benchmarks.accuracy_gate import WEAK_FACTOR
from spectral_fast import _cpu
from tests.oracles.accuracy import constant, exact_values, judge
from tests.reliability.extended import singular_values_by_bisection
from tests.reliability.matrices import Case, build, plan

CHUNK = 500  # matrices: half a minute of work
# Long double: 0.08 s for 64 values, 1.7 s for 128.
EXTENDED = 64
# Each value enters a sum of at most 1024 terms with a rounding of eps, 2e-13 in all, in both computations;
# that leaves two digits for logarithms and powers.
STATISTICS_RTOL = 1e-10


def check_chunk(seed: int, chunk: int, matrices: int = CHUNK) -> dict[str, Any]:
    """Judges all cases of a chunk: what was checked, the largest errors, and what failed."""
    found: dict[str, Any] = {"matrices": 0, "groups": {}, "failures": []}
    for case in plan(seed, chunk, matrices):
        for index, group, ratio, problem in check(case):
            summary = found["groups"].setdefault(group, {"matrices": 0, "largest": 0.0, "beyond": 0})
            summary["matrices"] += 1
            summary["largest"] = max(summary["largest"], ratio)
            summary["beyond"] += ratio > 1
            found["matrices"] += 1
            if problem:
                about = {**asdict(case), "isa": isa_of(case), "matrix": index, "ratio": ratio}
                entries = 0 if case.layout == "expanded" else index  # expanded: all are the first
                about |= {"spectrum": case.spectra[entries], "exponent": case.exponents[entries]}
                del about["spectra"], about["exponents"]
                found["failures"].append({"case": case.name, "problem": problem, **about})
    return found


def isa_of(case: Case) -> str:
    """The instruction sets by turns."""
    isas = _cpu.runnable_isas()
    return isas[case.index % len(isas)]


def check(case: Case) -> Iterator[tuple[int, str, float, str]]:
    """For each matrix: its index, its group, error over c eps sigma_1, and what is wrong ("" if nothing)."""
    A = build(case)
    before, threads = _cpu.current_isa(), torch.get_num_threads()
    _cpu.use_isa(isa_of(case))
    torch.set_num_threads(case.threads)
    try:
        values = sf.svdvals(A)
        stats = sf.spectral_stats(A, return_svdvals=True)
    except Exception as error:
        yield 0, _group(A), math.inf, f"{type(error).__name__}: {error}"
        return
    finally:
        torch.set_num_threads(threads)
        _cpu.use_isa(before)
    if stats.svdvals is None or not torch.equal(stats.svdvals, values):
        yield 0, _group(A), math.inf, "the values of spectral_stats are not those of svdvals"
        return
    for index, matrix in enumerate(A):
        ratio, problem = _values(matrix, values[index])
        if not problem:
            one = {name: getattr(stats, name)[index].item() for name in sf.stats.scalar_fields()}
            problem = _statistics(values[index], one)
        yield index, _group(A), ratio, problem


def _group(A: Tensor) -> str:
    k = min(A.shape[-2:])
    weak = "weak " if A.dtype == torch.float64 and k > EXTENDED else ""
    return f"{weak}{str(A.dtype).removeprefix('torch.')} {'r <= 128' if k <= 128 else 'r > 128'}"


def _values(A: Tensor, values: Tensor) -> tuple[float, str]:
    """The error in units of what c allows, and what is wrong beyond the contract."""
    if not (values.isfinite().all() and (values >= 0).all() and (values[:-1] >= values[1:]).all()):
        return math.inf, "not finite, negative or out of order"
    weak = A.dtype == torch.float64 and len(values) > EXTENDED
    exact = torch.linalg.svdvals(A).numpy() if weak else exact_values(A)
    ratio, problem = _judge(A, values, exact)
    if not weak or ratio <= WEAK_FACTOR:
        return ratio, "" if weak else problem
    return _judge(A, values, singular_values_by_bisection(A))


def _judge(A: Tensor, values: Tensor, exact: np.ndarray) -> tuple[float, str]:
    """In long double: float64 has no half of its smallest number, to which small results are rounded."""
    wide, info = np.longdouble, torch.finfo(values.dtype)
    error = np.abs(values.numpy().astype(wide) - exact).max()
    rounding = wide(info.smallest_normal) * wide(info.eps) / 2
    promised = constant(len(values)) * wide(info.eps) * wide(exact[0]) + rounding
    ratio = float(error / promised)
    if ratio <= 1:
        return ratio, ""
    twice_torch = 2 * wide(judge(A, values, exact).torch_error) + rounding
    beyond = float(error / max(promised, twice_torch))
    return ratio, "" if beyond <= 1 else f"{beyond:.3f} times the bound"


def _statistics(values: Tensor, stats: dict[str, float]) -> str:
    """What is wrong with the statistics of these values, computed here again in numpy."""
    s = values.double().numpy()
    largest = float(s[0])
    if largest == 0:
        zeros = all(
            stats[name] == 0 for name in ("spectral_norm", "frobenius_norm", "nuclear_norm", "n_tail")
        )
        return "" if zeros and math.isnan(stats["alpha"]) else "statistics of a zero matrix"
    x = s / largest
    lam = x * x
    p, q = x[x > 0] / x.sum(), lam[lam > 0] / lam.sum()
    with np.errstate(divide="ignore"):
        expected = {
            "spectral_norm": largest,
            "frobenius_norm": largest * math.sqrt(lam.sum()),
            "nuclear_norm": largest * float(x.sum()),
            "stable_rank": float(lam.sum()),
            "effective_rank": float(np.exp(-(p * np.log(p)).sum())),
            "participation_ratio": float(lam.sum() ** 2 / (lam * lam).sum()),
            "condition_number": float(np.divide(s[0], s[-1])),
            "log_norm": float(np.log10(lam.sum())) + 2 * math.log10(largest),
        }
    if len(s) > 1:
        expected["spectral_entropy"] = float(-(q * np.log(q)).sum() / math.log(len(s)))
    for name, value in expected.items():
        found = stats[name]
        # Logarithms and entropies near zero are differences: their error is that of terms of size one.
        close = abs(found - value) <= STATISTICS_RTOL * max(
            abs(value), 1.0 if "log" in name or "entropy" in name else 0
        )
        if not (close or found == value):
            return f"{name} is {found!r}, numpy has {value!r}"
    return _fit(x, stats)


def _fit(x: np.ndarray, stats: dict[str, float]) -> str:
    """The exponents are finite where two values differ, and within what they can be."""
    tail = stats["n_tail"]
    if len(np.unique(x[x > 0] ** 2)) < 2:
        return "" if tail == 0 or math.isfinite(stats["alpha"]) else "alpha of equal values"
    names = ("alpha", "alpha_stderr", "ks_distance")
    if tail and not all(math.isfinite(stats[name]) for name in names):
        return f"not finite beside n_tail {tail}: " + ", ".join(f"{name} {stats[name]}" for name in names)
    if tail and not (2 <= tail <= len(x) and stats["alpha"] > 1 and 0 <= stats["ks_distance"] <= 1):
        return f"alpha {stats['alpha']}, D {stats['ks_distance']}, n_tail {tail} of {len(x)}"
    return ""
