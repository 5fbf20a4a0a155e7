"""The stages of a call: all there, inside the whole, with the values of svdvals."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import spectral_fast
from benchmarks import __main__ as command
from benchmarks import command_line
from benchmarks.cases import Case, random_weights
from benchmarks.singular_values import commands, stages
from benchmarks.singular_values.stages import StagesRow, measure_shapes, measure_stages, stages_of
from spectral_fast import _cpu

TWO_STAGES = ["load", "band", "bidiagonal", "values"]
DIRECT = ["load", "bidiagonal", "values"]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., tuple[int, dict[str, Any]]]:
    """The command: its exit code and what it wrote."""
    for module in (command_line, commands):
        monkeypatch.setattr(module, "gemm_rate", lambda dtype, device: 1e11)

    def call(*arguments: str) -> tuple[int, dict[str, Any]]:
        file = tmp_path / "out.json"
        code = command.main(["stages", "--repeats=5", f"--json={file}", *arguments])
        return code, json.loads(file.read_text(encoding="utf-8"))

    return call


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize(
    ("m", "n", "names"),
    [
        (140, 130, TWO_STAGES),
        (130, 400, ["load", "reduce", *TWO_STAGES[1:]]),
        (60, 50, DIRECT),
        (1500, 40, ["load", "reduce", *DIRECT[1:]]),
        (270, 260, TWO_STAGES),  # the threads share it
    ],
)
def test_stages_of_a_call(m: int, n: int, names: list[str], dtype: torch.dtype, isa: str) -> None:
    A = random_weights(1, m, n, dtype)[0]
    start = time.perf_counter()
    values, found = stages_of(A, 2)
    whole = time.perf_counter() - start
    assert list(found) == names
    assert 0 < sum(seconds for seconds, _, _ in found.values()) <= whole
    assert torch.equal(values, spectral_fast.svdvals(A))


def test_work_is_that_of_the_formulas() -> None:
    m, n = 1000, 150  # two chunks of rows
    _, found = stages_of(random_weights(1, m, n, torch.float32)[0], 1)
    work = {name: (unit, amount) for name, (_, unit, amount) in found.items()}
    assert work["load"] == ("bytes", 8 * m * n)
    assert work["reduce"] == ("flops_float32", pytest.approx(2 * m * n**2 - 2 / 3 * n**3))
    assert work["band"] == ("flops_float32", pytest.approx(8 / 3 * n**3))
    assert work["bidiagonal"] in [("flops_float64", 8 * n**2 * b) for b in (8, 16)]
    unit, divisions = work["values"]
    assert unit == "divisions"
    assert divisions % n == 0
    assert n <= divisions / n <= 15 * n

    _, found = stages_of(random_weights(1, 300, 100, torch.float32)[0], 1)
    work = {name: (unit, amount) for name, (_, unit, amount) in found.items()}
    assert work["load"] == ("bytes", 12 * 300 * 100)  # widened to float64
    assert work["bidiagonal"] == ("flops_float64", pytest.approx(8 / 3 * 100**3))


def test_non_finite_input_goes_through_no_stage() -> None:
    values, found = stages_of(torch.full((200, 200), torch.nan), 1)
    assert values.isnan().all()
    assert found == {}


def test_peak_is_a_rate(isa: str) -> None:
    single, double, divisions = (
        _cpu.peak(unit, 1) for unit in ("flops_float32", "flops_float64", "divisions")
    )
    # A loop that the compiler folded would be beyond any CPU.
    assert 1e6 < divisions < min(single, double)
    assert max(single, double) < 1e12
    with pytest.raises(ValueError, match="no peak is measured in 'bytes'"):
        _cpu.peak("bytes", 1)


def test_the_command(run: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = torch.get_num_threads()
    code, data = run("--shapes=140x130,3,130x400", "--threads=2")
    assert code == 0
    assert torch.get_num_threads() == before
    assert set(data) == {
        *("schema_version", "date_utc", "arguments", "machine", "versions", "capabilities", "gemm"),
        *("peak", "rows"),
    }
    assert data["arguments"]["shapes"] == [[140, 130], [3, 3], [130, 400]]
    assert set(data["peak"]) == {"flops_float32", "flops_float64", "divisions"}
    square, tiny, wide = data["rows"]
    assert tiny["status"] == "not measured: so small a matrix goes in a group and has no stages"
    assert [stage["name"] for stage in square["stages"]] == TWO_STAGES
    assert [stage["name"] for stage in wide["stages"]] == ["load", "reduce", *TWO_STAGES[1:]]
    for row in (square, wide):
        assert row["status"] == "ok"
        assert row["gate"]["holds"]
        assert len(row["seconds"]) == 5
        assert row["gemm_share"] == pytest.approx(row["flops"] / row["whole"]["median"] / 1e11)
        assert 0 < row["rest"] < 1
        for stage in row["stages"]:
            assert len(stage["seconds"]) == 5
            assert 0 < stage["share"] < 1
            assert stage["rate"] == pytest.approx(stage["amount"] / stage["spread"]["median"])
            assert stage["reached"] == pytest.approx(stage["rate"] / stage["bound"])
            assert (stage["gemm_share"] is None) == (stage["unit"] in ("bytes", "divisions"))
            if stage["unit"] in data["peak"]:
                assert stage["bound"] == data["peak"][stage["unit"]]
    text = json.dumps(data)
    assert str(tmp_path) not in text
    printed = capsys.readouterr().out.splitlines()
    assert printed[0] == f"{data['machine']['cpu']}, {_cpu.current_isa()}, 2 threads"
    assert [line.split()[0] for line in printed if "whole  " in line] == ["140×130", "130×400"]
    for name in ("load", "reduce", "band", "bidiagonal", "values", "rest"):
        assert any(line.split()[:1] == [name] for line in printed)


def test_wrong_values_get_no_time(
    run: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def no_clock(*_: Any) -> None:
        raise AssertionError("timed before the gate")

    right = spectral_fast.svdvals
    monkeypatch.setattr(stages, "interleave", no_clock)
    monkeypatch.setattr(spectral_fast, "svdvals", lambda A: right(A) * 1.001)
    code, data = run("--shapes=140")
    assert code == 1
    assert data["rows"][0]["status"].startswith("accuracy gate failed: ")
    assert data["rows"][0]["stages"] == []
    assert " ms " not in capsys.readouterr().out

    # Right within the bound, but not the bits of the clocked call.
    monkeypatch.setattr(spectral_fast, "svdvals", lambda A: torch.nextafter(right(A), torch.tensor(0.0)))
    row = measure_stages(Case(140, 140), torch.float32, 1, 5)
    assert row.status == "accuracy gate failed: the clocked call has other values than svdvals"


def test_what_is_not_measured_is_listed() -> None:
    def measure(case: Case) -> StagesRow:
        if case.m == 2:
            raise KeyboardInterrupt
        return StagesRow(case)

    shapes = [(1, 1), (2, 2), (3, 3)]
    rows = list(measure_shapes(shapes, measure, None, lambda text: None))
    assert [row.status for row in rows] == ["ok", *["not measured: interrupted"] * 2]
    rows = list(measure_shapes(shapes, measure, 1e-9, lambda text: None))
    assert [row.status for row in rows] == ["not measured: not in the budget of 1e-09 s"] * 3


@pytest.mark.parametrize(
    ("shapes", "message"),
    [
        *((shapes, "not a whole number") for shapes in ("", "0", "512x", "x3", "a")),
        ("4x5x6", "has a stack"),
        ("4x5x6x7", "is no shape"),
    ],
)
def test_bad_shapes(shapes: str, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as raised:
        command.main(["stages", f"--shapes={shapes}"])
    assert raised.value.code == 2
    assert message in capsys.readouterr().err
