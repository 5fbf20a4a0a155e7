"""``python -m benchmarks stats``: what it refuses to time, what it calls right, what it writes down."""

from __future__ import annotations

import importlib.metadata
import json
import math
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
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
from benchmarks.rows import GateError, NotMeasured, Target, TimedRow, blas_threads, measure_in_turn
from benchmarks.statistics import bootstrap, fit, parts, peers, share
from benchmarks.statistics.bootstrap import BootstrapRow, p_tolerance, plain_p_value
from benchmarks.statistics.fit import FitRow, fit_summary
from benchmarks.statistics.gate import check_fields, check_fits, scan
from benchmarks.statistics.peers import POWERLAW, WWFIT
from benchmarks.statistics.share import ShareRow, has_kernel
from benchmarks.statistics.spectra import ZOO, Spectrum, draw
from benchmarks.suites import SuiteError

ROOT = Path(__file__).parents[1]
N = 40


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., tuple[int, dict[str, Any]]]:
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


@pytest.fixture
def goodness(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spectral_fast, "goodness_of_fit", bootstrap_stand_in)
    monkeypatch.setattr(bootstrap, "GATE_SAMPLES", 50)
    monkeypatch.setattr(bootstrap, "SAMPLES", 50)


@pytest.fixture
def no_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> None:
        raise AssertionError("timed before the gate")

    for part in (fit, share, bootstrap):
        monkeypatch.setattr(part, "interleave", refuse)


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


# Wrong values


def _other_alpha(right: Any) -> Any:
    return right._replace(alpha=right.alpha * (1 + 1e-11))


def _other_distance(right: Any) -> Any:
    return right._replace(ks_distance=right.ks_distance + 1e-12)


def _other_tail(right: Any) -> Any:
    return right._replace(n_tail=right.n_tail + 1)


def _not_a_number(right: Any) -> Any:
    return right._replace(alpha_stderr=right.alpha_stderr * math.nan)


@pytest.mark.parametrize(
    ("change", "name"),
    [
        (_other_alpha, "alpha"),
        (_other_distance, "ks_distance"),
        (_other_tail, "n_tail"),
        (_not_a_number, "alpha_stderr"),
    ],
)
def test_a_wrong_fit_gets_no_time(
    change: Any,
    name: str,
    run: Any,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    no_clock: None,
) -> None:
    right = spectral_fast.fit_powerlaw
    monkeypatch.setattr(spectral_fast, "fit_powerlaw", lambda evals: change(right(evals)))
    code, data = run("--parts=fit")
    assert code == 1
    for row in data["fit"]:
        assert row["status"].startswith(f"accuracy gate failed: spectrum 0: {name} ")
        assert row["comparisons"] == []
        assert not row["gate"]["holds"]
    printed = capsys.readouterr().out
    assert not any(f" {unit} " in printed for unit in ("µs", "ms", "s"))


def test_the_fit_at_another_xmin_gets_no_time(
    run: Any, monkeypatch: pytest.MonkeyPatch, no_clock: None
) -> None:
    """The best but one: right values of a wrong answer."""

    def second_best(evals: Tensor) -> Any:
        found = [scan(row) for row in evals.reshape(-1, N).numpy()]
        xmin = torch.tensor([one.fit(int(np.argsort(one.distance)[1])).xmin for one in found])
        return right(evals, xmin=xmin.double().reshape(evals.shape[:-1]))

    right = spectral_fast.fit_powerlaw
    monkeypatch.setattr(spectral_fast, "fit_powerlaw", second_best)
    code, data = run("--parts=fit")
    assert code == 1
    assert all("accuracy gate failed: spectrum 0: xmin" in row["status"] for row in data["fit"])


def test_one_wrong_fit_of_a_batch_is_found() -> None:
    evals = [draw("Pareto 2.5", N, number).evals for number in range(4)]
    scans = [scan(one) for one in evals]
    right = spectral_fast.fit_powerlaw(torch.from_numpy(np.stack(evals)))
    assert check_fits(right, scans).holds
    wrong = right._replace(alpha=right.alpha * torch.tensor([1, 1, 1, 1.0001]))
    assert check_fits(wrong, scans).failure.startswith("spectrum 3: alpha ")
    assert check_fits(right, scans[:3]).failure == "4 fits for 3 spectra"


def test_another_answer_of_wwfit_fails_the_gate(
    run: Any, monkeypatch: pytest.MonkeyPatch, no_clock: None
) -> None:
    """Where ours and the scan agree with each other but not with WWFit, somebody has to look."""
    real = peers.load_wwfit()

    def shifted(evals: Any) -> Any:
        fit = real(evals)
        fit.alpha *= 1 + 1e-11
        return fit

    peer = fit.PEERS[0].__class__(**{**WWFIT.__dict__, "load": lambda: shifted})
    monkeypatch.setattr(fit, "PEERS", (peer, POWERLAW))
    code, data = run("--parts=fit")
    assert code == 1
    assert all("accuracy gate failed: WWFit: spectrum 0: alpha" in row["status"] for row in data["fit"])


def test_another_answer_of_powerlaw_gets_no_ratio(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def other(evals: Any) -> Any:
        found = scan(evals)
        return SimpleNamespace(xmin=found.xmin[-1], D=found.distance[-1], alpha=found.alpha[-1])

    peer = fit.PEERS[0].__class__(**{**POWERLAW.__dict__, "load": lambda: other})
    monkeypatch.setattr(fit, "PEERS", (WWFIT, peer))
    code, data = run("--parts=fit")
    assert code == 0
    for row in data["fit"][:-1]:
        wwfit, powerlaw = row["comparisons"]
        assert wwfit["status"] == "ok"
        assert powerlaw["status"].startswith("another answer: spectrum 0: its xmin is ")
        assert "ratio" not in powerlaw


def test_a_peer_that_fails_is_its_own_line(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(evals: Any) -> Any:
        raise RuntimeError("broken")

    peers = [WWFIT.__class__(**{**peer.__dict__, "load": lambda: broken}) for peer in (WWFIT, POWERLAW)]
    monkeypatch.setattr(fit, "PEERS", tuple(peers))
    code, data = run("--parts=fit")
    assert code == 0
    for row in data["fit"]:
        assert row["status"] == "ok"
        assert {one["status"] for one in row["comparisons"]} == {"failed: RuntimeError: broken"}


def _changed_field(name: str) -> Callable[[Any], Any]:
    def change(right: Any) -> Any:
        fields = {**right.__dict__, name: getattr(right, name) * (1 + 1e-9)}
        return type(right)(**fields)

    return change


@pytest.mark.parametrize("field", ["effective_rank", "alpha", "mp_edge", "xmin"])
@pytest.mark.parametrize("function", ["spectral_stats", "stats_from_svdvals"])
def test_wrong_statistics_get_no_share(
    function: str, field: str, run: Any, monkeypatch: pytest.MonkeyPatch, no_clock: None
) -> None:
    right, change = getattr(spectral_fast, function), _changed_field(field)
    monkeypatch.setattr(spectral_fast, function, lambda *args, **kwargs: change(right(*args, **kwargs)))
    code, data = run("--parts=share", "--n=24")
    assert code == 1
    for row in data["share"]:
        assert row["status"].startswith(f"accuracy gate failed: {function}: matrix 0: {field} is ")
        assert row["methods"] == []


def test_wrong_values_get_no_share(run: Any, monkeypatch: pytest.MonkeyPatch, no_clock: None) -> None:
    right = spectral_fast.svdvals
    monkeypatch.setattr(spectral_fast, "svdvals", lambda A: right(A) * 1.001)
    code, data = run("--parts=share")
    assert code == 1
    assert all(row["status"].startswith("accuracy gate failed: ") for row in data["share"])
    monkeypatch.setattr(spectral_fast, "svdvals", lambda A: torch.nextafter(right(A), torch.tensor(0.0)))
    row = ShareRow(Case(N, N, 2, calls=("batch",)), torch.float32, 1)
    measure_in_turn([row], 5, None, lambda text: None)
    assert row.status == "accuracy gate failed: spectral_stats has other values than svdvals"


def test_wrong_n_tail_is_wrong() -> None:
    S = torch.from_numpy(np.sqrt(draw("Pareto 2.5", N).evals))[None]
    right = spectral_fast.stats_from_svdvals(S, shape=(N, N))
    assert check_fields(right, S, (N, N), 0) == ""
    right.n_tail.add_(1)
    assert check_fields(right, S, (N, N), 0).startswith("matrix 0: n_tail is ")


def test_a_wrong_p_gets_no_time(
    run: Any, goodness: None, monkeypatch: pytest.MonkeyPatch, no_clock: None
) -> None:
    def complement(evals: Tensor, **kwargs: Any) -> Any:
        return SimpleNamespace(p_value=torch.tensor(math.nan))

    monkeypatch.setattr(spectral_fast, "goodness_of_fit", complement)
    code, data = run("--parts=bootstrap")
    assert code == 1
    assert all(row["status"].startswith("accuracy gate failed: p is nan") for row in data["bootstrap"])


@pytest.mark.usefixtures("goodness")
def test_p_has_to_be_near_the_plain_one_and_the_same_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bootstrap, "plain_p_value", lambda x, samples, g: 0.5)
    allowed = p_tolerance(50, 50)
    given: list[float] = []
    monkeypatch.setattr(
        spectral_fast, "goodness_of_fit", lambda *_, **__: SimpleNamespace(p_value=given.pop(0))
    )
    for p, holds in [(0.5 + 0.99 * allowed, True), (0.5 + 1.01 * allowed, False)]:
        given[:] = [p] * 100_000
        row = BootstrapRow("Pareto 2.5", N, 1)
        measure_in_turn([row], 5, None, lambda text: None)
        assert (row.status == "ok") == holds
        assert (row.ours is not None) == holds
    given[:] = [0.5, *[0.4] * 100_000]
    row = BootstrapRow("Pareto 2.5", N, 1)
    measure_in_turn([row], 5, None, lambda text: None)
    assert row.status == ("accuracy gate failed: from one state of the generator p was 0.5, then 0.4")
    assert row.ours is None
