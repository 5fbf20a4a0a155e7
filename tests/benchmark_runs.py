"""``python -m benchmarks`` svdvals and stats on little: exit code, and what was written."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import spectral_fast
from benchmarks import __main__ as command
from benchmarks import command_line
from benchmarks.cases import Case
from benchmarks.singular_values import commands
from benchmarks.statistics import bootstrap, fit, share
from benchmarks.statistics.bootstrap import plain_p_value
from benchmarks.statistics.spectra import ZOO

STACK = Case(9, 7, 4, calls=("batch", "loop"))
TALL = Case(17, 8)
N = 40


def svdvals_command(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Callable[..., tuple[int, dict[str, Any]]]:
    """The command on two small cases: its exit code and what it wrote."""
    monkeypatch.setattr(commands, "build_suite", lambda *args, **options: [STACK, TALL])
    monkeypatch.setattr(command_line, "gemm_rate", lambda dtype, device: 1e11)

    def call(*arguments: str) -> tuple[int, dict[str, Any]]:
        file = tmp_path / "out.json"
        file.unlink(missing_ok=True)
        code = command.main(["svdvals", "--suite=single", "--repeats=5", f"--json={file}", *arguments])
        return code, json.loads(file.read_text(encoding="utf-8"))

    return call


def by_method(row: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {m["method"]: m for m in row["measurements"]}


def stats_command(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Callable[..., tuple[int, dict[str, Any]]]:
    """The command at a small size, on few spectra: its exit code and what it wrote."""
    monkeypatch.setattr(command_line, "gemm_rate", lambda dtype, device: 1e11)
    monkeypatch.setattr(fit, "ZOO", {name: ZOO[name] for name in ("Pareto 2.5", "uniform")})
    monkeypatch.setattr(fit, "minilm_spectra", list)
    monkeypatch.setattr(fit, "BATCH", 3)
    monkeypatch.setattr(share, "COUNT_MOST", 3)

    def call(*arguments: str) -> tuple[int, dict[str, Any]]:
        file = tmp_path / "out.json"
        code = command.main(["stats", f"--n={N}", "--repeats=5", f"--json={file}", *arguments])
        return code, json.loads(file.read_text(encoding="utf-8"))

    return call


def bootstrap_stand_in(evals: Tensor, *, n_samples: int, generator: torch.Generator) -> Any:
    """A right p-value by other means, drawn from the given generator."""
    seed = int(torch.randint(1 << 30, (), generator=generator))
    p = plain_p_value(evals.numpy(), min(n_samples, 50), np.random.default_rng(seed))
    return SimpleNamespace(p_value=torch.tensor(p))


def quick_goodness(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fewer samples, and a stand-in for ours."""
    monkeypatch.setattr(spectral_fast, "goodness_of_fit", bootstrap_stand_in)
    monkeypatch.setattr(bootstrap, "GATE_SAMPLES", 50)
    monkeypatch.setattr(bootstrap, "SAMPLES", 50)


def refuse_clocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever is timed fails the test."""

    def refuse(*_: Any) -> None:
        raise AssertionError("timed before the gate")

    for part in (fit, share, bootstrap):
        monkeypatch.setattr(part, "interleave", refuse)
