"""``python -m benchmarks stats``: what it writes down, what it calls right, what is not measured."""

from __future__ import annotations

import importlib.metadata
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from benchmarks import __main__ as command
from benchmarks import command_line
from benchmarks.rows import GateError, NotMeasured, Target, TimedRow, blas_threads, measure_in_turn
from benchmarks.statistics import bootstrap, fit, parts, share
from benchmarks.statistics.fit import FitRow, fit_summary
from benchmarks.statistics.peers import WWFIT
from benchmarks.statistics.share import has_kernel
from benchmarks.statistics.spectra import ZOO, Spectrum
from benchmarks.suites import SuiteError
from tests.benchmark_runs import N, quick_goodness, refuse_clocks, stats_command

ROOT = Path(__file__).parents[1]


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., tuple[int, dict[str, Any]]]:
    return stats_command(monkeypatch, tmp_path)


@pytest.fixture
def goodness(monkeypatch: pytest.MonkeyPatch) -> None:
    quick_goodness(monkeypatch)


@pytest.fixture
def no_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    refuse_clocks(monkeypatch)


# The run


def test_the_command_as_a_user_starts_it(tmp_path: Path) -> None:
    file = tmp_path / "stats.json"
    done = subprocess.run(
        [
            *(sys.executable, "-m", "benchmarks", "stats", "--parts=fit", "--n=20"),
            "--max-seconds=1",
            f"--json={file}",
        ],
        cwd=ROOT,
        capture_output=True,
        encoding="utf-8",
        env={**os.environ, "PYTHONIOENCODING": "utf-8"},
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[0].split()[:3] == ["spectrum", "n", "ours"]
    # Importing weightwatcher prints; the progress is all that stderr has.
    assert all(re.match(r"\d+/22 ", line) for line in done.stderr.splitlines())
    data = json.loads(file.read_text(encoding="utf-8"))
    assert [row["spectrum"] for row in data["fit"] if row["n"] == 20 and row["spectra"] == 1] == list(ZOO)
    assert {row["status"].partition(":")[0] for row in data["fit"]} <= {"ok", "not measured"}
    assert data["arguments"]["threads"] == 1
    assert "fit: WWFit / ours, n = 20, " in done.stdout


def test_json_has_every_sample_and_what_it_depends_on(run: Any, goodness: None, tmp_path: Path) -> None:
    code, data = run()
    assert code == 0
    assert set(data) == {
        *("schema_version", "date_utc", "arguments", "machine", "versions", "capabilities", "gemm"),
        *("note", "fit_kernel", "summary", "fit", "share", "bootstrap"),
    }
    for peer in ("weightwatcher", "powerlaw"):
        assert data["versions"][peer] == importlib.metadata.version(peer)
    assert data["arguments"]["parts"] == ["fit", "share", "bootstrap"]
    assert data["arguments"]["n"] == [N]
    assert str(tmp_path) not in json.dumps(data)

    *single, batch = data["fit"]
    assert [(row["spectrum"], row["n"], row["spectra"]) for row in single] == [
        ("Pareto 2.5", N, 1),
        ("uniform", N, 1),
    ]
    assert (batch["n"], batch["spectra"]) == (N, 3)
    for row in data["fit"]:
        assert row["status"] == "ok"
        assert row["gate"]["holds"]
        for one in row["comparisons"]:
            repeats = 3 if one["peer"] == "powerlaw.Fit" else 5
            assert one["status"] == "ok"
            assert len(one["seconds"]) == len(one["our_seconds"]) == repeats
            pairs = [a / b for a, b in zip(one["seconds"], one["our_seconds"], strict=True)]
            assert min(pairs) <= one["ratio"]["median"] <= max(pairs)
    assert [one["peer"] for one in single[0]["comparisons"]] == ["WWFit", "powerlaw.Fit", "powerlawrs"]
    assert [one["peer"] for one in batch["comparisons"]] == ["WWFit"]

    assert [(row["m"], row["n"], row["matrices"]) for row in data["share"]] == [(N, N, 3), (4 * N, N, 3)]
    for row in data["share"]:
        assert row["gate"]["holds"]
        methods = {one["method"]: one for one in row["methods"]}
        values, whole = methods["svdvals"], methods["spectral_stats"]
        assert values["share"] is None
        shares = [(a - b) / b for a, b in zip(whole["seconds"], values["seconds"], strict=True)]
        assert min(shares) <= whole["share"]["median"] <= max(shares)
        assert methods["stats_from_svdvals"]["share"]["median"] > 0
        assert methods["plain torch"]["share"]["median"] > 0

    for row in data["bootstrap"]:
        assert row["status"] == "ok"
        assert 0 <= row["p_value"] <= 1
        assert len(row["ours"]["seconds"]) == 5
        assert row["extrapolated"]["from_samples"] == bootstrap.PEER_SAMPLES
        assert row["extrapolated"]["ratio"]["median"] > 0


def test_targets_are_printed_next_to_what_was_reached(
    run: Any, goodness: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(share, "TARGET", 1e-9)
    monkeypatch.setattr(bootstrap, "TARGET_SECONDS", 1e4)
    code, data = run()
    assert code == 0  # a missed target is a measurement
    printed = capsys.readouterr().out
    assert "stats_from_svdvals, worst (3×" in printed
    assert "(target ≤ 1e-07 %: missed)" in printed
    assert "(target ≤ 10000 s: met)" in printed
    assert "WWFit, extrapolated" in printed
    summary = data["summary"]
    assert [one["peer"] for one in summary["fit"]] == ["WWFit", "powerlaw.Fit", "powerlawrs"]
    assert [target["target"] for target in summary["fit"][0]["targets"]] == [30, 200]
    assert [target["target"] for target in summary["fit"][1]["targets"]] == [800]
    assert [one["met"] for one in summary["share"]] == [False, False]
    assert [one["met"] for one in summary["bootstrap"]] == [True]


def test_summary_is_of_single_spectra_by_size_and_peer() -> None:
    def timing(*seconds: float) -> Any:
        return fit.Timing("", None, seconds=list(seconds))

    def row(name: str, n: int, ratio: float, count: int = 1) -> FitRow:
        found = FitRow(name, n, list, (WWFIT,), 1, count)
        ours, theirs = timing(1, 1, 1), timing(ratio, ratio, ratio)
        found.comparisons.append(fit.Comparison(WWFIT, ours=ours, theirs=theirs))
        return found

    rows = [row("a", 20, 40), row("b", 20, 31), row("c", 20, 500), row("d", 30, 29), row("e", 30, 1, count=2)]
    small, large = fit_summary(rows)
    assert (small.n, small.spectra, small.worst_spectrum) == (20, 3, "b")
    assert [(one.reached, one.met) for one in small.targets] == [(31, True), (40, False)]
    assert (large.n, large.spectra) == (30, 1)
    assert [(one.reached, one.met) for one in large.targets] == [(29, False), (29, False)]


@pytest.mark.parametrize(("reached", "met"), [(5.0, True), (4.9, True), (5.1, False)])
def test_target_at_most(reached: float, met: bool) -> None:
    assert Target("share", reached, 5, " %", at_least=False).met == met


def test_parts_and_sizes(run: Any, capsys: pytest.CaptureFixture[str]) -> None:
    code, data = run("--parts=share", "--n=24,33", "--dtype=float64", "--threads=2")
    assert code == 0
    assert data["fit"] == data["bootstrap"] == []
    assert [(row["m"], row["n"]) for row in data["share"]] == [(24, 24), (33, 33), (96, 24), (132, 33)]
    assert data["arguments"]["threads"] == 2
    for bad in ("--n=19", "--n=", "--n=40,x", "--parts=fits", "--repeats=4"):
        with pytest.raises(SystemExit) as raised:
            command.main(["stats", bad])
        assert raised.value.code == 2
    assert "no part is called 'fits'" in capsys.readouterr().err


def test_an_operator_without_a_kernel_is_known() -> None:
    library = torch.library.Library("spectral_fast", "FRAGMENT")
    try:
        library.define("copy_of(Tensor x) -> Tensor")
        library.impl("copy_of", torch.clone, "CompositeExplicitAutograd")
        assert not has_kernel("copy_of")
        library.impl("copy_of", torch.clone, "CPU")
        assert has_kernel("copy_of")
    finally:
        library._destroy()


@pytest.mark.parametrize("kernel", [False, True])
def test_plain_torch_is_not_compared_with_itself(
    kernel: bool, run: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for module in (parts, share):
        monkeypatch.setattr(module, "has_kernel", lambda operator: kernel)
    _, data = run("--parts=fit,share", "--n=24")
    printed = capsys.readouterr().out
    assert ("fit: ours is plain torch here: no kernel" in printed) != kernel
    assert printed.count("ours is plain torch here: no kernel") == (0 if kernel else 3)
    assert data["fit_kernel"] == kernel
    assert [row["plain_torch_over_ours"] is None for row in data["share"]] == [not kernel] * 2


# What is not measured


class _Row(TimedRow):
    def __init__(self, raises: BaseException | None = None) -> None:
        self.raises, self.measured, self.status = raises, False, "ok"

    def __str__(self) -> str:
        return "a row"

    def measure(self, repeats: int | None) -> None:
        self.measured = True
        if self.raises is not None:
            raise self.raises

    def clear(self) -> None:
        self.measured = False


def test_what_is_not_measured_says_why() -> None:
    rows = [_Row(), _Row(NotMeasured("no such thing")), _Row(KeyboardInterrupt()), _Row()]
    measure_in_turn(rows, None, None, lambda text: None)
    assert [row.status for row in rows] == [
        "ok",
        "not measured: no such thing",
        *["not measured: interrupted"] * 2,
    ]
    assert [row.measured for row in rows] == [True, False, False, False]
    assert command_line.exit_code(rows) == 130
    measure_in_turn(late := [_Row(), _Row()], None, 1e-9, lambda text: None)
    assert [row.status for row in late] == ["not measured: not in the budget of 1e-09 s"] * 2
    assert command_line.exit_code(late) == 0


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (GateError("alpha 2"), "accuracy gate failed: alpha 2"),
        (ValueError("no"), "failed: ValueError: no"),
    ],
)
def test_what_fails_ends_with_1(error: Exception, status: str) -> None:
    rows = [_Row(error), _Row()]
    measure_in_turn(rows, None, None, lambda text: None)
    assert [row.status for row in rows] == [status, "ok"]
    assert [row.measured for row in rows] == [False, True]
    assert command_line.exit_code(rows) == 1


def test_a_peer_that_is_not_installed_says_so(
    run: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], goodness: None
) -> None:
    for module in ("weightwatcher", "weightwatcher.WW_powerlaw", "powerlaw", "powerlawrs"):
        monkeypatch.setitem(sys.modules, module, None)  # import raises ImportError
    code, data = run("--parts=fit,bootstrap")
    assert code == 0
    for row in data["fit"]:
        assert row["gate"]["holds"]
        for one in row["comparisons"]:
            assert one["status"].startswith("not installed: pip install ")
            assert "seconds" not in one
    assert [row["status"] for row in data["bootstrap"]] == ["ok", "ok"]
    assert {row["extrapolated"]["status"] for row in data["bootstrap"]} == {
        "not installed: pip install weightwatcher"
    }
    assert data["summary"]["fit"] == []
    printed = capsys.readouterr().out
    assert "fit: WWFit: not installed: pip install weightwatcher\n" in printed
    assert "fit: powerlaw.Fit: not installed: pip install powerlaw\n" in printed


def test_weights_that_are_not_installed_are_a_line(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing() -> list[Spectrum]:
        raise SuiteError("needs a package")

    monkeypatch.setattr(fit, "minilm_spectra", missing)
    code, data = run("--parts=fit")
    assert code == 0
    assert [row["status"] for row in data["fit"] if row["spectrum"] == "MiniLM"] == [
        "not measured: needs a package"
    ]


def test_a_narrow_long_double_is_no_oracle(run: Any, monkeypatch: pytest.MonkeyPatch, no_clock: None) -> None:
    monkeypatch.setattr(fit, "WIDER", False)
    monkeypatch.setattr(share, "WIDER", False)
    code, data = run("--parts=fit,share")
    assert code == 0
    assert all("not measured: the gate needs" in row["status"] for row in data["fit"] + data["share"])


def test_blas_threads_are_limited_or_a_note_says_they_are_not(monkeypatch: pytest.MonkeyPatch) -> None:
    threadpoolctl = pytest.importorskip("threadpoolctl")
    np.ones((2, 2)) @ np.ones((2, 2))

    def threads() -> set[int]:
        return {pool["num_threads"] for pool in threadpoolctl.threadpool_info() if pool["user_api"] == "blas"}

    before = threads()
    with blas_threads(1) as note:
        assert note == ""
        assert threads() == {1}
    assert threads() == before
    monkeypatch.setitem(sys.modules, "threadpoolctl", None)
    with blas_threads(1) as note:
        assert "not limited" in note
