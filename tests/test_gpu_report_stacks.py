"""Stacks on a GPU, with a device whose clock is made up: pairs, gates, and what the time is spent on."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import spectral_fast
from benchmarks.baselines import Baseline
from benchmarks.cases import Case
from benchmarks.gpu import report as gpu_report
from benchmarks.gpu.cases import measure_cases
from benchmarks.gpu.device import Gpu
from benchmarks.gpu.peers import PEERS
from spectral_fast.heuristics import Plan
from tests.gpu_machine import LARGE, SQUARE, WIDE, Machine, methods


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Machine:
    return Machine(monkeypatch)


# A stack


def test_times_are_of_one_matrix_and_ratios_of_pairs(machine: Machine) -> None:
    row = machine.measure(SQUARE, 10.0)
    assert row.status == "ok"
    assert row.gate is not None
    assert row.gate.holds
    assert row.gate.compared == (0, 5)
    assert list(methods(row)) == ["ours", *PEERS]
    for name, ratio in (("ours", None), ("torch", 4), ("torch-loop", 5), ("gram", 2)):
        method = methods(row)[name]
        assert (method.status, method.matrices, method.peak_bytes) == ("ok", 6, 7 * 2**20)
        assert method.spread.median == pytest.approx(machine.seconds[name])
        assert len(method.seconds) == 7
        assert (method.ratio and method.ratio.median) == (ratio and pytest.approx(ratio))
        assert method.error == pytest.approx(row.gate.error)  # they all are ours here
    assert methods(row)["cupy"].status == "not available: runs on cuda only"


@pytest.mark.parametrize(
    ("each", "timed"),
    # A seventh of 12.6 s for nine calls: 0.2 s a call.
    [(0.033, 6), (0.05, 4), (0.15, 1)],
)
def test_a_slow_method_is_timed_on_the_first_matrices(machine: Machine, each: float, timed: int) -> None:
    machine.seconds["torch"] = each
    method = methods(machine.measure(SQUARE, 12.6001))["torch"]
    assert (method.status, method.matrices) == ("ok", timed)
    assert method.spread.median == pytest.approx(each)
    assert method.ratio.median == pytest.approx(each / 1e-3)
    assert method.error < 5  # of the first matrix, which the gate has


def test_a_method_too_slow_for_one_matrix_says_so_and_the_others_go_on(machine: Machine) -> None:
    machine.seconds["torch"] = 0.21
    found = methods(machine.measure(SQUARE, 12.6))
    assert found["torch"].status == "not measured: one matrix took 0.21 s, 9 calls are more than its 1.8 s"
    assert found["torch"].spread is None
    assert found["gram"].spread is not None


def test_a_broken_method_is_its_row(machine: Machine) -> None:
    def broken(A: Tensor) -> Tensor:
        raise torch.OutOfMemoryError("CUDA out of memory")

    def not_a_number(A: Tensor) -> Tensor:
        return machine.method("gram", spectral_fast.svdvals)(A) * torch.nan

    machine.patch.setitem(PEERS, "torch", Baseline(("cpu",), broken))
    machine.patch.setitem(PEERS, "gram", Baseline(("cpu",), not_a_number))
    found = methods(machine.measure(SQUARE, 10.0))
    assert found["torch"].status == "out of memory"
    assert found["gram"].status == "failed: values are not finite"
    assert found["gram"].spread is None
    assert found["torch-loop"].status == "ok"


def test_wrong_values_get_no_time(machine: Machine) -> None:
    right = spectral_fast.svdvals

    def wrong(A: Tensor) -> Tensor:
        values = right(A)
        values[-1, -1] += 1e-5 * values[-1, 0]  # the norm hardly changes
        return values

    machine.patch.setattr(spectral_fast, "svdvals", wrong)
    machine.patch.setattr(machine, "clock", None)  # nothing is timed before the gate
    row = machine.measure(SQUARE, 10.0)
    assert row.status.startswith("accuracy gate failed: matrix 5 of 6 errs by ")
    assert row.failed
    assert row.methods == []


def test_ours_failing_is_the_row(machine: Machine) -> None:
    def broken(A: Tensor) -> Tensor:
        raise RuntimeError("no kernel image is available")

    machine.patch.setattr(spectral_fast, "svdvals", broken)
    row = machine.measure(SQUARE, 10.0)
    assert row.status == "failed: RuntimeError: no kernel image is available"
    assert row.failed


def test_where_ours_is_torch_there_is_no_ratio(machine: Machine) -> None:
    plan = Plan("reference", "torch", ("torch.linalg.svdvals",), "no kernel")
    machine.patch.setattr(spectral_fast, "explain", lambda *_: plan)
    row = machine.measure(SQUARE, 10.0)
    assert row.backend == "reference"
    assert all(method.ratio is None for method in row.methods)
    assert methods(row)["torch"].spread is not None


def test_float64_above_64_is_gated_against_lapack(machine: Machine) -> None:
    row = machine.measure(LARGE, 10.0, torch.float64)
    assert row.gate is not None
    assert row.gate.weaker
    assert row.gate.holds
    assert all(method.error is None for method in row.methods)


# The time for all stacks


def test_the_largest_stacks_are_dropped_when_time_is_over(machine: Machine) -> None:
    rows = list(
        measure_cases([LARGE, SQUARE, WIDE], torch.float32, machine.gpu, list(PEERS), 1.1, lambda text: None)
    )
    assert [row.case for row in rows] == sorted([LARGE, SQUARE, WIDE], key=lambda case: case.flops)
    assert rows[0].status == "ok"
    assert [row.status for row in rows[1:]] == ["not measured: not in the budget of 1 s"] * 2
    assert not any(row.failed for row in rows)


def test_time_that_small_stacks_leave_goes_to_larger_ones(machine: Machine) -> None:
    shares: list[float] = []
    real = gpu_report.measure_cases.__globals__["measure_case"]

    def spy(case: Case, dtype: torch.dtype, gpu: Gpu, peers: Any, seconds: float) -> Any:
        shares.append(seconds)
        return real(case, dtype, gpu, peers, seconds)

    machine.patch.setitem(gpu_report.measure_cases.__globals__, "measure_case", spy)
    list(measure_cases([LARGE, SQUARE, WIDE], torch.float32, machine.gpu, list(PEERS), 90, lambda text: None))
    assert shares[0] == pytest.approx(30)
    assert 30 < shares[1] < shares[2] < 90


def test_a_gate_that_would_take_too_long_is_not_started(machine: Machine) -> None:
    """Its time is expected from that of the stack before: 30 s, and 14 times the operations come next."""
    fast = spectral_fast.svdvals
    waits = iter([30.0])

    def slow_at_first(A: Tensor) -> Tensor:
        machine.now += next(waits, 0.0)
        return fast(A)

    machine.patch.setattr(spectral_fast, "svdvals", slow_at_first)
    rows = list(measure_cases([SQUARE, LARGE], torch.float32, machine.gpu, ["torch"], 100, lambda text: None))
    assert [row.status for row in rows] == ["ok", "not measured: not in the budget of 100 s"]


def test_interruption_keeps_what_is_there(machine: Machine) -> None:
    def interrupted(A: Tensor) -> Tensor:
        raise KeyboardInterrupt

    machine.patch.setitem(PEERS, "torch", Baseline(("cpu",), interrupted))
    rows = list(measure_cases([SQUARE, LARGE], torch.float32, machine.gpu, ["torch"], 90, lambda text: None))
    assert [row.status for row in rows] == ["not measured: interrupted"] * 2
