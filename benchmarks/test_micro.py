"""Micro-benchmarks for pytest-benchmark: ``pytest benchmarks``. They compare commits, nothing with torch.

The operations and shapes that ``python -m benchmarks base`` watches, up to 3072 rows and columns, and each
stage of one matrix by the clocks in the kernels. Figures to quote come from ``python -m benchmarks``, which
checks values first and times torch beside ours.

pytest-benchmark compares saved runs by the path and name of a test: this file stays where it is.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch

from benchmarks.regression.stage_ratios import STAGED
from benchmarks.regression.watched import Operation, matrices, operations
from benchmarks.singular_values.stages import stages_of

pytest.importorskip("pytest_benchmark", reason="pip install pytest-benchmark")

MAX_N = 3072
WATCHED = [*operations(MAX_N), Operation("tail_stats", (384, 384))]
STAGES = [
    (operation, stage)
    for operation in STAGED
    for stage in ("load", "reduce", "band", "bidiagonal", "values")
    if (stage != "reduce" or operation.shape == (1536, 384))
    and (stage != "band" or min(operation.shape) > 128)
]
STAGE_ROUNDS = 50


def _id(operation: Operation) -> str:
    return operation.name.replace(" ", "-")


@pytest.mark.parametrize("operation", WATCHED, ids=_id)
def test_operation(benchmark: Any, operation: Operation) -> None:
    benchmark.group = operation.kind
    benchmark.extra_info.update(operation.work)
    benchmark(operation.prepare().call)


class StageClock:
    """A timer that only runs within one stage. Saved runs have its name."""

    __name__ = "stage_clock"

    def __init__(self) -> None:
        self.seconds = 0.0

    def __call__(self) -> float:
        return self.seconds


def _stage_cases() -> list[Any]:
    cases = []
    for operation, stage in STAGES:
        clock = StageClock()
        marks = pytest.mark.benchmark(timer=clock, group=f"stage {stage}")
        name = f"{stage}-{operation.case.replace(' ', '-')}"
        cases.append(pytest.param(operation, stage, clock, id=name, marks=marks))
    return cases


@pytest.mark.parametrize(("operation", "stage", "clock"), _stage_cases())
def test_stage(benchmark: Any, operation: Operation, stage: str, clock: StageClock) -> None:
    A = matrices(operation.shape, operation.dtype)

    def call() -> None:
        clock.seconds += stages_of(A, torch.get_num_threads())[1][stage][0]

    _, unit, amount = stages_of(A, 1)[1][stage]
    benchmark.extra_info[unit] = amount  # bytes, flops by precision, or divisions
    benchmark.pedantic(call, rounds=STAGE_ROUNDS, warmup_rounds=1)
