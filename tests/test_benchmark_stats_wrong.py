"""``python -m benchmarks stats``: wrong fits, statistics and p-values get no time."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import spectral_fast
from benchmarks.cases import Case
from benchmarks.rows import measure_in_turn
from benchmarks.statistics import bootstrap, fit, peers
from benchmarks.statistics.bootstrap import BootstrapRow, p_tolerance
from benchmarks.statistics.gate import check_fields, check_fits, scan
from benchmarks.statistics.peers import POWERLAW, WWFIT
from benchmarks.statistics.share import ShareRow
from benchmarks.statistics.spectra import draw
from tests.benchmark_runs import N, quick_goodness, refuse_clocks, stats_command


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
