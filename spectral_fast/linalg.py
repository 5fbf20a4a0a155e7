"""svdvals and svdvals_ex: arguments, errors, derivatives."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from spectral_fast import _ops
from spectral_fast._autograd import Grads, differentiable
from spectral_fast.heuristics import DRIVERS, TORCH_DRIVERS


class SvdvalsResult(NamedTuple):
    """What svdvals_ex returns: ``S`` (\\*, k) and ``info`` (\\*) int32."""

    S: Tensor
    info: Tensor


def svdvals(A: Tensor, *, driver: str | None = None, out: Tensor | None = None) -> Tensor:
    """Singular values of a matrix or batch of matrices: torch.linalg.svdvals, same meaning.

    A: (\\*, m, n), any strides, any batch, empty included. float32 and float64; bfloat16 and float16
        (which torch refuses) are computed in float32; complex goes to torch.linalg.svdvals.
    driver: None chooses (see :func:`spectral_fast.explain`); "bidiag" (CPU), "gram" (less accurate,
        see below), "torch", and torch's own "gesvd", "gesvdj", "gesvda" on CUDA.
    out: as in torch.

    Returns (\\*, k), k = min(m, n): descending, >= 0, in A's real dtype (float32 for half precisions).
    For every matrix max |s - sigma| is at most c eps sigma_1 with c = 2 (k <= 128), 4 (k <= 1024), 8
    above, or twice LAPACK's error on the same matrix where that is larger. "gram" takes the square roots
    of the eigenvalues of a float64 Gram matrix: for float32 input an error up to 1e-7 sigma_1 on
    small values, for float64 input 2e-8 sigma_1.

    Differentiable in forward and reverse mode as U diag(g) V^H, to any order where the values are
    distinct. U and V are computed when a derivative is asked for, by torch.linalg.svd.

    Raises what torch.linalg.svdvals raises for bad arguments, ValueError for a driver of ours that the
    device lacks, and torch.linalg.LinAlgError naming the batch element for a NaN or an infinity in A
    (on CUDA that check waits for the device; svdvals_ex does not).
    """
    if not _ours(A, driver) or (out is not None and not _fits(A, out)):
        return _torch_svdvals(A, driver, out)
    values = _svdvals(A, driver, True)[0]
    # |s| = s: an elementwise operation brings torch's own resizing and warning for `out`.
    return values if out is None else torch.abs(values, out=out)


def svdvals_ex(A: Tensor, *, driver: str | None = None, check_errors: bool = False) -> SvdvalsResult:
    """Singular values with a status instead of an exception; never waits for a GPU unless asked.

    A, driver: as in :func:`svdvals`.
    check_errors: raise as :func:`svdvals` does.

    Returns ``S`` (\\*, k) and ``info`` (\\*) int32: 0 where S holds, 1 where the matrix has a NaN or an
    infinity; S is NaN there and the other matrices are unaffected.
    """
    if not _ours(A, driver):
        values = _torch_svdvals(A, driver, None)
        return SvdvalsResult(values, torch.zeros(A.shape[:-2], dtype=torch.int32, device=A.device))
    return SvdvalsResult(*_svdvals(A, driver, check_errors))


def _ours(A: Any, driver: Any) -> bool:
    """Whether the operator takes these arguments; torch answers for everything else, errors included."""
    return (
        isinstance(A, Tensor)
        and A.dtype in _ops.NATIVE_DTYPES
        and A.layout == torch.strided
        and not A.is_nested
        and A.dim() >= 2
        and (driver is None or driver in DRIVERS or (driver in TORCH_DRIVERS and A.is_cuda))
    )


def _fits(A: Tensor, out: Any) -> bool:
    return (
        isinstance(out, Tensor)
        and out.dtype == _ops.values_dtype(A.dtype)
        and out.device == A.device
        and not (torch.is_grad_enabled() and (A.requires_grad or out.requires_grad))
    )


def _torch_svdvals(A: Any, driver: Any, out: Any) -> Tensor:
    if isinstance(A, Tensor) and A.dtype in (torch.float16, torch.bfloat16) and out is not None:
        A = A.to(torch.float32)  # so that torch's complaint is about `out`
    if driver == "torch":
        driver = None
    return torch.linalg.svdvals(A, driver=driver, out=out)


def _thin_svd(A: Tensor) -> tuple[Tensor, Tensor]:
    U, _, Vh = torch.linalg.svd(A.to(_ops.values_dtype(A.dtype)), full_matrices=False)
    return U, Vh


def svdvals_vjp(A: Tensor, grad: Tensor) -> Tensor:
    """U diag(grad) V^H, in A's dtype."""
    U, Vh = _thin_svd(A)
    with torch.autocast(A.device.type, enabled=False):
        return (U @ (grad.unsqueeze(-1) * Vh)).to(A.dtype)


def svdvals_jvp(A: Tensor, tangent: Tensor) -> Tensor:
    """diag(U^H dA V)."""
    U, Vh = _thin_svd(A)
    with torch.autocast(A.device.type, enabled=False):
        return ((U.mT @ tangent.to(U.dtype)) * Vh).sum(-1)


def _vjp(A: Tensor, params: list[Any], grads: Grads) -> Tensor | None:
    return None if grads[0] is None else svdvals_vjp(A, grads[0])


def _jvp(A: Tensor, params: list[Any], tangent: Tensor) -> tuple[Tensor | None, ...]:
    return svdvals_jvp(A, tangent), None


_svdvals = differentiable(_ops.svdvals_ex, vjp=_vjp, jvp=_jvp, integer_outputs=(1,))
