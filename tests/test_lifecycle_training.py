"""A training run: what it leaves, what in it is random, what is refused."""

from __future__ import annotations

import csv
import dataclasses
import json
import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow.compute as pc
import pytest
import torch

from spectral_fast.lifecycle import training as harness
from spectral_fast.lifecycle.config import TrainConfig
from spectral_fast.lifecycle.corpus import CorpusError
from spectral_fast.lifecycle.gpt import GPT
from spectral_fast.lifecycle.training import Progress, TrainingError, held_out_loss, load_model, train
from spectral_fast.monitor.parquet import ParquetSink, RunError, read_run
from tests.small_training import MODEL, ROLES, TRAINING, alone, assert_same_bits, corpus, trained, values_of


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    with alone():
        yield


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that nothing interrupted."""
    return trained(tmp_path_factory.mktemp("whole") / "run")


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
