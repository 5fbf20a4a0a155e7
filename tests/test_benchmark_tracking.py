"""The benchmark of SpectralTracker, in a tiny size, and that its gate shuts."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from benchmarks import __main__ as command
from benchmarks.training import tracking as benchmark
from benchmarks.training.tracking import TRACKERS, Audits, TrackingRun
from examples import train_gpt
from spectral_fast import SpectralTracker, TrackedStats

TINY = [
    "tracking",
    "--width=256",
    "--heads=4",
    "--layers=1",
    "--batch=2",
    "--context=32",
    "--steps=12",
    "--every=6",
]


@pytest.fixture(autouse=True)
def small_corpus(monkeypatch: pytest.MonkeyPatch) -> None:
    """A megabyte of it: reading all takes a second."""
    text = train_gpt.corpus()[: 2**20].clone()
    monkeypatch.setattr(benchmark, "corpus", lambda: text)


def test_every_statistic_is_audited(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "tracking.json"
    assert command.main([*TINY, "--audits=1", "--json", str(file)]) == 0
    data = json.loads(file.read_text(encoding="utf-8"))
    assert data["status"] == "ok"
    assert [(one["rows"], one["cols"], one["count"]) for one in data["shapes"]] == [
        (256, 256, 4),
        (1024, 256, 1),
        (256, 1024, 1),
    ]
    for one in data["shapes"]:
        assert {name: len(times) for name, times in one["tracked"].items()} == dict.fromkeys(TRACKERS, 12)
        assert len(one["exact"]) == 3
    for name in (
        "spectral_norm",
        "stable_rank",
        "stable_rank alone",
        "alpha_hill",
        "alpha",
        "alpha_ranksize",
    ):
        assert len(data["audits"][name]["error"]) == 12 * 6, name
    out = capsys.readouterr().out
    assert "alpha_ranksize" in out
    assert "seconds a matrix" in out


def test_no_time_is_printed_where_the_values_are_wrong(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Wrong(SpectralTracker):
        def track(self, A: torch.Tensor) -> TrackedStats:
            tracked = super().track(A)
            tracked.spectral_norm.mul_(1.002)
            return tracked

    monkeypatch.setattr(benchmark, "SpectralTracker", Wrong)
    assert command.main([*TINY, "--audits=1"]) == 1
    out = capsys.readouterr().out
    assert "beyond the tolerance" in out
    assert "seconds a matrix" not in out


def test_summary() -> None:
    found = TrackingRun(train_gpt.Size(), lr=1e-3, steps=1, every=2)
    audits = found.audits["alpha"] = Audits()
    truth = torch.tensor([2.0, 4.0])
    audits.add(1, truth * 1.01, truth, truth * 1.1, truth * 0.01)
    audits.add(2, truth * 1.03, truth, truth * 1.1, truth * 0.01)
    near, all_ = found.summary("alpha", 1), found.summary("alpha")
    assert near.rms == pytest.approx(0.01, rel=1e-4)
    assert near.rms_held == pytest.approx(0.1, rel=1e-4)
    assert (near.trials, near.covered, near.width) == (2, 1.0, pytest.approx(1.0, rel=1e-4))
    assert (all_.trials, all_.covered) == (4, 0.5)
    assert all_.largest == pytest.approx(0.03, rel=1e-4)
