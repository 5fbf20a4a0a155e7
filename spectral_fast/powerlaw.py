"""Tail exponents of a spectrum: three meanings of alpha that never share a name.

``fit_powerlaw`` is the density exponent of lambda = sigma^2 by maximum likelihood, ``hill_alpha`` the Hill
estimate over a fixed part of the tail, ``ranksize_slope`` the slope of the rank-size plot of sigma.
For sigma_k ~ k^-beta the first is 1 + 1/(2 beta) and the last is beta: a larger one means a smaller other.
"""

from __future__ import annotations

from numbers import Real
from typing import Any, NamedTuple

import torch
from torch import Tensor

from spectral_fast import _ops
from spectral_fast._autograd import Grads, differentiable
from spectral_fast.linalg import is_dense


class PowerLawFit(NamedTuple):
    """A continuous power law p(x) ~ x^-alpha on x >= xmin. Fields (\\*): float64, n_tail int64."""

    alpha: Tensor
    """density exponent"""
    alpha_stderr: Tensor
    """(alpha - 1) / sqrt(n_tail)"""
    xmin: Tensor
    """threshold, in the units of x"""
    ks_distance: Tensor
    """D, the Kolmogorov-Smirnov distance of the tail to the fit"""
    n_tail: Tensor
    """values >= xmin; 0 where there is no fit"""


def fit_powerlaw(evals: Tensor, *, xmin: float | Tensor | None = None) -> PowerLawFit:
    """Clauset-Shalizi-Newman fit to eigenvalues lambda = sigma^2.

    evals: (\\*, n), any order; zeros and negative values are left out. Computed in float64.
    xmin: None tries every value but the largest; else the given threshold (broadcast to the batch).

    For a tail x_0 <= ... <= x_{m-1} of values >= xmin: alpha = 1 + m / sum ln(x_j / xmin), its standard
    error (alpha - 1) / sqrt(m), and D = max |F(x_j) - j/m| with F(x) = 1 - (x / xmin)^(1 - alpha), j from 0:
    the one-sided convention of powerlaw and WeightWatcher. The candidate with the least D wins, the
    smallest xmin in a tie. NaN and n_tail 0 where there is no tail: fewer than two distinct values, or a NaN.

    Not differentiable (alpha jumps where xmin does): asking for a derivative raises RuntimeError. Raises
    TypeError or ValueError for what is no spectrum and for an xmin that is no real number or tensor or does
    not broadcast, RuntimeError for one on another device than evals.
    Source: Clauset, Shalizi, Newman, SIAM Review 51 (2009), continuous case.
    """
    require_spectrum(evals, "fit_powerlaw", "evals")
    if xmin is not None:
        xmin = threshold(xmin, evals, "fit_powerlaw")
    fit, n_tail = _fit(evals, xmin)
    alpha, stderr, start, distance = fit.unbind(-1)
    return PowerLawFit(alpha, stderr, start, distance, n_tail)


def hill_alpha(evals: Tensor, *, k: int | None = None) -> Tensor:
    """Hill estimate of the density exponent over the upper half of the eigenvalues, or the k largest.

    evals: (\\*, n), any order, of a real dtype; zeros and negative values are left out.
    k: how many of the largest; None takes the upper half.

    With lambda_0 <= ... <= lambda_{N-1} the positive values, i = floor(N / 2) (or N - k) and n = N - i:
    1 + n / (sum_{j >= i} ln lambda_j - n ln lambda_i).
    Returns (\\*) float64; NaN where the tail is constant or k exceeds N. Differentiable.
    Raises TypeError or ValueError for what is no spectrum, ValueError for k < 1.
    Source: Hill 1975; the half is TempBalance's and AlphaPruning's choice.
    """
    require_spectrum(evals, "hill_alpha", "evals")
    if k is not None and (not isinstance(k, int) or isinstance(k, bool) or k < 1):
        raise ValueError(f"hill_alpha: k must be an integer of at least 1, got {k!r}")
    result: Tensor = _hill(evals, k and min(k, 2**62))  # an int64, and more than any N
    return result


def ranksize_slope(S: Tensor) -> Tensor:
    """Minus the least-squares slope of ln sigma_k on ln k over all positive singular values.

    S: (\\*, n), any order, of a real dtype; zeros are left out.

    Returns (\\*) float64, NaN with fewer than two positive values. Differentiable. Raises TypeError or
    ValueError for what is no spectrum. Source: docs/statistics.md, "Three exponents".
    """
    require_spectrum(S, "ranksize_slope", "S")
    result: Tensor = _ranksize(S)
    return result


def threshold(xmin: Any, evals: Tensor, function: str) -> Tensor:
    """xmin as float64, one for each spectrum: broadcast here, where a vmapped dimension is not in the way."""
    if not isinstance(xmin, Tensor):
        if not isinstance(xmin, Real) or isinstance(xmin, bool):
            raise TypeError(
                f"{function}(): argument 'xmin' must be float, Tensor or None, not {type(xmin).__name__}"
            )
        xmin = torch.tensor(float(xmin), dtype=torch.float64, device=evals.device)
    if not is_dense(xmin) or xmin.is_complex() or xmin.dtype == torch.bool:
        raise ValueError(f"{function}: xmin must be real and dense, got {describe(xmin)}")
    if xmin.device != evals.device:
        raise RuntimeError(
            f"{function}: xmin is on {xmin.device} and evals on {evals.device}: "
            "move one to the device of the other"
        )
    try:
        return xmin.to(torch.float64).expand(evals.shape[:-1])
    except RuntimeError as error:
        raise ValueError(
            f"{function}: xmin of shape {tuple(xmin.shape)} does not broadcast to the batch "
            f"{tuple(evals.shape[:-1])}"
        ) from error


def require_spectrum(x: Any, function: str, name: str) -> None:
    if not isinstance(x, Tensor):
        raise TypeError(f"{function}(): argument '{name}' must be Tensor, not {type(x).__name__}")
    if not is_dense(x) or x.dim() < 1 or x.dtype not in _ops.REAL_DTYPES:
        raise ValueError(
            f"{function}: {name} must be a dense real floating-point tensor of shape (*, n), "
            f"got {describe(x)}"
        )


def describe(x: Tensor) -> str:
    """A tensor's kind in an error message."""
    if x.is_nested:
        return f"a nested tensor of {x.dtype}"
    return f"{x.dtype}, {x.layout}, shape {tuple(x.shape)}"


# Derivatives are written for values in descending order, as (*, n) factors of the tangent.


def hill_derivative(x: Tensor, k: int | None) -> Tensor:
    """d hill_alpha / d x for x (\\*, n) descending: -(alpha - 1)^2 / n (1/x_j - [j = i] n / x_i)."""
    count = (x > 0).sum(-1, keepdim=True)
    tail = count - count // 2 if k is None else torch.full_like(count, k)
    rank = torch.arange(x.shape[-1], device=x.device)
    inside, last = rank < tail, rank == tail - 1
    safe = torch.where(inside, x, 1)
    threshold = torch.where(last, x, 0).sum(-1, keepdim=True)
    excess = torch.where(inside, (safe / threshold).log(), 0).sum(-1, keepdim=True)
    factor = torch.where(inside, 1 / safe, 0) - torch.where(last, tail / safe, 0)
    return -tail / excess**2 * factor


def ranksize_derivative(s: Tensor) -> Tensor:
    """d ranksize_slope / d s for s (\\*, n) descending: -(ln k - mean) / spread / s_k."""
    positive = s > 0
    log_rank = torch.arange(1, s.shape[-1] + 1, dtype=s.dtype, device=s.device).log()
    mean = (positive * log_rank).sum(-1, keepdim=True) / positive.sum(-1, keepdim=True)
    deviation = torch.where(positive, log_rank - mean, 0)
    return -deviation / (deviation**2).sum(-1, keepdim=True) / torch.where(positive, s, 1)


def in_descending_order(x: Tensor) -> tuple[Tensor, Tensor]:
    """x in float64, sorted descending (differentiably), and the order that sorts it."""
    order = x.detach().argsort(stable=True, dim=-1, descending=True)
    return x.to(torch.float64).gather(-1, order), order


def pull_back(x: Tensor, order: Tensor, sorted_gradient: Tensor) -> Tensor:
    """A gradient with respect to in_descending_order(x), as one with respect to x."""
    inverse = order.argsort(-1)
    return sorted_gradient.gather(-1, inverse).to(x.dtype)


def _scalar_rule(derivative: Any) -> dict[str, Any]:
    """vjp and jvp of a function to (\\*) from its (\\*, n) derivative in descending order."""

    def vjp(x: Tensor, params: list[Any], grads: Grads) -> Tensor | None:
        if grads[0] is None:
            return None
        ordered, order = in_descending_order(x)
        return pull_back(x, order, grads[0].unsqueeze(-1) * derivative(ordered, *params))

    def jvp(x: Tensor, params: list[Any], tangent: Tensor) -> tuple[Tensor | None, ...]:
        ordered, order = in_descending_order(x)
        moved = tangent.to(torch.float64).gather(-1, order)
        return ((derivative(ordered, *params) * moved).sum(-1),)

    return {"vjp": vjp, "jvp": jvp}


def _no_derivative(*_: Any) -> Any:
    raise RuntimeError(
        "fit_powerlaw is not differentiable: alpha, xmin and ks_distance jump where the best xmin changes. "
        "Detach its input, or use hill_alpha or ranksize_slope, which are differentiable."
    )


_hill = differentiable(_ops.hill_alpha, **_scalar_rule(hill_derivative))
_ranksize = differentiable(_ops.ranksize_slope, **_scalar_rule(ranksize_derivative))
_fit = differentiable(
    _ops.fit_powerlaw,
    vjp=_no_derivative,
    jvp=_no_derivative,
    integer_outputs=(1,),
    compiled_constant_outputs=(0,),
)
