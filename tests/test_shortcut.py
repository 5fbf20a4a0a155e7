"""Calls that skip torch's dispatcher are those in which it has nothing to do."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses import FakeTensorMode
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

import spectral_fast as sf
from spectral_fast import _ops


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """One entry for each call that took the shortcut."""
    kernel, seen = _ops.cpu_kernels[_ops.svdvals_ex], []

    def counted(*args: Any) -> Any:
        seen.append(args)
        return kernel(*args)

    monkeypatch.setitem(_ops.cpu_kernels, _ops.svdvals_ex, counted)
    return seen


class Ops(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.append(str(func))
        return func(*args, **(kwargs or {}))


class Functions(TorchFunctionMode):
    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.append(str(func))
        return func(*args, **(kwargs or {}))


class Subclass(Tensor):
    pass


def test_a_plain_call_takes_it(calls: list[Any]) -> None:
    A = torch.randn(5, 3)
    expected = _ops.svdvals_ex(A, None, True)[0]
    assert not calls
    assert torch.equal(sf.svdvals(A), expected)
    with torch.no_grad():
        assert torch.equal(sf.svdvals(torch.nn.Parameter(A)), expected)
    with torch.inference_mode():
        assert torch.equal(sf.svdvals(A.clone()), expected)
    with torch.autocast("cpu"):
        assert torch.equal(sf.svdvals(A), expected)
    assert len(calls) == 4
    with pytest.raises(torch.linalg.LinAlgError):
        sf.svdvals(A * torch.nan)


def test_modes_and_profiles_see_the_operator(calls: list[Any]) -> None:
    A = torch.randn(5, 3)
    with Ops() as ops:
        sf.svdvals(A)
    assert "spectral_fast.svdvals_ex.default" in ops.names
    with Functions() as functions:
        sf.svdvals(A)
    assert "spectral_fast.svdvals_ex.default" in functions.names
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        sf.svdvals(A)
    assert "spectral_fast::svdvals_ex" in {event.key for event in profile.key_averages()}
    graph = torch.jit.trace(sf.svdvals, (A,), check_trace=False).graph
    assert "spectral_fast::svdvals_ex" in str(graph)
    assert not calls


def _negated() -> Tensor:
    """A real tensor whose sign is flipped on reading only."""
    A = torch.randn(5, 3, dtype=torch.complex64).conj().imag
    assert A.is_neg()
    return A


def _fake() -> Tensor:
    with FakeTensorMode():
        return torch.empty(5, 3)


@pytest.mark.parametrize(
    "make",
    [
        lambda: torch.randn(5, 3).as_subclass(Subclass),
        lambda: torch.randn(5, 3, device="meta"),
        lambda: torch._efficientzerotensor((5, 3)),
        _negated,
        _fake,
    ],
    ids=["subclass", "meta", "zero", "negated", "fake"],
)
def test_tensors_that_need_the_dispatcher_get_it(make: Callable[[], Tensor], calls: list[Any]) -> None:
    A = make()
    S = sf.svdvals(A)
    assert S.shape == (3,)
    assert S.device == A.device
    assert not calls


def test_derivatives_and_transforms_get_the_dispatcher(calls: list[Any]) -> None:
    A = torch.randn(2, 5, 3)
    assert sf.svdvals(A.clone().requires_grad_()).requires_grad
    torch.func.vmap(sf.svdvals)(A)
    torch.func.grad(lambda x: sf.svdvals(x).sum())(A)
    torch.func.jvp(sf.svdvals, (A,), (A,))
    torch.compile(sf.svdvals, fullgraph=True, backend="eager")(A)
    assert not calls


FUNCTIONS: list[tuple[Any, Callable[[Tensor], Any]]] = [
    (_ops.spectral_stats, lambda x: sf.spectral_stats(x.expand(2, 3, -1)).alpha),
    (_ops.stats_from_svdvals, lambda x: sf.stats_from_svdvals(x).alpha),
    (_ops.ranksize_slope, sf.ranksize_slope),
    (_ops.fit_powerlaw, lambda x: sf.fit_powerlaw(x).alpha),
    (_ops.hill_alpha, sf.hill_alpha),
]


@pytest.mark.parametrize(("op", "function"), FUNCTIONS, ids=[str(op) for op, _ in FUNCTIONS])
def test_statistics_take_it_too(
    op: Any, function: Callable[[Tensor], Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    kernel, seen = _ops.cpu_kernels[op], []

    def counted(*args: Any) -> Any:
        seen.append(args)
        return kernel(*args)

    monkeypatch.setitem(_ops.cpu_kernels, op, counted)
    x = torch.tensor([5.0, 3.0, 2.0, 0.5])
    plain = function(x)
    assert len(seen) == 1
    with Ops() as ops:
        dispatched = function(x)
    assert len(seen) == 1
    assert str(op) in ops.names
    assert torch.equal(plain.nan_to_num(-1), dispatched.nan_to_num(-1))


def test_every_tensor_of_a_call_has_a_say() -> None:
    x = torch.tensor([5.0, 3.0, 2.0, 0.5])
    assert _ops.shortcut(_ops.fit_powerlaw, (x, None)) is _ops.cpu_kernels[_ops.fit_powerlaw]
    assert _ops.shortcut(_ops.fit_powerlaw, (x, x[0])) is _ops.cpu_kernels[_ops.fit_powerlaw]
    for odd in (x[0].as_subclass(Subclass), x[0].to("meta"), _negated()[0, 0]):
        assert _ops.shortcut(_ops.fit_powerlaw, (x, odd)) is _ops.fit_powerlaw
