"""A training run of a second, and what it found out."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from spectral_fast.lifecycle.config import ModelConfig, TrainConfig
from spectral_fast.lifecycle.corpus import Corpus
from spectral_fast.lifecycle.training import train
from spectral_fast.monitor.parquet import read_run

MODEL = ModelConfig(layers=2, width=16, heads=2, context=8, vocabulary=40)
TRAINING = TrainConfig(steps=23, batch=4, lr=1e-2, warm_up=5, every=5)
ROLES = ["q", "k", "v", "o", "mlp_in", "mlp_out"]


def corpus() -> Corpus:
    """Each token tells the next but for one in eight."""
    draw = np.random.default_rng(0)
    tokens = (np.arange(3000) * 7 + np.where(draw.random(3000) < 1 / 8, draw.integers(40, size=3000), 0)) % 40
    return Corpus(tokens[:2500].astype(np.uint16), torch.from_numpy(tokens[2500:]), 40)


@contextlib.contextmanager
def alone() -> Iterator[None]:
    """With one thread, as processes that are started for a test have: bits depend on it."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def trained(run: Path) -> Path:
    """A run that nothing interrupted."""
    with alone():
        train(run, MODEL, TRAINING, corpus())
    return run


def values_of(run: Path) -> dict[str, Any]:
    """What a run has found out, without times."""
    looks = read_run(run / "looks").drop_columns(["time", "seconds", "share"])
    state = torch.load(run / "checkpoint.pt", weights_only=True)
    del state["seconds"], state["look_seconds"]
    return {
        "losses": (run / "losses.csv").read_text(encoding="utf-8"),
        "looks": looks,
        "state": state,
        "weights": (run / "model.safetensors").read_bytes(),
        "held out": json.loads((run / "run.json").read_text(encoding="utf-8"))["result"]["held_out_loss"],
    }


def assert_same_bits(ours: Path, theirs: Path) -> None:
    a, b = values_of(ours), values_of(theirs)
    assert a["losses"] == b["losses"]
    assert a["looks"].equals(b["looks"])
    assert a["weights"] == b["weights"]
    assert a["held out"] == b["held out"]
    flat_a, flat_b = (torch.utils._pytree.tree_flatten_with_path(v["state"])[0] for v in (a, b))
    assert [path for path, _ in flat_a] == [path for path, _ in flat_b]
    for (path, x), (_, y) in zip(flat_a, flat_b, strict=True):
        assert torch.equal(x, y) if isinstance(x, Tensor) else x == y, path
