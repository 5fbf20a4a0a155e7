"""Derivatives of singular values by plain torch: U and V of a matrix, and what follows from them."""

from __future__ import annotations

import contextlib

import torch
from torch import Tensor

from spectral_fast import _ops


def without_autocast(A: Tensor) -> contextlib.AbstractContextManager[None]:
    """The products with U and V would be cut to half precision."""
    if torch.amp.is_autocast_available(A.device.type):
        return torch.autocast(A.device.type, enabled=False)
    return contextlib.nullcontext()


def _thin_svd(A: Tensor) -> tuple[Tensor, Tensor]:
    """U and V^H; NaN for a matrix with a NaN or an infinity, which must not stop the others."""
    finite = A.isfinite().all(-1).all(-1)[..., None, None]
    work = torch.where(finite, A, 0).to(_ops.compute_dtype(A.dtype))
    U, _, Vh = torch.linalg.svd(work, full_matrices=False)
    return torch.where(finite, U, torch.nan), torch.where(finite, Vh, torch.nan)


def gradient(A: Tensor, grad: Tensor) -> Tensor:
    """U diag(grad) V^H, in A's dtype. Differentiable."""
    U, Vh = _thin_svd(A)
    with without_autocast(A):
        return (U @ (grad.unsqueeze(-1) * Vh)).to(A.dtype)


def tangents(A: Tensor, tangent: Tensor) -> Tensor:
    """The real part of diag(U^H dA V)."""
    U, Vh = _thin_svd(A)
    with without_autocast(A):
        return ((U.mH @ tangent.to(U.dtype)) * Vh.conj()).sum(-1).real
