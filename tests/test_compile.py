"""Under torch.compile and in the dispatcher's eyes: opcheck, fullgraph forward and backward, vmap."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import spectral_fast as sf
from spectral_fast import _ops

A = torch.randn(2, 7, 5, dtype=torch.float64)
S = torch.linalg.svdvals(A)
LOOK = [torch.randn(2, 5, 2).double(), torch.ones(2, 5).double()]  # V, fresh; then probes
LOOK += [torch.randn(2, 5, 3).double(), torch.randn(2, 5, 1).double(), torch.ones(2, 2).double()]
OPERATORS: dict[str, tuple[Any, tuple[Any, ...]]] = {
    "svdvals_ex": (_ops.svdvals_ex, (A, None, False)),
    "svdvals_ex check_errors": (_ops.svdvals_ex, (A, None, True)),
    "svdvals_ex gram": (_ops.svdvals_ex, (A.float(), "gram", False)),
    "svdvals_ex bfloat16": (_ops.svdvals_ex, (A.bfloat16(), None, False)),
    "svdvals_ex transposed": (_ops.svdvals_ex, (A.mT, "torch", False)),
    # opcheck compares without equal_nan, so the shape is given
    "stats_from_svdvals": (_ops.stats_from_svdvals, (S, 7, 5)),
    "spectral_stats": (_ops.spectral_stats, (A, None)),
    "fit_powerlaw": (_ops.fit_powerlaw, (S, None)),
    "fit_powerlaw xmin": (_ops.fit_powerlaw, (S, torch.tensor([0.5, 0.7]))),
    "hill_alpha": (_ops.hill_alpha, (S, None)),
    "hill_alpha k": (_ops.hill_alpha, (S, 3)),
    "ranksize_slope": (_ops.ranksize_slope, (S,)),
    "svdvals_gradient": (_ops.svdvals_gradient, (A, S)),
    "svdvals_gradient wide": (_ops.svdvals_gradient, (A.mT, S)),
    "svdvals_gradient kernel": (_ops.svdvals_gradient, (torch.randn(130, 129), torch.randn(129))),
    "gram_product": (_ops.gram_product, (A, torch.randn(2, 5, 3, dtype=torch.float64))),
    "gram_product float16": (_ops.gram_product, (A[0].half(), torch.randn(5, 3))),
    "gram_product empty": (_ops.gram_product, (A[:, :0], torch.randn(2, 5, 3, dtype=torch.float64))),
    # with probes: opcheck compares without equal_nan
    "block_lanczos": (_ops.block_lanczos, (A, torch.eye(5, 2, dtype=torch.float64), 2)),
    "block_lanczos bfloat16": (_ops.block_lanczos, (A.bfloat16(), torch.eye(5, 2), 2)),
    "tracked_look": (_ops.tracked_look, (list(A), *LOOK, 0.0, 1, 2)),
}
DIFFERENTIABLE = [
    name
    for name in OPERATORS
    if not any(x in name for x in ("fit", "gram_product", "gradient", "lanczos", "tracked_look", "bfloat16"))
]


@pytest.mark.parametrize("name", OPERATORS)
def test_opcheck(name: str) -> None:
    operator, args = OPERATORS[name]
    torch.library.opcheck(operator, args)


@pytest.mark.parametrize("name", DIFFERENTIABLE)
def test_opcheck_with_gradients(name: str) -> None:
    operator, (x, *rest) = OPERATORS[name]
    torch.library.opcheck(operator, (x.clone().requires_grad_(), *rest))


def _compiled(function: Any) -> Any:
    torch.compiler.reset()
    return torch.compile(function, fullgraph=True, backend="aot_eager")


def assert_equal(ours: Any, expected: Any) -> None:
    """The graph calls the same operators on the same numbers: the same bits."""
    flat, flat_expected = (torch.utils._pytree.tree_leaves(v) for v in (ours, expected))
    for a, b in zip(flat, flat_expected, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0, equal_nan=True)


FUNCTIONS = {
    "svdvals": sf.svdvals,
    "svdvals_ex": sf.svdvals_ex,
    "svdvals torch": lambda a: sf.svdvals(a, driver="torch"),
    "spectral_stats": sf.spectral_stats,
    "spectral_stats values": lambda a: sf.spectral_stats(a, return_svdvals=True),
    "stats_from_svdvals": lambda a: sf.stats_from_svdvals(sf.svdvals(a), shape=tuple(a.shape[-2:])),
    "fit_powerlaw": lambda a: sf.fit_powerlaw(sf.svdvals(a) ** 2),
    "fit_powerlaw xmin": lambda a: sf.fit_powerlaw(sf.svdvals(a) ** 2, xmin=1.5),
    "hill_alpha": lambda a: sf.hill_alpha(sf.svdvals(a) ** 2),
    "ranksize_slope": lambda a: sf.ranksize_slope(sf.svdvals(a)),
}


@pytest.mark.parametrize("name", FUNCTIONS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=str)
def test_forward(name: str, dtype: torch.dtype) -> None:
    function, x = FUNCTIONS[name], A.to(dtype)
    assert_equal(_compiled(function)(x), function(x))


@pytest.mark.parametrize("name", ["svdvals", "svdvals_ex", "spectral_stats", "spectral_stats values"])
def test_backward(name: str) -> None:
    def loss(a: Tensor) -> Tensor:
        result = FUNCTIONS[name](a)
        if isinstance(result, Tensor):
            return result.sin().sum()
        if isinstance(result, sf.SpectralStats):
            total = result.stable_rank + result.alpha_hill + result.condition_number
            return (total if result.svdvals is None else total + result.svdvals.sum(-1)).sum()
        return result.S.sin().sum()

    gradients = []
    for function in (_compiled(loss), loss):
        x = A.clone().requires_grad_()
        gradients += torch.autograd.grad(function(x), x)
    torch.testing.assert_close(*gradients, rtol=1e-12, atol=1e-12)


def test_alpha_beside_a_loss() -> None:
    """A graph that returns alpha too compiles, and alpha asks for no gradient there."""

    def loss_and_alpha(a: Tensor) -> tuple[Tensor, Tensor]:
        stats = sf.spectral_stats(a)
        return stats.stable_rank.sum(), stats.alpha

    x = A.clone().requires_grad_()
    loss, alpha = _compiled(loss_and_alpha)(x)
    assert not alpha.requires_grad
    (gradient,) = torch.autograd.grad(loss, x)
    assert gradient.abs().sum() > 0


@pytest.mark.parametrize("name", ["svdvals", "hill_alpha", "stable rank"])
def test_forward_mode_is_right_or_raises(name: str) -> None:
    """A registered operator has no jvp: torch would take it for zero."""
    stable_rank = {"stable rank": lambda a: sf.spectral_stats(a).stable_rank}
    function = {**FUNCTIONS, **stable_rank}[name]

    def tangent(a: Tensor) -> Any:
        return torch.func.jvp(function, (a,), (a.sin(),))[1]

    with pytest.raises(
        Exception, match=r"forward-mode derivatives do not exist under torch\.compile|Observed exc"
    ):
        _compiled(tangent)(A)
    torch.compiler.reset()
    graph_breaks = torch.compile(tangent, backend="aot_eager")
    torch.testing.assert_close(graph_breaks(A), tangent(A), rtol=1e-12, atol=1e-12)


def test_vmap() -> None:
    for function in (sf.svdvals, sf.spectral_stats, lambda a: sf.hill_alpha(sf.svdvals(a))):
        batched = torch.vmap(function)
        assert_equal(_compiled(batched)(A), batched(A))


def test_inductor() -> None:
    """The default backend once: generated code around the operator."""
    torch.compiler.reset()
    function = torch.compile(lambda a: sf.svdvals(a * 2).sum(), fullgraph=True)
    x = A.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(function(x), x)
    y = A.clone().requires_grad_()
    (expected,) = torch.autograd.grad(sf.svdvals(y * 2).sum(), y)
    torch.testing.assert_close(gradient, expected, rtol=1e-10, atol=1e-10)


def test_dynamic_shapes() -> None:
    function = torch.compile(FUNCTIONS["spectral_stats"], fullgraph=True, backend="aot_eager", dynamic=True)
    for shape in ((6, 4), (9, 5), (5, 12)):
        x = torch.randn(shape, dtype=torch.float64)
        assert_equal(function(x), sf.spectral_stats(x))


def test_nonfinite_raises_from_a_compiled_graph() -> None:
    x = A.clone()
    x[1, 0, 0] = torch.nan
    with pytest.raises(torch.linalg.LinAlgError, match=r"\(Batch element 1\)"):
        _compiled(sf.svdvals)(x)


def test_export() -> None:
    class Probe(torch.nn.Module):
        def forward(self, a: Tensor) -> Tensor:
            return sf.svdvals(a)

    program = torch.export.export(Probe(), (A,))
    assert "spectral_fast.svdvals_ex" in str(program.graph)
    assert_equal(program.module()(A), sf.svdvals(A))
