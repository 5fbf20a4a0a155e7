"""The stage `stats` on a GPU: from descending singular values to every statistic, in float64.

For one matrix, x_0 >= ... >= x_{n-1} are the eigenvalues lambda = (sigma / sigma_1)^2, or what fit_powerlaw
is given. With g_d = ln(x_{d-1} / x_d), the tail with threshold x_d has the d + 1 values x_0 ... x_d, and

    L_d = ln(x_0 / x_d)              = sum_{e <= d} g_e
    E_d = sum_{e <= d} ln(x_e / x_d) = sum_{e <= d} e g_e         alpha_d - 1 = (d + 1) / E_d
    D_d = max_{e <= d} |1 - exp(-(alpha_d - 1) (L_d - L_e)) - (d - e) / (d + 1)|

No term of the sums is negative, so nothing cancels. Hill's estimate is alpha_d for the upper half. Of equal
values only the last is a candidate; the least D wins, the largest d (the smallest xmin) in a tie.
Source: Clauset, Shalizi, Newman, SIAM Review 51 (2009); docs/statistics.md has the other fields.

Three launches, none of which the host waits for:
1. `spectrum_kernel` (`tail_kernel` for fit_powerlaw), a program a matrix: sums, then L, and alpha - 1 of each
   candidate. O(n): passes over the row in tiles, with carried sums.
2. `distance_kernel`, a program for CANDIDATES of the d of one matrix: D over the whole tail, nothing skipped.
   n^2 / 2 exponentials a matrix: nearly all the work.
3. `fitted_kernel` (`fit_kernel`), a program a matrix: the least D, and what follows from alpha. O(n).
Workspace: L, alpha - 1 and D, 24 n bytes a matrix. docs/gpu.md counts flops and bytes.

The order of every sum depends on n alone and there are no atomics: a matrix has the same bits in any batch.
Launched without contraction to fused multiply-adds, which would set the squares of equal values apart.
"""

from __future__ import annotations

import triton
import triton.language as tl

from spectral_fast._ops import FITTED_FIELDS, POWERLAW_FIELDS, SMOOTH_FIELDS

# Not tuned: no GPU has run these. The registers that tests/test_triton_compile.py reads decide (triton 3.7.1;
# sm_80, 90, 100, gfx942). A tile of 512 is two values a thread, at most 126 registers in any kernel; 1024
# takes 184. 32 x 32 is four exponentials a thread in 64 registers, which lets half of the 2048 threads of an
# NVIDIA multiprocessor run; eight take 125 to 159, and four in 16 x 32 by 4 warps spill.
WARPS = 8
TILE = 512
CANDIDATES = 32
TAIL = 32

# No constant NAN: a launch compares the constants with what they were when it was compiled, and NaN differs.
INF = tl.constexpr(float("inf"))
LN_10 = tl.constexpr(2.302585092994046)

SMOOTH = tl.constexpr(len(SMOOTH_FIELDS))
SPECTRAL_NORM = tl.constexpr(SMOOTH_FIELDS.index("spectral_norm"))
FROBENIUS_NORM = tl.constexpr(SMOOTH_FIELDS.index("frobenius_norm"))
NUCLEAR_NORM = tl.constexpr(SMOOTH_FIELDS.index("nuclear_norm"))
STABLE_RANK = tl.constexpr(SMOOTH_FIELDS.index("stable_rank"))
EFFECTIVE_RANK = tl.constexpr(SMOOTH_FIELDS.index("effective_rank"))
SPECTRAL_ENTROPY = tl.constexpr(SMOOTH_FIELDS.index("spectral_entropy"))
PARTICIPATION_RATIO = tl.constexpr(SMOOTH_FIELDS.index("participation_ratio"))
CONDITION_NUMBER = tl.constexpr(SMOOTH_FIELDS.index("condition_number"))
LOG_NORM = tl.constexpr(SMOOTH_FIELDS.index("log_norm"))
ALPHA_HILL = tl.constexpr(SMOOTH_FIELDS.index("alpha_hill"))
ALPHA_RANKSIZE = tl.constexpr(SMOOTH_FIELDS.index("alpha_ranksize"))

FITTED = tl.constexpr(len(FITTED_FIELDS))
ALPHA = tl.constexpr(FITTED_FIELDS.index("alpha"))
ALPHA_STDERR = tl.constexpr(FITTED_FIELDS.index("alpha_stderr"))
XMIN = tl.constexpr(FITTED_FIELDS.index("xmin"))
KS_DISTANCE = tl.constexpr(FITTED_FIELDS.index("ks_distance"))
N_TAIL = tl.constexpr(FITTED_FIELDS.index("n_tail"))
ALPHA_WEIGHTED = tl.constexpr(FITTED_FIELDS.index("alpha_weighted"))
LOG_ALPHA_NORM = tl.constexpr(FITTED_FIELDS.index("log_alpha_norm"))
MP_EDGE = tl.constexpr(FITTED_FIELDS.index("mp_edge"))
MP_SPIKES = tl.constexpr(FITTED_FIELDS.index("mp_spikes"))

POWERLAW = tl.constexpr(len(POWERLAW_FIELDS))
FIT_ALPHA = tl.constexpr(POWERLAW_FIELDS.index("alpha"))
FIT_STDERR = tl.constexpr(POWERLAW_FIELDS.index("alpha_stderr"))
FIT_XMIN = tl.constexpr(POWERLAW_FIELDS.index("xmin"))
FIT_DISTANCE = tl.constexpr(POWERLAW_FIELDS.index("ks_distance"))


@triton.jit
def _largest(values: tl.tensor, n: tl.tensor, SIGMA: tl.constexpr) -> tl.tensor:
    """The first of the descending values; NaN where one is not finite, or is negative and a sigma.

    A sort may place a NaN first or last, by its sign.
    """
    first, last = tl.load(values).to(tl.float64), tl.load(values + n - 1).to(tl.float64)
    proper = (first < INF) & ((last >= 0.0) if SIGMA else (last > -INF))
    return tl.where(proper, first, float("nan"))


@triton.jit
def _eigenvalue(
    values: tl.tensor, d: tl.tensor, mask: tl.tensor, largest: tl.tensor, SIGMA: tl.constexpr
) -> tl.tensor:
    """x_d; relative to the largest where sigma is given, so that no square overflows."""
    x = tl.load(values + d, mask=mask, other=0.0).to(tl.float64)
    if SIGMA:
        x = x / largest
        x = x * x
    return x


@triton.jit
def _log_ratio(x: tl.tensor, y: tl.tensor) -> tl.tensor:
    """ln(x / y) for x >= y > 0, good to a few eps relative however close they are.

    With t = (x - y) / y and u = 1 + t rounded, ln(1 + t) = ln(u) t / (u - 1) to a few eps: numerator and
    denominator share the rounding error of u (Kahan's log1p, HP-15C Advanced Functions Handbook, 1982).
    t may overflow for a denormal y; there the difference of two logarithms is as good.
    """
    t = (x - y) / y
    u = 1.0 + t
    near = tl.where(u == 1.0, t, tl.log(u) * (t / (u - 1.0)))
    return tl.where(t < 1e300, near, tl.log(x) - tl.log(y))


@triton.jit
def _at(tile: tl.tensor, lane: tl.tensor, index: tl.tensor) -> tl.tensor:
    """One element of a tile; 0 where the index is none of its lanes."""
    return tl.sum(tl.where(lane == index, tile, 0.0))


@triton.jit
def _tails(
    values: tl.tensor,
    n: tl.tensor,
    largest: tl.tensor,
    middle: tl.tensor,
    logs: tl.tensor,
    slopes: tl.tensor,
    SIGMA: tl.constexpr,
    TILE: tl.constexpr,
) -> tl.tensor:
    """Write L (inf where x is not positive) and alpha - 1 (0 where d is no candidate); return E at middle."""
    lane = tl.arange(0, TILE)
    usable = tl.where(largest < INF, n, 0)
    log_carry = tl.full((), 0.0, tl.float64)
    excess_carry = tl.full((), 0.0, tl.float64)
    excess_middle = tl.full((), 0.0, tl.float64)
    for start in range(0, n, TILE):
        d = start + lane
        inside = d < n
        x = _eigenvalue(values, d, inside, largest, SIGMA)
        before = _eigenvalue(values, d - 1, inside & (d > 0), largest, SIGMA)
        after = _eigenvalue(values, d + 1, d + 1 < n, largest, SIGMA)
        positive = (d < usable) & (x > 0.0)
        gap = tl.where(positive & (before > x), _log_ratio(before, x), 0.0)
        log = log_carry + tl.cumsum(gap, 0)
        excess = excess_carry + tl.cumsum(gap * d.to(tl.float64), 0)
        candidate = positive & (excess > 0.0) & (x > after)
        slope = (d + 1).to(tl.float64) / excess
        tl.store(logs + d, tl.where(positive, log, INF), mask=inside)
        tl.store(slopes + d, tl.where(candidate, slope, 0.0), mask=inside)
        log_carry = _at(log, lane, TILE - 1)
        excess_carry = _at(excess, lane, TILE - 1)
        excess_middle += _at(excess, d, middle)
    return excess_middle


@triton.jit
def _ranksize(
    values: tl.tensor,
    n: tl.tensor,
    largest: tl.tensor,
    count: tl.tensor,
    mean: tl.tensor,
    TILE: tl.constexpr,
) -> tl.tensor:
    """-slope of ln s on ln rank over the first `count` values; `mean` is that of their ln rank."""
    lane = tl.arange(0, TILE)
    product = tl.zeros((TILE,), tl.float64)
    spread = tl.zeros((TILE,), tl.float64)
    for start in range(0, count, TILE):
        d = start + lane
        inside = d < count
        s = tl.load(values + d, mask=inside, other=0.0).to(tl.float64) / largest
        deviation = tl.where(inside, tl.log((d + 1).to(tl.float64)) - mean, 0.0)
        product += deviation * tl.log(tl.where(inside, s, 1.0))
        spread += deviation * deviation
    slope = -tl.sum(product) / tl.sum(spread)
    return tl.where(count >= 2, slope, float("nan"))


@triton.jit(do_not_specialize=["n"])
def spectrum_kernel(
    values: tl.tensor,
    n: tl.int32,
    smooth: tl.tensor,
    logs: tl.tensor,
    slopes: tl.tensor,
    TILE: tl.constexpr,
) -> None:
    """values (B, n) descending -> smooth (B, SMOOTH), workspaces logs and slopes (B, n); grid (B,)."""
    row = tl.program_id(0).to(tl.int64)
    values += row * n
    smooth += row * SMOOTH
    lane = tl.arange(0, TILE)
    largest = _largest(values, n, True)

    total = tl.zeros((TILE,), tl.float64)
    total_lam = tl.zeros((TILE,), tl.float64)
    total_squared = tl.zeros((TILE,), tl.float64)
    s_log_s = tl.zeros((TILE,), tl.float64)
    lam_log_s = tl.zeros((TILE,), tl.float64)
    log_rank = tl.zeros((TILE,), tl.float64)
    count = tl.zeros((TILE,), tl.int32)
    count_lam = tl.zeros((TILE,), tl.int32)
    for start in range(0, n, TILE):
        d = start + lane
        inside = d < n
        s = tl.where(inside, tl.load(values + d, mask=inside, other=0.0).to(tl.float64) / largest, 0.0)
        lam = s * s
        log_s = tl.log(tl.where(s > 0.0, s, 1.0))
        total += s
        total_lam += lam
        total_squared += lam * lam
        s_log_s += s * log_s
        lam_log_s += lam * log_s
        log_rank += tl.where(s > 0.0, tl.log((d + 1).to(tl.float64)), 0.0)
        count += (s > 0.0).to(tl.int32)
        count_lam += (lam > 0.0).to(tl.int32)
    nuclear = tl.sum(total)
    lam_sum = tl.sum(total_lam)
    positive = tl.sum(count)
    upper_half = tl.sum(count_lam)
    upper_half -= upper_half // 2
    excess = _tails(values, n, largest, upper_half - 1, logs + row * n, slopes + row * n, True, TILE)
    mean_log_rank = tl.sum(log_rank) / positive.to(tl.float64)
    ranksize = _ranksize(values, n, largest, positive, mean_log_rank, TILE)

    # With p = s / sum s, -sum p ln p = ln(sum s) - sum s ln s / sum s: both terms are positive.
    entropy = tl.log(nuclear) - tl.sum(s_log_s) / nuclear
    lam_entropy = tl.log(lam_sum) - 2.0 * tl.sum(lam_log_s) / lam_sum
    smallest = tl.load(values + n - 1).to(tl.float64) / largest
    log_norm = (2.0 * tl.log(largest) + tl.log(lam_sum)) / LN_10
    # A zero matrix has norms, although s is 0 / 0.
    zero = largest == 0.0
    tl.store(smooth + SPECTRAL_NORM, largest)
    tl.store(smooth + FROBENIUS_NORM, tl.where(zero, 0.0, largest * tl.sqrt(lam_sum)))
    tl.store(smooth + NUCLEAR_NORM, tl.where(zero, 0.0, largest * nuclear))
    tl.store(smooth + STABLE_RANK, lam_sum)
    tl.store(smooth + EFFECTIVE_RANK, tl.exp(entropy))
    tl.store(smooth + SPECTRAL_ENTROPY, tl.where(n > 1, lam_entropy / tl.log(n.to(tl.float64)), float("nan")))
    tl.store(smooth + PARTICIPATION_RATIO, lam_sum * lam_sum / tl.sum(total_squared))
    tl.store(smooth + CONDITION_NUMBER, 1.0 / smallest)
    tl.store(smooth + LOG_NORM, tl.where(zero, -INF, log_norm))
    hill = 1.0 + upper_half.to(tl.float64) / excess
    tl.store(smooth + ALPHA_HILL, tl.where(excess > 0.0, hill, float("nan")))
    tl.store(smooth + ALPHA_RANKSIZE, ranksize)


@triton.jit(do_not_specialize=["n"])
def tail_kernel(
    values: tl.tensor, n: tl.int32, logs: tl.tensor, slopes: tl.tensor, TILE: tl.constexpr
) -> None:
    """Eigenvalues (B, n) descending -> workspaces logs and slopes (B, n); grid (B,)."""
    offset = tl.program_id(0).to(tl.int64) * n
    largest = _largest(values + offset, n, False)
    _tails(values + offset, n, largest, -1, logs + offset, slopes + offset, False, TILE)


@triton.jit(do_not_specialize=["n"])
def distance_kernel(
    logs: tl.tensor,
    slopes: tl.tensor,
    n: tl.int32,
    distances: tl.tensor,
    CANDIDATES: tl.constexpr,
    TAIL: tl.constexpr,
) -> None:
    """D of every candidate, infinite for the others: (B, n); grid (B * ceil(n / CANDIDATES),)."""
    blocks = tl.cdiv(n, CANDIDATES)
    program = tl.program_id(0)
    offset = (program // blocks).to(tl.int64) * n
    # The longest tails first: a GPU starts programs in order.
    d = (blocks - 1 - program % blocks) * CANDIDATES + tl.arange(0, CANDIDATES)
    slope = tl.load(slopes + offset + d, mask=d < n, other=0.0)
    log_d = tl.load(logs + offset + d, mask=d < n, other=0.0)
    candidate = slope > 0.0
    share = 1.0 / (d + 1).to(tl.float64)
    end = tl.max(tl.where(candidate, d + 1, 0))
    worst = tl.zeros((CANDIDATES, TAIL), tl.float64)
    for start in range(0, end, TAIL):
        e = start + tl.arange(0, TAIL)
        log_e = tl.load(logs + offset + e, mask=e < end, other=0.0)
        model = 1.0 - tl.exp(-slope[:, None] * (log_d[:, None] - log_e[None, :]))
        empirical = (d[:, None] - e[None, :]).to(tl.float64) * share[:, None]
        in_tail = candidate[:, None] & (e[None, :] <= d[:, None])
        worst = tl.maximum(worst, tl.where(in_tail, tl.abs(model - empirical), 0.0))
    distance = tl.where(candidate, tl.max(worst, 1), INF)
    tl.store(distances + offset + d, distance, mask=d < n)


@triton.jit
def _best(distances: tl.tensor, n: tl.tensor, TILE: tl.constexpr) -> tuple[tl.tensor, tl.tensor]:
    """The least distance and the largest d that has it; infinite and some d where there is no candidate."""
    lane = tl.arange(0, TILE)
    least = tl.full((TILE,), INF, tl.float64)
    best = tl.zeros((TILE,), tl.int32)
    for start in range(0, n, TILE):
        d = start + lane
        distance = tl.load(distances + d, mask=d < n, other=INF)
        closer = (distance <= least) & (d < n)
        least = tl.where(closer, distance, least)
        best = tl.where(closer, d, best)
    least_of_all = tl.min(least)
    return least_of_all, tl.max(tl.where(least == least_of_all, best, 0))


@triton.jit
def _store_fit(
    fit: tl.tensor,
    n_tail: tl.tensor,
    row: tl.tensor,
    found: tl.tensor,
    slope: tl.tensor,
    threshold: tl.tensor,
    distance: tl.tensor,
    tail: tl.tensor,
) -> None:
    fit += row * POWERLAW
    tl.store(fit + FIT_ALPHA, tl.where(found, 1.0 + slope, float("nan")))
    tl.store(fit + FIT_STDERR, tl.where(found, slope / tl.sqrt(tail.to(tl.float64)), float("nan")))
    tl.store(fit + FIT_XMIN, tl.where(found, threshold, float("nan")))
    tl.store(fit + FIT_DISTANCE, tl.where(found, distance, float("nan")))
    tl.store(n_tail + row, tl.where(found, tail, 0).to(tl.int64))


@triton.jit(do_not_specialize=["n"])
def fit_kernel(
    values: tl.tensor,
    slopes: tl.tensor,
    distances: tl.tensor,
    n: tl.int32,
    fit: tl.tensor,
    n_tail: tl.tensor,
    TILE: tl.constexpr,
) -> None:
    """fit (B, POWERLAW) and n_tail (B,) from the workspaces; grid (B,)."""
    row = tl.program_id(0).to(tl.int64)
    least, best = _best(distances + row * n, n, TILE)
    slope = tl.load(slopes + row * n + best)
    found = least < INF
    threshold = tl.load(values + row * n + best).to(tl.float64)
    _store_fit(fit, n_tail, row, found, slope, threshold, least, best + 1)


@triton.jit(do_not_specialize=["n"])
def fitted_kernel(
    values: tl.tensor,
    logs: tl.tensor,
    slopes: tl.tensor,
    distances: tl.tensor,
    n: tl.int32,
    edge_of_median: tl.float64,
    spikes_from: tl.float64,
    fitted: tl.tensor,
    TILE: tl.constexpr,
) -> None:
    """values (B, n) descending and the workspaces -> fitted (B, FITTED); grid (B,).

    edge_of_median: the Marchenko-Pastur edge over the median of lambda, NaN without a shape.
    spikes_from: what counts as a spike, in units of the edge.
    """
    row = tl.program_id(0).to(tl.int64)
    values += row * n
    logs += row * n
    fitted += row * FITTED
    lane = tl.arange(0, TILE)
    least, best = _best(distances + row * n, n, TILE)
    found = least < INF
    slope = tl.load(slopes + row * n + best)
    alpha = tl.where(found, 1.0 + slope, float("nan"))

    largest = _largest(values, n, True)
    low = _eigenvalue(values, (n - 1) // 2, n > 0, largest, True)
    high = _eigenvalue(values, n // 2, n > 0, largest, True)
    # Of a zero matrix lambda is 0 / 0, while its median is 0.
    edge = edge_of_median * tl.where(largest == 0.0, 0.0, (low + high) / 2.0)
    powers = tl.zeros((TILE,), tl.float64)
    spikes = tl.zeros((TILE,), tl.int32)
    for start in range(0, n, TILE):
        d = start + lane
        # (x_d / x_0)^alpha; exp(-inf) = 0 where lambda is 0.
        powers += tl.exp(-alpha * tl.load(logs + d, mask=d < n, other=INF))
        lam = _eigenvalue(values, d, d < n, largest, True)
        spikes += (lam > edge * spikes_from).to(tl.int32)
    log_largest = 2.0 * tl.log(largest) / LN_10
    log_powers = tl.log(tl.sum(powers)) / LN_10
    # Not sigma^2 from the relative one: sigma >= sqrt(xmin) is to hold for the tail and nothing else.
    threshold = tl.load(values + best).to(tl.float64)
    counted = (edge == edge) & (largest < INF)
    tl.store(fitted + ALPHA, alpha)
    tl.store(fitted + ALPHA_STDERR, tl.where(found, slope / tl.sqrt((best + 1).to(tl.float64)), float("nan")))
    tl.store(fitted + XMIN, tl.where(found, threshold * threshold, float("nan")))
    tl.store(fitted + KS_DISTANCE, tl.where(found, least, float("nan")))
    tl.store(fitted + N_TAIL, tl.where(found, best + 1, 0).to(tl.float64))
    tl.store(fitted + ALPHA_WEIGHTED, alpha * log_largest)
    tl.store(fitted + LOG_ALPHA_NORM, alpha * log_largest + log_powers)
    tl.store(fitted + MP_EDGE, edge * largest * largest)
    tl.store(fitted + MP_SPIKES, tl.where(counted, tl.sum(spikes).to(tl.float64), float("nan")))


@triton.jit(do_not_specialize=["n"])
def threshold_kernel(
    values: tl.tensor,
    given: tl.tensor,
    n: tl.int32,
    fit: tl.tensor,
    n_tail: tl.tensor,
    TILE: tl.constexpr,
) -> None:
    """The fit of eigenvalues (B, n) descending above the xmin given (B,); grid (B,)."""
    row = tl.program_id(0).to(tl.int64)
    values += row * n
    lane = tl.arange(0, TILE)
    threshold = tl.load(given + row)
    largest = _largest(values, n, False)
    usable = tl.where((largest < INF) & (threshold > 0.0), n, 0)

    count = tl.zeros((TILE,), tl.int32)
    excess = tl.zeros((TILE,), tl.float64)
    lowest = tl.full((TILE,), INF, tl.float64)
    for start in range(0, n, TILE):
        d = start + lane
        x = tl.load(values + d, mask=d < n, other=0.0).to(tl.float64)
        inside = (d < usable) & (x >= threshold)
        count += inside.to(tl.int32)
        excess += tl.where(inside, _log_ratio(x, threshold), 0.0)
        lowest = tl.where(inside, x, lowest)
    tail = tl.sum(count)
    size = tail.to(tl.float64)
    slope = size / tl.sum(excess)
    found = largest > tl.min(lowest)

    worst = tl.zeros((TILE,), tl.float64)
    for start in range(0, tail, TILE):
        d = start + lane
        inside = d < tail
        x = tl.where(inside, tl.load(values + d, mask=inside, other=0.0).to(tl.float64), threshold)
        model = 1.0 - tl.exp(-slope * _log_ratio(x, threshold))
        empirical = (tail - 1 - d).to(tl.float64) / size
        worst = tl.maximum(worst, tl.where(inside, tl.abs(model - empirical), 0.0))
    _store_fit(fit, n_tail, row, found, slope, threshold, tl.max(worst), tail)
