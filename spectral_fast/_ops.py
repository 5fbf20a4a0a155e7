"""The operators: torch.library schemas, fake implementations and vmap rules.

Backends implement these; ``linalg``, ``stats`` and ``powerlaw`` call them. Nothing here knows a backend.
Every operator takes a batch in front, never mutates, and returns new tensors.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

# Layout of the last dimension of what stats_from_svdvals and spectral_stats return.
SMOOTH_FIELDS = (
    "spectral_norm",
    "frobenius_norm",
    "nuclear_norm",
    "stable_rank",
    "effective_rank",
    "spectral_entropy",
    "participation_ratio",
    "condition_number",
    "log_norm",
    "alpha_hill",
    "alpha_ranksize",
)
FITTED_FIELDS = (
    "alpha",
    "alpha_stderr",
    "xmin",
    "ks_distance",
    "n_tail",
    "alpha_weighted",
    "log_alpha_norm",
    "mp_edge",
    "mp_spikes",
)

# The last dimension of the first result of fit_powerlaw.
POWERLAW_FIELDS = ("alpha", "alpha_stderr", "xmin", "ks_distance")

REAL_DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
DTYPES = (*REAL_DTYPES, torch.complex64, torch.complex128)

INFO_OK = 0
INFO_NONFINITE = 1

_library = torch.library.Library("spectral_fast", "DEF")
for _schema in (
    "svdvals_ex(Tensor A, str? driver, bool check_errors) -> (Tensor S, Tensor info)",
    "stats_from_svdvals(Tensor S, SymInt? rows, SymInt? cols) -> (Tensor smooth, Tensor fitted)",
    "spectral_stats(Tensor A, str? driver) -> (Tensor S, Tensor smooth, Tensor fitted)",
    "fit_powerlaw(Tensor evals, Tensor? xmin) -> (Tensor fit, Tensor n_tail)",
    "hill_alpha(Tensor evals, int? k) -> Tensor",
    "ranksize_slope(Tensor S) -> Tensor",
    "gram_product(Tensor A, Tensor X) -> (Tensor Z, Tensor energy)",
    "svdvals_gradient(Tensor A, Tensor grad) -> Tensor",
    "tracked_look(Tensor[] A, Tensor V, Tensor fresh, Tensor? probes, Tensor? reference, Tensor? line, "
    "float limit, int watched, int most_products) "
    "-> (Tensor squares, Tensor pending, Tensor vectors, Tensor energy, Tensor bulk)",
    "block_lanczos(Tensor A, Tensor V, int steps) "
    "-> (Tensor along, Tensor first, Tensor second, Tensor energy)",
):
    _library.define(_schema, tags=(torch.Tag.pt2_compliant_tag,))

svdvals_ex = torch.ops.spectral_fast.svdvals_ex.default
stats_from_svdvals = torch.ops.spectral_fast.stats_from_svdvals.default
spectral_stats = torch.ops.spectral_fast.spectral_stats.default
fit_powerlaw = torch.ops.spectral_fast.fit_powerlaw.default
hill_alpha = torch.ops.spectral_fast.hill_alpha.default
ranksize_slope = torch.ops.spectral_fast.ranksize_slope.default
# A (*, m, n) of a real dtype, any strides; X (*, n, s) of the dtype A is computed in. Z = A^T (A X), like X;
# energy (*) float64, the sum of squares of A. From one read of A. Not differentiable: a backward pass raises.
gram_product = torch.ops.spectral_fast.gram_product.default
# A (*, m, n) of any dtype of svdvals, any strides; grad (*, min(m, n)) of the dtype of its values.
# U diag(grad) V^H (*, m, n), of A's dtype, contiguous; NaN for a matrix with a NaN or an infinity. Not
# differentiable.
svdvals_gradient = torch.ops.spectral_fast.svdvals_gradient.default

# B matrices A (m, n), of one shape and real dtype, any strides; all else as in spectral_fast.look.look, in
# the dtype A is computed in, line in float64. No place in a batch, no neighbour and no thread count changes a
# bit. No vmap: it is for a list. Not differentiable.
tracked_look = torch.ops.spectral_fast.tracked_look.default

# `steps` steps of block Lanczos on A^T A for A (b, m, n) of a real dtype, any strides, m and n at least 1,
# all from V (n, s), orthonormal but for rounding, 1 <= s <= n, of the dtype A is computed in. Of each step,
# (b, steps, s, s) float64: the diagonal block of T, symmetric but for rounding, and the upper triangular
# factors of the block below it, second @ first. Rows of zeros in second: the space is exhausted there. energy
# (b) float64, the sum of squares of A. What is not finite stays in its matrix, whose `along` is not finite
# either. On the CPU no place in a batch and no thread count changes a bit. No vmap, not differentiable.
block_lanczos = torch.ops.spectral_fast.block_lanczos.default


# What the dispatcher passes on its way to a CPU kernel when it has nothing to do there.
_PLAIN_KEYS = 0
for _key in ("CPU", "BackendSelect", "ADInplaceOrView", "AutogradCPU", "AutocastCPU"):
    _PLAIN_KEYS |= torch._C.DispatchKeySet(getattr(torch._C.DispatchKey, _key)).raw_repr()

# Operator -> its CPU kernel, of those whose calls are short enough for the way there to count.
cpu_kernels: dict[Any, Callable[..., Any]] = {}


def shortcut(op: Any, args: tuple[Any, ...]) -> Callable[..., Any]:
    """The CPU kernel itself where the dispatcher would do nothing but call it, in 6 us; otherwise op.

    That is where no subclass, transform, mode, trace, profiler or lazy negation has a say. Derivatives are
    the caller's to rule out.
    """
    C: Any = torch._C
    keys = C._dispatch_tls_local_include_set().raw_repr()
    for arg in args:
        if type(arg) in (Tensor, torch.nn.Parameter):
            keys |= C._dispatch_keys(arg).raw_repr()
        elif isinstance(arg, Tensor):
            return op
    if not keys & ~_PLAIN_KEYS and C._len_torch_function_stack() == 0 and not C._autograd._profiler_enabled():
        return cpu_kernels.get(op, op)
    return op


def raise_if_nonfinite(info: Tensor) -> None:
    """LinAlgError for the first matrix whose info says so, in torch's words. Waits for the device."""
    bad = torch.nonzero(info.flatten()).flatten()
    if not len(bad):
        return
    element = f"(Batch element {int(bad[0])}): " if info.dim() else ""
    raise torch.linalg.LinAlgError(  # type: ignore[attr-defined]
        f"linalg.svd: {element}The algorithm failed to converge because the input matrix contained "
        "non-finite values."
    )


def compute_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype that matrices of this dtype are computed in."""
    return torch.float32 if dtype in (torch.float16, torch.bfloat16) else dtype


def values_dtype(dtype: torch.dtype) -> torch.dtype:
    """The real dtype of the singular values of a matrix of this dtype."""
    return compute_dtype(dtype).to_real()


def _values_like(A: Tensor) -> Tensor:
    *batch, m, n = A.shape
    return A.new_empty((*batch, min(m, n)), dtype=values_dtype(A.dtype))


@torch.library.register_fake(svdvals_ex)
def _(A: Tensor, driver: str | None, check_errors: bool) -> tuple[Tensor, Tensor]:
    return _values_like(A), A.new_empty(A.shape[:-2], dtype=torch.int32)


def _stats_like(batch: Tensor) -> tuple[Tensor, Tensor]:
    smooth = batch.new_empty((*batch.shape, len(SMOOTH_FIELDS)), dtype=torch.float64)
    fitted = batch.new_empty((*batch.shape, len(FITTED_FIELDS)), dtype=torch.float64)
    return smooth, fitted


@torch.library.register_fake(stats_from_svdvals)
def _(S: Tensor, rows: int | None, cols: int | None) -> tuple[Tensor, Tensor]:
    return _stats_like(S.new_empty(S.shape[:-1]))


@torch.library.register_fake(spectral_stats)
def _(A: Tensor, driver: str | None) -> tuple[Tensor, Tensor, Tensor]:
    return (_values_like(A), *_stats_like(A.new_empty(A.shape[:-2])))


@torch.library.register_fake(fit_powerlaw)
def _(evals: Tensor, xmin: Tensor | None) -> tuple[Tensor, Tensor]:
    batch = evals.shape[:-1]
    fit = evals.new_empty((*batch, len(POWERLAW_FIELDS)), dtype=torch.float64)
    return fit, evals.new_empty(batch, dtype=torch.int64)


@torch.library.register_fake(hill_alpha)
def _(evals: Tensor, k: int | None) -> Tensor:
    return evals.new_empty(evals.shape[:-1], dtype=torch.float64)


@torch.library.register_fake(ranksize_slope)
def _(S: Tensor) -> Tensor:
    return S.new_empty(S.shape[:-1], dtype=torch.float64)


def check_gram_product(A: Tensor, X: Tensor) -> None:
    """ValueError or TypeError for what gram_product does not take."""
    if A.dtype not in REAL_DTYPES:
        raise TypeError(f"gram_product takes real floating-point matrices, not {A.dtype}")
    if X.dtype != compute_dtype(A.dtype):
        raise TypeError(
            f"gram_product of {A.dtype} matrices takes vectors of {compute_dtype(A.dtype)}, not {X.dtype}"
        )
    if A.dim() < 2 or X.dim() < 2 or (*A.shape[:-2], A.shape[-1]) != tuple(X.shape[:-1]):
        raise ValueError(
            "gram_product takes A (*, m, n) and X (*, n, s) with the same batch and n, not "
            f"{tuple(A.shape)} and {tuple(X.shape)}"
        )
    if A.device != X.device:
        raise ValueError(f"gram_product: A is on {A.device} and X on {X.device}; move one of them")


@torch.library.register_fake(gram_product)
def _(A: Tensor, X: Tensor) -> tuple[Tensor, Tensor]:
    check_gram_product(A, X)
    return X.new_empty(X.shape), X.new_empty(X.shape[:-2], dtype=torch.float64)


def _no_derivative(ctx: Any, *gradients: Tensor | None) -> None:
    raise NotImplementedError("gram_product has no derivative: give it A.detach() and X.detach()")


torch.library.register_autograd(gram_product, _no_derivative)


@torch.library.register_fake(svdvals_gradient)
def _(A: Tensor, grad: Tensor) -> Tensor:
    return A.new_empty(A.shape)


def _no_second_derivative(ctx: Any, *gradients: Tensor | None) -> None:
    raise NotImplementedError("svdvals_gradient has no derivative: ask for that of svdvals with create_graph")


torch.library.register_autograd(svdvals_gradient, _no_second_derivative)


def check_tracked_look(
    A: Sequence[Tensor],
    V: Tensor,
    fresh: Tensor,
    probes: Tensor | None,
    reference: Tensor | None,
    line: Tensor | None,
) -> None:
    """ValueError or TypeError for what tracked_look does not take."""
    if not A:
        raise ValueError("tracked_look: there are no matrices")
    first = A[0]
    if first.dtype not in REAL_DTYPES:
        raise TypeError(f"tracked_look takes real floating-point matrices, not {first.dtype}")
    for i, a in enumerate(A):
        if a.dim() != 2 or (a.shape, a.dtype, a.device) != (first.shape, first.dtype, first.device):
            raise ValueError(
                "tracked_look takes matrices of one shape, dtype and device, not "
                f"{tuple(first.shape)} {first.dtype} on {first.device} and, at {i}, {tuple(a.shape)} "
                f"{a.dtype} on {a.device}"
            )
    batch, (m, n) = len(A), first.shape
    if V.dim() != 3 or V.shape[:2] != (batch, n) or not 2 <= V.shape[-1] <= n or m < 1:
        raise ValueError(
            f"tracked_look of {batch} matrices {m} x {n} takes V ({batch}, {n}, s), 2 <= s <= {n}, not "
            f"{tuple(V.shape)}"
        )
    wanted: dict[str, tuple[Tensor, tuple[int, ...], torch.dtype]] = {}
    dtype = compute_dtype(first.dtype)
    wanted["V"] = V, tuple(V.shape), dtype
    wanted["fresh"] = fresh, (batch, n), dtype
    if probes is None or reference is None or line is None:
        if not (probes is None and reference is None and line is None):
            raise ValueError("tracked_look takes all of probes, reference and line, or none of them")
    else:
        if probes.dim() != 3 or reference.dim() != 3 or not 0 < reference.shape[-1] < probes.shape[-1]:
            raise ValueError(
                "tracked_look takes probes (B, n, p) and reference (B, n, d), 0 < d < p, not "
                f"{tuple(probes.shape)} and {tuple(reference.shape)}"
            )
        wanted["probes"] = probes, (batch, n, probes.shape[-1]), dtype
        wanted["reference"] = reference, (batch, n, reference.shape[-1]), dtype
        wanted["line"] = line, (batch, 2), torch.float64
    for name, (x, shape, of) in wanted.items():
        if tuple(x.shape) != shape or x.dtype != of or x.device != first.device:
            raise ValueError(
                f"tracked_look takes {name} {shape} of {of} on {first.device}, not {tuple(x.shape)} of "
                f"{x.dtype} on {x.device}"
            )


@torch.library.register_fake(tracked_look)
def _(
    A: Sequence[Tensor],
    V: Tensor,
    fresh: Tensor,
    probes: Tensor | None,
    reference: Tensor | None,
    line: Tensor | None,
    limit: float,
    watched: int,
    most_products: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    check_tracked_look(A, V, fresh, probes, reference, line)
    squares = V.new_empty((V.shape[0], V.shape[-1]), dtype=torch.float64)
    energy = V.new_empty(V.shape[:1], dtype=torch.float64)
    bulk = V.new_empty((V.shape[0], 2), dtype=torch.float64)
    return squares, torch.empty_like(squares), V.new_empty(V.shape), energy, bulk


def check_block_lanczos(A: Tensor, V: Tensor, steps: int) -> None:
    """ValueError or TypeError for what block_lanczos does not take."""
    if A.dtype not in REAL_DTYPES:
        raise TypeError(f"block_lanczos takes real floating-point matrices, not {A.dtype}")
    if V.dtype != compute_dtype(A.dtype):
        raise TypeError(
            f"block_lanczos of {A.dtype} matrices takes vectors of {compute_dtype(A.dtype)}, not {V.dtype}"
        )
    if A.dim() != 3 or V.dim() != 2 or A.shape[1] < 1 or A.shape[2] != V.shape[0]:
        raise ValueError(
            "block_lanczos takes A (b, m, n), m at least 1, and V (n, s) with the same n, not "
            f"{tuple(A.shape)} and {tuple(V.shape)}"
        )
    if not 1 <= V.shape[1] <= V.shape[0] or steps < 1:
        raise ValueError(
            f"block_lanczos on {V.shape[0]} columns takes 1 to {V.shape[0]} vectors and at least 1 step, not "
            f"{V.shape[1]} and {steps}"
        )
    if A.device != V.device:
        raise ValueError(f"block_lanczos: A is on {A.device} and V on {V.device}; move one of them")


@torch.library.register_fake(block_lanczos)
def _(A: Tensor, V: Tensor, steps: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    check_block_lanczos(A, V, steps)
    blocks = (A.shape[0], steps, V.shape[1], V.shape[1])
    along, first, second = (A.new_empty(blocks, dtype=torch.float64) for _ in range(3))
    return along, first, second, A.new_empty(A.shape[:1], dtype=torch.float64)


def batched_call(call: Callable[..., Any], info: Any, in_dims: Any, *args: Any) -> tuple[Any, Any]:
    """The vmap rule of every operator: all tensors get the batch in front, all outputs have it there."""
    moved = []
    for arg, dim in zip(args, in_dims, strict=True):
        if isinstance(arg, Tensor):
            front = arg.unsqueeze(0) if dim is None else arg.movedim(dim, 0)
            arg = front.expand(info.batch_size, *front.shape[1:])
        moved.append(arg)
    out = call(*moved)
    return out, (0,) * len(out) if isinstance(out, tuple) else 0


def _register_vmap(op: Any) -> None:
    torch.library.register_vmap(op, lambda info, dims, *args: batched_call(op, info, dims, *args))


for _op in (
    svdvals_ex,
    stats_from_svdvals,
    spectral_stats,
    fit_powerlaw,
    hill_alpha,
    ranksize_slope,
    gram_product,
    svdvals_gradient,
):
    _register_vmap(_op)
