"""Plain torch: the fallback on every device with float64, and the twin each kernel is compared with."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

import torch
from torch import Tensor

from spectral_fast import _ops, _vectors
from spectral_fast.heuristics import TORCH_DRIVERS, Plan, choose
from spectral_fast.look import Look, Probes, Repeat, look

_log = logging.getLogger(__name__)

Function = TypeVar("Function", bound=Callable[..., object])


def implements(op: str, key: str = "CompositeExplicitAutograd") -> Callable[[Function], Function]:
    """Register a function as an operator; by default for every device that has no kernel of its own."""

    def register(function: Function) -> Function:
        torch.library.impl(f"spectral_fast::{op}", key, function)
        return function

    return register


def svdvals(A: Tensor, driver: str) -> tuple[Tensor, Tensor]:
    """Values and info by torch.linalg. driver: "torch", "gram" or one of torch's own.

    A NaN or an infinity in one matrix must not reach the others, nor stop the call: such a matrix is
    replaced by zeros before, and its values by NaN after.
    """
    work = A.to(_ops.compute_dtype(A.dtype))
    finite = work.isfinite().all(-1).all(-1)
    work = torch.where(finite[..., None, None], work, 0)
    if driver == "gram":
        values = _gram(work)
    else:
        values = torch.linalg.svdvals(work, driver=driver if driver in TORCH_DRIVERS else None)
    values = torch.where(finite[..., None], values, torch.nan)
    return values, torch.where(finite, _ops.INFO_OK, _ops.INFO_NONFINITE).to(torch.int32)


def _gram(A: Tensor) -> Tensor:
    # Scaled by a power of two, so that no square overflows or vanishes.
    largest = A.abs().amax((-2, -1), keepdim=True) if A.numel() else A.new_zeros(())
    exponent = torch.frexp(largest.to(torch.float64))[1]
    tall = A if A.shape[-2] >= A.shape[-1] else A.mT
    work = torch.ldexp(tall.to(torch.float64), -exponent)
    squares = torch.linalg.eigvalsh(work.mT @ work).flip(-1)
    return torch.ldexp(squares.clamp(min=0).sqrt(), exponent.squeeze(-1)).to(A.dtype)


def log_plan(A: Tensor, plan: Plan) -> None:
    """Say in the debug log which path runs."""
    if _log.isEnabledFor(logging.DEBUG):
        _log.debug("svdvals%s %s %s", tuple(A.shape), A.device.type, plan)


@implements("svdvals_ex")
def svdvals_ex(A: Tensor, driver: str | None, check_errors: bool) -> tuple[Tensor, Tensor]:
    """The operator on devices without a kernel."""
    plan = choose(A.shape, A.dtype, A.device.type, driver)
    log_plan(A, plan)
    values, info = svdvals(A, plan.driver)
    if check_errors:
        _ops.raise_if_nonfinite(info)
    return values, info


@implements("svdvals_gradient")
def svdvals_gradient(A: Tensor, grad: Tensor) -> Tensor:
    """The operator on devices without a kernel."""
    return _vectors.gradient(A, grad).contiguous()


# Entries of A that are squared at a time: their copy in float64 is 32 MiB on the CPU, and none on a GPU.
_SQUARED_ENTRIES = 1 << 22


@contextlib.contextmanager
def _unrounded_products(device: torch.device) -> Iterator[None]:
    """No autocast, and no TF32, whatever torch's switches say: either would leave three digits."""
    matmul = torch.backends.cuda.matmul
    before = matmul.fp32_precision
    with torch.autocast(device.type, enabled=False):
        if device.type != "cuda":
            yield
            return
        matmul.fp32_precision = "ieee"
        try:
            yield
        finally:
            matmul.fp32_precision = before


@implements("gram_product")
def gram_product(A: Tensor, X: Tensor) -> tuple[Tensor, Tensor]:
    """The operator on devices without a kernel: two products and a sum of squares, A read for each."""
    _ops.check_gram_product(A, X)
    with _unrounded_products(A.device):
        work = A.to(X.dtype)
        Z = work.mT @ (work @ X)
    energy = A.new_zeros(A.shape[:-2], dtype=torch.float64)
    rows = max(1, _SQUARED_ENTRIES * A.shape[-2] // max(A.numel(), 1))
    for part in A.split(rows, -2):
        energy = energy + torch.linalg.vector_norm(part, dim=(-2, -1), dtype=torch.float64).square()
    return Z, energy


@implements("tracked_look")
def tracked_look(
    A: Sequence[Tensor],
    V: Tensor,
    fresh: Tensor,
    probes: Tensor | None,
    reference: Tensor | None,
    line: Tensor | None,
    limit: float,
    watched: int,
    most_products: int,
) -> Look:
    """The operator on devices without a kernel."""
    _ops.check_tracked_look(A, V, fresh, probes, reference, line)

    def products(X: Tensor, where: Tensor | None) -> tuple[Tensor, Tensor]:
        chosen = A if where is None else [A[i] for i in where.tolist()]
        both = [_ops.gram_product(a, x) for a, x in zip(chosen, X, strict=True)]
        return torch.stack([Z for Z, _ in both]), torch.stack([energy for _, energy in both])

    kept = None
    if probes is not None and reference is not None and line is not None:
        kept = Probes(probes, reference, line)
    return look(products, V, fresh, kept, Repeat(limit, watched, most_products))


# A vector of norm 1 that loses more than this to the vectors before it had nothing of its own.
_EXHAUSTED = 0.1


@implements("block_lanczos")
def block_lanczos(A: Tensor, V: Tensor, steps: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The operator on devices without a kernel: the batch goes through the steps together."""
    _ops.check_block_lanczos(A, V, steps)
    b, (n, s) = A.shape[0], V.shape
    basis = V.new_empty(b, s * steps, n)
    V = V.expand(b, n, s)
    energy, largest, eps = V.new_empty(0), V.new_zeros(b), torch.finfo(V.dtype).eps
    along, first, second = [], [], []
    for step in range(steps):
        end = (step + 1) * s
        basis[:, end - s : end] = V.mT
        Z, squares = _ops.gram_product(A, V)
        energy = squares if step == 0 else energy
        # In exact arithmetic M V_j meets the last two blocks only. Rounding leaves traces of all others,
        # which matter once Z is divided by its norm: those go afterwards, when V has norm 1.
        recent, known = basis[:, max(end - 2 * s, 0) : end], basis[:, :end]
        # All by rows: with the vectors as columns these products take up to six times as long.
        rows = Z.mT
        part = rows @ recent.mT
        along.append(part[..., -s:])
        V, R = torch.linalg.qr(torch.baddbmm(rows, part, recent, alpha=-1).mT)
        first.append(R)
        rows = V.mT
        V, R = torch.linalg.qr(torch.baddbmm(rows, rows @ known.mT, known, alpha=-1).mT)
        # What was rounding before or vanishes now has nothing new: the space is exhausted there.
        largest = torch.maximum(largest, part.abs().amax((-2, -1)))
        alive = R.diagonal(dim1=-2, dim2=-1).abs() > _EXHAUSTED
        alive &= first[-1].diagonal(dim1=-2, dim2=-1).abs() > 4 * eps * largest[:, None]
        V = V * alive[:, None]
        second.append(R * alive[..., None])
    blocks = [torch.stack(each, 1).to(torch.float64) for each in (along, first, second)]
    return blocks[0], blocks[1], blocks[2], energy
