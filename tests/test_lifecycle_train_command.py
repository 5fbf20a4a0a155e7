"""Training as users start it: the command, and several processes that share a batch."""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from spectral_fast import cli
from spectral_fast.lifecycle import training as harness
from spectral_fast.lifecycle.commands import train as command
from spectral_fast.lifecycle.config import TrainConfig
from spectral_fast.lifecycle.training import TrainingError, load_model, train
from tests.gloo_ranks import GlooRanks
from tests.small_training import MODEL, TRAINING, alone, corpus, trained, values_of


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    with alone():
        yield


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that nothing interrupted."""
    return trained(tmp_path_factory.mktemp("whole") / "run")


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


@pytest.mark.parametrize("command", ["train RUN", "phenomena RUN --out OUT", "reproduce OUT"])
def test_a_missing_package_is_told_with_the_extra_that_brings_all(
    command: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    monkeypatch.delitem(sys.modules, "spectral_fast.monitor.parquet", raising=False)
    assert cli.main(["lifecycle", *command.split()]) == 2
    assert capsys.readouterr().err.endswith(
        "pyarrow is not installed: pip install 'spectral_fast[lifecycle]'\n"
    )


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
