"""The gate before the stopwatch: wrong values get no time, whichever they are."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import spectral_fast
from benchmarks import measure
from benchmarks.accuracy_gate import Gate, sample
from benchmarks.cases import random_weights
from tests.benchmark_runs import svdvals_command


@pytest.fixture(autouse=True)
def same_threads_after() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., tuple[int, dict[str, Any]]]:
    return svdvals_command(monkeypatch, tmp_path)


def scaled(A: Tensor) -> Tensor:
    return torch.linalg.svdvals(A.float()) * 1.001


def lower_half_zeroed(A: Tensor) -> Tensor:
    values = torch.linalg.svdvals(A)
    values[..., values.shape[-1] // 2 :] = 0
    return values


def ascending(A: Tensor) -> Tensor:
    return torch.linalg.svdvals(A).flip(-1)


def not_a_number(A: Tensor) -> Tensor:
    return torch.linalg.svdvals(A) * torch.nan


def one_value_missing(A: Tensor) -> Tensor:
    return torch.linalg.svdvals(A)[..., :-1]


@pytest.mark.parametrize("wrong", [scaled, lower_half_zeroed, ascending, not_a_number, one_value_missing])
def test_wrong_values_get_no_time(
    wrong: Any, run: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def no_clock(*_: Any) -> float:
        raise AssertionError("timed before the gate")

    monkeypatch.setattr(spectral_fast, "svdvals", wrong)
    monkeypatch.setattr(measure, "host_clock", no_clock)
    code, data = run()
    assert code == 1
    for row in data["rows"]:
        assert row["status"].startswith("accuracy gate failed: ")
        assert not row["gate"]["holds"]
        assert row["measurements"] == []
        assert row["speedup"] is None
    printed = capsys.readouterr().out
    assert printed.count("accuracy gate failed: ") == 4  # three rows and the summary
    assert not re.search(r"\d (µs|ms|s)\b", printed)
    assert "nothing compared with torch" in printed


def test_one_wrong_way_of_calling_fails_alone(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    right = spectral_fast.svdvals
    monkeypatch.setattr(spectral_fast, "svdvals", lambda A: right(A) if A.dim() == 3 else scaled(A))
    code, data = run()
    assert code == 1
    assert [row["status"].partition(":")[0] for row in data["rows"]] == [
        "ok",
        "accuracy gate failed",
        "accuracy gate failed",
    ]


def test_value_by_value_where_the_norm_is_right() -> None:
    A = random_weights(1, 40, 40, torch.float32)[0]
    values = spectral_fast.svdvals(A)
    a, b = values[30].item(), values[31].item()
    step = 20 * torch.finfo(torch.float32).eps * values[0].item()
    values[30] = math.sqrt(a * a + step * b)
    values[31] = math.sqrt(b * b - step * b)
    result = Gate(A).check(values)
    assert "errs by" in result.failure


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_a_wrong_matrix_outside_the_sample_is_seen(dtype: torch.dtype) -> None:
    A = random_weights(400, 12, 10, dtype)
    gate = Gate(A)
    outside = next(i for i in range(400) if i not in gate.compared)
    values = spectral_fast.svdvals(A)
    assert gate.check(values).holds
    values[outside, 5:] = 0
    assert f"matrix {outside} of 400" in gate.check(values).failure


def test_weaker_gate_says_so_and_still_fails() -> None:
    A = random_weights(1, 80, 65, torch.float64)[0]
    gate = Gate(A)
    values = spectral_fast.svdvals(A)
    result = gate.check(values)
    assert result.holds
    assert result.weaker
    assert "weaker" in result.oracle
    assert gate.error_of(values) is None
    values[40] *= 1 + 1e-11
    assert not gate.check(values).holds


def test_sample_is_spread_over_the_stack() -> None:
    assert sample(12, 768, 768) == tuple(round(i * 11 / 7) for i in range(8))
    assert sample(5, 4096, 4096) == (0, 1, 2, 3, 4)
    assert len(sample(4096, 32, 32)) == 256
    assert sample(4096, 32, 32)[-1] == 4095
