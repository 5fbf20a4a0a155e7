"""The example trains and is watched, and so does the benchmark on it, in a tiny size."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import __main__ as command
from benchmarks.training import monitor as benchmark
from benchmarks.training.monitor import StoppableClock
from examples import train_gpt
from spectral_fast.monitor import SpectralMonitor
from spectral_fast.monitor.parquet import read_run

TINY = ["--width=32", "--heads=2", "--layers=2", "--batch=2"]


@pytest.fixture
def small_corpus(monkeypatch: pytest.MonkeyPatch) -> None:
    """A megabyte of it: reading all takes a second."""
    text = train_gpt.corpus()[: 2**20].clone()
    for module in (train_gpt, benchmark):
        monkeypatch.setattr(module, "corpus", lambda: text)


def test_the_corpus_is_the_standard_library() -> None:
    text = train_gpt.corpus()
    assert text.dtype == torch.uint8
    assert len(text) > 10_000_000
    assert Path(json.__file__).read_bytes() in bytes(text.numpy())


@pytest.mark.usefixtures("small_corpus")
def test_the_example_learns_and_leaves_a_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "run"
    run = ["--run", str(folder), "--steps=40", "--context=32", "--every=10", "--budget=0"]
    assert train_gpt.main([*run, *TINY]) == 0
    out = capsys.readouterr().out
    losses = [float(line.split()[1]) for line in out.splitlines() if "bits a byte" in line]
    assert len(losses) == 4
    assert losses[0] == pytest.approx(8, abs=0.5)  # log2 of 256: it knows nothing yet
    assert losses[-1] < losses[0] - 0.5
    assert f"they are in {folder}" in out

    table = read_run(folder)
    looks = dict(zip(table["step"].to_pylist(), table["kind"].to_pylist(), strict=True))
    assert looks == {step: "tracked" if step % 10 else "exact" for step in range(41)}
    first = table.slice(0, 12)
    assert set(first["step"].to_pylist()) == {0}
    assert first["role"].to_pylist() == ["q", "k", "v", "o", "mlp_in", "mlp_out"] * 2


def test_two_trainings_are_the_same() -> None:
    text = torch.randint(256, (5000,), dtype=torch.uint8)
    size = train_gpt.Size(width=16, layers=1, heads=2, context=8, batch=2)
    a, b = train_gpt.Training(size, text), train_gpt.Training(size, text)
    assert [a.step() for _ in range(3)] == [b.step() for _ in range(3)]
    assert benchmark._differing(a, b) == []
    with torch.no_grad():
        b.model.layers[0].q_proj.weight[0, 0] *= 1 + 2**-23
    assert [name for name in benchmark._differing(a, b) if "q_proj" in name]


BENCHMARK = ["monitor", *TINY, "--steps=20", "--stretch=5", "--every=5", "--budget=0.9"]


@pytest.mark.usefixtures("small_corpus")
def test_the_benchmark_reports_both_shares(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "monitor.json"
    assert command.main([*BENCHMARK, "--json", str(file)]) == 0
    data = json.loads(file.read_text(encoding="utf-8"))
    assert data["status"] == "ok"
    assert data["matrices"] == 12
    assert len(data["stretches"]) == 4
    assert [one["watched_first"] for one in data["stretches"]] == [True, False, True, False]
    assert all(0 < one["spent"] < one["watched"] for one in data["stretches"])
    shares = [one["spent"] / one["watched"] for one in data["stretches"][2:]]
    assert data["by_account"]["min"] == pytest.approx(min(shares))
    out = capsys.readouterr().out
    assert "by difference" in out
    assert "equal to the bit" in out


@pytest.mark.usefixtures("small_corpus")
def test_a_monitor_that_disturbs_gets_no_share(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Disturbing(SpectralMonitor):
        def __init__(self, model: torch.nn.Module, **options: Any) -> None:
            super().__init__(model, **options)
            self._model = model

        def step(self) -> None:
            super().step()
            with torch.no_grad():
                self._model.layers[0].q_proj.weight.mul_(1 + 2**-20)

    monkeypatch.setattr(benchmark, "SpectralMonitor", Disturbing)
    assert command.main(BENCHMARK) == 1
    out = capsys.readouterr().out
    assert "the trainings differ after step 5" in out
    assert "share" not in out


def test_too_few_steps_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        command.main(["monitor", "--steps=60", "--stretch=25"])
    assert "at least four times --stretch" in capsys.readouterr().err


def test_the_clock_stands_still() -> None:
    clock = StoppableClock()
    assert clock() == 0.0
    clock.run()
    clock.stop()
    stopped = clock()
    assert stopped > 0
    assert clock() == stopped
    clock.run()
    assert clock() > stopped
