"""spectral_stats: from matrices, or their singular values, to every statistic of the spectrum."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from spectral_fast import _ops
from spectral_fast._autograd import Grads, differentiable
from spectral_fast._dtensor import is_dtensor
from spectral_fast.linalg import is_dense, svdvals_ex, svdvals_jvp, svdvals_vjp
from spectral_fast.powerlaw import (
    describe,
    hill_derivative,
    in_descending_order,
    pull_back,
    ranksize_derivative,
    require_spectrum,
)


@dataclass(frozen=True, eq=False)
class SpectralStats:
    """Statistics of the singular values sigma_1 >= ... >= sigma_r of each matrix, lambda = sigma^2.

    Every field has the shape of the batch; float64, n_tail int64. Logarithms in log_* are to base 10.
    Registered as a pytree. The fields from ``alpha`` on are not differentiable: they raise in
    reverse mode and are NaN in forward mode.
    """

    spectral_norm: Tensor
    """sigma_1"""
    frobenius_norm: Tensor
    """sqrt(sum sigma^2)"""
    nuclear_norm: Tensor
    """sum sigma"""
    stable_rank: Tensor
    """sum sigma^2 / sigma_1^2"""
    effective_rank: Tensor
    """exp of the entropy of sigma / sum sigma (Roy and Vetterli 2007)"""
    spectral_entropy: Tensor
    """entropy of sigma^2 / sum sigma^2, divided by ln r"""
    participation_ratio: Tensor
    """(sum lambda)^2 / sum lambda^2"""
    condition_number: Tensor
    """sigma_1 / sigma_r"""
    log_norm: Tensor
    """log10 sum lambda"""
    alpha_hill: Tensor
    """Hill estimate over the upper half of lambda"""
    alpha_ranksize: Tensor
    """-slope of ln sigma_k on ln k"""
    alpha: Tensor
    """Clauset-Shalizi-Newman density exponent of lambda"""
    alpha_stderr: Tensor
    """its standard error, (alpha - 1) / sqrt(n_tail)"""
    xmin: Tensor
    """threshold of the fit, in units of lambda"""
    ks_distance: Tensor
    """Kolmogorov-Smirnov distance of the fit"""
    n_tail: Tensor
    """values in the fitted tail"""
    alpha_weighted: Tensor
    """alpha log10 lambda_1"""
    log_alpha_norm: Tensor
    """log10 sum lambda^alpha"""
    mp_edge: Tensor
    """upper edge of the Marchenko-Pastur bulk, in units of lambda; NaN without the matrix shape"""
    mp_spikes: Tensor
    """values above that edge by more than its fluctuation; NaN without the matrix shape"""
    svdvals: Tensor | None = None
    """the values themselves, (\\*, r), where asked for"""


pytree.register_dataclass(SpectralStats)


def spectral_stats(A: Tensor, *, driver: str | None = None, return_svdvals: bool = False) -> SpectralStats:
    """All statistics of each matrix in A (\\*, m, n); see :class:`SpectralStats`.

    A, driver: as in :func:`spectral_fast.svdvals`; real dtypes only.
    return_svdvals: keep the values in the field ``svdvals``.

    Returns fields (\\*), float64 whatever A's dtype (n_tail int64), from values as accurate as svdvals'.
    Differentiable but for ``alpha`` and the fields after it. A matrix with a NaN or an infinity has NaN
    statistics and n_tail 0; nothing is raised for it and a GPU is never waited for. Raises TypeError or
    ValueError for what is no batch of real matrices, ValueError for a driver of ours that the device lacks.
    Source: docs/statistics.md has the formula and the source of every field.
    """
    if not isinstance(A, Tensor):
        raise TypeError(f"spectral_stats(): argument 'A' must be Tensor, not {type(A).__name__}")
    if not is_dense(A) or A.dim() < 2 or A.dtype not in _ops.REAL_DTYPES:
        raise ValueError(
            "spectral_stats: A must be a dense real floating-point tensor of shape (*, m, n), "
            f"got {describe(A)}"
        )
    S, smooth, fitted = _matrix_stats(A, driver)
    return _unpack(smooth, fitted, S if return_svdvals else None)


def stats_from_svdvals(S: Tensor, *, shape: tuple[int, int] | None = None) -> SpectralStats:
    """All statistics of each spectrum in S; see :class:`SpectralStats`.

    S: singular values (\\*, r), any order, >= 0, of a real dtype; computed in float64.
    shape: (m, n) of the matrices the values come from, with min(m, n) = r. Without it the mp_*
        fields are NaN.

    Returns fields (\\*), float64 (n_tail int64), differentiable but for ``alpha`` and the fields after it. A
    row with a NaN, an infinity or a negative value has NaN statistics. Raises TypeError or ValueError for
    what is no spectrum, ValueError for a shape that is none or does not have r values.
    Source: docs/statistics.md has the formula and the source of every field.
    """
    require_spectrum(S, "stats_from_svdvals", "S")
    if shape is not None and not _is_shape(shape):
        raise ValueError(f"stats_from_svdvals: shape must be (m, n), got {shape!r}")
    if shape is not None and min(shape) != S.shape[-1]:
        raise ValueError(
            f"stats_from_svdvals: a matrix of shape {tuple(shape)} has {min(shape)} singular values, "
            f"S has {S.shape[-1]}"
        )
    rows, cols = shape if shape is not None else (None, None)
    smooth, fitted = _value_stats(S, rows, cols)
    return _unpack(smooth, fitted, None)


def _is_shape(shape: Any) -> bool:
    if not isinstance(shape, tuple | list) or len(shape) != 2:
        return False
    return all(isinstance(size, int | torch.SymInt) and not isinstance(size, bool) for size in shape)


def scalar_fields() -> tuple[str, ...]:
    """Names of the fields with one number a matrix, in order."""
    return tuple(f.name for f in fields(SpectralStats) if f.name != "svdvals")


def _unpack(smooth: Tensor, fitted: Tensor, S: Tensor | None) -> SpectralStats:
    named = dict(zip(_ops.SMOOTH_FIELDS, _columns(smooth), strict=True))
    named |= zip(_ops.FITTED_FIELDS, _columns(fitted), strict=True)
    named["n_tail"] = named["n_tail"].to(torch.int64)
    return SpectralStats(**named, svdvals=S)


def _columns(x: Tensor) -> Sequence[Tensor]:
    # The gradient of unbind fills in for unused columns with ordinary tensors, which DTensor refuses.
    return [x.select(-1, i) for i in range(x.shape[-1])] if is_dtensor(x) else x.unbind(-1)


# How a field grows with the matrix: those of degree 0 have derivatives that fall with it.
_OF_DEGREE_ONE = ("spectral_norm", "frobenius_norm", "nuclear_norm")


def smooth_derivatives(sigma: Tensor) -> Tensor:
    """d field / d sigma for every field of SMOOTH_FIELDS; sigma (\\*, r) descending -> (\\*, fields, r).

    Written in s = sigma / sigma_1, as the fields are, so that no power under- or overflows.
    """
    r = sigma.shape[-1]
    largest = sigma[..., :1]
    s = sigma / largest
    rank = torch.arange(r, device=s.device)
    first, last = (rank == 0).to(s.dtype), (rank == r - 1).to(s.dtype)
    lam = s * s
    smallest = s[..., -1:]
    total, total_lam = s.sum(-1, keepdim=True), lam.sum(-1, keepdim=True)
    total_squared = (lam * lam).sum(-1, keepdim=True)

    p = s / total
    entropy = -torch.special.xlogy(p, p).sum(-1, keepdim=True)
    q = lam / total_lam
    lam_entropy = -torch.special.xlogy(q, q).sum(-1, keepdim=True)
    # sigma ln q -> 0 with sigma
    s_log_q = torch.special.xlogy(s, q)
    rows = {
        "spectral_norm": first.expand(s.shape),
        "frobenius_norm": s / total_lam.sqrt(),
        "nuclear_norm": torch.ones_like(s),
        "stable_rank": 2 * s - first * 2 * total_lam,
        "effective_rank": -entropy.exp() * (p.log() + entropy) / total,
        "spectral_entropy": -2 * (s_log_q + s * lam_entropy) / total_lam / math.log(max(r, 2)),
        "participation_ratio": 4 * s * (total_lam / total_squared - total_lam**2 * lam / total_squared**2),
        "condition_number": first / smallest - last / smallest**2,
        "log_norm": 2 * s / total_lam / math.log(10),
        "alpha_hill": hill_derivative(lam, None) * 2 * s,
        "alpha_ranksize": ranksize_derivative(s),
    }
    scaled = [rows[f] if f in _OF_DEGREE_ONE else rows[f] / largest for f in _ops.SMOOTH_FIELDS]
    return torch.stack(scaled, -2)


def _reject_fitted_gradient(grad: Tensor | None) -> None:
    if grad is not None:
        raise RuntimeError(
            f"these fields of SpectralStats are not differentiable: {', '.join(_ops.FITTED_FIELDS)}. "
            "Detach them, or use alpha_hill or alpha_ranksize, which are differentiable."
        )


def _values_vjp(S: Tensor, grad: Tensor) -> Tensor:
    ordered, order = in_descending_order(S)
    factors = smooth_derivatives(ordered)
    # A field nobody asked for may have an infinite derivative, at a zero value for example: 0 inf is 0 here.
    wanted = (grad != 0).unsqueeze(-1)
    return pull_back(S, order, (grad.unsqueeze(-1) * torch.where(wanted, factors, 0)).sum(-2))


def _values_jvp(S: Tensor, tangent: Tensor) -> tuple[Tensor, Tensor]:
    ordered, order = in_descending_order(S)
    moved = tangent.to(torch.float64).gather(-1, order)
    smooth = (smooth_derivatives(ordered) @ moved.unsqueeze(-1)).squeeze(-1)
    fitted = smooth.new_full((*smooth.shape[:-1], len(_ops.FITTED_FIELDS)), torch.nan)
    return smooth, fitted


def _value_stats_vjp(S: Tensor, params: list[Any], grads: Grads) -> Tensor | None:
    grad_smooth, grad_fitted = grads
    _reject_fitted_gradient(grad_fitted)
    return None if grad_smooth is None else _values_vjp(S, grad_smooth)


def _value_stats_jvp(S: Tensor, params: list[Any], tangent: Tensor) -> tuple[Tensor, Tensor]:
    return _values_jvp(S, tangent)


def _matrix_stats_vjp(A: Tensor, params: list[Any], grads: Grads) -> Tensor | None:
    grad_S, grad_smooth, grad_fitted = grads
    _reject_fitted_gradient(grad_fitted)
    if grad_smooth is not None:
        from_stats = _values_vjp(_recomputed_values(A, params), grad_smooth)
        grad_S = from_stats if grad_S is None else grad_S + from_stats
    return None if grad_S is None else svdvals_vjp(A, grad_S)


def _matrix_stats_jvp(A: Tensor, params: list[Any], tangent: Tensor) -> tuple[Tensor, ...]:
    S_tangent = svdvals_jvp(A, tangent)
    return (S_tangent, *_values_jvp(_recomputed_values(A, params), S_tangent))


def _recomputed_values(A: Tensor, params: list[Any]) -> Tensor:
    """The values as a function of A, so that a second derivative sees them."""
    return svdvals_ex(A, driver=params[0]).S


_value_stats = differentiable(
    _ops.stats_from_svdvals,
    vjp=_value_stats_vjp,
    jvp=_value_stats_jvp,
    compiled_constant_outputs=(1,),
)
_matrix_stats = differentiable(
    _ops.spectral_stats,
    vjp=_matrix_stats_vjp,
    jvp=_matrix_stats_jvp,
    event_dims=2,
    compiled_constant_outputs=(2,),
)
