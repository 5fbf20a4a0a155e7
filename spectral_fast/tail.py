"""tail_stats: the top of the spectrum and its exponents from a few products, each with a standard error."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from spectral_fast import _ops
from spectral_fast.linalg import is_dense
from spectral_fast.powerlaw import describe, fit_powerlaw, threshold
from spectral_fast.quadrature import Spectrum, block_lanczos, estimate_spectrum
from spectral_fast.stats import spectral_stats

# (least columns, probes, steps): errors against probes and steps are in docs/tail.md, "What was tried". From
# some 1500 columns on A does not stay in a cache, and sixteen vectors take no longer than eight: reading it
# does.
_DEFAULTS = ((3072, 16, 12), (1536, 16, 10), (0, 8, 12))

# Below this many columns for each vector of the basis all singular values cost no more than the estimate.
_EXACT_BELOW = 4

# Of the probes' own generator where none is given: global random numbers stay as they are.
_SEED = 0x5EED

# How far estimates are off, as parts of what can be seen of it: measured, docs/tail.md, section "Errors".
_OF_LIFT = 0.5
_OF_SPACING = 1.5
_OF_CHORD = 0.4
_OF_END = 0.3
_OF_UNSEEN = 0.3


@dataclass(frozen=True, eq=False)
class TailStats:
    """Estimates from a few products; lambda = sigma^2. Registered as a pytree.

    Fields have the shape of the batch, ``leading`` and its error one dimension (k) more; float64.
    ``<field>_error`` is the standard error against the exact value of the same matrix: the 95 % interval is
    +- 1.96 of it.
    """

    spectral_norm: Tensor
    """sigma_1"""
    spectral_norm_error: Tensor
    """standard error, as every field of this kind"""
    frobenius_norm: Tensor
    """sqrt(sum sigma^2), exact but for rounding"""
    stable_rank: Tensor
    """sum sigma^2 / sigma_1^2"""
    stable_rank_error: Tensor
    leading: Tensor
    """the k largest singular values, descending"""
    leading_error: Tensor
    alpha_hill: Tensor
    """Hill estimate over the upper half of lambda"""
    alpha_hill_error: Tensor
    alpha_ranksize: Tensor
    """-slope of ln sigma_k on ln k"""
    alpha_ranksize_error: Tensor
    alpha: Tensor
    """Clauset-Shalizi-Newman density exponent of lambda above the given xmin; NaN without one"""
    alpha_error: Tensor
    xmin: Tensor
    """the given threshold, in units of lambda; NaN without one"""


pytree.register_dataclass(TailStats)


def tail_stats(
    A: Tensor,
    *,
    k: int = 16,
    n_probes: int | None = None,
    n_steps: int | None = None,
    xmin: float | Tensor | None = None,
    generator: torch.Generator | None = None,
) -> TailStats:
    """Estimates of the top of the spectrum and of its exponents, for each matrix in A (\\*, m, n).

    A: any strides; float32 and float64; bfloat16 and float16 are computed in float32. Nothing is known
        beforehand: to follow a matrix through training, see :class:`spectral_fast.SpectralTracker`.
    k: leading singular values wanted.
    n_probes, n_steps: columns of the random block, and products with it: 4 m n n_probes n_steps flops. More
        probes reduce the sampling error, as 1 / sqrt(n_probes min(m, n)); more steps see finer. None: 8 and
        12, from 1536 columns on 16 and 10, from 3072 on 16 and 12.
    xmin: threshold of the power law for ``alpha``, in units of lambda, a number or broadcast to the batch:
        that of an earlier exact look. It is not estimated: where it jumps alpha does.
    generator: for the probes, on any device. None: a fixed seed, the same in each call; torch's
        global state is neither used nor changed. The probes are one block for the whole batch.

    A matrix with fewer columns than 4 n_probes n_steps goes through :func:`spectral_fast.spectral_stats`,
    which is cheaper there: its errors are 0. One with a NaN or an infinity, or with a norm whose square over-
    or underflows (in float32 beyond 1e18 or below 1e-15, but for 0), has NaN in all fields. What float32
    cannot see: of eigenvalues below 1e-7 lambda_1 only that they are small. Zeros count as small positive
    values: of a matrix of low rank alpha_hill and alpha_ranksize are not the exact path's, nor are they with
    so few steps where most of lambda lies below the last node (docs/tail.md, "Limits").

    The same call gives the same bits; another batch, thread count or device differs by rounding. Not
    differentiable. On a GPU nothing is waited for but by torch.linalg.eigh of small matrices.
    Raises TypeError or ValueError for what is no batch of real matrices and for numbers out of range, and
    what fit_powerlaw raises for xmin.
    Source: block Lanczos quadrature with deflation; spectral_fast/quadrature.py and docs/tail.md.
    """
    _require(A, k, n_probes, n_steps)
    A = A.detach()
    if A.shape[-2] < A.shape[-1]:
        A = A.mT
    n = A.shape[-1]
    probes_of_size, steps_of_size = next(each[1:] for each in _DEFAULTS if n >= each[0])
    n_probes = probes_of_size if n_probes is None else n_probes
    n_steps = steps_of_size if n_steps is None else n_steps
    batch = A.shape[:-2]
    x = None if xmin is None else threshold(xmin, A.new_empty((*batch, n), dtype=torch.float64), "tail_stats")
    if n < _EXACT_BELOW * n_probes * n_steps or A.numel() == 0:
        return _exact(A, min(k, n), x)
    if k > n_probes * n_steps:
        raise ValueError(
            f"tail_stats: k = {k} values need n_probes * n_steps >= k, got {n_probes} * {n_steps}"
        )
    if generator is None:
        generator = torch.Generator().manual_seed(_SEED)
    probes = torch.randn(n, n_probes, generator=generator, device=generator.device, dtype=torch.float64)
    arithmetic = torch.finfo(_ops.compute_dtype(A.dtype))
    krylov = block_lanczos(A.reshape(-1, *A.shape[-2:]), probes, n_steps)
    spectrum = estimate_spectrum(krylov, n, n_steps, arithmetic)
    estimates = _estimates(spectrum, k, n_probes, None if x is None else x.reshape(-1), arithmetic.eps)
    return TailStats(**{name: value.reshape((*batch, *value.shape[1:])) for name, value in estimates.items()})


def _require(A: Any, k: Any, n_probes: Any, n_steps: Any) -> None:
    if not isinstance(A, Tensor):
        raise TypeError(f"tail_stats(): argument 'A' must be Tensor, not {type(A).__name__}")
    if not is_dense(A) or A.dim() < 2 or A.dtype not in _ops.REAL_DTYPES:
        raise ValueError(
            f"tail_stats: A must be a dense real floating-point tensor of shape (*, m, n), got {describe(A)}"
        )
    # Four nodes and two probes: less has no interval worth the name.
    for name, value, least in (("k", k, 1), ("n_probes", n_probes, 2), ("n_steps", n_steps, 4)):
        if name != "k" and value is None:
            continue
        if not isinstance(value, int) or isinstance(value, bool) or value < least:
            raise ValueError(f"tail_stats: {name} must be an integer of at least {least}, got {value!r}")


def _exact(A: Tensor, k: int, xmin: Tensor | None) -> TailStats:
    stats = spectral_stats(A, return_svdvals=True)
    values: Any = stats.svdvals
    zero = torch.zeros_like(stats.spectral_norm)
    zero = torch.where(stats.spectral_norm.isnan(), torch.nan, zero)
    missing = torch.full_like(zero, torch.nan)
    alpha = missing
    if xmin is not None:
        alpha = fit_powerlaw(values.to(torch.float64).square(), xmin=xmin).alpha
    leading = values[..., :k].to(torch.float64)
    return TailStats(
        spectral_norm=stats.spectral_norm,
        spectral_norm_error=zero,
        frobenius_norm=stats.frobenius_norm,
        stable_rank=stats.stable_rank,
        stable_rank_error=zero,
        leading=leading,
        leading_error=torch.where(leading.isnan(), torch.nan, torch.zeros_like(leading)),
        alpha_hill=stats.alpha_hill,
        alpha_hill_error=zero,
        alpha_ranksize=stats.alpha_ranksize,
        alpha_ranksize_error=zero,
        alpha=alpha,
        alpha_error=torch.where(alpha.isnan(), torch.nan, zero),
        xmin=missing if xmin is None else xmin.clone(),
    )


def _estimates(
    spectrum: Spectrum, k: int, n_probes: int, xmin: Tensor | None, eps: float
) -> dict[str, Tensor]:
    """Every field of TailStats by name, for a flat batch."""
    values = spectrum.values
    sigma = values[:, :k].sqrt()
    largest = sigma[:, :1]
    # The i-th Ritz value bounds lambda_i from below: the estimate is off by part of what lies between, or of
    # what its residual says. Rounding errs by eps sigma_1, in the exact path as well as here.
    lift = (values[:, :k] - spectrum.bounds[:, :k]).maximum(spectrum.shift[:, :k]) / (2 * sigma)
    # Off the curve a value may also be its neighbour.
    near = values[:, : k + 2].sqrt()
    spacing = torch.cat([near[:, :1] - near[:, 1:2], (near[:, :-2] - near[:, 2:]) / 2], -1)[:, :k]
    on_curve = torch.arange(k, device=values.device) >= spectrum.leading[:, None]
    lift = torch.where(on_curve, (_OF_LIFT * lift).maximum(_OF_SPACING * spacing), _OF_LIFT * lift)
    sigma_error = _together(lift, eps * largest.expand_as(lift))
    frobenius = spectrum.energy.sqrt()
    stable_rank = spectrum.energy / values[:, 0]
    found = {
        "spectral_norm": sigma[:, 0],
        "spectral_norm_error": sigma_error[:, 0],
        "frobenius_norm": frobenius,
        "stable_rank": stable_rank,
        "stable_rank_error": stable_rank * 2 * sigma_error[:, 0] / sigma[:, 0],
        "leading": sigma,
        "leading_error": sigma_error,
    }
    found["alpha_hill"], found["alpha_hill_error"] = _hill(spectrum, n_probes)
    found["alpha_ranksize"], found["alpha_ranksize_error"] = _ranksize(spectrum, n_probes)
    missing = torch.full_like(frobenius, torch.nan)
    found["alpha"], found["alpha_error"] = missing, missing
    if xmin is not None:
        found["alpha"], found["alpha_error"] = _above(spectrum, n_probes, xmin, eps)
    for name, value in found.items():
        valid = spectrum.valid.reshape(-1, *(1,) * (value.dim() - 1))
        found[name] = torch.where(valid, value, torch.nan)
    found["xmin"] = missing if xmin is None else xmin.clone()
    return {f.name: found[f.name] for f in fields(TailStats)}


def _sampling_error(spectrum: Spectrum, influence: Tensor, n_probes: int) -> Tensor:
    """Standard deviation, over probes, of an estimate that moves by influence_j with the weight of value j.

    s Gaussian probes give the trace of f(M) on the bulk with variance 2 / s sum (f_j - mean)^2: the mean is
    gone because the count is known. So is the sum of lambda: what a line in lambda explains is gone too.
    """
    values = spectrum.values
    bulk = torch.arange(values.shape[-1], device=values.device) >= spectrum.converged[:, None]
    count = bulk.sum(-1, keepdim=True)

    def centred(x: Tensor) -> Tensor:
        return torch.where(bulk, x - torch.where(bulk, x, 0).sum(-1, keepdim=True) / count, 0)

    f, line = centred(influence), centred(values)
    square = line.square().sum(-1, keepdim=True)
    f = f - line * torch.where(square > 0, (f * line).sum(-1, keepdim=True) / square, 0)
    return (2 / n_probes * f.square().sum(-1)).sqrt()


def _hill(spectrum: Spectrum, n_probes: int) -> tuple[Tensor, Tensor]:
    """alpha = 1 + 1 / h, h the mean of ln lambda over the upper half above the median's."""
    n = spectrum.values.shape[-1]
    half = n - n // 2
    log = spectrum.values.log()
    median = log[:, half - 1, None]
    width = max(1, n // 32)
    steepness = (log[:, half - 1 - width, None] - log[:, half - 1 + width, None]) / (2 * width)
    above = (log - median).clamp_min(0)
    upper = torch.arange(n, device=log.device) < half
    # A value more in the upper half adds its share to the mean, and moves the median up by one rank.
    influence = above / half - steepness * upper
    alpha = _ops.hill_alpha(spectrum.values, None)
    sampling = _sampling_error(spectrum, influence, n_probes) * (alpha - 1).square()
    chord = _ops.hill_alpha(spectrum.chords, None) - alpha
    end = _ops.hill_alpha(spectrum.hard, None) - alpha
    return alpha, _together(sampling, _OF_CHORD * chord, _OF_END * end)


def _ranksize(spectrum: Spectrum, n_probes: int) -> tuple[Tensor, Tensor]:
    """-sum x_i ln sigma_i / sum x_i^2, x the centred logarithm of the rank."""
    n = spectrum.values.shape[-1]
    log = spectrum.values.log()
    x = torch.arange(1, n + 1, dtype=log.dtype, device=log.device).log()
    x = x - x.mean()
    spread = x.square().sum()
    # A value more at rank j moves those below it by one rank each.
    steepness = -torch.gradient(log, dim=-1)[0]
    moved = (x * steepness).flip(-1).cumsum(-1).flip(-1)
    slope = _ops.ranksize_slope(spectrum.values.sqrt())
    sampling = _sampling_error(spectrum, moved / (2 * spread), n_probes)
    chord = _ops.ranksize_slope(spectrum.chords.sqrt()) - slope
    end = _ops.ranksize_slope(spectrum.hard.sqrt()) - slope
    # The tiniest values weigh most here, and of those nothing is known but that they are there.
    unseen = _ops.ranksize_slope(spectrum.values.maximum(spectrum.seen[:, None]).sqrt()) - slope
    return slope, _together(sampling, _OF_CHORD * chord, _OF_END * end, _OF_UNSEEN * unseen)


def _above(spectrum: Spectrum, n_probes: int, xmin: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """alpha = 1 + N / T, T the sum of ln(lambda / xmin) over the N values from xmin on."""
    values, n = spectrum.values, spectrum.values.shape[-1]
    size = spectrum.bounds.shape[-1]
    # No power law starts at 0: as fit_powerlaw has it.
    x = torch.where(xmin > 0, xmin, torch.nan)[:, None]
    # xmin is an eigenvalue as a rule: one that converged must not drop out for its own error, twice _OF_LIFT
    # of its lift and a few eps sigma_1.
    known = torch.arange(n, device=values.device) < spectrum.converged[:, None]
    lift = torch.nn.functional.pad((values[:, :size] - spectrum.bounds).clamp_min(0), (0, n - size))
    slack = torch.where(known, 2 * _OF_LIFT * lift + 8 * eps * (values[:, :1] * x).sqrt(), 0)
    inside = values + slack >= x
    count = inside.sum(-1)

    # In the bulk the count is read off the curve, where xmin lies between two ranks; it counts as a value
    # itself.
    log = values.log()
    above = log.gather(-1, (count - 1).clamp_min(0)[:, None])
    below = log.gather(-1, count.clamp_max(n - 1)[:, None])
    part = ((above - x.log()) / (above - below).clamp_min(torch.finfo(log.dtype).tiny)).clamp(0, 1)[:, 0]
    smooth = count > spectrum.converged
    tail = torch.where(smooth, count + part, count)

    def excess_of(values: Tensor) -> Tensor:
        return torch.where(inside, (values / x).log(), 0).clamp_min(0)

    excess = excess_of(values)
    total = excess.sum(-1)
    alpha = torch.where((count > 1) & (total > 0), 1 + tail / total, torch.nan)
    influence = inside / total[:, None] - (tail / total.square())[:, None] * excess
    sampling = _sampling_error(spectrum, influence, n_probes)
    # Where xmin is no value after all, the count is half a value less, and jumps.
    jump = torch.where(smooth, 0.5 / total, 0)
    rounding = (alpha - 1).square() * 2 * eps * (values[:, 0] / xmin).sqrt()
    others = (spectrum.chords, spectrum.hard, values.maximum(spectrum.seen[:, None]))
    chord, end, unseen = (tail / excess_of(other).sum(-1) - tail / total for other in others)
    of_curve = (_OF_CHORD * chord, _OF_END * end, _OF_UNSEEN * unseen)
    return alpha, _together(sampling, jump, rounding, *of_curve)


def _together(*errors: Tensor) -> Tensor:
    """The size of independent errors."""
    return torch.stack(errors).square().sum(0).sqrt()
