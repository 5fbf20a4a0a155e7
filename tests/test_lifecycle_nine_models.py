"""The nine models: found on disk, measured, and told apart from shapes with random weights."""

from __future__ import annotations

import argparse
import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.stats import linregress

from benchmarks import __main__ as benchmarks_command
from benchmarks import command_line
from benchmarks.timing import Timing
from benchmarks.training.lifecycle_cost import flops_of_a_step, matrix_parameters, model_costs, shape_rows
from spectral_fast import spectral_stats
from spectral_fast.lifecycle import nine_models
from spectral_fast.lifecycle.commands import nine_models as command
from spectral_fast.lifecycle.nine_models import (
    STATISTICS,
    cached_checkpoint,
    depth_gradients,
    look_seconds,
    measure_model,
)
from spectral_fast.lifecycle.trajectories import Trajectories
from spectral_fast.models import CheckpointError
from spectral_fast.models.shapes import MODELS, ModelShape
from tests.small_decoders import LAYERS, WIDTH, ours, transformers_model

SMALL = {
    "gpt2-124m": replace(MODELS["gpt2-124m"], layers=LAYERS, width=WIDTH),
    "pythia-160m": replace(MODELS["pythia-160m"], layers=LAYERS, width=WIDTH),
    "custom-30m": replace(MODELS["custom-30m"], layers=LAYERS, width=WIDTH),
}


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> dict[str, ModelShape]:
    """The nine shrunk to three that fit a test."""
    monkeypatch.setattr(command, "MODELS", SMALL)
    return SMALL


def run(*arguments: str) -> int:
    parser = argparse.ArgumentParser()
    command.add(parser.add_subparsers())
    parsed = parser.parse_args(["nine-models", *arguments])
    code: int = parsed.run(parsed)
    return code


def fill_cache(cache: Path, repository: str, kind: str) -> Path:
    """What huggingface_hub leaves of a download: files of a commit, and the branch that names it."""
    base = cache / f"models--{repository.replace('/', '--')}"
    (base / "refs").mkdir(parents=True)
    (base / "refs" / "main").write_text("c0ffee")
    snapshot = base / "snapshots" / "c0ffee"
    transformers_model(kind).save_pretrained(snapshot)
    return snapshot


def test_models_are_found_in_the_cache_of_hugging_face(tmp_path: Path) -> None:
    assert all(cached_checkpoint(name, tmp_path) is None for name in MODELS)
    for name, repository, kind in (
        ("gpt2-124m", "openai-community/gpt2", "gpt2"),
        ("pythia-160m", "EleutherAI/pythia-160m", "gpt_neox"),
    ):
        snapshot = fill_cache(tmp_path, repository, kind)
        assert cached_checkpoint(name, tmp_path) == snapshot
        look = measure_model(SMALL[name], snapshot)
        assert look.depth == LAYERS
        assert len(look.names) == 6 * LAYERS
    assert [name for name in MODELS if cached_checkpoint(name, tmp_path)] == ["gpt2-124m", "pythia-160m"]


def test_a_checkpoint_of_another_model_is_refused(tmp_path: Path) -> None:
    transformers_model("gpt2").save_pretrained(tmp_path)
    with pytest.raises(
        CheckpointError, match=r"is not pythia-160m: it has a matrix 'mlp_in' of 32×128 in layer"
    ):
        measure_model(SMALL["pythia-160m"], tmp_path)  # the same sizes, and stored the other way round
    with pytest.raises(CheckpointError, match=r"is not gpt2-124m: it has .* That has 12 layers of width 768"):
        measure_model(MODELS["gpt2-124m"], tmp_path)
    with pytest.raises(CheckpointError, match=r"it lacks a matrix 'q' of 32×32 in layer 4"):
        measure_model(replace(SMALL["gpt2-124m"], layers=LAYERS + 1), tmp_path)


def test_gradients_are_lines_over_the_layers_of_each_role(tmp_path: Path) -> None:
    torch.save(ours().state_dict(), tmp_path / "model.pt")
    look = measure_model(SMALL["custom-30m"], tmp_path / "model.pt")
    found = {(one.role, one.statistic): one for one in depth_gradients(look)}
    assert {role for role, _ in found} == {"q", "k", "v", "o", "mlp_in", "mlp_out", "all"}
    keys = [layer.k_proj.weight.detach() for layer in ours().layers]
    values = [float(spectral_stats(weight).alpha_hill) for weight in keys]
    line = linregress(np.linspace(0, 1, LAYERS), values)
    one = found["k", "alpha_hill"]
    assert (one.mean, one.slope) == (pytest.approx(np.mean(values)), pytest.approx(line.slope))
    # Student's t with two degrees of freedom, 97.5 %.
    assert one.high - one.slope == pytest.approx(4.302652729911275 * line.stderr)
    assert one.slope - one.low == pytest.approx(one.high - one.slope)
    whole = [found["all", s].mean for s in STATISTICS]
    parts = [
        np.mean([found[r, s].mean for r in ("q", "k", "v", "o", "mlp_in", "mlp_out")]) for s in STATISTICS
    ]
    assert whole == pytest.approx(parts)


def test_intervals_of_gradients_cover() -> None:
    generator = np.random.default_rng(0)
    layers = tuple(range(6))
    inside = 0
    for _ in range(125):
        values = {
            s: 2 + 0.7 * np.linspace(0, 1, 6) + 0.3 * generator.standard_normal((1, 6)) for s in STATISTICS
        }
        look = Trajectories(np.array([0]), tuple("abcdef"), layers, ("q",) * 6, values)
        inside += sum(one.low <= 0.7 <= one.high for one in depth_gradients(look) if one.role == "q")
    # Exact for normal scatter; four standard deviations of a count of 500.
    assert abs(inside / 500 - 0.95) <= 4 * math.sqrt(0.95 * 0.05 / 500)


def test_two_layers_have_a_slope_and_no_interval() -> None:
    values = dict.fromkeys(STATISTICS, np.array([[1.0, 3.0]]))
    look = Trajectories(np.array([0]), ("a", "b"), (0, 1), ("q", "q"), values)
    one = depth_gradients(look)[0]
    assert (one.mean, one.slope) == (2, 2)
    assert math.isnan(one.low)
    assert math.isnan(one.high)


def test_a_look_costs_its_shapes_as_often_as_they_occur(monkeypatch: pytest.MonkeyPatch) -> None:
    timed = []

    def seconds(rows: int, cols: int) -> float:
        timed.append((rows, cols))
        return float(rows * cols)

    monkeypatch.setattr(nine_models, "_seconds", seconds)
    found = look_seconds(MODELS.values(), max_n=3072)
    assert len(timed) == len(set(timed))
    d = 768
    assert found["gpt2-124m"] == found["custom-124m"] == 12 * (4 * d * d + 2 * 4 * d * d)
    assert found["gpt2-355m"] is None  # 4096 x 1024
    assert max(max(shape) for shape in timed) <= 3072


def test_the_command_tells_measured_from_random(
    small: dict[str, ModelShape],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    cache = tmp_path / "cache"
    fill_cache(cache, "EleutherAI/pythia-160m", "gpt_neox")
    monkeypatch.setattr(nine_models, "cached_checkpoint", lambda name: cached_checkpoint(name, cache))
    transformers_model("gpt2").save_pretrained(tmp_path / "gpt2")
    out = tmp_path / "out"
    assert run("--checkpoint", f"gpt2-124m={tmp_path / 'gpt2'}", "--out", str(out)) == 0
    shown = capsys.readouterr().out
    assert "gpt2-124m, measured from" in shown
    assert "pythia-160m, measured from" in shown
    measured, _, random = shown.partition("not on disk: random weights of these shapes, for cost only")
    assert "custom-30m" in random
    assert "custom-30m" not in measured
    found = json.loads((out / "nine_models.json").read_text())["models"]
    assert found["custom-30m"]["weights"] == "random weights of these shapes, for cost only"
    assert found["custom-30m"]["look_seconds"] > 0
    assert not {"matrices", "gradients"} & found["custom-30m"].keys()  # random spectra are nobody's
    assert len(found["gpt2-124m"]["matrices"]) == 6 * LAYERS
    assert "look_seconds" not in found["gpt2-124m"]
    weight = transformers_model("gpt2").transformer.h[2].attn.c_proj.weight.detach()
    row = next(m for m in found["gpt2-124m"]["matrices"] if (m["layer"], m["role"]) == (2, "o"))
    assert row["stable_rank"] == pytest.approx(float(spectral_stats(weight).stable_rank))


def test_errors(small: dict[str, ModelShape], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--checkpoint", f"gpt2-124m={tmp_path / 'missing'}", "--out", str(tmp_path / "out")) == 2
    assert "does not exist" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        run("--checkpoint", "gpt5=there")
    assert "'gpt5=there' is not NAME=PATH" in capsys.readouterr().err


def test_nothing_is_looked_for_where_the_cache_cannot_be_read(
    small: dict[str, ModelShape],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(nine_models, "can_read_cache", lambda: False)
    assert run("--max-n", "8", "--out", str(tmp_path)) == 0
    shown = capsys.readouterr()
    assert "huggingface_hub is not installed" in shown.err
    assert shown.out.count("not measured: above --max-n 8") == 3


# python -m benchmarks lifecycle-cost


def test_flops_of_a_step_are_six_for_each_weight_and_token() -> None:
    # 12 d^2 a block and the output head: GPT-2 124M without positions, biases and norms.
    assert matrix_parameters(MODELS["gpt2-124m"]) == 12 * 12 * 768**2 + 50257 * 768
    assert flops_of_a_step(MODELS["gpt2-124m"], 1000) == 6000 * matrix_parameters(MODELS["gpt2-124m"])


def test_a_models_look_is_the_sum_over_its_matrices() -> None:
    rows = shape_rows(list(MODELS.values()), 2, None)
    assert len({str(row) for row in rows}) == len(rows) == 18
    for row in rows:
        if max(row.m, row.n) <= 3072:
            row.ours = Timing("ours", 2, seconds=[row.m * 1e-3] * 5)
            row.torch = Timing("torch", 1, seconds=[row.m * 1e-2] * 5)
    costs = {cost.model.name: cost for cost in model_costs(rows, gemm=1e11, tokens=10)}
    cost = costs["gpt2-124m"]
    assert cost.ours == pytest.approx(12 * (4 * 768 + 768 + 3072) * 1e-3)
    assert cost.torch == pytest.approx(10 * cost.ours)
    assert cost.step == pytest.approx(6 * 10 * cost.parameters / 1e11)
    assert costs["pythia-1b"].ours is None
    assert 0 < cost.h100_look < cost.ours


def test_the_cost_command_says_what_was_not_measured(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(command_line, "gemm_rate", lambda dtype, device: 1e11)
    file = tmp_path / "cost.json"
    given = ["lifecycle-cost", "--max-n", "352", "--repeats", "5", "--threads", "1", "--json", str(file)]
    assert benchmarks_command.main(given) == 0
    shown = capsys.readouterr().out
    assert shown.count("not measured: above --max-n 352") == 17
    assert "| pythia-1b | 908M | 96 | not measured | not measured | not measured |" in shown
    found = json.loads(file.read_text())
    measured = [row for row in found["shapes"] if row["status"] == "ok"]
    assert [(row["m"], row["n"]) for row in measured] == [(352, 352)]
    assert measured[0]["gate"]["holds"]
    assert len(measured[0]["ours"]["seconds"]) == 5
    assert found["models"][0]["ours"] is None
    assert found["models"][0]["h100_look"] > 0
