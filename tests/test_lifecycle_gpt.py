"""What is trained: configurations, the learning rate, the model against its formulas."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor

from spectral_fast import weight_matrices
from spectral_fast.lifecycle.config import SIZES, ModelConfig, TrainConfig
from spectral_fast.lifecycle.gpt import GPT
from tests.small_training import MODEL, ROLES

# --- configurations


@pytest.mark.parametrize(("size", "millions"), [("30m", 30), ("124m", 124), ("282m", 282)])
def test_sizes_are_what_their_names_say(size: str, millions: int) -> None:
    assert SIZES[size].parameters / 1e6 == pytest.approx(millions, rel=0.01)


def test_what_is_no_configuration() -> None:
    with pytest.raises(ValueError, match="3 heads do not divide the width 16"):
        ModelConfig(1, 16, 3)
    with pytest.raises(ValueError, match="layers must be a whole number >= 1, got 0"):
        ModelConfig(0, 16, 2)
    for wrong in ({"steps": 0}, {"steps": 2.0}, {"lr": 0.0}, {"lr": math.nan}, {"clip": -1.0}, {"seed": -1},
                  {"seed": 2**32}, {"final_lr": 1.5}, {"weight_decay": -0.1}, {"every": 0}):  # fmt: skip
        with pytest.raises(ValueError, match=f"TrainConfig: {next(iter(wrong))} must be"):
            TrainConfig(**{"steps": 10, **wrong})


def test_the_learning_rate_rises_and_falls_by_a_cosine() -> None:
    config = TrainConfig(steps=101, lr=2.0, final_lr=0.25, warm_up=20)
    rates = [config.lr_at(step) for step in range(101)]
    assert rates[:20] == [pytest.approx(2.0 * (step + 1) / 20) for step in range(20)]
    assert rates[20] == 2.0
    assert rates[60] == pytest.approx((2.0 + 0.5) / 2)  # half way
    assert rates[100] == pytest.approx(0.5)
    assert all(a >= b for a, b in pairwise(rates[20:]))
    assert TrainConfig(steps=1, warm_up=0).lr_at(0) == 1e-3


# --- the model


def test_matrices_and_parameters_of_the_model() -> None:
    model = GPT(MODEL)
    assert sum(p.numel() for p in model.parameters()) == MODEL.parameters
    found = [(m.layer, m.role) for m in weight_matrices(model) if m.layer is not None]
    assert found == [(layer, role) for layer in range(2) for role in ROLES]
    assert {m.role for m in weight_matrices(model) if m.layer is None} == {"embedding", "position_embedding"}


def test_first_weights() -> None:
    config = ModelConfig(layers=8, width=64, heads=2, context=64, vocabulary=500)
    model = GPT(config, torch.Generator().manual_seed(0))
    for name, p in model.named_parameters():
        p = p.detach()
        if p.dim() == 2:
            std = (
                0.005 if name.endswith(("o_proj.weight", "down_proj.weight")) else 0.02
            )  # 0.02 / sqrt(2 · 8)
            # Of N normal numbers: the standard deviation's is std / sqrt(2 N), the mean's std / sqrt(N).
            assert abs(float(p.std()) - std) < 5 * std / (2 * p.numel()) ** 0.5, name
            assert abs(float(p.mean())) < 5 * std / p.numel() ** 0.5, name
        else:
            assert bool((p == (1.0 if name.endswith("weight") else 0.0)).all())
    assert torch.equal(GPT(config, torch.Generator().manual_seed(0)).norm.weight, model.norm.weight)


def _by_hand(model: GPT, tokens: Tensor) -> Tensor:
    """The formulas of gpt.py, with loops over heads and positions, for one sequence."""

    def norm(layer: Any, x: Tensor) -> Tensor:
        centred = x - x.mean(-1, keepdim=True)
        return centred / (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt() * layer.weight + layer.bias

    embedding = model.token_embedding.weight
    x = embedding[tokens] + model.position_embedding.weight[: len(tokens)]
    for block in model.layers:
        h = norm(block.norm_1, x)
        q, k, v = (h @ getattr(block, f"{name}_proj").weight.T for name in "qkv")
        size = q.shape[1] // block.heads
        mixed = torch.zeros_like(q)
        for head in range(block.heads):
            part = slice(head * size, (head + 1) * size)
            for t in range(len(tokens)):
                scores = k[: t + 1, part] @ q[t, part] / size**0.5
                mixed[t, part] = (scores.exp() / scores.exp().sum()) @ v[: t + 1, part]
        x = x + mixed @ block.o_proj.weight.T
        up = norm(block.norm_2, x) @ block.up_proj.weight.T
        x = x + (up * 0.5 * (1 + torch.erf(up / 2**0.5))) @ block.down_proj.weight.T
    return norm(model.norm, x) @ embedding.T


@torch.no_grad()
def test_logits_are_those_of_the_formulas() -> None:
    model = GPT(MODEL).double()
    for parameter in model.parameters():  # also norms and biases, at a scale at which they matter
        parameter.normal_(std=0.5)
    tokens = torch.randint(40, (3, 8))
    logits = model(tokens)
    assert logits.shape == (3, 8, 40)
    for row, ours in zip(tokens, logits, strict=True):
        torch.testing.assert_close(ours, _by_hand(model, row))
    del model.layers[0]  # what is left runs on
    torch.testing.assert_close(model(tokens)[1], _by_hand(model, tokens[1]))
    del model.layers[0]
    torch.testing.assert_close(model(tokens)[1], _by_hand(model, tokens[1]))
    with pytest.raises(ValueError, match="9 tokens are more than its context of 8"):
        model(torch.zeros(1, 9, dtype=torch.int64))
