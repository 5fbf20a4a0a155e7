"""svdvals and svdvals_ex: arguments, errors, derivatives."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from spectral_fast import _ops, _vectors
from spectral_fast._autograd import Grads, differentiable, differentiating
from spectral_fast._dtensor import is_dtensor
from spectral_fast.heuristics import DRIVERS, TORCH_DRIVERS, choose


class SvdvalsResult(NamedTuple):
    """What svdvals_ex returns, for a batch (\\*) of m x n matrices, k = min(m, n)."""

    S: Tensor
    """(\\*, k), descending, >= 0, in A's real dtype (float32 for half precisions); NaN where info is 1"""
    info: Tensor
    """(\\*) int32: 0 where S holds, 1 where the matrix has a NaN or an infinity"""


def svdvals(A: Tensor, *, driver: str | None = None, out: Tensor | None = None) -> Tensor:
    """Singular values of a matrix or batch of matrices: torch.linalg.svdvals, same meaning.

    A: (\\*, m, n), any strides, any batch, empty included. float32 and float64; bfloat16 and float16
        (which torch refuses) are computed in float32; complex64 and complex128 by torch.linalg.svdvals.
    driver: None chooses (see :func:`spectral_fast.explain`); "bidiag" (our kernels, on the CPU and on CUDA),
        "gram" (less accurate, see below), "torch", and torch's own "gesvd", "gesvdj", "gesvda" on CUDA.
        "jacobi" is the name of a driver that no device has yet: it raises ValueError.
    out: as in torch: (\\*, k), of the dtype that is returned.

    Returns (\\*, k), k = min(m, n): descending, >= 0, in A's real dtype (float32 for half precisions).
    For every matrix max |s - sigma| is at most c eps sigma_1 with c = 2 (k <= 128), 4 (k <= 1024), 8
    above, or twice LAPACK's error on the same matrix where that is larger. (A few float64
    matrices with all values equal miss that by up to a factor of 1.8: README, Limits.) "gram" goes through
    a float64 Gram matrix, whatever A's dtype: squares of values err by up to k eps sigma_1^2, eps that of
    float64, so small values by up to sqrt(k eps) sigma_1, 1e-7 sigma_1 at k = 50. On the CPU it is
    compiled where the smaller side is above 128 and the larger above 5/3 of it, and faster than "bidiag" in
    float64; elsewhere it is plain torch.

    Differentiable as U diag(g) V^H in reverse mode to any order where the values are distinct, and once in
    forward mode (not under torch.compile; a second forward level raises RuntimeError). U and V are computed
    when a derivative is asked for: by kernels of ours for a first gradient on the CPU where A is real, no
    float64 and has more than 128 rows and columns; otherwise, and for matrices with values closer than 1e-8
    of themselves or below 1e-8 sigma_1, by torch.linalg.svd.

    Raises what torch.linalg.svdvals raises for bad arguments, ValueError for a driver of ours that the
    device lacks, and torch.linalg.LinAlgError naming the batch element for a NaN or an infinity in A
    (on CUDA that check waits for the device; svdvals_ex does not).
    Source: Householder reduction to a band and on to a bidiagonal, Sturm counts; docs/algorithms.md.
    """
    if not _ours(A, driver) or (out is not None and not _fits(A, out)):
        return _torch_svdvals(A, driver, out)
    values = _svdvals(A, driver, True)[0]
    # |s| = s: an elementwise operation brings torch's own resizing and warning for `out`.
    return values if out is None else torch.abs(values, out=out)


def svdvals_ex(A: Tensor, *, driver: str | None = None, check_errors: bool = False) -> SvdvalsResult:
    """Singular values with a status instead of an exception.

    Nothing here waits for a GPU unless asked, but for the first call with a dtype on a device, which compiles
    and checks the kernels, and where :func:`spectral_fast.explain` says torch, which may. In a CUDA graph:
    call it once with the same shape, dtype and strides before the capture.

    A, driver: as in :func:`svdvals`.
    check_errors: raise as :func:`svdvals` does.

    Returns ``S`` (\\*, k), as :func:`svdvals` does, and ``info`` (\\*) int32: 0 where S holds, 1 where the
    matrix has a NaN or an infinity; S is NaN there and the other matrices are unaffected. Only S is
    differentiable, as svdvals is.

    Raises what torch.linalg.svdvals raises for bad arguments, TypeError for what is no dense batch of
    floating-point matrices, ValueError for a driver of ours that the device lacks.
    """
    if not _ours(A, driver):
        _torch_svdvals(A, driver, None)
        raise TypeError(f"svdvals_ex needs a dense batch of floating-point matrices, not {type(A).__name__}")
    return SvdvalsResult(*_svdvals(A, driver, check_errors))


def _ours(A: Any, driver: Any) -> bool:
    """Whether the operator takes these arguments; torch answers for everything else, errors included.

    Raises ValueError for a driver of ours that the device lacks.
    """
    if not (is_dense(A) and A.dtype in _ops.DTYPES and A.dim() >= 2):
        return False
    if driver is None:
        return True
    if not (driver in DRIVERS or (driver in TORCH_DRIVERS and A.is_cuda)):
        return False
    choose(tuple(A.shape), A.dtype, A.device.type, driver)
    return True


def is_dense(A: Any) -> bool:
    """Whether A is an ordinary tensor with strides."""
    return isinstance(A, Tensor) and A.layout == torch.strided and not A.is_nested


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


def svdvals_vjp(A: Tensor, grad: Tensor) -> Tensor:
    """U diag(grad) V^H, in A's dtype; by plain torch where that is to be differentiated in its turn."""
    if differentiating((A, grad)) or torch.compiler.is_compiling():
        return _vectors.gradient(A, grad)
    return _ops.shortcut(_ops.svdvals_gradient, (A, grad))(A, grad)


def svdvals_jvp(A: Tensor, tangent: Tensor) -> Tensor:
    """The real part of diag(U^H dA V)."""
    return _vectors.tangents(A, tangent)


def _vjp(A: Tensor, params: list[Any], grads: Grads) -> Tensor | None:
    return None if grads[0] is None else svdvals_vjp(A, grads[0])


def _jvp(A: Tensor, params: list[Any], tangent: Tensor) -> tuple[Tensor | None, ...]:
    return svdvals_jvp(A, tangent), None


def _svdvals(A: Tensor, driver: str | None, check_errors: bool) -> tuple[Tensor, Tensor]:
    if not (check_errors and is_dtensor(A)):
        return _values(A, driver, check_errors)
    # A rank sees its own part of the batch, but all have to raise together, or the others would wait for it.
    S, info = _values(A, driver, False)
    _ops.raise_if_nonfinite(info.full_tensor())
    return S, info


_values = differentiable(_ops.svdvals_ex, vjp=_vjp, jvp=_jvp, event_dims=2, integer_outputs=(1,))
