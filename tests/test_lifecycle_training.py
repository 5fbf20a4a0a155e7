"""The training harness: the model, the schedule, the run's folder, and what survives kill -9."""

from __future__ import annotations

import argparse
import csv
import dataclasses
import json
import math
import multiprocessing
import os
import signal
import subprocess
import sys
from itertools import pairwise
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.compute as pc
import pytest
import torch
from torch import Tensor

from spectral_fast import weight_matrices
from spectral_fast.lifecycle import training as harness
from spectral_fast.lifecycle.commands import train as command
from spectral_fast.lifecycle.config import SIZES, ModelConfig, TrainConfig
from spectral_fast.lifecycle.corpus import Corpus, CorpusError
from spectral_fast.lifecycle.gpt import GPT
from spectral_fast.lifecycle.training import Progress, TrainingError, held_out_loss, load_model, train
from spectral_fast.monitor.parquet import ParquetSink, RunError, read_run
from tests import gloo_ranks
from tests.gloo_ranks import GlooRanks

MODEL = ModelConfig(layers=2, width=16, heads=2, context=8, vocabulary=40)
TRAINING = TrainConfig(steps=23, batch=4, lr=1e-2, warm_up=5, every=5)
ROLES = ["q", "k", "v", "o", "mlp_in", "mlp_out"]


def corpus() -> Corpus:
    """Each token tells the next but for one in eight."""
    draw = np.random.default_rng(0)
    tokens = (np.arange(3000) * 7 + np.where(draw.random(3000) < 1 / 8, draw.integers(40, size=3000), 0)) % 40
    return Corpus(tokens[:2500].astype(np.uint16), torch.from_numpy(tokens[2500:]), 40)


@pytest.fixture(autouse=True)
def one_thread() -> Any:
    """As in the processes that are started here: bits depend on it."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that nothing interrupted."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    run = tmp_path_factory.mktemp("whole") / "run"
    train(run, MODEL, TRAINING, corpus())
    torch.set_num_threads(before)
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


# --- a run


def test_a_run_leaves_what_it_promises(whole: Path) -> None:
    files = {path.name for path in whole.iterdir()}
    assert files == {"run.json", "looks", "losses.csv", "checkpoint.pt", "model.safetensors"}
    looks = read_run(whole / "looks")
    assert sorted(set(looks["step"].to_pylist())) == [0, 5, 10, 15, 20]
    assert set(looks["kind"].to_pylist()) == {"exact"}
    assert looks["role"].to_pylist() == ROLES * 2 * 5
    assert set(looks["every"].to_pylist()) == {5}

    with (whole / "losses.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [int(row["step"]) for row in rows] == list(range(1, 24))
    losses = [float(row["loss"]) for row in rows]
    assert losses[0] == pytest.approx(math.log(40), abs=0.1)  # it knows nothing yet
    assert np.mean(losses[-3:]) < losses[0] - 0.3
    assert all(float(row["gradient_norm"]) > 0 for row in rows)

    saved = json.loads((whole / "run.json").read_text(encoding="utf-8"))
    assert saved["model"] == dataclasses.asdict(MODEL)
    assert saved["training"] == dataclasses.asdict(TRAINING)
    assert saved["corpus"] == corpus().fingerprint
    assert saved["result"]["tokens"] == 23 * 4 * 8
    assert 0 < saved["result"]["look_seconds"] < saved["result"]["seconds"]


def test_looks_are_at_the_weights_of_their_step(whole: Path, tmp_path: Path) -> None:
    """The look at step 0 is at the first weights; one at step 20 at those of a run of 20 steps."""
    looks = read_run(whole / "looks", ["step", "name", "frobenius_norm"])
    first = looks.filter(pc.equal(looks["step"], 0))
    model = GPT(MODEL, harness._generator(TRAINING.seed))
    state = torch.load(whole / "checkpoint.pt", weights_only=True)["model"]
    for weights, rows, equal in ((model.state_dict(), first, True), (state, first, False)):
        for name, norm in zip(rows["name"].to_pylist(), rows["frobenius_norm"].to_pylist(), strict=True):
            assert (norm == pytest.approx(float(weights[name].double().norm()), rel=1e-5)) is equal
    # Its learning rate is the same until there, but it would fall on: a constant one.
    flat = dataclasses.replace(TRAINING, final_lr=1.0, warm_up=0)
    train(tmp_path / "long", MODEL, flat, corpus())
    train(tmp_path / "short", MODEL, dataclasses.replace(flat, steps=20), corpus())
    short, _ = load_model(tmp_path / "short")
    looks = read_run(tmp_path / "long" / "looks", ["step", "name", "frobenius_norm"])
    last = looks.filter(pc.equal(looks["step"], 20))
    for name, norm in zip(last["name"].to_pylist(), last["frobenius_norm"].to_pylist(), strict=True):
        assert norm == pytest.approx(float(short.state_dict()[name].double().norm()), rel=1e-5)


def test_the_trained_model_is_read_back(whole: Path) -> None:
    model, config = load_model(whole)
    assert config == MODEL
    state = torch.load(whole / "checkpoint.pt", weights_only=True)
    assert state["step"] == 23
    assert all(torch.equal(tensor, state["model"][name]) for name, tensor in model.state_dict().items())
    held_out = corpus().held_out
    summary = train(whole, MODEL, TRAINING, corpus())
    assert held_out_loss(model, held_out, 8, 4) == summary.held_out_loss < math.log(40)
    # 62 sequences cover 497 of the 500 tokens, evenly spread: any batch sums the same.
    assert held_out_loss(model, held_out, 8, 3) == pytest.approx(summary.held_out_loss, rel=1e-6)
    one = torch.nn.functional.cross_entropy(model(held_out[None, :8])[0], held_out[1:9])
    assert held_out_loss(model, held_out[:9], 8, 4) == pytest.approx(one.item(), rel=1e-6)


def test_a_finished_run_is_left_alone(whole: Path) -> None:
    def times() -> dict[Path, int]:
        return {path: path.stat().st_mtime_ns for path in whole.rglob("*")}

    before = times()
    calls: list[Progress] = []
    summary = train(whole, MODEL, TRAINING, corpus(), progress=calls.append)
    assert (summary.steps, summary.parameters, summary.tokens) == (23, MODEL.parameters, 736)
    assert not calls
    assert times() == before


def test_progress(tmp_path: Path) -> None:
    calls: list[Progress] = []
    train(tmp_path / "run", MODEL, TRAINING, corpus(), progress=calls.append)
    assert [call.step for call in calls] == [5, 10, 15, 20, 23]
    losses = torch.load(tmp_path / "run" / "checkpoint.pt", weights_only=True)["losses"][:, 0]
    assert calls[-1].loss == pytest.approx(float(losses[20:].mean()))
    assert calls[-1].lr == TRAINING.lr_at(22) == pytest.approx(1e-3)
    assert all(call.step_seconds > 0 and 0 < call.look_share < 1 for call in calls)


def test_nothing_but_the_seed_is_random(whole: Path, tmp_path: Path) -> None:
    torch.manual_seed(1)
    train(tmp_path / "again", MODEL, TRAINING, corpus(), checkpoint_seconds=0)
    assert_same_bits(tmp_path / "again", whole)
    train(tmp_path / "other", MODEL, dataclasses.replace(TRAINING, seed=1), corpus())
    assert values_of(tmp_path / "other")["losses"] != values_of(whole)["losses"]


def test_weight_decay_is_on_matrices_only(tmp_path: Path) -> None:
    one = TrainConfig(steps=1, batch=4, lr=1e-2, warm_up=0, every=5)
    for decay in (0.0, 3.0):
        train(tmp_path / str(decay), MODEL, dataclasses.replace(one, weight_decay=decay), corpus())
    without, decayed = (load_model(tmp_path / d)[0].state_dict() for d in ("0.0", "3.0"))
    first = GPT(MODEL, harness._generator(0)).state_dict()
    for name, tensor in first.items():
        # The gradient is the same, so w₁ differs by lr · decay · w₀, to the rounding of w₁: 6e-8 · 1.
        expected = 1e-2 * 3.0 * tensor if tensor.dim() == 2 else torch.zeros_like(tensor)
        torch.testing.assert_close(without[name] - decayed[name], expected, atol=2e-7, rtol=0)


# --- kill -9


def train_aloud(run: str, steps: Connection) -> None:
    """In a process of its own; says 0, then each step it has looked at, before it writes a checkpoint."""
    torch.set_num_threads(1)
    steps.send(0)
    train(run, MODEL, TRAINING, corpus(), checkpoint_seconds=0, progress=lambda now: steps.send(now.step))


def process(run: Path) -> tuple[BaseProcess, Connection]:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(gloo_ranks.PRELOAD)  # the ranks below come from the same server
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


# --- what is refused


def test_another_run_is_named(whole: Path) -> None:
    other = dataclasses.replace(TRAINING, lr=2e-2, steps=30)
    with pytest.raises(TrainingError, match=r"steps is 30, there it is 23; lr is 0\.02, there it is 0\.01\."):
        train(whole, MODEL, other, corpus())
    with pytest.raises(TrainingError, match="heads is 4, there it is 2"):
        train(whole, dataclasses.replace(MODEL, heads=4), TRAINING, corpus())
    tokens = dataclasses.replace(corpus(), held_out=corpus().held_out.flip(0))
    with pytest.raises(TrainingError, match="the corpus has other tokens"):
        train(whole, MODEL, TRAINING, tokens)


def test_what_cannot_be_trained(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(TrainingError, match="is no training run"):
        train(tmp_path, MODEL, TRAINING, corpus())
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]
    with pytest.raises(TrainingError, match="is no training run"):
        load_model(tmp_path / "nowhere")
    run = tmp_path / "run"
    with pytest.raises(TrainingError, match="the corpus has 40 tokens, and the model a vocabulary of 39"):
        train(run, dataclasses.replace(MODEL, vocabulary=39), TRAINING, corpus())
    with pytest.raises(CorpusError, match="too few for a context of 512"):
        train(run, dataclasses.replace(MODEL, context=512), TRAINING, corpus())
    assert not run.exists()
    sink = ParquetSink(run / "looks")
    with pytest.raises(RunError, match="writes"):
        train(run, MODEL, TRAINING, corpus())
    sink.close()
    train(run, MODEL, dataclasses.replace(TRAINING, steps=1), corpus())  # of the other, nothing was there
    description = run / "run.json"
    for text, words in (("{", "describes no training run"), ('{"format": 2}', "has format 2, this version")):
        description.write_text(text)
        with pytest.raises(TrainingError, match=words):
            load_model(run)


def test_a_damaged_checkpoint_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(harness, "held_out_loss", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        train(tmp_path / "run", MODEL, dataclasses.replace(TRAINING, steps=1), corpus())
    monkeypatch.undo()
    torch.set_num_threads(1)
    (tmp_path / "run" / "checkpoint.pt").write_bytes(b"not a checkpoint")
    with pytest.raises(TrainingError, match=r"checkpoint\.pt: cannot be read .*; remove it to begin"):
        train(tmp_path / "run", MODEL, dataclasses.replace(TRAINING, steps=1), corpus())


def test_a_loss_that_is_not_finite_ends_the_run(tmp_path: Path) -> None:
    wild = dataclasses.replace(TRAINING, lr=1e30, warm_up=0)
    with pytest.raises(TrainingError, match=r"step \d: the loss is (nan|inf) .* lower learning rate"):
        train(tmp_path / "run", MODEL, wild, corpus(), checkpoint_seconds=0)
    assert not (tmp_path / "run" / "checkpoint.pt").exists()


# --- the command


def run_command(*arguments: str) -> int:
    parser = argparse.ArgumentParser()
    command.add(parser.add_subparsers(required=True))
    parsed = parser.parse_args(["train", *arguments])
    code: int = parsed.run(parsed)
    return code


SMALL = ["--size=thin-2", "--width=16", "--heads=2", "--context=8", "--vocabulary=300", "--steps=10",
         "--every=5", "--batch=4", "--warm-up=2", "--device=cpu", "--threads=1"]  # fmt: skip


@pytest.fixture
def text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of text, and a cache of its own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    folder = tmp_path / "text"
    folder.mkdir()
    for index in range(9):
        (folder / f"{index}.txt").write_text("".join(f"{n} of {index}\n" for n in range(99)))
    return folder


def test_the_command_trains(text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = tmp_path / "run"
    assert run_command(str(run), f"--data={text}", *SMALL) == 0
    out = capsys.readouterr().out
    assert f"{load_model(run)[1].parameters:,} parameters, " in out
    assert "step      5/10  loss 5." in out
    assert "step     10/10  loss 5." in out
    assert f"all of it is in {run}" in out
    saved = json.loads((run / "run.json").read_text(encoding="utf-8"))
    model = {"layers": 2, "width": 16, "heads": 2, "context": 8, "vocabulary": 300}
    assert saved["model"] == model
    assert saved["training"] == dataclasses.asdict(TrainConfig(steps=10, batch=4, warm_up=2, every=5))

    assert run_command(str(run), f"--data={text}", *SMALL, "--lr=0.5") == 2
    assert "error: " + str(run) + ": holds another run: lr is 0.5" in capsys.readouterr().err


def test_what_the_command_refuses(text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for extra, words in (
        ("--heads=3", "3 heads do not divide the width 16"),
        ("--lr=-1", "lr must be positive"),
        ("--data=/nowhere", "/nowhere: does not exist"),
        ("--device=tpu", "--device tpu: is neither cpu nor cuda"),
        ("--device=cuda:99", "torch sees"),
        ("--threads=0", "--threads 0: is not a positive number"),
        ("--context=100000", "too few for a context of 100000"),
    ):
        assert run_command(str(tmp_path / "run"), f"--data={text}", *SMALL, extra) == 2
        error = capsys.readouterr().err
        assert error.startswith("spectral-fast: error: ")
        assert words in error
    assert run_command(str(text / "0.txt" / "run"), f"--data={text}", *SMALL) == 2
    assert "Not a directory" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def train_on_a_rank(run: str) -> dict[str, Any]:
    return dataclasses.asdict(train(run, MODEL, TRAINING, corpus()))


def require_as_one(ranks: Path, one: Path) -> None:
    """A run of several processes found what one process finds."""
    found, wanted = values_of(ranks), values_of(one)
    for column in ("step", "name", "kind"):
        assert found["looks"][column].equals(wanted["looks"][column])
    # The same batches, shared: equal but for the order of the sums over a batch, some float32 roundings a
    # step. Adam divides by the gradient's size and passes on relative errors: 23 steps · 100 · 2⁻²⁴ = 1.4e-4.
    losses = wanted["state"]["losses"][:, 0]
    torch.testing.assert_close(found["state"]["losses"][:, 0], losses, rtol=1.4e-4, atol=0)
    # Other rows than those of this step would be seen.
    assert float((losses.diff().abs() / losses[1:]).min()) > 0
    assert float((losses.diff().abs() / losses[1:]).median()) > 10 * 1.4e-4


def test_four_processes_train_as_one(ranks: GlooRanks, whole: Path, tmp_path: Path) -> None:
    summaries = ranks.call(train_on_a_rank, str(tmp_path / "run"))
    assert all(summary == summaries[0] for summary in summaries)
    assert summaries[0]["tokens"] == 736
    require_as_one(tmp_path / "run", whole)
    assert ranks.call(train_on_a_rank, str(tmp_path / "run")) == summaries  # it is finished


def test_processes_that_cannot_share_a_batch(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(harness.dist, "is_initialized", lambda: True)
    monkeypatch.setattr(harness.dist, "get_rank", lambda: 0)
    monkeypatch.setattr(harness.dist, "get_world_size", lambda: 3)
    with pytest.raises(TrainingError, match="3 ranks cannot share a batch of 4"):
        train(tmp_path / "run", MODEL, TRAINING, corpus())


TORCHRUN = """
import argparse, sys
from spectral_fast.lifecycle.commands import train
parser = argparse.ArgumentParser()
train.add(parser.add_subparsers(required=True))
arguments = parser.parse_args(sys.argv[1:])
sys.exit(arguments.run(arguments))
"""


@pytest.mark.slow  # three processes start, which takes longer than what they do
def test_the_command_under_torchrun(text: Path, tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(TORCHRUN)
    root = str(Path(__file__).parents[1])
    environment = {**os.environ, "PYTHONPATH": root, "GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1"}
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    command_line = [*torchrun, str(script), "train", str(tmp_path / "two"), f"--data={text}", *SMALL]
    done = subprocess.run(command_line, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("finished: 10 steps, 320 tokens") == 1
    assert run_command(str(tmp_path / "one"), f"--data={text}", *SMALL) == 0
    require_as_one(tmp_path / "two", tmp_path / "one")


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
