"""``spectral-fast lifecycle phenomena`` on runs with planted phenomena."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import pytest

from spectral_fast.lifecycle.commands import phenomena
from spectral_fast.lifecycle.findings import findings, measure_all, read_run
from spectral_fast.lifecycle.outputs import plain
from spectral_fast.monitor import Look, MatrixLook, ParquetSink
from tests.lifecycle_runs import EVERY, ar1_noise

ROLES = {"q": "q_proj", "k": "k_proj", "v": "v_proj", "o": "o_proj"}
LOOKS = 30


def write_run(folder: Path, depth: int, seed: int) -> Path:
    """A training run's folder whose stable rank falls layer by layer, most in Q and K, and alpha grows."""
    rng = np.random.default_rng(seed)
    noise = ar1_noise(rng, (LOOKS, depth * len(ROLES)), 0.8).reshape(LOOKS, depth, len(ROLES))
    with_q = np.array([1.5, 1.5, 1, 1])
    time, layer = np.arange(LOOKS)[:, None, None], np.arange(depth)[:, None]
    rank = 30 - 8 * with_q / (1 + np.exp(8 + 0.8 * layer - time)) + 0.05 * noise
    alpha = 3 + (1 - np.exp(-time / 12)) * layer / (depth - 1) + 0.01 * noise
    sink = ParquetSink(folder / "looks")
    for look in range(LOOKS):
        matrices = [
            MatrixLook(
                f"layers.{i}.{name}.weight", i, role, 8, 8, "float32", "exact",
                {"stable_rank": float(rank[look, i, j]), "alpha": float(alpha[look, i, j])},
                {}, (), np.ones(1, dtype=np.float32),
            )
            for i in range(depth)
            for j, (role, name) in enumerate(ROLES.items())
        ]  # fmt: skip
        sink(Look(EVERY * look, "exact", 0.0, 0.1, 0.01, EVERY, 0, matrices))
    sink.close()
    (folder / "run.json").write_text(json.dumps({"format": 1, "training": {"seed": seed}}))
    return folder


def command(*arguments: str | Path) -> int:
    parser = argparse.ArgumentParser()
    phenomena.add(parser.add_subparsers())
    parsed = parser.parse_args(["phenomena", *map(str, arguments)])
    code: int = parsed.run(parsed)
    return code


def test_measures_writes_and_prints(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    deep, shallow = write_run(tmp_path / "deep", 6, 0), write_run(tmp_path / "shallow", 2, 1)
    out = tmp_path / "found" / "here"
    assert command(deep, shallow, "--out", out, "--statistic", "alpha") == 0
    printed = capsys.readouterr().out
    content = json.loads((out / "findings.json").read_text())
    assert [(run["name"], run["depth"], run["seed"], run["looks"]) for run in content["runs"]] == [
        ("deep", 6, 0, LOOKS),
        ("shallow", 2, 1, LOOKS),
    ]
    found = {(one["run"], one["phenomenon"], one["statistic"]): one for one in content["findings"]}
    wave = found["deep", "wave", "stable_rank"]
    assert wave["detected"]
    assert wave["interval"][0] <= 0.8 * EVERY <= wave["interval"][1]
    gradient = found["deep", "gradient", "alpha"]
    assert gradient["detected"]
    assert gradient["interval"][0] > 0
    assert found["deep", "asymmetry", "stable_rank"]["detected"]
    assert not found["deep", "inverted U", "alpha"]["detected"]
    assert found["shallow", "wave", "stable_rank"]["p_value"] is None
    assert "2 layers" in found["shallow", "gradient", "alpha"]["reason"]
    assert "depths" in found["", "scaling", "alpha"]["reason"]  # two depths are too few for a law
    drawn = {file.name for file in out.glob("*.png")}
    assert {"deep-wave-stable_rank.png", "shallow-gradient-alpha.png"} <= drawn
    assert len(drawn) == sum(one["result"] is not None for one in content["measurements"])
    assert all((out / name).read_bytes().startswith(b"\x89PNG") for name in drawn)
    lines = printed.splitlines()
    assert len(lines) == 1 + len(content["findings"]) + 2
    assert any(line.startswith("deep") and "steps a layer" in line and " claimed" in line for line in lines)


def test_bad_usage(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = write_run(tmp_path / "run", 2, 0)
    (tmp_path / "file").touch()
    for arguments, problem in (
        ((tmp_path / "none", "--out", tmp_path / "out"), "is no directory"),
        ((run, "--out", tmp_path / "file"), "is a file"),
        ((run, "--out", run / "out"), "is in a run"),
        ((run, run, "--out", tmp_path / "out"), "is given twice"),
        ((run, "--out", tmp_path / "out", "--statistic", "alfa"), "alfa: is unknown; there are"),
    ):
        assert command(*arguments) == 2
        assert problem in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    (run / "run.json").write_text("{}")
    with pytest.raises(ValueError, match="describes no training run"):
        read_run(run, "run")


def test_what_does_not_apply_says_why(tmp_path: Path) -> None:
    run = read_run(write_run(tmp_path / "run", 3, 0), "run")
    measured = {one.phenomenon: one for one in measure_all([run], ["alpha_hill"])}
    assert measured["gradient"].result is None
    assert measured["gradient"].reason == "layer 0 has no alpha_hill at any look"
    (finding,) = findings(measured["gradient"])
    assert not finding.detected
    assert finding.reason == measured["gradient"].reason
    assert plain(finding)["p_value"] is None
    assert plain({"a": np.array([1.0, np.inf]), "b": (np.float64(2), None)}) == {
        "a": [1.0, None],
        "b": [2.0, None],
    }
