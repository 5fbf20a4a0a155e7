"""The benchmark harness: what it writes down, which failures are rows, what a budget leaves out."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import spectral_fast
from benchmarks import __main__ as command
from benchmarks import budget, measure
from benchmarks.baselines import BASELINES, Baseline
from benchmarks.cases import Case
from benchmarks.measure import Row, Setting, plan_row
from benchmarks.report import SCHEMA_VERSION, document, summary, summary_line, write_json
from benchmarks.timing import spread
from spectral_fast.heuristics import Plan
from tests.benchmark_runs import TALL, by_method, svdvals_command

ROOT = Path(__file__).parents[1]


def setting(**changes: Any) -> Setting:
    usual: dict[str, Any] = {
        "dtype": torch.float32,
        "device": torch.device("cpu"),
        "threads": 2,
        "baselines": ("torch",),
        "repeats": 5,
        "gemm_flops": 1e11,
    }
    return Setting(**{**usual, **changes})


@pytest.fixture(autouse=True)
def same_threads_after() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., tuple[int, dict[str, Any]]]:
    return svdvals_command(monkeypatch, tmp_path)


# The run


def test_the_command_as_a_user_starts_it(tmp_path: Path) -> None:
    file = tmp_path / "grid.json"
    done = subprocess.run(
        [
            *(sys.executable, "-m", "benchmarks", "svdvals", "--suite=grid", "--max-n=2"),
            *("--repeats=5", "--threads=1", f"--json={file}"),
        ],
        cwd=ROOT,
        capture_output=True,
        encoding="utf-8",
        env={**os.environ, "PYTHONIOENCODING": "utf-8"},
        check=False,
    )
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0].split()[:4] == ["case", "calls", "method", "threads"]
    assert re.match(r"grid on cpu, float32, 1 thread: torch / ours [\d.]+× over 12 rows", lines[-1])
    data = json.loads(file.read_text(encoding="utf-8"))
    assert [row["status"] for row in data["rows"]] == ["ok"] * 12
    assert data["gemm"]["flops_per_second"] > 0


def test_json_has_all_that_a_figure_depends_on(run: Any, tmp_path: Path) -> None:
    code, data = run("--baselines=torch,gram,numpy", "--threads=2")
    assert code == 0
    assert data["schema_version"] == SCHEMA_VERSION == 1
    assert set(data) == {
        *("schema_version", "date_utc", "arguments", "machine", "versions", "capabilities", "gemm"),
        *("summary", "rows"),
    }
    assert data["date_utc"].endswith("+00:00")
    assert data["capabilities"]["cpu"]["threads"] == 2
    assert data["versions"]["torch"] == torch.__version__
    assert data["arguments"]["baselines"] == ["torch", "gram", "numpy"]
    assert set(data["machine"]) == {"cpu", "architecture", "system", "cores", "memory_bytes", "gpus"}
    assert [(row["m"], row["n"], row["matrices"], row["calls"]) for row in data["rows"]] == [
        (9, 7, 4, "batch"),
        (9, 7, 4, "loop"),
        (17, 8, 1, "single"),
    ]
    for row in data["rows"]:
        assert row["status"] == "ok"
        assert row["gate"]["holds"]
        assert row["gate"]["compared"] == list(range(row["matrices"]))
        assert row["gate"]["oracle"] == "LAPACK in float64"
        assert row["plan"].startswith("cpu:bidiag")
        methods = [(m["method"], m["threads"]) for m in row["measurements"]]
        assert methods == [("ours", 2), ("torch", 1), ("torch", 2), ("gram", 1), ("gram", 2), ("numpy", None)]
        for m in row["measurements"]:
            assert m["status"] == "ok"
            assert len(m["seconds"]) == 5
            assert all(seconds > 0 for seconds in m["seconds"])
            assert m["error"] < 100
            assert m["calls_per_sample"] * m["spread"]["median"] > 1e-4  # no sample of a few clock ticks
            assert (m["ratio"] is None) == (m["method"] == "ours")
        assert row["torch_threads_used"] in (1, 2)
    text = json.dumps(data)
    for private in (str(ROOT), str(tmp_path), str(Path.home()), "out.json"):
        assert private not in text or private == "/"


def test_every_dtype(run: Any) -> None:
    for dtype, oracle in (
        ("float64", "Jacobi in extended precision"),
        ("bfloat16", "LAPACK in float64"),
    ):
        code, data = run(f"--dtype={dtype}")
        assert code == 0
        for row in data["rows"]:
            assert row["gate"]["oracle"] == oracle
            assert row["speedup"]["median"] > 0


def test_file_is_written_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "old.json"
    write_json(file, {"old": 1})

    def no_space(*_: Any) -> None:
        raise OSError("no space")

    monkeypatch.setattr(os, "replace", no_space)
    with pytest.raises(OSError, match="no space"):
        write_json(file, {"new": 2})
    assert json.loads(file.read_text(encoding="utf-8")) == {"old": 1}
    assert os.listdir(tmp_path) == ["old.json"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--suite=single", "--device=cuda"], "no CUDA device"),
        (["--suite=single", "--embeddings"], "has no embeddings"),
        (["--suite=single", "--max-n=3"], "raise it"),
        (["--suite=single", "--repeats=4"], "at least 5"),
        (["--suite=single", "--max-seconds=0"], "positive number"),
        (["--suite=single", "--baselines=torch,nope"], "no baseline is called 'nope'"),
        (["--suite=single", "--json=/nowhere/at/all.json"], "does not exist"),
        (["--suite=nope"], "invalid choice"),
    ],
)
def test_bad_usage(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit) as raised:
        command.main(["svdvals", *arguments])
    assert raised.value.code == 2
    assert message in capsys.readouterr().err


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_cuda(run: Any) -> None:
    code, data = run("--device=cuda")
    assert code == 0
    for row in data["rows"]:
        methods = by_method(row)
        assert methods["ours"]["seconds"]
        assert {"torch", "torch-gesvd", "torch-gesvdj", "torch-gesvda", "cupy"} <= set(methods)


# Failures are rows


def test_baselines_that_fail_are_rows(run: Any, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    def no_memory(A: Any) -> None:
        raise MemoryError

    def broken(A: Any) -> None:
        raise RuntimeError("gesvd did not converge\nmore")

    monkeypatch.setitem(BASELINES, "gram", Baseline(("cpu",), no_memory, threaded=True))
    monkeypatch.setitem(BASELINES, "numpy", Baseline(("cpu",), broken))
    monkeypatch.setitem(BASELINES, "scipy-gesdd", Baseline(("cpu",), broken, requires="no_such_module"))
    monkeypatch.setitem(BASELINES, "scipy-gesvd", Baseline(("cpu",), broken, prepare=no_memory))
    code, data = run("--baselines=all", "--threads=1")
    assert code == 0
    for row in data["rows"]:
        assert row["status"] == "ok"
        assert {method: m["status"] for method, m in by_method(row).items()} == {
            "ours": "ok",
            "torch": "ok",
            "gram": "out of memory",
            "numpy": "failed: RuntimeError: gesvd did not converge",
            "scipy-gesdd": "not installed: no_such_module",
            "scipy-gesvd": "out of memory",
            **dict.fromkeys(
                ("torch-gesvd", "torch-gesvdj", "torch-gesvda", "cupy"), "not available: runs on cuda only"
            ),
        }
        assert by_method(row)["numpy"]["seconds"] == []
    assert "gesvd did not converge" in capsys.readouterr().out


def test_ours_failing_fails_the_run_but_memory_does_not(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    right = spectral_fast.svdvals

    def broken(error: Exception) -> Callable[[Tensor], Tensor]:
        def svdvals(A: Tensor) -> Tensor:
            if A.shape == (17, 8):
                raise error
            return right(A)

        return svdvals

    for error, code, status in (
        (RuntimeError("broken"), 1, "failed: RuntimeError: broken"),
        (MemoryError(), 0, "out of memory"),
    ):
        monkeypatch.setattr(spectral_fast, "svdvals", broken(error))
        got, data = run()
        assert (got, data["rows"][2]["status"], data["rows"][0]["status"]) == (code, status, "ok")
        assert data["rows"][2]["measurements"] == []


def test_a_baseline_with_no_numbers_gets_no_time(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(BASELINES, "gram", Baseline(("cpu",), lambda A: torch.linalg.svdvals(A) * torch.nan))
    code, data = run("--baselines=gram")
    assert code == 0
    assert {by_method(row)["gram"]["status"] for row in data["rows"]} == {"failed: values are not finite"}
    assert all(by_method(row)["gram"]["spread"] is None for row in data["rows"])


@pytest.mark.parametrize(("one", "two", "better", "slower"), [(1, 2, 1, True), (2, 1, 2, False)])
def test_torch_counts_with_its_better_thread_count(
    monkeypatch: pytest.MonkeyPatch, one: float, two: float, better: int, slower: bool
) -> None:
    def clock(call: Callable[[], Any], count: int) -> float:
        call()
        return {1: one, 2: two}[torch.get_num_threads()]

    monkeypatch.setattr(measure, "host_clock", clock)
    [row] = measure.measure(TALL, setting())
    assert row.torch_used is not None
    assert row.torch_used.threads == better
    assert row.speedup is not None
    assert row.speedup.median == 1 / two  # ours ran with two threads
    assert row.torch_slower_with_threads is slower
    assert (
        "noisy: torch was slower with more threads than with one in 1" in summary_line("x", [row])
    ) is slower


def test_ours_that_is_torch_itself_has_no_ratio(
    run: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    plan = Plan("reference", "torch", ("torch.linalg.svdvals",), "no kernel of ours runs on that")
    monkeypatch.setattr(spectral_fast, "explain", lambda *args: plan)
    _, data = run()
    for row in data["rows"]:
        assert row["plan"] == str(plan)
        assert row["speedup"] is None
        assert all(m["ratio"] is None for m in row["measurements"])
        assert all(m["seconds"] for m in row["measurements"])
    assert data["summary"]["compared"] == 0
    printed = capsys.readouterr().out
    assert printed.count("ours is torch here: no ratio") == 3
    assert "ours was torch itself in 3" in printed


def test_summary_counts_and_means() -> None:
    rows = []
    for ratio in (4.0, 1.0, 0.5):
        row = plan_row(TALL, "single", setting())
        one = measure.Measurement("torch", 1, "ok", ratio=spread([ratio, ratio]))
        row.measurements, row.torch_used = [one], one
        rows.append(row)
    rows.append(plan_row(TALL, "single", setting(), "not measured: interrupted"))
    found = summary(rows)
    assert found["geometric_mean"] == pytest.approx(2 ** (1 / 3))
    assert (found["slower"], found["slower_beyond_spread"]) == (1, 1)
    assert found["worst"] == {"case": "17×8 single", "ratio": 0.5}
    assert found["statuses"] == {"ok": 3, "not measured": 1}
    assert "not measured: 1" in summary_line("x", rows)


# Budget


def measured_without_work(case: Case, chosen: Setting) -> list[Row]:
    return [plan_row(case, calls, chosen) for calls in case.calls]


def test_what_is_not_measured_is_listed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(budget, "measure", measured_without_work)
    cases = [Case(n, n) for n in (2, 4096, 3)]
    statuses = {
        case.m: row.status
        for row in budget.measure_all(cases, setting(), max_seconds=10)
        for case in [row.case]
    }
    assert statuses == {2: "ok", 3: "ok", 4096: "not measured: not in the budget of 10 s"}

    monkeypatch.setattr(budget, "device_memory", lambda device: 8 * 4 * 4095**2)
    rows = list(budget.measure_all(cases, setting()))
    assert rows[0].case.m == 4096
    assert rows[0].status.startswith("not measured: its matrices take 0.0625 GiB, more than the cap")


def test_large_cases_wait_for_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    """With 60 s at 1e11 flops/s, 2048² is over its share while fifty cases wait, and not after."""
    monkeypatch.setattr(budget, "measure", measured_without_work)
    cases = [Case(2048, 2048), *(Case(8, 8) for _ in range(50))]
    rows = list(budget.measure_all(cases, setting(threads=1), max_seconds=60))
    assert [row.status for row in rows] == ["ok"] * 51
    assert rows[-1].case.m == 2048


def test_a_stack_that_is_too_large_is_measured_in_part(monkeypatch: pytest.MonkeyPatch) -> None:
    """16 matrices of 512² take 24 s, 4 of them 6; two of 8192² take longer than there is."""
    monkeypatch.setattr(budget, "measure", measured_without_work)
    cases = [
        Case(512, 512, 16, calls=("batch", "loop"), roles=("q",)),
        Case(8192, 8192, 4, calls=("batch",), roles=("k",)),
        Case(512, 512, 16, calls=("batch",)),
        Case(2, 2),
    ]
    rows = list(budget.measure_all(cases, setting(), max_seconds=10))
    left_out = "not measured: not in the budget of 10 s"
    assert [(str(row.case), row.status) for row in rows] == [
        ("2×2", "ok"),
        ("4 of 16×512×512", "ok"),
        ("4 of 16×512×512", "ok"),
        ("2 of 4×8192×8192", left_out),
        ("16×512×512", left_out),
    ]
    assert [row["layers"] for row in document(rows, {})["rows"]] == [0, 16, 16, 4, 0]


def test_an_interrupt_keeps_what_is_done(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    right = spectral_fast.svdvals

    def interrupted(A: Tensor) -> Tensor:
        if A.shape == (17, 8):
            raise KeyboardInterrupt
        return right(A)

    monkeypatch.setattr(spectral_fast, "svdvals", interrupted)
    code, data = run()
    assert code == 130
    assert [row["status"] for row in data["rows"]] == ["ok", "ok", "not measured: interrupted"]
