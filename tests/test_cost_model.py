"""The cost model: what it counts, against closed forms and a simulated schedule; what it cannot go below."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from benchmarks import __main__ as command
from benchmarks.gpu.chips import CHIPS, KIB, chip_of
from benchmarks.gpu.cost_model import (
    BLOCK,
    Assumptions,
    Prediction,
    chase_steps,
    chase_ticks,
    predict,
    total_seconds,
)
from benchmarks.gpu.cost_tables import LARGE, STAGES, Costs, Stack, kernels_table, merged, model_stacks
from spectral_fast.cuda.workspace import panel_shared_bytes
from spectral_fast.models.shapes import MODELS

H100 = CHIPS["h100"]
ASSUME = Assumptions()


def cost(count: int, m: int, n: int, dtype: torch.dtype = torch.float32, chip: str = "h100") -> Prediction:
    return predict(count, m, n, dtype, CHIPS[chip])


def seconds_of(found: Prediction, kernel: str) -> float:
    return sum(work.seconds for work in found.works if work.kernel == kernel)


def launches_of(found: Prediction) -> dict[tuple[str, str], int]:
    return {(work.stage, work.kernel): work.launches for work in found.works}


# Chips


@pytest.mark.parametrize(
    ("name", "fp32", "fp64"),  # TF/s of the data sheets
    [("h100", 67, 34), ("a100", 19.5, 9.7), ("rtx4090", 82.6, 1.29), ("b200", 75, 37)],
)
def test_lanes_and_clock_give_the_rates_of_the_data_sheets(name: str, fp32: float, fp64: float) -> None:
    assert CHIPS[name].fp32_flops == pytest.approx(fp32 * 1e12, rel=0.02)
    assert CHIPS[name].fp64_flops == pytest.approx(fp64 * 1e12, rel=0.02)


def test_slow_double_is_avoided_where_the_matrix_is_not_double() -> None:
    assert [name for name, chip in CHIPS.items() if chip.slow_double] == ["rtx4090"]
    for name, chip in CHIPS.items():
        assert chip.wide(torch.float64) == torch.float64
        assert chip.wide(torch.float32) == (torch.float32 if name == "rtx4090" else torch.float64)
    # In double its recurrences would be limited by 2 lanes: many times as long.
    calls = [cost(48, 768, 768, dtype, "rtx4090") for dtype in (torch.float32, torch.float64)]
    assert seconds_of(calls[1], "bisect") > 8 * seconds_of(calls[0], "bisect")


def test_chips_are_known_by_name_and_capability() -> None:
    assert chip_of("NVIDIA H100 80GB HBM3", (9, 0)) is H100
    assert chip_of("NVIDIA GeForce RTX 4090", (8, 9)) is CHIPS["rtx4090"]
    assert chip_of("NVIDIA A100-SXM4-80GB", (8, 0)) is CHIPS["a100"]
    assert chip_of("NVIDIA B200", (10, 0)) is CHIPS["b200"]
    assert chip_of("NVIDIA H20", (9, 0)) is None
    assert chip_of("NVIDIA L4", (8, 9)) is None


# Counts


def test_flops_are_those_of_the_formulas() -> None:
    """Sums over blocks come to the integrals but for a share b / n of them."""
    n = 4096
    found = cost(3, n, n)
    flops = {work.kernel: work.flops / 3 / n**3 for work in found.works if work.stage == "band"}
    assert flops["left_product_kernel"] == pytest.approx(2 / 3, rel=0.04)
    assert flops["right_product_kernel"] == pytest.approx(2 / 3 * 3 / 2, rel=0.04)  # and W V2 again in each
    assert flops["update_kernel"] == pytest.approx(4 / 3, rel=0.04)
    m = 4 * n
    flops = {work.kernel: work.flops for work in cost(1, m, n).works if work.stage == "reduce"}
    qr = 2 * m * n**2 - 2 / 3 * n**3
    assert flops["left_product_kernel"] + flops["update_kernel"] == pytest.approx(qr, rel=0.04)
    distance = next(work for work in cost(5, n, n).works if work.kernel == "distance_kernel")
    assert distance.flops == 18 * 5 * n**2


def test_launches_are_five_a_block() -> None:
    found = launches_of(cost(4, 768, 768))
    blocks = 768 // BLOCK
    assert found[("band", "panel")] == 2 * blocks - 1  # nothing right of the last
    assert found[("band", "left_product_kernel")] == blocks - 1
    assert found[("band", "right_product_kernel")] == blocks - 1
    assert found[("band", "update_kernel")] == blocks - 1
    assert {stage for stage, _ in found} == set(STAGES) - {"reduce"}
    assert sum(found.values()) == 2 + 5 * (blocks - 1) + 1 + 2 + 4 + 3
    tall = launches_of(cost(4, 3072, 768))
    assert tall[("reduce", "panel")] + tall[("reduce", "panel_scratch")] == blocks
    assert tall[("reduce", "panel")] == 8  # of 2560 rows and less
    assert tall[("band", "panel")] == 2 * blocks - 1


@pytest.mark.parametrize(
    ("m", "n", "stages"),
    [
        (64, 64, {"load", "bidiagonal", "values"}),
        (128, 64, {"load", "bidiagonal", "values"}),
        (129, 64, {"load", "reduce", "bidiagonal", "values"}),
        (65, 65, {"load", "band", "bidiagonal", "values"}),
        (500, 300, {"load", "band", "bidiagonal", "values"}),  # just not tall
        (501, 300, {"load", "reduce", "band", "bidiagonal", "values"}),
    ],
)
def test_stages_of_a_shape(m: int, n: int, stages: set[str]) -> None:
    found = predict(2, m, n, torch.float32, H100, stats=False)
    assert set(found.stage_seconds()) == stages
    kernels = {kernel for _, kernel in launches_of(found)}
    assert ("direct" in kernels) == (n <= 64)
    assert ("chase" in kernels) == (n > 64)
    assert cost(2, n, m) == cost(2, m, n)


def schedule(n: int, warps: int) -> Iterator[tuple[int, int, int]]:
    """(sweep, step, tick) of the chase as bidiagonal.cu has it, written out."""
    steps = chase_steps(n)
    start = 0
    for first in range(0, len(steps), warps):
        for w, sweep in enumerate(range(first, min(first + warps, len(steps)))):
            for step in range(steps[sweep]):
                yield sweep, step, start + 2 * w + step
        start += max(2 * warps, steps[first])


@pytest.mark.parametrize(("n", "warps"), [(65, 1), (100, 2), (200, 4), (300, 3), (301, 12), (33, 5)])
def test_ticks_of_the_chase(n: int, warps: int) -> None:
    at = {(sweep, step): tick for sweep, step, tick in schedule(n, warps)}
    last = max(at.values()) + 1
    assert last <= chase_ticks(n, warps) <= last + 4 * warps  # the last group may be short
    for (sweep, step), tick in at.items():  # step p needs step p + 1 of the sweep before
        if (sweep - 1, step + 1) in at:
            assert at[sweep - 1, step + 1] < tick
    busy = {(sweep % warps, tick) for sweep, _, tick in schedule(n, warps)}
    assert len(busy) == len(at)  # no warp has two sweeps at once


def test_steps_of_the_chase_reach_the_end_of_the_matrix() -> None:
    assert chase_steps(1) == []
    assert chase_ticks(1, 4) >= 0
    assert chase_steps(34) == [2, *[1] * 32]  # the first fills in behind its 32 columns
    assert sum(chase_steps(4096)) == pytest.approx(4096**2 / (2 * BLOCK), rel=0.02)


# Times


ALL = [
    (stack, dtype, chip)
    for name in ("gpt2-124m", "custom-282m", "pythia-1b", "llama2-7b")
    for stack in merged(model_stacks(name))
    for dtype, chip in itertools.product((torch.float32, torch.float64), CHIPS)
]


@pytest.mark.parametrize(("stack", "dtype", "chip"), ALL, ids=str)
def test_nothing_is_faster_than_the_chip(stack: Stack, dtype: torch.dtype, chip: str) -> None:
    found = cost(stack.count, stack.m, stack.n, dtype, chip)
    fastest = {4: found.chip.fp32_lanes, 8: max(found.chip.fp64_lanes, found.chip.fp64_dot_lanes)}
    clock = ASSUME.clock_share * found.chip.boost_hz * found.chip.sms
    for work in found.works:
        size = {"stats": 8, "values": found.chip.wide(dtype).itemsize}.get(work.stage, dtype.itemsize)
        if work.stage != "load":
            assert work.flops / work.seconds <= 2 * fastest[size] * clock
        assert work.bytes / work.seconds <= found.chip.l2_rate * 1.001
        assert work.seconds >= work.launches * ASSUME.launch_seconds * 0.999
    assert found.seconds == max(found.device_seconds, found.host_seconds)
    assert found.device_seconds == pytest.approx(sum(found.stage_seconds().values()))


def test_a_wave_more_costs_a_wave_more() -> None:
    """In two stages, where it is a chunk more, and of small matrices, a few of which share an SM."""
    one, full, over = (cost(count, 512, 512) for count in (1, H100.sms, H100.sms + 1))
    assert seconds_of(full, "panel") == pytest.approx(seconds_of(one, "panel"), rel=0.2)
    assert (full.chunk, over.chunk) == (H100.sms, (H100.sms + 2) // 2)
    assert seconds_of(over, "panel") == pytest.approx(2 * seconds_of(full, "panel"), rel=0.2)
    tall, more = (cost(count, 500, 60) for count in (H100.sms, H100.sms + 1))
    assert seconds_of(more, "panel") == pytest.approx(2 * seconds_of(tall, "panel"), rel=1e-9)


def test_batches_pay() -> None:
    counts = (1, 4, 16, 48)  # their bands fit L2
    calls = [cost(count, 1024, 1024).seconds for count in counts]
    each = [call / count for call, count in zip(calls, counts, strict=True)]
    assert calls == sorted(calls)
    assert each == sorted(each, reverse=True)
    assert each[0] > 10 * each[-1]


def test_the_host_is_the_limit_of_small_matrices() -> None:
    found = cost(1, 96, 96)
    assert found.host_seconds == pytest.approx(found.launches * ASSUME.host_seconds)
    small = replace(ASSUME, host_seconds=1e-3)
    limited = predict(1, 96, 96, torch.float32, H100, small)
    assert limited.seconds == limited.host_seconds == pytest.approx(1e-3 * limited.launches)


def test_chunks_fit_the_workspace_and_are_equal() -> None:
    def chunks(workspace: float) -> Prediction:
        return predict(80, 8192, 2048, torch.float32, H100, replace(ASSUME, workspace=workspace))

    whole, some, single = chunks(1e12), chunks(40 * 8192 * 2048 * 4), chunks(1.0)
    assert whole.chunk == 80
    assert single.chunk == 1
    matrix = (8192 + 2048) * 2048 * 4
    assert some.chunk * matrix < 40 * 8192 * 2048 * 4
    number = math.ceil(80 / some.chunk)
    assert some.chunk - 80 / number < 1  # no small rest
    assert (
        launches_of(some)[("reduce", "panel_scratch")]
        == number * launches_of(whole)[("reduce", "panel_scratch")]
    )
    assert launches_of(some)[("stats", "distance_kernel")] == 1
    assert some.flops == pytest.approx(whole.flops)
    assert max(whole.device_seconds, some.device_seconds) < single.device_seconds


def test_panels_that_shared_memory_cannot_hold() -> None:
    """The largest rows are those that csrc/cuda/panel.cu states."""
    stated = {torch.float32: (1600, 2080, 2560), torch.float64: (768, 1024, 1248)}
    for scalar, largest in stated.items():
        for rows, shared in zip(largest, (99 * KIB, 163 * KIB, 227 * KIB), strict=True):
            assert panel_shared_bytes(rows, scalar) <= shared
            assert panel_shared_bytes(rows + 32, scalar) > shared
    small = replace(H100, shared_bytes=99 * KIB)
    count = H100.sms  # together they take all that L2 moves
    slow, fast = (predict(count, 2400, 160, torch.float32, chip).stage_seconds() for chip in (small, H100))
    assert slow["reduce"] > 1.1 * fast["reduce"]
    assert slow["values"] == fast["values"]


def test_half_precision_saves_reading_alone() -> None:
    half, single = (cost(12, 768, 768, dtype) for dtype in (torch.bfloat16, torch.float32))
    assert half.stage_seconds()["load"] < single.stage_seconds()["load"]
    assert half.stage_seconds()["band"] == single.stage_seconds()["band"]


def test_calls_one_after_another() -> None:
    device, host = cost(64, 1024, 1024), cost(1, 96, 96)
    assert total_seconds([device]) == device.seconds
    assert total_seconds([device, host]) == pytest.approx(device.device_seconds + host.device_seconds)


# Tables


def test_stacks_hold_every_matrix() -> None:
    for name in MODELS:
        stacks = model_stacks(name)
        assert sum(stack.count for stack in stacks) == 6 * MODELS[name].layers
        assert len(merged(stacks)) == 2
        assert sum(stack.count for stack in merged(stacks)) == 6 * MODELS[name].layers
    parameters = {
        name: sum(stack.count * stack.m * stack.n for stack in model_stacks(name)) for name in LARGE
    }
    # Of 6.74 and 68.98 billion, what is not embeddings and output head (2 x 32000 x d) or norms.
    assert parameters["llama2-7b"] == pytest.approx(6.738e9 - 2 * 32000 * 4096, rel=1e-3)
    assert parameters["llama2-70b"] == pytest.approx(68.977e9 - 2 * 32000 * 8192, rel=1e-3)


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "costs.json"
    arguments = ["--chip=a100", "--dtype=float64", "--workspace=2", f"--json={file}"]
    assert command.main(["cost-model", *arguments]) == 0
    printed = capsys.readouterr().out
    data = json.loads(file.read_text(encoding="utf-8"))
    assert printed.startswith("# Predicted cost on A100 SXM 80 GB, float64\n")
    assert "nothing in this table was measured" in printed
    assert str(tmp_path) not in json.dumps(data)
    assert data["prediction"] is True
    assert data["assumptions"]["workspace"] == 2 * 2**30
    assert list(data["models"]) == [*MODELS, *LARGE]
    for name, model in data["models"].items():
        assert f"| {name} |" in printed
        # More together is not slower, but where a wave is just too full.
        assert 0 < model["look_seconds"] <= model["look_seconds_by_role"] * 1.25
        for stack in model["stacks"]:
            assert stack["device_seconds"] == pytest.approx(sum(work["seconds"] for work in stack["works"]))
            assert {work["stage"] for work in stack["works"]} <= set(STAGES)
    assert "| 1024 | 54.0 |" in printed  # quoted
    for table in printed.split("\n\n"):
        if table.startswith("|"):
            assert len({line.count("|") for line in table.splitlines()}) == 1


def test_a_table_adds_up() -> None:
    costs = Costs(H100, torch.float32, ASSUME)
    found = costs.of(Stack(("q",), 12, 768, 768))
    lines = kernels_table(found).splitlines()
    assert len(lines) == 2 + len(found.works) + 2
    launches = [int(line.split("|")[3]) for line in lines[2:-2]]
    assert sum(launches) == found.launches == int(lines[-2].split("|")[3])
