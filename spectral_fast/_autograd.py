"""Derivatives for the operators, in every mode torch has.

Eager calls go through a ``torch.autograd.Function`` with jvp and vmap, which composes with func.grad,
vmap(grad), jacrev and forward mode. Under torch.compile the raw operator is called, with the same
formula registered on it: a Function around an operator is not traceable in all of these modes, and a
registered operator alone gives zero tangents in forward mode.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from spectral_fast._dtensor import is_dtensor, on_shards
from spectral_fast._ops import batched_call, shortcut

Grads = tuple[Tensor | None, ...]


def differentiating(args: tuple[Any, ...]) -> bool:
    """Whether a derivative or transform may be under way; if not, the 12 us of a Function are saved."""
    if forward_ad._current_level >= 0 or torch._C._are_functorch_transforms_active():
        return True
    return torch.is_grad_enabled() and any(isinstance(x, Tensor) and x.requires_grad for x in args)


def _require_single_forward_mode() -> None:
    """Raise where torch would silently give zero tangents: compiled forward mode, and forward mode twice.

    A registered operator has no place for a jvp, and a Function's jvp runs with forward mode off.
    """
    if forward_ad._current_level < 0:
        return
    if torch.compiler.is_compiling():
        raise RuntimeError(
            "spectral_fast: forward-mode derivatives do not exist under torch.compile. "
            "Take the jvp outside of the compiled function, or use reverse mode (vjp, grad, jacrev)."
        )
    stack = torch._C._functorch.get_interpreter_stack() or ()
    if sum(level.key() == torch._C._functorch.TransformType.Jvp for level in stack) > 1:
        raise RuntimeError(
            "spectral_fast: forward mode inside forward mode (jvp of jvp, jacfwd of jacfwd) does not exist. "
            "Use reverse mode for one of them, as torch.func.hessian does."
        )


def differentiable(
    op: Any,
    *,
    vjp: Callable[..., Tensor | None],
    jvp: Callable[..., tuple[Tensor | None, ...]],
    event_dims: int = 1,
    integer_outputs: tuple[int, ...] = (),
    compiled_constant_outputs: tuple[int, ...] = (),
) -> Callable[..., Any]:
    """Wrap ``op(x, *params)`` with derivatives with respect to ``x``.

    vjp(x, params, grads)  -> gradient of x; an absent gradient is None.
    jvp(x, params, tangent) -> one tangent for each output, None for those in ``integer_outputs``.
    event_dims: the dimensions of ``x`` behind its batch: 2 for matrices, 1 for spectra. All three are called
        with ordinary tensors: of a DTensor, each rank's part of the batch.
    compiled_constant_outputs: outputs whose vjp raises. A compiled graph asks for the gradient of every
    output at trace time, so there they are marked as not requiring one.
    """

    def local(function: Callable[..., Any], x: Tensor, *rest: Any) -> Any:
        return on_shards(function, x, rest, event_dims) if is_dtensor(x) else function(x, *rest)

    def save(ctx: Any, inputs: tuple[Any, ...], output: Any, constant: tuple[int, ...]) -> None:
        x, *params = inputs
        ctx.params = params
        ctx.save_for_backward(x)
        ctx.set_materialize_grads(False)
        outputs = output if isinstance(output, tuple) else (output,)
        ctx.mark_non_differentiable(*(outputs[i] for i in constant))

    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Any, ...]:
        (x,) = ctx.saved_tensors
        return (local(vjp, x, ctx.params, grads), *(None for _ in ctx.params))

    class Differentiable(torch.autograd.Function):
        @staticmethod
        def forward(*args: Any) -> Any:
            return local(op, *args)

        @staticmethod
        def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
            save(ctx, inputs, output, integer_outputs)
            ctx.save_for_forward(inputs[0])

        @staticmethod
        def backward(ctx: Any, *grads: Tensor | None) -> tuple[Any, ...]:
            return backward(ctx, *grads)

        @staticmethod
        def jvp(ctx: Any, tangent: Tensor, *_: Any) -> Any:
            (x,) = ctx.saved_tensors
            tangents = local(jvp, x, ctx.params, tangent)
            return tangents if len(tangents) > 1 else tangents[0]

        @staticmethod
        def vmap(info: Any, in_dims: Any, *args: Any) -> Any:
            return batched_call(Differentiable.apply, info, in_dims, *args)

    torch.library.register_autograd(
        op,
        backward,
        setup_context=lambda ctx, inputs, output: save(
            ctx, inputs, output, (*integer_outputs, *compiled_constant_outputs)
        ),
    )

    def call(*args: Any) -> Any:
        _require_single_forward_mode()
        if torch.compiler.is_compiling():
            return local(op, *args)
        if differentiating(args):
            return Differentiable.apply(*args)
        if is_dtensor(args[0]):
            return local(op, *args)
        return shortcut(op, args)(*args)

    return call
