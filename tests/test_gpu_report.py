"""The report of a GPU, with a device whose clock is made up: everything but the timing itself."""

from __future__ import annotations

import dataclasses
import functools
import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import spectral_fast
from benchmarks import __main__ as command
from benchmarks import command_line
from benchmarks.baselines import Baseline
from benchmarks.cases import Case
from benchmarks.gpu import commands, plots
from benchmarks.gpu import report as gpu_report
from benchmarks.gpu.device import Gpu
from benchmarks.gpu.first_use import measure_first_use
from benchmarks.gpu.look import LOOK_MODEL
from benchmarks.gpu.markdown import markdown
from benchmarks.gpu.peers import PEERS
from benchmarks.gpu.plots import draw_all
from benchmarks.gpu.report import run_marked_tests, verdict
from benchmarks.machine import versions
from benchmarks.suites import build_suite
from spectral_fast.heuristics import Plan
from tests.gpu_machine import LARGE, SQUARE, WIDE, Machine

PASSED = {"status": "ok", "tests": 5, "passed": 4, "failures": 0, "errors": 0, "skipped": 1, "seconds": 2.0}
FIRST_CALL = {"shape": [2, 9, 9], "dtype": "float32", "first": 9.0, "second": 0.001}
FIRST_USE = {
    "cold": {"import": 1.5, "device": 0.5, "calls": [FIRST_CALL]},
    "warm": {"import": 1.5, "device": 0.5, "calls": [{**FIRST_CALL, "first": 0.3}]},
}
VERSIONS = functools.cache(versions)  # looks for CuPy's distribution for a second


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Machine:
    return Machine(monkeypatch)


def written(folder: Path) -> tuple[str, dict[str, Any]]:
    text = (folder / "report.md").read_text(encoding="utf-8")
    return text, json.loads((folder / "report.json").read_text(encoding="utf-8"))


# The parts that are processes


@pytest.mark.slow
@pytest.mark.parametrize(
    ("body", "status", "counts"),
    [
        ("pass", "ok", (2, 1, 0)),
        ("assert 'found' == 'wanted'", "failed: pytest exited with 1", (2, 0, 1)),
        ("pytest.skip('needs a GPU')", "failed: every test was skipped", (2, 0, 0)),
        ("import time; time.sleep(60)", "failed: not done after 8 s", None),
    ],
)
def test_marked_tests(body: str, status: str, counts: tuple[int, int, int] | None, tmp_path: Path) -> None:
    file = tmp_path / "test_it.py"
    file.write_text(
        "import pytest\n\n"
        f"@pytest.mark.gpu\ndef test_marked():\n    {body}\n\n"
        "@pytest.mark.gpu\n@pytest.mark.skip(reason='never')\ndef test_skipped():\n    pass\n\n"
        "def test_other():\n    assert False\n"
    )
    found = run_marked_tests(8.0 if counts is None else 60.0, ["--rootdir", str(tmp_path), str(file)])
    assert found["status"] == status
    if counts is not None:
        assert (found["tests"], found["passed"], found["failures"]) == counts
        assert found["seconds"] > 0
    assert ("found" in found.get("output", "")) == (counts == (2, 0, 1))


@pytest.mark.slow
def test_no_marked_tests_is_a_failure(tmp_path: Path) -> None:
    (tmp_path / "test_it.py").write_text("def test_other():\n    pass\n")
    found = run_marked_tests(60.0, ["--rootdir", str(tmp_path), str(tmp_path / "test_it.py")])
    assert found["status"] == "failed: no test is marked gpu"


@pytest.mark.slow
def test_first_use_in_new_processes() -> None:
    found = measure_first_use("cpu", 120.0)
    for when in ("cold", "warm"):
        one = found[when]
        assert one["import"] > 0.01
        assert {(tuple(call["shape"]), call["dtype"]) for call in one["calls"]} == {
            (shape, dtype)
            for shape in ((2, 160, 160), (2, 480, 160), (64, 32, 32))
            for dtype in ("float32", "float64")
        }
        assert all(call["first"] > 0 and call["second"] > 0 for call in one["calls"])
    with pytest.raises(RuntimeError, match=r"the first call failed: .*no_such_device"):
        measure_first_use("no_such_device", 120.0)


# The whole


@pytest.fixture
def report(machine: Machine, tmp_path: Path) -> Callable[..., tuple[int, Path]]:
    """The command on small stacks: its exit code and folder."""
    patch = machine.patch
    patch.setattr(commands, "cuda_gpu", lambda: machine.gpu)
    patch.setattr(commands, "nine_models", lambda: [SQUARE, WIDE, LARGE])
    for module in (command_line, commands):
        patch.setattr(module, "gemm_rate", lambda dtype, device: 1e12)
    patch.setattr(command_line, "versions", VERSIONS)
    patch.setattr(gpu_report, "measure_first_use", lambda device, seconds: FIRST_USE)
    patch.setattr(gpu_report, "run_marked_tests", lambda seconds: PASSED)

    def call(*arguments: str, pictures: bool = False) -> tuple[int, Path]:
        if not pictures:
            patch.setattr(plots, "draw_all", lambda data, folder: {})
        folder = tmp_path / "a" / "report"
        return command.main(["gpu-report", f"--out={folder}", *arguments]), folder

    return call


def test_the_report(report: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, folder = report()
    assert code == 0
    assert capsys.readouterr().out == f"{folder / 'report.md'}: ok\n"
    text, data = written(folder)
    assert set(data) == {
        *("schema_version", "date_utc", "arguments", "machine", "versions", "capabilities", "gemm"),
        *("gpu", "chip", "peers", "budget_seconds", "state_before", "state_after", "tests", "first_use"),
        *("look", "stages", "cases", "seconds", "status"),
    }
    assert data["budget_seconds"] == 600
    assert [(row["m"], row["dtype"]) for row in data["cases"]] == [
        *((40, "float32"), (30, "float32"), (96, "float32")),
        *((40, "float64"), (30, "float64"), (96, "float64")),
    ]
    assert str(tmp_path) not in text + json.dumps(data)
    assert re.findall(r"^## (.*)$", text, re.M) == [
        *("Machine", "Tests", "First use", "A look at GPT-2 124M", "Singular values", "Pictures"),
        *("Kernel by kernel", "Not measured", "Again"),
    ]
    assert "All tests passed, and all of the 6 stacks measured passed the accuracy gate." in text
    assert "| `torch` | 3 | 4.00 | 4.00 | 4.00 |" in text
    assert "4 passed, 0 failures, 0 errors, 1 skipped" in text
    assert "| empty caches | 1.50 s | 500 ms | 9.00 s | 1.00 ms | 9.00 s |" in text
    assert "| 6×40×40 | `ours` | 6 of 6 | 1.00 ms | 1.00 ms–1.00 ms |  |  | " in text
    assert "| stats | `distance_kernel` | 1 | 3.00 ms | 75.0 % |" in text


def test_the_report_stands_by_itself(report: Any) -> None:
    """Its pictures are beside it, and its data is enough to write it again."""
    _, folder = report(pictures=True)
    text, data = written(folder)
    files = re.findall(r"!\[[^\]]+\]\(([^)]+)\)", text)
    assert files == [
        *(f"{what}_{dtype}.png" for dtype in ("float32", "float64") for what in ("times", "errors")),
        "stages.png",
    ]
    for file in files:
        content = (folder / file).read_bytes()
        assert content.startswith(b"\x89PNG")
        assert len(content) > 8000
    assert {path.name for path in folder.iterdir()} == {"report.json", "report.md", *files}
    assert markdown(data, draw_all(data, folder)) == text


def test_tables_have_as_many_cells_as_headings(report: Any) -> None:
    _, folder = report()
    widths = [
        {line.count(" | ") for line in table.splitlines()}
        for table in re.findall(r"(?:^\|.*\n)+", (folder / "report.md").read_text("utf-8"), re.M)
    ]
    assert len(widths) > 8
    assert all(len(each) == 1 for each in widths)


def test_a_failing_section_fails_the_report_and_leaves_the_others(report: Any, machine: Machine) -> None:
    def broken(*_: Any) -> Any:
        raise RuntimeError("nvrtc: error: invalid value for --gpu-architecture")

    machine.patch.setattr(gpu_report, "measure_first_use", broken)
    machine.gpu = dataclasses.replace(machine.gpu, profile=broken)
    code, folder = report(pictures=True)
    text, data = written(folder)
    assert code == 1
    assert data["first_use"]["status"].startswith("failed: RuntimeError: nvrtc")
    assert data["status"].startswith("first_use: failed: RuntimeError: nvrtc")
    assert "3 stacks, the first: failed: RuntimeError: nvrtc" in data["status"]
    assert "Not all is well: first_use" in text
    assert [row["status"] for row in data["cases"]] == ["ok"] * 6
    assert "stages.png" not in text


def test_failed_tests_fail_the_report(report: Any, machine: Machine) -> None:
    bad = {**PASSED, "status": "failed: pytest exited with 1", "failures": 1, "output": "E   assert 1 == 2"}
    machine.patch.setattr(gpu_report, "run_marked_tests", lambda seconds: bad)
    code, folder = report()
    assert code == 1
    assert "E   assert 1 == 2" in (folder / "report.md").read_text("utf-8")


def test_the_budget_drops_stacks_and_names_them(report: Any) -> None:
    code, folder = report("--max-seconds=16")
    text = (folder / "report.md").read_text("utf-8")
    assert code == 0
    dropped = re.findall(r"^- (.*): not measured: not in the budget of \d+ s$", text, re.M)
    assert "4×96×96, float64" in dropped
    assert len(dropped) == 6  # rendering keeps 15 s


def test_interruption_writes_what_there_is(report: Any, machine: Machine) -> None:
    def interrupted(gpu: Gpu, case: Case, dtype: torch.dtype) -> Any:
        raise KeyboardInterrupt

    machine.patch.setattr(gpu_report, "measure_stages", interrupted)
    code, folder = report()
    assert code == 130
    data = json.loads((folder / "report.json").read_text("utf-8"))
    assert data["status"] == "interrupted"
    assert data["look"]["status"] == "ok"
    assert "stages" not in data
    assert (folder / "report.md").exists()


def test_interrupted_among_the_stacks_nothing_more_is_started(report: Any, machine: Machine) -> None:
    def interrupted(A: Tensor) -> Tensor:
        raise KeyboardInterrupt

    machine.patch.setitem(PEERS, "torch-loop", Baseline(("cpu",), interrupted))
    code, folder = report()
    text, data = written(folder)
    assert code == 130
    assert [(row["dtype"], row["status"]) for row in data["cases"]] == [
        ("float32", "not measured: interrupted")
    ] * 3
    assert "**Not all is well: interrupted**" in text


def test_where_ours_is_torch_the_report_says_so(report: Any, machine: Machine) -> None:
    plan = Plan("reference", "torch", ("torch.linalg.svdvals",), "no kernel")
    machine.patch.setattr(spectral_fast, "explain", lambda *_: plan)
    _, folder = report()
    text = (folder / "report.md").read_text("utf-8")
    assert "nothing of ours was timed" in text
    assert "Nothing was compared." in text


def test_verdict_counts_what_failed() -> None:
    data = {"tests": PASSED, "first_use": {}, "look": {"status": "ok"}, "stages": [], "cases": []}
    assert verdict(data) == "ok"
    data["cases"] = [{"status": "not measured: not in the budget of 9 s"}, {"status": "out of memory"}]
    assert verdict(data) == "ok"
    data["cases"] += [{"status": "accuracy gate failed: matrix 1 of 3 errs"}]
    assert verdict(data) == "1 stacks, the first: accuracy gate failed: matrix 1 of 3 errs"


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a device")
def test_without_cuda_the_command_stops(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as raised:
        command.main(["gpu-report", f"--out={tmp_path / 'report'}"])
    assert raised.value.code == 2
    assert "nothing is measured on another device instead" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be(
    machine: Machine, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    machine.patch.setattr(commands, "cuda_gpu", lambda: machine.gpu)
    (tmp_path / "file").write_text("")
    with pytest.raises(SystemExit) as raised:
        command.main(["gpu-report", f"--out={tmp_path / 'file' / 'report'}"])
    assert raised.value.code == 2
    assert "Not a directory" in capsys.readouterr().err


def test_missing_matplotlib_is_told_first(machine: Machine, capsys: pytest.CaptureFixture[str]) -> None:
    machine.patch.setattr(commands, "cuda_gpu", lambda: machine.gpu)
    machine.patch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(SystemExit) as raised:
        command.main(["gpu-report"])
    assert raised.value.code == 2
    assert "spectral_fast[demo]" in capsys.readouterr().err


def test_the_suite_is_the_nine_models() -> None:
    cases = gpu_report.nine_models()
    assert [(c.count, c.m, c.n) for c in cases] == [(c.count, c.m, c.n) for c in build_suite("nine-models")]
    assert {case.calls for case in cases} == {("batch",)}
    look = [case for case in cases if LOOK_MODEL in case.models]
    assert sum(case.count * case.stacks for case in look) == 72
