"""Every statistic of a spectrum in plain torch, float64, batched: the oracle of the statistics kernels.

docs/statistics.md has the formulas. Values are divided by the largest first, so that no square or power
overflows or vanishes whatever the scale of the matrix; results are scaled back at the end.
"""

from __future__ import annotations

import math
from functools import lru_cache

import torch
from torch import Tensor

from spectral_fast import _ops
from spectral_fast._ops import FITTED_FIELDS, SMOOTH_FIELDS
from spectral_fast.backends.reference import implements

# Elements of the (candidate, tail) table of the power-law scan held at once: 32 MB of float64.
_SCAN_ELEMENTS = 1 << 22


def _descending(S: Tensor) -> Tensor:
    # Contiguous: sums over strided rows go in another order, and would give a batch other bits than its rows.
    # + 0: -0 becomes 0.
    return (S.detach().to(torch.float64) + 0.0).contiguous().sort(-1, descending=True).values


def _entropy(p: Tensor) -> Tensor:
    return -torch.special.xlogy(p, p).sum(-1)


@implements("hill_alpha")
def hill_alpha(evals: Tensor, k: int | None) -> Tensor:
    """Hill estimate; see powerlaw.hill_alpha."""
    x = _descending(evals)
    count = (x > 0).sum(-1)
    if x.shape[-1] == 0:
        return x.new_full(x.shape[:-1], torch.nan)
    tail = count - count // 2 if k is None else torch.full_like(count, k)
    last = (tail - 1).clamp(0, x.shape[-1] - 1).unsqueeze(-1)
    rank = torch.arange(x.shape[-1], device=x.device)
    inside = rank < tail.unsqueeze(-1)
    # Of ratios, not of differences between sums of logarithms: no term is negative, so nothing cancels.
    excess = torch.where(inside, _log_ratio(x, x.gather(-1, last)), 0).sum(-1)
    ok = (tail >= 1) & (tail <= count) & (excess > 0) & x.isfinite().all(-1)
    return torch.where(ok, 1 + tail / excess, torch.nan)


@implements("ranksize_slope")
def ranksize_slope(S: Tensor) -> Tensor:
    """Minus the least-squares slope of ln sigma_k on ln k; see powerlaw.ranksize_slope."""
    sigma = _descending(S)
    if sigma.shape[-1] == 0:
        return sigma.new_full(sigma.shape[:-1], torch.nan)
    s = sigma / sigma[..., :1]
    positive = (sigma > 0) & (s > 0)
    y = torch.where(positive, s.log(), 0)
    deviation, spread = rank_deviation(positive)
    slope = -(deviation * y).sum(-1) / spread
    return torch.where((positive.sum(-1) >= 2) & sigma.isfinite().all(-1), slope, torch.nan)


def rank_deviation(positive: Tensor) -> tuple[Tensor, Tensor]:
    """ln k minus its mean over the positive values (zero elsewhere), and its sum of squares."""
    log_rank = torch.arange(1, positive.shape[-1] + 1, dtype=torch.float64, device=positive.device).log()
    count = positive.sum(-1, keepdim=True)
    mean = (positive * log_rank).sum(-1, keepdim=True) / count
    deviation = torch.where(positive, log_rank - mean, 0)
    return deviation, (deviation * deviation).sum(-1)


@implements("fit_powerlaw")
def fit_powerlaw(evals: Tensor, xmin: Tensor | None) -> tuple[Tensor, Tensor]:
    """Clauset-Shalizi-Newman fit; see powerlaw.fit_powerlaw."""
    batch, n = evals.shape[:-1], evals.shape[-1]
    x = evals.detach().to(torch.float64).reshape(math.prod(batch), n).sort(-1).values
    if n == 0:
        missing = x.new_full((x.shape[0],), torch.nan)
        alpha = start = distance = missing
        tail = missing.new_zeros(missing.shape)
    elif xmin is None:
        alpha, start, distance, tail = _scan(x)
    else:
        threshold = xmin.detach().to(torch.float64).expand(batch).reshape(-1, 1)
        alpha, start, distance, tail = _tail_above(x, threshold)
    usable = x.isfinite().all(-1) & alpha.isfinite()
    tail = torch.where(usable, tail, 0).to(torch.int64)
    fit = torch.stack([alpha, (alpha - 1) / tail.to(torch.float64).sqrt(), start, distance], -1)
    return torch.where(usable.unsqueeze(-1), fit, torch.nan).view(*batch, 4), tail.view(batch)


def _log_ratio(x: Tensor, y: Tensor) -> Tensor:
    """ln(x / y), x >= y > 0: accurate where they are close, finite where the quotient is not."""
    excess = (x - y) / y
    return torch.where(excess.isfinite(), torch.log1p(excess), x.log() - y.log())


def _scan(x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """alpha, xmin, D and n_tail of the candidate with the least D; x: (b, n) ascending.

    With g_j = ln(x_j / x_{j-1}), a tail that starts at i has m_i = n - i values and
    sum_{j >= i} ln(x_j / x_i) = sum_{j > i} m_j g_j: positive terms, so nothing cancels.
    """
    b, n = x.shape
    previous = torch.cat([x.new_zeros((b, 1)), x[:, :-1]], -1)
    gap = torch.where(previous > 0, _log_ratio(x, previous), 0)
    count = torch.arange(n, 0, -1, dtype=torch.float64, device=x.device)
    from_top = gap.flip(-1).cumsum(-1).flip(-1)  # g_j + ... + g_{n-1}
    log_to_top = torch.cat([from_top[:, 1:], x.new_zeros((b, 1))], -1)  # ln(x_{n-1} / x_j)
    excess = (gap * count).flip(-1).cumsum(-1).flip(-1)
    excess = torch.cat([excess[:, 1:], x.new_zeros((b, 1))], -1)
    slope = count / excess  # alpha - 1
    # The first of a run of equal values stands for the run; the largest value has no tail.
    candidate = (x > 0) & ((previous <= 0) | (gap > 0)) & (excess > 0)

    distance = x.new_full((b, n), torch.inf)
    first = 0
    while first < n:
        last = min(n, first + max(1, _SCAN_ELEMENTS // max(1, b * (n - first))))
        position = torch.arange(first, n, dtype=torch.float64, device=x.device)
        start = torch.arange(first, last, dtype=torch.float64, device=x.device).unsqueeze(-1)
        log_ratio = log_to_top[:, first:last, None] - log_to_top[:, None, first:]
        model = -torch.expm1(-slope[:, first:last, None] * log_ratio)
        empirical = (position - start) / count[first:last, None]
        apart = torch.where(position >= start, (model - empirical).abs(), 0).amax(-1)
        distance[:, first:last] = torch.where(candidate[:, first:last], apart, torch.inf)
        first = last

    least = distance.amin(-1, keepdim=True)
    index = torch.arange(n, device=x.device)
    best = torch.where(distance == least, index, n - 1).amin(-1, keepdim=True)
    found = least.squeeze(-1).isfinite()
    alpha = torch.where(found, 1 + slope.gather(-1, best).squeeze(-1), torch.nan)
    return alpha, x.gather(-1, best).squeeze(-1), least.squeeze(-1), count[best.squeeze(-1)]


def _tail_above(x: Tensor, xmin: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The fit to the values >= xmin; x: (b, n) ascending, xmin: (b, 1)."""
    n = x.shape[-1]
    inside = (x >= xmin) & (xmin > 0)
    count = inside.sum(-1, keepdim=True).to(torch.float64)
    log_ratio = torch.where(inside, _log_ratio(x, xmin), 0)
    slope = count / log_ratio.sum(-1, keepdim=True)
    rank = torch.arange(n, device=x.device) - (n - count)
    apart = (-torch.expm1(-slope * log_ratio) - rank / count).abs()
    distance = torch.where(inside, apart, 0).amax(-1)
    smallest = torch.where(inside, x, torch.inf).amin(-1)
    distinct = x[:, -1] > smallest
    alpha = torch.where(distinct, 1 + slope.squeeze(-1), torch.nan)
    return alpha, xmin.squeeze(-1), distance, count.squeeze(-1)


@implements("stats_from_svdvals")
def stats_from_svdvals(S: Tensor, rows: int | None, cols: int | None) -> tuple[Tensor, Tensor]:
    """All fields of SpectralStats, packed in the order of SMOOTH_FIELDS and FITTED_FIELDS."""
    S = _descending(S)
    if S.shape[-1] == 0:
        return _empty_stats(S)
    # A spectrum that is none has no statistics at all.
    S = torch.where((S.isfinite() & (S >= 0)).all(-1, keepdim=True), S, torch.nan)
    largest = S[..., 0]
    s = S / largest.unsqueeze(-1)
    lam = s * s
    total, total_squared = lam.sum(-1), (lam * lam).sum(-1)
    log_largest = 2 * largest.log10()
    smooth = {
        "spectral_norm": largest,
        "frobenius_norm": largest * total.sqrt(),
        "nuclear_norm": largest * s.sum(-1),
        "stable_rank": total,
        "effective_rank": _entropy(s / s.sum(-1, keepdim=True)).exp(),
        "spectral_entropy": _entropy(lam / total.unsqueeze(-1)) / math.log(S.shape[-1])
        if S.shape[-1] > 1
        else torch.full_like(total, torch.nan),
        "participation_ratio": total * total / total_squared,
        "condition_number": 1 / s[..., -1],
        "log_norm": log_largest + total.log10(),
        "alpha_hill": hill_alpha(lam, None),
        "alpha_ranksize": ranksize_slope(s),
    }
    # A zero matrix has norms, although s is 0/0.
    for name, at_zero in (("frobenius_norm", 0.0), ("nuclear_norm", 0.0), ("log_norm", -math.inf)):
        smooth[name] = torch.where(largest == 0, at_zero, smooth[name])

    fit, tail = fit_powerlaw(lam, None)
    alpha, stderr, _, distance = fit.unbind(-1)
    # Not start * largest^2: S >= sqrt(xmin) is to hold for the tail and nothing else.
    smallest_of_tail = (S * S).gather(-1, (tail - 1).clamp(min=0).unsqueeze(-1)).squeeze(-1)
    log_powers = alpha.unsqueeze(-1) * lam.log()  # lam = 0 contributes exp(-inf) = 0
    # Of a zero matrix lam is 0/0, while its median is 0.
    edge, spikes = _marchenko_pastur(torch.where(largest.unsqueeze(-1) == 0, 0, lam), rows, cols)
    fitted = {
        "alpha": alpha,
        "alpha_stderr": stderr,
        "xmin": torch.where(tail > 0, smallest_of_tail, torch.nan),
        "ks_distance": distance,
        "n_tail": tail.to(torch.float64),
        "alpha_weighted": alpha * log_largest,
        "log_alpha_norm": alpha * log_largest + log_powers.exp().sum(-1).log10(),
        "mp_edge": edge * largest * largest,
        "mp_spikes": spikes,
    }
    return (
        torch.stack([smooth[name] for name in SMOOTH_FIELDS], -1),
        torch.stack([fitted[name] for name in FITTED_FIELDS], -1),
    )


def _empty_stats(S: Tensor) -> tuple[Tensor, Tensor]:
    smooth = S.new_full((*S.shape[:-1], len(SMOOTH_FIELDS)), torch.nan)
    for name in ("spectral_norm", "frobenius_norm", "nuclear_norm"):
        smooth[..., SMOOTH_FIELDS.index(name)] = 0
    fitted = S.new_full((*S.shape[:-1], len(FITTED_FIELDS)), torch.nan)
    fitted[..., FITTED_FIELDS.index("n_tail")] = 0
    return smooth, fitted


def _marchenko_pastur(lam: Tensor, rows: int | None, cols: int | None) -> tuple[Tensor, Tensor]:
    """Upper edge of the noise bulk and the number of values above it; lam: descending, relative."""
    n = lam.shape[-1]
    over_median, slack = bulk_edge(rows, cols)
    edge = (lam[..., (n - 1) // 2] + lam[..., n // 2]) / 2 * over_median
    spikes = (lam > (edge * (1 + slack)).unsqueeze(-1)).sum(-1).to(torch.float64)
    return edge, torch.where(edge.isfinite(), spikes, torch.nan)


def bulk_edge(rows: int | None, cols: int | None) -> tuple[float, float]:
    """Upper edge of the Marchenko-Pastur bulk over the median of lambda, and its relative slack.

    The largest noise value fluctuates above the edge by about n^(-2/3) of it (Tracy-Widom).
    NaN without a shape.
    """
    if rows is None or cols is None:
        return math.nan, math.nan
    ratio = min(rows, cols) / max(rows, cols)
    return (1 + math.sqrt(ratio)) ** 2 / marchenko_pastur_median(ratio), min(rows, cols) ** (-2 / 3)


@lru_cache(maxsize=1024)
def marchenko_pastur_median(ratio: float) -> float:
    """Median of the Marchenko-Pastur law of unit variance, 0 < ratio = n / m <= 1.

    With x = (1 - r)^2 + 4 r sin^2(t/2) on 0 <= t <= pi, r = sqrt(ratio), the density
    sqrt((b - x)(x - a)) / (2 pi ratio x) on a, b = (1 -+ r)^2 integrates to

    F(t) = 2/pi [sin t / (2 r) + (1 + r^2) t / (4 r^2)
                 - (1 - r^2) / (2 r^2) atan2((1 + r) sin(t/2), (1 - r) cos(t/2))],

    whose middle is found by bisection.
    """
    r = math.sqrt(ratio)
    gap = (1 - ratio) / (1 + r)  # 1 - r without cancellation

    def mass_below(t: float) -> float:
        angle = math.atan2((1 + r) * math.sin(t / 2), gap * math.cos(t / 2))
        bulk = math.sin(t) / (2 * r) + (1 + ratio) * t / (4 * ratio)
        return 2 / math.pi * (bulk - (1 - ratio) / (2 * ratio) * angle)

    low, high = 0.0, math.pi
    for _ in range(60):
        middle = 0.5 * (low + high)
        if mass_below(middle) < 0.5:
            low = middle
        else:
            high = middle
    return gap * gap + 4 * r * math.sin(low / 2) ** 2


@implements("spectral_stats")
def spectral_stats(A: Tensor, driver: str | None) -> tuple[Tensor, Tensor, Tensor]:
    """Values and statistics of a batch of matrices; NaN for a matrix with a NaN or an infinity."""
    S, _ = _ops.svdvals_ex(A, driver, False)
    smooth, fitted = stats_from_svdvals(S, A.shape[-2], A.shape[-1])
    return S, smooth, fitted
