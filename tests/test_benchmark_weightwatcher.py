"""The benchmark of WeightWatcher: no time where the tables differ, and what a row is made of."""

from __future__ import annotations

import importlib.util
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import spectral_fast
from benchmarks import __main__ as command
from benchmarks import command_line
from benchmarks.statistics import weightwatcher as benchmark
from tests.oracles import weightwatcher_models as models

pytestmark = pytest.mark.filterwarnings("ignore:Passing a dict to DataFrame.from_records")  # weightwatcher's


@pytest.fixture(scope="module", autouse=True)
def quiet():
    for module in ("weightwatcher", "transformers", "threadpoolctl"):
        if importlib.util.find_spec(module) is None:
            pytest.skip(f"{module} is not installed")
    with models.quiet():
        yield


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., tuple[int, dict[str, Any]]]:
    """The command on a narrow GPT-2: its exit code and what it wrote."""
    monkeypatch.setattr(command_line, "gemm_rate", lambda dtype, device: 1e11)
    monkeypatch.setattr(
        benchmark,
        "gpt2",
        lambda *, layers: models.gpt2(layers=layers, width=96, heads=4, positions=128, vocabulary=300),
    )

    def call(*arguments: str) -> tuple[int, dict[str, Any]]:
        file = tmp_path / "out.json"
        code = command.main(["weightwatcher", "--repeats=5", "--layers=1", f"--json={file}", *arguments])
        return code, json.loads(file.read_text(encoding="utf-8"))

    return call


def test_the_command(run: Any, capsys: pytest.CaptureFixture[str]) -> None:
    before = torch.get_num_threads()
    code, data = run("--threads=1")
    assert code == 0
    assert torch.get_num_threads() == before
    assert set(data) == {
        *("schema_version", "date_utc", "arguments", "machine", "versions", "capabilities", "gemm", "rtol"),
        *(
            "model",
            "randomize",
            "status",
            "matrices",
            "differences",
            "methods",
            "speedup",
            "speedup_without_fit",
        ),
    }
    assert data["versions"]["weightwatcher"]
    assert (data["model"], data["status"], data["matrices"], data["differences"]) == (
        "gpt2-124m",
        "ok",
        6,
        [],
    )
    own, ours = data["methods"]
    assert [own["name"], ours["name"]] == ["weightwatcher", "with spectral_fast"]
    for method in (own, ours):
        assert len(method["seconds"]) == len(method["parts"]) == 5
        for seconds, parts in zip(method["seconds"], method["parts"], strict=True):
            assert set(parts) == {"svdvals", "fit"}
            assert min(parts.values()) > 0
            assert sum(parts.values()) < seconds
    ratios = sorted(a / b for a, b in zip(own["seconds"], ours["seconds"], strict=True))
    assert data["speedup"]["median"] == pytest.approx(ratios[2])
    assert data["speedup_without_fit"]["median"] > ratios[2]
    printed = capsys.readouterr().out
    assert f"{ratios[2]:.2f}×" in printed
    assert "6 matrices, tables equal to 1e-06" in printed


def test_randomize_reaches_weightwatcher(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    columns = []
    right = benchmark.differences
    monkeypatch.setattr(benchmark, "differences", lambda a, b: columns.extend(a.columns) or right(a, b))
    monkeypatch.setattr(benchmark, "interleave", lambda *_: pytest.skip("never timed"))
    with pytest.raises(pytest.skip.Exception):
        run("--randomize")
    assert "rand_sigma_mp" in columns


def test_unequal_tables_get_no_time(
    run: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def no_clock(*_: Any) -> None:
        raise AssertionError("timed before the tables were compared")

    right = spectral_fast.weightwatcher.svdvals
    monkeypatch.setattr(benchmark, "interleave", no_clock)
    monkeypatch.setattr(spectral_fast.weightwatcher, "svdvals", lambda W: right(W) * (1 + 2e-6))
    code, data = run()
    assert code == 1
    assert data["status"] == "accuracy gate failed: the tables differ"
    assert any(difference.startswith("sv_max: ") for difference in data["differences"])
    assert data["methods"] == []
    printed = capsys.readouterr().out
    assert "lambda_max: " in printed
    assert " ms " not in printed


def test_a_failure_and_an_interruption_are_the_status(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(error: BaseException) -> Callable[..., None]:
        def raises(*_: Any) -> None:
            raise error

        return raises

    monkeypatch.setattr(benchmark, "_analyze", failing(RuntimeError("no such layer")))
    code, data = run()
    assert (code, data["status"]) == (1, "failed: RuntimeError: no such layer")
    monkeypatch.setattr(benchmark, "_analyze", failing(KeyboardInterrupt()))
    code, data = run()
    assert (code, data["status"]) == (130, "not measured: interrupted")


def test_clocks_are_taken_out(run: Any) -> None:
    from weightwatcher import RMT_Util, weightwatcher

    before = dict(vars(RMT_Util)), dict(vars(weightwatcher))
    run()
    for module, attributes in zip((RMT_Util, weightwatcher), before, strict=True):
        assert all(vars(module)[name] is value for name, value in attributes.items())


def test_what_is_missing_is_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(SystemExit) as raised:
        command.main(["weightwatcher"])
    assert raised.value.code == 2
    assert "pip install transformers" in capsys.readouterr().err
