"""Is it a power law at all: the bootstrap of the fit, and its likelihood against a log-normal tail.

``fit_powerlaw`` gives an exponent for any spectrum. ``goodness_of_fit`` says whether a power law would
leave as large a Kolmogorov-Smirnov distance, ``compare_lognormal`` whether a log-normal describes the
same tail better. docs/statistics.md has the formulas.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from spectral_fast import _ops
from spectral_fast.powerlaw import PowerLawFit, fit_powerlaw, require_spectrum

# Uniforms drawn at once, for five tables of their size: 3 MB in all. What is not the fit takes 16 ms with
# 2^15 to 2^17 and 43 ms with 2^20 (1000 samples of 1024 values, one core of an AMD EPYC).
_DRAWS_AT_ONCE = 1 << 16
_DISTANCE = _ops.POWERLAW_FIELDS.index("ks_distance")
# Two distances closer than this are equal: those of tails of two always are but for their rounding.
_TIE = 1e-12
# Logarithms up to this are far from the end of float64, 709, with room for sums.
_LOG_RANGE = 600.0


class GoodnessOfFit(NamedTuple):
    """A power-law fit and the share of synthetic spectra that it fits worse. Fields (\\*), float64."""

    p_value: Tensor
    """the share; NaN where there is no fit"""
    p_stderr: Tensor
    """its standard deviation, of the bootstrap alone"""
    fit: PowerLawFit
    """of the spectrum itself"""


class LogNormalComparison(NamedTuple):
    """The power law against the log-normal on one tail. Fields (\\*), float64."""

    ratio: Tensor
    """normalized log-likelihood ratio, <= 0: negative speaks for the log-normal"""
    p_value: Tensor
    """Vuong's, two-sided"""
    p_nested: Tensor
    """of the ratio as that of nested models"""
    mu: Tensor
    """mean of ln x before the cut at xmin; -inf where the power law itself is best"""
    sigma: Tensor
    """its standard deviation; inf there"""


def goodness_of_fit(
    evals: Tensor, *, n_samples: int = 1000, generator: torch.Generator | None
) -> GoodnessOfFit:
    """Clauset-Shalizi-Newman fit and its p-value by the semi-parametric bootstrap.

    evals: (\\*, n), any order; zeros and negative values are left out, N are positive. Computed in float64.
    n_samples: synthetic spectra for each of the batch; p_value has a standard error of 0.5 / sqrt(n_samples)
        or less.
    generator: on the device of evals; None is torch's default one.

    A synthetic spectrum has N values: each is drawn from the fitted power law with probability n_tail / N,
    else it is one of the values below xmin. It is fitted as evals was, the search for xmin included.
    p_value is the share whose distance D is at least that of evals; a small one speaks against the power
    law. Samples without a fit (fewer than two distinct values) have no D and are left out of the share.
    p_stderr is the standard deviation of the share's posterior from a uniform prior: sqrt(p (1 - p) / n),
    n the samples with a fit, but not zero where p is 0 or 1. Both are NaN where evals has no fit.

    Randomness: n_samples x (n + 1) uniforms in float64 for one spectrum after the other, so that a batch
    gives what its spectra give one after the other.

    Not differentiable: asking for a derivative raises RuntimeError. Raises TypeError or ValueError for what
    is no spectrum, ValueError for n_samples < 1.
    Source: Clauset, Shalizi, Newman, SIAM Review 51 (2009), section 4.1.
    """
    require_spectrum(evals, "goodness_of_fit", "evals")
    if not isinstance(n_samples, int) or isinstance(n_samples, bool) or n_samples < 1:
        raise ValueError(f"goodness_of_fit: n_samples must be an integer of at least 1, got {n_samples!r}")
    if not isinstance(generator, torch.Generator | None):
        raise TypeError(
            "goodness_of_fit(): argument 'generator' must be torch.Generator or None, "
            f"not {type(generator).__name__}"
        )
    fit = fit_powerlaw(evals)
    larger, fitted = _bootstrap(evals.detach(), fit, n_samples, generator)
    share = larger / fitted
    spread = ((larger + 1) * (fitted - larger + 1) / (fitted + 3)).sqrt() / (fitted + 2)
    spread = torch.where(share.isnan(), torch.nan, spread)
    p_value, p_stderr = _not_differentiable("goodness_of_fit", evals, share, spread)
    return GoodnessOfFit(p_value, p_stderr, fit)


def _bootstrap(
    evals: Tensor, fit: PowerLawFit, n_samples: int, generator: torch.Generator | None
) -> tuple[Tensor, Tensor]:
    """How many samples of each spectrum have at least its distance, and how many have one; (\\*) float64."""
    batch, n = evals.shape[:-1], evals.shape[-1]
    if evals.numel() == 0:
        missing = fit.ks_distance.detach()
        return missing, missing
    count = math.prod(batch)
    shape = _Shape.of(evals.detach().to(torch.float64).reshape(count, n), fit)
    observed = fit.ks_distance.detach().reshape(count, 1)
    larger, fitted = observed.new_zeros(count), observed.new_zeros(count)
    samples = min(n_samples, max(1, _DRAWS_AT_ONCE // (n + 1)))
    rows = max(1, _DRAWS_AT_ONCE // (n_samples * (n + 1)))
    for first in range(0, count, rows):
        some = slice(first, first + rows)
        for done in range(0, n_samples, samples):
            size = (min(samples, n_samples - done), n + 1)
            # A call for each spectrum: a GPU's numbers depend on how they are divided into calls.
            uniform = torch.stack(
                [
                    torch.rand(size, dtype=torch.float64, device=evals.device, generator=generator)
                    for _ in range(*some.indices(count))
                ]
            )
            distance = _ops.fit_powerlaw(shape.rows(some).sample(uniform), None)[0][..., _DISTANCE]
            larger[some] += (distance >= observed[some] - _TIE).sum(-1)
            fitted[some] += distance.isfinite().sum(-1)
    fitted = torch.where(observed.squeeze(-1).isfinite(), fitted, torch.nan)
    return larger.view(batch), fitted.view(batch)


@dataclass(frozen=True)
class _Shape:
    """What synthetic spectra are made from, for (b, n) spectra; one number a spectrum is (b, 1).

    The fit's distance and choice of xmin are the same for (x / xmin)^s with any s > 0, so the power is
    chosen: alpha - 1, for which tails of all exponents are alike and none overflows, or less where the
    values below xmin would underflow.
    """

    below: Tensor  # (x / xmin)^s, descending: what is below xmin starts at n_tail
    n_tail: Tensor
    n_positive: Tensor
    exponent: Tensor  # -s / (alpha - 1)

    @classmethod
    def of(cls, x: Tensor, fit: PowerLawFit) -> _Shape:
        alpha, _, xmin, _, n_tail = (field.detach().reshape(-1, 1) for field in fit)
        x = x.sort(-1, descending=True).values
        positive = x > 0
        log_ratio = torch.where(positive, _log_ratio(x, xmin), 0)
        # Not minus the least: a depth of -0 would turn the quotient's sign.
        depth = log_ratio.amin(-1, keepdim=True).abs()
        power = torch.minimum(alpha - 1, _LOG_RANGE / depth)
        below = (power * log_ratio.clamp(max=0)).exp()
        return cls(below, n_tail, positive.sum(-1, keepdim=True), -power / (alpha - 1))

    def rows(self, some: slice) -> _Shape:
        return _Shape(self.below[some], self.n_tail[some], self.n_positive[some], self.exponent[some])

    def sample(self, uniform: Tensor) -> Tensor:
        """(b, samples, n) spectra, descending and with zeros last, from (b, samples, n + 1) uniforms.

        The partial sums of N exponentials, divided by the sum of N + 1, are N uniforms w in order: without
        a sort. The rank floor(w N) is one of N with equal chances: one of the n_tail largest stands for the
        power law, whose inverse distribution function takes w N / n_tail, and any other for itself.
        """
        n = self.below.shape[-1]
        n_positive = self.n_positive.unsqueeze(-1)
        sums = torch.log1p(uniform.neg_()).neg_().cumsum(-1)
        total = sums.gather(-1, n_positive.expand(*sums.shape[:-1], 1))
        place = sums[..., :n] * (n_positive / total)
        # place rounds to N where the last exponential is lost in the sum.
        rank = place.to(torch.int64).clamp_(0, n - 1)
        n_tail = self.n_tail.unsqueeze(-1)
        tail = (place / n_tail).pow(self.exponent.unsqueeze(-1))
        below = self.below.unsqueeze(-2).expand_as(rank).gather(-1, rank)
        x = torch.where(rank < n_tail, tail, below)
        return torch.where(torch.arange(n, device=x.device) < n_positive, x, 0)


def _log_ratio(x: Tensor, y: Tensor) -> Tensor:
    """ln(x / y): the difference of near values is exact, the quotient of far ones may not be in range."""
    near = (x > y / 2) & (x < 2 * y)
    return torch.where(near, ((x - y) / y).log1p(), x.log() - y.log())


def compare_lognormal(evals: Tensor, *, xmin: float | Tensor | None = None) -> LogNormalComparison:
    """Likelihood of a power law against that of a log-normal on the tail x >= xmin.

    evals: (\\*, n), any order. Computed in float64.
    xmin: None takes that of fit_powerlaw; else the given threshold (broadcast to the batch).

    mu, sigma: mean and standard deviation of ln x before the cut at xmin, by maximum likelihood.
    ratio: R / (s sqrt(n_tail)), R the sum and s the standard deviation of ln p(x) - ln q(x) over the tail, p
    the power law and q the log-normal. p_value: Vuong's, two-sided, erfc(|ratio| / sqrt(2)).
    p_nested: that of 2 R as a likelihood ratio of nested models, erfc(sqrt(-R)) / 2.

    The ratio is never positive: a power law is the limit of log-normals with mu -> -inf, sigma^2 ~ -mu. Where
    mean(y^2) >= 2 mean(y)^2, y = ln(x / xmin), no log-normal is better than this limit: mu is -inf, sigma
    inf, ratio 0 and both p-values 1. On a power law's own samples that happens half of the time, otherwise
    p_nested is uniform below 1/2 and Vuong's p_value far too large: a small p_value is safe to act on, a
    large one says little. For an xmin chosen by the fit both are approximations.

    NaN where the fit with this xmin is, and where the logarithms of a tail coincide.
    Not differentiable: asking for a derivative raises RuntimeError. Raises TypeError or ValueError for what
    is no spectrum and for an xmin that does not broadcast.
    Sources: Vuong, Econometrica 57 (1989); for p_nested, Self and Liang, JASA 82 (1987), case 5.
    """
    require_spectrum(evals, "compare_lognormal", "evals")
    fit = fit_powerlaw(evals.detach(), xmin=xmin)
    x = evals.detach().to(torch.float64).contiguous()
    start, n_tail = fit.xmin.unsqueeze(-1), fit.n_tail.to(torch.float64)
    inside = x >= start
    y = torch.where(inside, _log_ratio(x, start), 0)
    mean = y.sum(-1) / n_tail
    t = y / mean.unsqueeze(-1)
    deviation = torch.where(inside, t - 1, 0)
    spread = (deviation * deviation).sum(-1) / n_tail
    law = _half_normal(_solve(spread))

    difference = law.quadratic.unsqueeze(-1) * deviation**2 - law.linear.unsqueeze(-1) * t
    difference = torch.where(inside, difference + law.constant.unsqueeze(-1), 0)
    # Not positive, since the power law is a limit of log-normals: what is above is rounding.
    gain = (difference.sum(-1) / n_tail).clamp(max=0)
    centred = torch.where(inside, difference - gain.unsqueeze(-1), 0)
    ratio = gain * n_tail / (centred * centred).sum(-1).sqrt()
    scale = mean / law.mean

    limit = spread >= 1
    ratio = torch.where(limit, 0, ratio)
    results = (
        ratio,
        torch.special.erfc(ratio.abs() / math.sqrt(2)),
        torch.where(limit, 1, torch.special.erfc((-gain * n_tail).sqrt()) / 2),
        torch.where(limit, -torch.inf, fit.xmin.log() - law.z * scale),
        torch.where(limit, torch.inf, scale),
    )
    return LogNormalComparison(*_not_differentiable("compare_lognormal", evals, *results))


# The log-normal's tail. Of y = ln(x / xmin) it makes the part y >= 0 of a normal law. With u = y / sigma + z,
# z = (ln xmin - mu) / sigma, u is standard normal above z, with hazard h = phi(z) / Q(z):
#
#   E[u] = h    d = E[y] / sigma = h - z    v = Var[y] / E[y]^2 = (1 - h d) / d^2
#   dv/dz = 2 v^2 d - h (1 - v)
#
# The likelihood equations say that the tail's mean and v are the law's: v gives z, the mean then sigma.
# v rises from 0 (z -> -inf, v ~ 1/z^2) to 1 (z -> inf, 1 - v ~ 2/z^2: the exponential law, x's power law).
# With t = y / E[y] the power law's log-density less the log-normal's is
#
#   d^2 (t - 1)^2 / 2 - v d^2 t - d^2 / 2 - ln(h d),    the terms without t being `constant`.
#
# Above _SWITCH h - z cancels, and Laplace's continued fraction does not: K_j = j / (z + K_{j+1}) > 0,
#
#   d = K_1    1 - v = K_2 (K_3 - K_2)    1 - h d = v d^2    dK_j/dz = K_j (K_j - K_{j+1})

# Where both ways give v and the constant to 2e-13 and 1 - v to 3e-13 (50-digit arithmetic), with this many K.
_SWITCH = 2.5
_FRACTIONS = 50


class _HalfNormal(NamedTuple):
    """The part of a normal law above z, and what it makes of the likelihood."""

    z: Tensor
    mean: Tensor  # d
    spread: Tensor  # v
    complement: Tensor  # 1 - v
    slope: Tensor  # d(1 - v)/dz
    constant: Tensor

    @property
    def quadratic(self) -> Tensor:
        return self.mean**2 / 2

    @property
    def linear(self) -> Tensor:
        return self.spread * self.mean**2


def _half_normal(z: Tensor) -> _HalfNormal:
    low, high = _by_hazard(z.clamp(max=_SWITCH)), _by_fractions(z.clamp(min=_SWITCH))
    return _HalfNormal(z, *(torch.where(z < _SWITCH, a, b) for a, b in zip(low, high, strict=True)))


def _by_hazard(z: Tensor) -> tuple[Tensor, ...]:
    """mean, spread, complement, slope and constant for z up to _SWITCH."""
    hazard = math.sqrt(2 / math.pi) / torch.special.erfcx(z / math.sqrt(2))
    mean = hazard - z
    spread = (1 - hazard * mean) / mean**2
    complement = 1 - spread
    slope = hazard * complement - 2 * spread**2 * mean
    # ln h = -z^2 / 2 - ln sqrt(2 pi) - ln Q, and d^2 - z^2 = h (d - z): the squares would cancel.
    log_tail = (torch.special.erfc(z / math.sqrt(2)) / 2).log()
    constant = math.log(2 * math.pi) / 2 + log_tail - hazard * (mean - z) / 2 - mean.log()
    return mean, spread, complement, slope, constant


def _by_fractions(z: Tensor) -> tuple[Tensor, ...]:
    """The same for z from _SWITCH."""
    # From the positive root of K (z + K) = j, which K_j approaches.
    k = 2 * _FRACTIONS / (z + (z * z + 4 * _FRACTIONS).sqrt())
    for j in range(_FRACTIONS - 1, 4, -1):
        k = j / (z + k)
    k4 = 4 / (z + k)
    k3 = 3 / (z + k4)
    k2 = 2 / (z + k3)
    mean = 1 / (z + k2)
    complement = k2 * (k3 - k2)
    slope = -k2 * ((k3 - k2) ** 2 + k3 * (k4 - k3) - k2 * (k3 - k2))
    spread = 1 - complement
    constant = -(mean**2) / 2 - torch.log1p(-spread * mean**2)
    return mean, spread, complement, slope, constant


def _solve(spread: Tensor) -> Tensor:
    """z with _half_normal(z).spread = spread, for 0 < spread < 1; NaN elsewhere.

    Newton's method on sqrt(2 / (1 - v)) - 1 / sqrt(v), which is z but for a bounded term at both ends and
    has a slope between 0.65 and 1.03 everywhere: four steps from there reach rounding, the fifth is to spare.
    """

    def straightened(v: Tensor, complement: Tensor) -> Tensor:
        return (2 / complement).sqrt() - v.rsqrt()

    wanted = straightened(spread, 1 - spread)
    z = wanted
    for _ in range(5):
        law = _half_normal(z)
        rise = -law.slope * (math.sqrt(0.5) * law.complement**-1.5 + law.spread**-1.5 / 2)
        z = z - (straightened(law.spread, law.complement) - wanted) / rise
    return z


class _NotDifferentiable(torch.autograd.Function):
    """Hands on results that were computed apart from x; a derivative with respect to x raises."""

    generate_vmap_rule = True

    @staticmethod
    def forward(function: str, x: Tensor, *results: Tensor) -> tuple[Tensor, ...]:
        return tuple(result.clone() for result in results)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        ctx.function = inputs[0]

    @staticmethod
    def backward(ctx: Any, *_: Any) -> Any:
        raise RuntimeError(
            f"{ctx.function} is not differentiable: its tail jumps where the best xmin changes. "
            "Detach its input."
        )

    jvp = backward


def _not_differentiable(function: str, x: Tensor, *results: Tensor) -> tuple[Tensor, ...]:
    # A compiled graph asks for every gradient when it is traced: there, results do not require one.
    if torch.compiler.is_compiling():
        return results
    return _NotDifferentiable.apply(function, x, *results)
