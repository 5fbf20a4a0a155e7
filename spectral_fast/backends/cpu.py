"""The compiled CPU kernels (csrc/cpu) behind the operators."""

from __future__ import annotations

import functools
import os
from collections.abc import Sequence

import torch
from torch import Tensor

from spectral_fast import _cpu, _ops, _vectors
from spectral_fast.backends import reference, reference_stats
from spectral_fast.heuristics import DIRECT_SIZE, choose
from spectral_fast.look import Look

_ELEMENT_TYPES = {getattr(torch, name): code for name, code in _cpu.element_types.items()}
_VALUES_DTYPES = {dtype: _ops.values_dtype(dtype) for dtype in _ELEMENT_TYPES}
_choose = functools.lru_cache(maxsize=1024)(choose)
_threads = torch.get_num_threads
assert _cpu.info_nonfinite == _ops.INFO_NONFINITE

if _forced := os.environ.get("SPECTRAL_FAST_ISA"):
    _cpu.use_isa(_forced)


@reference.implements("svdvals_ex", "CPU")
def svdvals_ex(A: Tensor, driver: str | None, check_errors: bool) -> tuple[Tensor, Tensor]:
    """The operator on the CPU: one matrix a thread, torch.get_num_threads() threads."""
    shape, dtype = A.shape, A.dtype
    plan = _choose(shape, dtype, "cpu", driver)
    reference.log_plan(A, plan)
    if plan.backend != "cpu":
        values, info = reference.svdvals(A, plan.driver)
        if check_errors:
            _ops.raise_if_nonfinite(info)
        return values, info

    values, info = _empty_values(shape, dtype)
    all_finite = _cpu.svdvals(*_matrices(A, values, info), _threads(), plan.driver == "gram")
    if check_errors and not all_finite:
        _ops.raise_if_nonfinite(info)
    return values, info


def _matrices(
    A: Tensor, values: Tensor, info: Tensor
) -> tuple[int, int, Sequence[int], Sequence[int], int, int]:
    """A batch and where its values go, as the kernels take them."""
    return (
        A.data_ptr(),
        _ELEMENT_TYPES[A.dtype],
        A.shape,
        A.stride(),
        values.data_ptr(),
        info.data_ptr(),
    )


def _empty_values(shape: torch.Size, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    values = torch.empty((*shape[:-2], min(shape[-2:])), dtype=_VALUES_DTYPES[dtype], device="cpu")
    return values, torch.empty(shape[:-2], dtype=torch.int32, device="cpu")


def _empty(shape: Sequence[int]) -> Tensor:
    return torch.empty(shape, dtype=torch.float64, device="cpu")


def _empty_stats(batch: Sequence[int]) -> tuple[Tensor, Tensor]:
    return _empty((*batch, len(_ops.SMOOTH_FIELDS))), _empty((*batch, len(_ops.FITTED_FIELDS)))


@reference.implements("svdvals_gradient", "CPU")
def svdvals_gradient(A: Tensor, grad: Tensor) -> Tensor:
    """The operator on the CPU: U and V by kernels of ours for matrices that take two stages in float32.

    Tall ones by way of R, A = Q R. What has values too close for these kernels goes through torch.
    """
    m, n = max(A.shape[-2:]), min(A.shape[-2:])
    if n <= DIRECT_SIZE or 0 in A.shape or _ops.compute_dtype(A.dtype) != torch.float32:
        return reference.svdvals_gradient(A, grad)
    tall = A if A.shape[-2] == m else A.mT
    with _vectors.without_autocast(A):
        if 3 * m <= 5 * n:
            U, V, info = _vectors_of(tall)
            gradient = (U * grad.unsqueeze(-2)) @ V.mT
        else:
            # A power of two, in range itself, that keeps the norms of geqrf there.
            work = tall.to(torch.float32)
            largest = torch.linalg.vector_norm(work, torch.inf, (-2, -1), keepdim=True)
            exponent = torch.frexp(largest)[1]
            packed, tau = torch.geqrf(torch.ldexp(work, -exponent.clamp(-126, 126)))
            U, V, info = _vectors_of(packed[..., :n, :].triu())
            square = (U * grad.unsqueeze(-2)) @ V.mT
            gradient = torch.ormqr(packed, tau, torch.nn.functional.pad(square, (0, 0, 0, m - n)))
    gradient = (gradient if tall is A else gradient.mT).to(A.dtype).contiguous()
    if (left_out := info != 0).any():
        gradient[left_out] = _vectors.gradient(A[left_out], grad[left_out])
    return gradient


def _vectors_of(A: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """U (*, m, n), V (*, n, n) and info (*) of A (*, m, n), m >= n; empty memory where info is not 0."""
    *batch, m, n = A.shape
    U, V = (torch.empty((*batch, rows, n), dtype=torch.float32, device="cpu") for rows in (m, n))
    info = torch.empty(batch, dtype=torch.int32, device="cpu")
    at = (A.data_ptr(), _ELEMENT_TYPES[A.dtype], A.shape, A.stride())
    _cpu.vectors(*at, U.data_ptr(), V.data_ptr(), info.data_ptr(), _threads())
    return U, V, info


@reference.implements("spectral_stats", "CPU")
def spectral_stats(A: Tensor, driver: str | None) -> tuple[Tensor, Tensor, Tensor]:
    """The operator on the CPU: the statistics of a matrix follow its values on the same thread."""
    shape, dtype = A.shape, A.dtype
    plan = _choose(shape, dtype, "cpu", driver)
    if plan.backend != "cpu" or 0 in shape[-2:]:
        values, _ = svdvals_ex(A, driver, False)
        return (values, *stats_from_svdvals(values, *shape[-2:]))
    reference.log_plan(A, plan)
    values, info = _empty_values(shape, dtype)
    smooth, fitted = _empty_stats(shape[:-2])
    edge = reference_stats.bulk_edge(*shape[-2:])
    _cpu.spectral_stats(
        *_matrices(A, values, info),
        edge,
        smooth.data_ptr(),
        fitted.data_ptr(),
        _threads(),
        plan.driver == "gram",
    )
    return values, smooth, fitted


@reference.implements("stats_from_svdvals", "CPU")
def stats_from_svdvals(S: Tensor, rows: int | None, cols: int | None) -> tuple[Tensor, Tensor]:
    """The operator on the CPU: a spectrum a thread, as all that follow."""
    if S.shape[-1] == 0:
        return reference_stats.stats_from_svdvals(S, rows, cols)
    spectra = _Spectra(S)
    smooth, fitted = _empty_stats(S.shape[:-1])
    edge = reference_stats.bulk_edge(rows, cols)
    _cpu.stats_from_svdvals(*spectra.arguments, edge, smooth.data_ptr(), fitted.data_ptr(), _threads())
    return smooth, fitted


@reference.implements("ranksize_slope", "CPU")
def ranksize_slope(S: Tensor) -> Tensor:
    """The operator on the CPU."""
    if S.shape[-1] == 0:
        return reference_stats.ranksize_slope(S)
    spectra, slopes = _Spectra(S), _empty(S.shape[:-1])
    _cpu.ranksize_slope(*spectra.arguments, slopes.data_ptr(), _threads())
    return slopes


@reference.implements("fit_powerlaw", "CPU")
def fit_powerlaw(evals: Tensor, xmin: Tensor | None) -> tuple[Tensor, Tensor]:
    """The operator on the CPU."""
    if evals.shape[-1] == 0:
        return reference_stats.fit_powerlaw(evals, xmin)
    spectra, batch = _Spectra(evals), evals.shape[:-1]
    fit = _empty((*batch, len(_ops.POWERLAW_FIELDS)))
    n_tail = torch.empty(batch, dtype=torch.int64, device="cpu")
    threshold = 0
    if xmin is not None:
        xmin = xmin.to(torch.float64).expand(batch).contiguous()
        threshold = xmin.data_ptr()
    _cpu.fit_powerlaw(*spectra.arguments, threshold, fit.data_ptr(), n_tail.data_ptr(), _threads())
    return fit, n_tail


@reference.implements("hill_alpha", "CPU")
def hill_alpha(evals: Tensor, k: int | None) -> Tensor:
    """The operator on the CPU."""
    if evals.shape[-1] == 0:
        return reference_stats.hill_alpha(evals, k)
    spectra, alphas = _Spectra(evals), _empty(evals.shape[:-1])
    _cpu.hill_alpha(*spectra.arguments, k or 0, alphas.data_ptr(), _threads())
    return alphas


@reference.implements("gram_product", "CPU")
def gram_product(A: Tensor, X: Tensor) -> tuple[Tensor, Tensor]:
    """The operator on the CPU: a matrix a thread, or the rows of a single one in pieces."""
    _ops.check_gram_product(A, X)
    if 0 in A.shape or X.shape[-1] == 0:
        return reference.gram_product(A, X)
    shape, columns = A.shape, X.shape[-1]
    x = X.contiguous()
    z, energy = torch.empty(X.shape, dtype=X.dtype, device="cpu"), _empty(shape[:-2])
    _cpu.gram_product(
        A.data_ptr(),
        _ELEMENT_TYPES[A.dtype],
        shape,
        A.stride(),
        x.data_ptr(),
        columns,
        z.data_ptr(),
        energy.data_ptr(),
        _threads(),
    )
    return z, energy


_DEFICIENT = 2


@reference.implements("tracked_look", "CPU")
def tracked_look(
    A: Sequence[Tensor],
    V: Tensor,
    fresh: Tensor,
    probes: Tensor | None,
    reference_images: Tensor | None,
    line: Tensor | None,
    limit: float,
    watched: int,
    most_products: int,
) -> Look:
    """The operator on the CPU: a matrix a thread, or all of them inside a single one.

    A matrix of fewer directions than V has vectors goes through plain torch.
    """
    _ops.check_tracked_look(A, V, fresh, probes, reference_images, line)
    batch, n, s = V.shape
    given = [None if x is None else x.contiguous() for x in (V, fresh, probes, reference_images, line)]
    at = [0 if x is None else x.data_ptr() for x in given]
    counts = [0 if x is None else x.shape[-1] for x in (V, probes, reference_images)]
    out = Look(
        squares=_empty((batch, s)),
        pending=_empty((batch, s)),
        vectors=torch.empty((batch, n, s), dtype=V.dtype, device="cpu"),
        energy=_empty((batch,)),
        bulk=torch.full((batch, 2), torch.nan, dtype=torch.float64, device="cpu"),
    )
    status = torch.empty(batch, dtype=torch.int32, device="cpu")
    _cpu.look(
        [(a.data_ptr(), a.stride(0), a.stride(1)) for a in A],
        _ELEMENT_TYPES[A[0].dtype],
        A[0].shape[0],
        n,
        counts,
        at[:2],
        at[2:],
        (limit, watched, most_products),
        [x.data_ptr() for x in (*out, status)],
        _threads(),
    )
    if _DEFICIENT in (found := status.tolist()):
        where = [i for i, one in enumerate(found) if one == _DEFICIENT]
        chosen = [A[i] for i in where]
        of_probes, images, lines = (None if x is None else x[where] for x in (probes, reference_images, line))
        repeat = (limit, watched, most_products)
        again = reference.tracked_look(chosen, V[where], fresh[where], of_probes, images, lines, *repeat)
        for whole, part in zip(out, again, strict=True):
            whole[where] = part
    return out


@reference.implements("block_lanczos", "CPU")
def block_lanczos(A: Tensor, V: Tensor, steps: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The operator on the CPU: a matrix a thread, or all of them inside a single one."""
    _ops.check_block_lanczos(A, V, steps)
    batch, s = A.shape[0], V.shape[1]
    along, first, second = (_empty((batch, steps, s, s)) for _ in range(3))
    energy = _empty((batch,))
    if batch:
        start = V.contiguous()
        _cpu.block_lanczos(
            A.data_ptr(),
            _ELEMENT_TYPES[A.dtype],
            A.shape,
            A.stride(),
            start.data_ptr(),
            s,
            steps,
            along.data_ptr(),
            first.data_ptr(),
            second.data_ptr(),
            energy.data_ptr(),
            _threads(),
        )
    return along, first, second, energy


class _Spectra:
    """Rows of values as the kernels read them, kept alive: contiguous, in float32 or float64."""

    def __init__(self, values: Tensor) -> None:
        n = values.shape[-1]
        self.rows = values.detach().to(_ops.compute_dtype(values.dtype)).contiguous()
        self.arguments = (self.rows.data_ptr(), _ELEMENT_TYPES[self.rows.dtype], self.rows.numel() // n, n)


_ops.cpu_kernels |= {
    _ops.svdvals_ex: svdvals_ex,
    _ops.spectral_stats: spectral_stats,
    _ops.stats_from_svdvals: stats_from_svdvals,
    _ops.ranksize_slope: ranksize_slope,
    _ops.fit_powerlaw: fit_powerlaw,
    _ops.hill_alpha: hill_alpha,
    _ops.gram_product: gram_product,
    _ops.svdvals_gradient: svdvals_gradient,
    _ops.tracked_look: tracked_look,
    _ops.block_lanczos: block_lanczos,
}
