"""One thing to measure: a stack of equal matrices, and the ways of calling a function on it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from spectral_fast import WeightMatrix


@dataclass(frozen=True, eq=False)
class Case:
    """A stack of ``count`` matrices (m, n) of one suite.

    Attributes:
        calls: how the stack is passed. "single": one matrix, one call. "batch": all matrices in one call.
            "loop": all matrices, one call each.
        models, roles: what has this shape.
        stacks: how many equal stacks of one model this one stands for (q, k, v and o have one shape).
        weights: real weights; random matrices otherwise.
        layers: how many matrices the whole stack has, where this is a part of it.
    """

    m: int
    n: int
    count: int = 1
    calls: tuple[str, ...] = ("single",)
    models: tuple[str, ...] = ()
    roles: tuple[str, ...] = ()
    stacks: int = 1
    weights: tuple[WeightMatrix, ...] = field(default=(), repr=False)
    layers: int = 0

    def __str__(self) -> str:
        if self.calls == ("single",):
            return f"{self.m}×{self.n}"
        count = f"{self.count} of {self.layers}" if self.layers else str(self.count)
        return f"{count}×{self.m}×{self.n}"

    def first(self, count: int) -> Case:
        """The first `count` layers of the stack."""
        if count >= self.count:
            return self
        weights, layers = self.weights[:count], self.layers or self.count
        return dataclasses.replace(self, count=count, weights=weights, layers=layers)

    @property
    def shape(self) -> tuple[int, ...]:
        return (self.m, self.n) if self.calls == ("single",) else (self.count, self.m, self.n)

    @property
    def flops(self) -> float:
        """What a bidiagonalization of every matrix takes: 4mn² − 4/3 n³ each, 8/3 n³ when square.

        It is the count of the direct reduction for every shape, so that shares of the GEMM rate compare
        between methods; a method that does less work (QR first) can exceed the share its kernels reach.
        """
        long, short = max(self.m, self.n), min(self.m, self.n)
        return self.count * (4 * long * short**2 - 4 / 3 * short**3)

    def input_bytes(self, dtype: torch.dtype) -> int:
        return self.count * self.m * self.n * dtype.itemsize

    def matrices(self, dtype: torch.dtype, device: torch.device) -> Tensor:
        """The matrices, the same ones in every run: real weights, or `random_weights`."""
        if self.weights:
            stack = torch.stack([weight.tensor for weight in self.weights]).to(dtype)
        else:
            stack = random_weights(self.count, self.m, self.n, dtype)
        return stack.reshape(self.shape).to(device)


def random_weights(count: int, m: int, n: int, dtype: torch.dtype) -> Tensor:
    """Gaussian matrices whose short side is scaled by (1 + 500 t)^-0.6, t = 0 ... 1.

    Their spectra fall like a power law over one and a half decades, as those of trained weights do.
    """
    compute = torch.float64 if dtype == torch.float64 else torch.float32
    generator = torch.Generator().manual_seed(m * 1_000_003 + n)
    stack = torch.randn(count, m, n, dtype=compute, generator=generator)
    scale = (1 + 500 * torch.linspace(0, 1, min(m, n), dtype=compute)) ** -0.6
    stack *= scale if n <= m else scale.unsqueeze(-1)
    return stack.to(dtype)


def bind(function: Callable[[Any], Any], inputs: Any, calls: str) -> Callable[[], Any]:
    """The call to time: on the whole input, or for "loop" on each of its elements."""
    if calls != "loop":
        return lambda: function(inputs)
    elements = list(inputs)
    return lambda: [function(element) for element in elements]
