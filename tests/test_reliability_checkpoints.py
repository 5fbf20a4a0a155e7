"""Malformed checkpoints: some of each kind, what they found, and that the check finds what it looks for."""

from __future__ import annotations

import io
import json
import tracemalloc
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from spectral_fast import cli
from spectral_fast.models import CheckpointError, open_checkpoint
from tests.reliability import checkpoints
from tests.reliability.mutants import MUTATIONS, Payload, canary


def test_some_mutants_of_every_kind_are_met_in_words() -> None:
    found = checkpoints.check_chunk(seed=2, chunk=0, mutants=3 * len(MUTATIONS))
    assert found["failures"] == []
    assert set(found["kinds"]) == set(MUTATIONS)
    assert found["refused"] > 15


@pytest.mark.parametrize(
    ("outcome", "problem"),
    [
        (lambda path: 1 / 0, "ZeroDivisionError"),
        (lambda path: 3, "exit code 3"),
        (lambda path: print("spectral-fast: error: no", file=checkpoints.sys.stderr) or 2, "names no file"),
        (lambda path: torch.load(path, weights_only=False) and 0, "code from the file was run"),
    ],
    ids=["raises", "exit code", "message", "code"],
)
def test_the_check_sees(monkeypatch: pytest.MonkeyPatch, outcome, problem: str) -> None:
    def with_code(folder: Path, rng: object) -> Path:
        torch.save({"x": Payload(canary(folder))}, folder / "model.pt")
        return folder / "model.pt"

    monkeypatch.setattr(checkpoints, "MUTATIONS", {"code": with_code})
    monkeypatch.setattr(cli, "main", lambda arguments: outcome(arguments[1]))
    assert problem in checkpoints.check(1, 0, 0)[1]


def test_a_zip_member_that_inflates_takes_no_memory(tmp_path: Path) -> None:
    """Of byteorder only the first bytes count, though it may promise gigabytes."""
    buffer, path = io.BytesIO(), tmp_path / "model.pt"
    torch.save({"layers.0.q_proj.weight": torch.ones(3, 3)}, buffer)
    with zipfile.ZipFile(buffer) as old, zipfile.ZipFile(path, "w") as new:
        for name in old.namelist():
            inflates = name.endswith("/byteorder")
            content = bytes(50 << 20) if inflates else old.read(name)
            new.writestr(name, content, zipfile.ZIP_DEFLATED if inflates else zipfile.ZIP_STORED)
    tracemalloc.start()
    try:
        with pytest.raises(CheckpointError, match="compressed"):
            open_checkpoint(path)
        assert tracemalloc.get_traced_memory()[1] < 10 << 20
    finally:
        tracemalloc.stop()


def test_a_stack_of_any_number_of_empty_matrices_is_refused(tmp_path: Path) -> None:
    """A header of 60 bytes asked for four billion of them."""
    path = tmp_path / "stack.npy"
    np.save(path, np.ones((2, 0, 2), dtype=np.float32))
    whole = path.read_bytes()
    path.write_bytes(whole.replace(b"(2, 0, 2), }         ", b"(4294967296, 0, 2), }"))
    assert b"(4294967296, 0, 2)" in path.read_bytes()
    with pytest.raises(CheckpointError, match="no weight matrix"):
        open_checkpoint(path)


def test_a_number_of_heads_that_is_true_is_none(tmp_path: Path) -> None:
    """JSON's true is an int in Python; a split by one head of it raised TypeError."""
    save_file(
        {"gpt_neox.layers.0.attention.query_key_value.weight": torch.randn(12, 4)},
        tmp_path / "model.safetensors",
    )
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "gpt_neox", "num_attention_heads": True}))
    (matrix,) = open_checkpoint(tmp_path).matrices()
    assert matrix.role == "qkv"
    assert matrix.tensor.shape == (12, 4)


@pytest.mark.slow
@pytest.mark.parametrize("index", [0, 3, 6, 7, 10])
def test_mutants_by_the_command(index: int) -> None:
    assert checkpoints.check(2, 0, index, by_process=True)[1] == ""
