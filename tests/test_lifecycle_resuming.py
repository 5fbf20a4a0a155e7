"""A training run that is killed, or stopped at a bad moment, goes on to the same bits."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
from collections.abc import Iterator
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from spectral_fast.lifecycle import training as harness
from spectral_fast.lifecycle.config import ModelConfig
from spectral_fast.lifecycle.gpt import GPT
from spectral_fast.lifecycle.training import Progress, TrainingError, load_model, train
from spectral_fast.monitor.parquet import ParquetSink
from tests import gloo_ranks
from tests.small_training import MODEL, TRAINING, alone, assert_same_bits, corpus, trained


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    with alone():
        yield


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that nothing interrupted."""
    return trained(tmp_path_factory.mktemp("whole") / "run")


def train_aloud(run: str, steps: Connection) -> None:
    """In a process of its own; says 0, then each step it has looked at, before it writes a checkpoint."""
    torch.set_num_threads(1)
    steps.send(0)
    train(run, MODEL, TRAINING, corpus(), checkpoint_seconds=0, progress=lambda now: steps.send(now.step))


def process(run: Path) -> tuple[BaseProcess, Connection]:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(gloo_ranks.PRELOAD)  # the same server as of the ranks
    ours, theirs = context.Pipe()
    child = context.Process(target=train_aloud, args=(str(run), theirs))
    child.start()
    theirs.close()
    return child, ours


def test_a_killed_run_goes_on_to_the_same_bits(whole: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    child, steps = process(run)
    while steps.recv() < 15:
        pass
    child.kill()
    child.join()
    assert child.exitcode == -signal.SIGKILL
    assert "result" not in json.loads((run / "run.json").read_text(encoding="utf-8"))
    begun = torch.load(run / "checkpoint.pt", weights_only=True)["step"]
    assert 10 <= begun < 23
    with pytest.raises(TrainingError, match="is not finished; train it again"):
        load_model(run)
    calls: list[Progress] = []
    train(run, MODEL, TRAINING, corpus(), progress=calls.append)
    assert calls[0].step == begun + 5
    assert_same_bits(run, whole)


@pytest.mark.slow
def test_a_run_killed_anywhere_goes_on_to_the_same_bits(whole: Path, tmp_path: Path) -> None:
    """Killed at a random time, again and again, until it is through."""
    draw = np.random.default_rng(0)
    kills = 0
    for attempt in range(2):
        run, patience = tmp_path / str(attempt), 0.05
        while True:
            child, steps = process(run)
            steps.recv()
            child.join(draw.uniform(0, patience))
            child.kill()
            child.join()
            steps.close()
            if child.exitcode == 0:
                break
            assert child.exitcode == -signal.SIGKILL
            kills += 1
            patience *= 1.2  # a slow machine may take longer to come to a checkpoint
        assert_same_bits(run, whole)
    assert kills > 2


@pytest.mark.parametrize("moment", ["look", "checkpoint", "rename", "result"])
def test_a_run_that_stops_at_a_bad_moment_goes_on(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    """Between a look and its checkpoint, with half a checkpoint written, before the result."""

    class Stopped(BaseException):
        pass

    def stop(*_: object) -> None:
        raise Stopped

    with monkeypatch.context() as patched:
        if moment == "look":
            looks = iter(range(3))  # at 0, 5 and 10
            look = harness._Session._look
            patched.setattr(
                harness._Session, "_look", lambda *a: look(*a) if next(looks, None) is not None else stop()
            )
        elif moment == "checkpoint":
            saves = iter(range(2))
            save = torch.save
            patched.setattr(torch, "save", lambda *a: save(*a) if next(saves, None) is not None else stop())
        elif moment == "rename":
            patched.setattr(os, "replace", lambda a, b: os.rename(a, b) if b.name == "run.json" else stop())
        else:
            patched.setattr(harness, "held_out_loss", stop)
        with pytest.raises(Stopped):
            train(tmp_path / "run", MODEL, TRAINING, corpus(), checkpoint_seconds=0)
    if moment == "rename":  # what a process that was killed there leaves
        (tmp_path / "run" / ".checkpoint.pt.1.tmp").write_bytes(b"half")
    train(tmp_path / "run", MODEL, TRAINING, corpus())
    assert_same_bits(tmp_path / "run", whole)
    assert {path.name for path in (tmp_path / "run").iterdir()} == {path.name for path in whole.iterdir()}


def test_looks_that_cannot_be_written_are_made_again(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Full(ParquetSink):
        def __call__(self, look: Any) -> None:
            if look.step > 5:
                raise OSError(28, "No space left on device")
            super().__call__(look)

    run = tmp_path / "run"
    with monkeypatch.context() as patched:
        patched.setattr(harness, "ParquetSink", Full)
        with pytest.raises(TrainingError, match="3 looks could not be written"):
            train(run, MODEL, TRAINING, corpus(), checkpoint_seconds=0)
    assert torch.load(run / "checkpoint.pt", weights_only=True)["step"] == 5
    train(run, MODEL, TRAINING, corpus())
    assert_same_bits(run, whole)


# --- on a GPU


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_trains_in_bfloat16_to_the_same_bits_when_resumed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = ModelConfig(layers=2, width=128, heads=2, context=64, vocabulary=40)
    seen: set[torch.dtype] = set()
    forward = GPT.forward

    def seeing(self: GPT, tokens: Tensor) -> Tensor:
        logits = forward(self, tokens)
        seen.add(logits.dtype)
        return logits

    with monkeypatch.context() as patched:
        patched.setattr(GPT, "forward", seeing)
        train(tmp_path / "whole", model, TRAINING, corpus(), device="cuda")
    assert seen == {torch.bfloat16 if torch.cuda.get_device_capability() >= (8, 0) else torch.float32}
    looks = iter(range(3))
    look = harness._Session._look

    def stop(*arguments: Any) -> None:
        if next(looks, None) is None:
            raise KeyboardInterrupt
        look(*arguments)

    with monkeypatch.context() as patched:
        patched.setattr(harness._Session, "_look", stop)
        with pytest.raises(KeyboardInterrupt):
            train(tmp_path / "run", model, TRAINING, corpus(), device="cuda", checkpoint_seconds=0)
    assert torch.load(tmp_path / "run" / "checkpoint.pt", weights_only=True)["step"] == 10
    train(tmp_path / "run", model, TRAINING, corpus(), device="cuda")
    assert_same_bits(tmp_path / "run", tmp_path / "whole")
