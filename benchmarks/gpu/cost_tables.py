"""The tables of predicted costs: stacks and looks of the nine models, and of two that are larger."""

from __future__ import annotations

import dataclasses
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch

from benchmarks.gpu.chips import CHIPS, Chip
from benchmarks.gpu.cost_model import Assumptions, Prediction, Work, predict, total_seconds
from benchmarks.report import SCHEMA_VERSION, digits, markdown_table
from spectral_fast.models.shapes import MODELS

STAGES = ("load", "reduce", "band", "bidiagonal", "values", "stats")

# Llama 2 (Touvron et al. 2023): layers, and (role, rows, columns) of one layer.
_LLAMA_7B = [(role, 4096, 4096) for role in "qkvo"]
_LLAMA_7B += [("gate", 11008, 4096), ("up", 11008, 4096), ("down", 4096, 11008)]
_LLAMA_70B = [("q", 8192, 8192), ("k", 1024, 8192), ("v", 1024, 8192), ("o", 8192, 8192)]
_LLAMA_70B += [("gate", 28672, 8192), ("up", 28672, 8192), ("down", 8192, 28672)]
LARGE = {"llama2-7b": (32, _LLAMA_7B), "llama2-70b": (80, _LLAMA_70B)}

# torch.linalg.svdvals on an H20, float32, seconds of one n x n matrix; torch loops over a batch. Quoted, not
# measured here, and on another chip: an order of magnitude, nothing to divide by.
TORCH_H20 = {1024: 54e-3, 2048: 184e-3, 4096: 1090e-3}

# One stack of each kind, kernel by kernel.
DETAILS = ((48, 768, 768), (24, 3072, 768), (64, 2048, 2048), (32, 4096, 4096))

LABEL = "Predicted by benchmarks/gpu/cost_model.py; nothing in this table was measured."


@dataclass(frozen=True)
class Stack:
    """``count`` matrices m x n (m >= n: a wide one costs what its transpose does) and what they are."""

    roles: tuple[str, ...]
    count: int
    m: int
    n: int

    def __str__(self) -> str:
        return f"{self.count}×{self.m}×{self.n}"


def model_stacks(name: str) -> list[Stack]:
    """One stack for each role of a model."""
    if name in LARGE:
        layers, matrices = LARGE[name]
    else:
        layers, matrices = MODELS[name].layers, MODELS[name].block_matrices()
    return [Stack((role,), layers, max(m, n), min(m, n)) for role, m, n in matrices]


def merged(stacks: Iterable[Stack]) -> list[Stack]:
    """Stacks of one shape as one: more matrices fill the chip better where a block has a matrix to itself."""
    by_shape: dict[tuple[int, int], list[Stack]] = defaultdict(list)
    for stack in stacks:
        by_shape[stack.m, stack.n].append(stack)
    return [
        Stack(sum((one.roles for one in equal), ()), sum(one.count for one in equal), *shape)
        for shape, equal in by_shape.items()
    ]


@dataclass(frozen=True)
class Costs:
    """Predictions for one dtype on one chip."""

    chip: Chip
    dtype: torch.dtype
    assume: Assumptions

    def of(self, stack: Stack) -> Prediction:
        return predict(stack.count, stack.m, stack.n, self.dtype, self.chip, self.assume)

    def look(self, stacks: Iterable[Stack]) -> float:
        return total_seconds(map(self.of, stacks))


def document(costs: Costs, facts: dict[str, Any]) -> dict[str, Any]:
    """Every prediction as plain data."""
    return {
        "schema_version": SCHEMA_VERSION,
        **facts,
        "prediction": True,
        "chip": dataclasses.asdict(costs.chip),
        "assumptions": dataclasses.asdict(costs.assume),
        "models": {
            name: {
                "look_seconds": costs.look(merged(model_stacks(name))),
                "look_seconds_by_role": costs.look(model_stacks(name)),
                "stacks": [_stack_data(costs, stack) for stack in merged(model_stacks(name))],
            }
            for name in (*MODELS, *LARGE)
        },
        "torch_h20_quoted_seconds": TORCH_H20,
    }


def _stack_data(costs: Costs, stack: Stack) -> dict[str, Any]:
    found = costs.of(stack)
    return {
        **dataclasses.asdict(stack),
        "chunk": found.chunk,
        "seconds": found.seconds,
        "host_seconds": found.host_seconds,
        "device_seconds": found.device_seconds,
        "works": [dataclasses.asdict(work) for work in found.works],
    }


def markdown(costs: Costs) -> str:
    """All tables of one chip."""
    dtype = str(costs.dtype).removeprefix("torch.")
    return "\n\n".join(
        [
            f"# Predicted cost on {costs.chip.name}, {dtype}",
            LABEL,
            "## Stacks, milliseconds of one call\n\n" + stacks_table(costs),
            "## A look: every block matrix of a model, values and statistics, milliseconds\n\n"
            + looks_table(costs),
            *(
                f"## {Stack((), *shape)}, kernel by kernel\n\n" + kernels_table(costs.of(Stack((), *shape)))
                for shape in DETAILS
            ),
            "## Beside torch\n\n" + torch_table(costs),
        ]
    )


def stacks_table(costs: Costs) -> str:
    headings = [
        "model",
        "roles",
        "stack",
        "in chunks of",
        *STAGES,
        "host",
        "call",
        "a matrix",
        "most time in",
    ]
    rows = []
    for name in (*MODELS, *LARGE):
        for stack in merged(model_stacks(name)):
            found = costs.of(stack)
            stages = found.stage_seconds()
            most = max(found.works, key=lambda work: work.seconds)
            rows.append(
                [
                    *(name, ", ".join(stack.roles), str(stack), str(found.chunk)),
                    *(milliseconds(stages[stage]) if stage in stages else "" for stage in STAGES),
                    *(milliseconds(found.host_seconds), milliseconds(found.seconds)),
                    milliseconds(found.seconds / stack.count),
                    f"{most.stage}/{most.kernel}, {most.bound}",
                ]
            )
    return markdown_table(headings, rows, left=3)


def looks_table(costs: Costs) -> str:
    """Columns: this chip with a call for each role and for each shape; the other chips, for each shape."""
    others = [dataclasses.replace(costs, chip=chip) for chip in CHIPS.values() if chip is not costs.chip]
    headings = [
        *("model", "matrices", f"{costs.chip.name}, a call a role", "a call a shape"),
        *(other.chip.name for other in others),
    ]
    rows = []
    for name in (*MODELS, *LARGE):
        stacks = model_stacks(name)
        looks = [costs.look(stacks), *(each.look(merged(stacks)) for each in (costs, *others))]
        rows.append([name, str(sum(stack.count for stack in stacks)), *map(milliseconds, looks)])
    return markdown_table(headings, rows)


def kernels_table(found: Prediction) -> str:
    """flops / rate: at the peak of what a stage calculates in. bytes / bandwidth: as if all were memory's."""
    headings = ["stage", "kernel", "launches", "Gflop", "flops / rate, ms", "GB", "bytes / bandwidth, ms"]
    headings += ["predicted, ms", "share", "bound"]
    rows = [
        [
            *(work.stage, f"`{work.kernel}`", str(work.launches)),
            *(f"{work.flops / 1e9:.3g}", milliseconds(work.flops / _peak(work, found))),
            *(f"{work.bytes / 1e9:.3g}", milliseconds(work.bytes / found.chip.memory_rate)),
            milliseconds(work.seconds),
            *(f"{100 * work.seconds / found.device_seconds:.0f} %", work.bound),
        ]
        for work in found.works
    ]
    total = [f"{found.flops / 1e9:.3g}", "", f"{found.bytes / 1e9:.3g}", ""]
    rows.append(["all", "", str(found.launches), *total, milliseconds(found.device_seconds), "", ""])
    rows.append(["host", "", "", "", "", "", "", milliseconds(found.host_seconds), "", "launches"])
    return markdown_table(headings, rows, left=2)


def _peak(work: Work, found: Prediction) -> float:
    """Flops per second of the type that the kernel calculates in."""
    double = found.dtype == torch.float64 or work.stage == "stats"
    double |= work.stage in ("bidiagonal", "values") and found.chip.wide(found.dtype) == torch.float64
    return found.chip.fp64_flops if double else found.chip.fp32_flops


def torch_table(costs: Costs) -> str:
    counts = (1, 24, 96)
    headings = [
        "n",
        "torch.linalg.svdvals on an H20 (quoted)",
        *(f"ours on {costs.chip.name} (predicted), {count} together" for count in counts),
    ]
    rows = [
        [
            str(n),
            milliseconds(quoted),
            *(milliseconds(costs.of(Stack((), count, n, n)).seconds / count) for count in counts),
        ]
        for n, quoted in TORCH_H20.items()
    ]
    return "Milliseconds of one square float32 matrix.\n\n" + markdown_table(headings, rows)


def milliseconds(seconds: float) -> str:
    return digits(1e3 * seconds) if seconds >= 1e-4 else f"{1e3 * seconds:.3f}"
