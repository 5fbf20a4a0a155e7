"""``python -m benchmarks lifecycle-cost``: full spectra every 25 steps at each of the nine sizes.

A look at a model is every block matrix once: values and statistics. Of each distinct shape one matrix with
random weights is timed, ours and torch.linalg.svdvals interleaved, and counted as often as the shape occurs:
what torch costs in a loop, and ours too (the monitor looks at equal matrices together).

A training step is not measured but bounded from below: 6 N flops a token (Kaplan et al. 2020; N counts block
matrices and output head, attention's products are left out) at the rate of a large matrix product, or of what
is assumed of the GPU. So the shares are upper bounds.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

import spectral_fast
from benchmarks.accuracy_gate import Gate
from benchmarks.cases import random_weights
from benchmarks.gpu.chips import CHIPS
from benchmarks.gpu.cost_model import Assumptions
from benchmarks.gpu.cost_tables import Costs, merged, model_stacks
from benchmarks.report import SCHEMA_VERSION, digits, markdown_table
from benchmarks.rows import GateError, NotMeasured, TimedRow, measure_in_turn, require
from benchmarks.timing import Contestant, Timing, host_clock, interleave, paired_ratio, spread
from spectral_fast.models.shapes import MODELS, ModelShape

EVERY = 25
STEP_TOKENS = 32768
# NVIDIA's data sheet of the H100 SXM: bfloat16 tensor cores, dense; and the part of it that training reaches.
H100_FLOPS, H100_SHARE = 989e12, 0.4


@dataclass
class ShapeRow(TimedRow):
    """One distinct shape: ours and torch's samples, in seconds of one matrix."""

    m: int
    n: int
    threads: int
    max_n: int | None
    status: str = "ok"
    ours: Timing | None = None
    torch: Timing | None = None
    gate: Any = field(default=None, repr=False)

    def __str__(self) -> str:
        return f"{self.m}×{self.n}"

    def clear(self) -> None:
        self.ours = self.torch = None

    def measure(self, repeats: int | None) -> None:
        if self.max_n is not None and max(self.m, self.n) > self.max_n:
            raise NotMeasured(f"above --max-n {self.max_n}")
        torch.set_num_threads(self.threads)
        A = random_weights(1, self.m, self.n, torch.float32)[0]
        gate = Gate(A)

        def look() -> Any:
            return spectral_fast.spectral_stats(A, return_svdvals=True).svdvals

        self.gate = gate.check(look())
        if not self.gate.holds:
            raise GateError(self.gate.failure)
        counts = dict.fromkeys((1, self.threads))
        contestants = [Contestant("torch", lambda: torch.linalg.svdvals(A), count) for count in counts]
        ours, *theirs = interleave(
            [Contestant("ours", look, self.threads), *contestants], host_clock, repeats
        )
        for timing in (ours, *theirs):
            require(timing)
            timing.result = None
        self.ours = ours
        self.torch = min(theirs, key=lambda timing: spread(timing.seconds).median)


@dataclass(frozen=True)
class ModelCost:
    """Seconds of a look and of a training step; None where a shape was not measured.

    Attributes:
        ours, torch: of a look, here.
        step: of a training step here, at least.
        h100_look, h100_step: predicted, and assumed.
    """

    model: ModelShape
    parameters: int
    ours: float | None
    torch: float | None
    step: float
    h100_look: float
    h100_step: float


def flops_of_a_step(model: ModelShape, tokens: int) -> float:
    """6 N a token: two for each weight forward, four backward."""
    return 6.0 * matrix_parameters(model) * tokens


def matrix_parameters(model: ModelShape) -> int:
    """Weights that take part in products: the block matrices and the output head, tied or not."""
    blocks = model.layers * sum(m * n for _, m, n in model.block_matrices())
    return blocks + model.vocabulary * model.width


def shape_rows(models: Sequence[ModelShape], threads: int, max_n: int | None) -> list[ShapeRow]:
    """The distinct shapes of the models' blocks, the smallest first."""
    shapes = {(m, n) for model in models for _, m, n in model.block_matrices()}
    return [
        ShapeRow(m, n, threads, max_n) for m, n in sorted(shapes, key=lambda s: (s[0] * s[1] * min(s), s))
    ]


def measure_lifecycle(
    threads: int,
    max_n: int | None,
    repeats: int | None,
    max_seconds: float | None,
    progress: Callable[[str], None],
) -> list[ShapeRow]:
    """Every shape of the nine models, as far as max_n and the time allow."""
    rows = shape_rows(list(MODELS.values()), threads, max_n)
    measure_in_turn(rows, repeats, max_seconds, progress)
    return rows


def model_costs(rows: Sequence[ShapeRow], gemm: float, tokens: int) -> list[ModelCost]:
    """What each model costs. gemm: flops per second of this machine's matrix product."""
    by_shape = {(row.m, row.n): row for row in rows}
    h100 = Costs(CHIPS["h100"], torch.float32, Assumptions())
    costs = []
    for model in MODELS.values():
        counts = Counter((m, n) for _, m, n in model.block_matrices())
        pairs = [(by_shape[shape], model.layers * times) for shape, times in counts.items()]
        flops = flops_of_a_step(model, tokens)
        costs.append(
            ModelCost(
                model,
                matrix_parameters(model),
                _total([(row.ours, times) for row, times in pairs]),
                _total([(row.torch, times) for row, times in pairs]),
                flops / gemm,
                h100.look(merged(model_stacks(model.name))),
                flops / (H100_SHARE * H100_FLOPS),
            )
        )
    return costs


def _total(parts: Sequence[tuple[Timing | None, int]]) -> float | None:
    total = 0.0
    for timing, times in parts:
        if timing is None:
            return None
        total += times * spread(timing.seconds).median
    return total


def lifecycle_document(
    rows: Sequence[ShapeRow], costs: Sequence[ModelCost], tokens: int, facts: dict[str, Any]
) -> dict[str, Any]:
    """Every sample, and what follows from them, as plain data."""
    return {
        "schema_version": SCHEMA_VERSION,
        **facts,
        "every": EVERY,
        "step_tokens": tokens,
        "h100": {"flops_per_second": H100_FLOPS, "assumed_share": H100_SHARE, "look": "predicted"},
        "shapes": [_row_data(row) for row in rows],
        "models": [{**vars(cost), "model": cost.model.name} for cost in costs],
    }


def _row_data(row: ShapeRow) -> dict[str, Any]:
    data: dict[str, Any] = {"m": row.m, "n": row.n, "status": row.status}
    if row.gate is not None:
        data["gate"] = {**dataclasses.asdict(row.gate), "holds": row.gate.holds}
    for name, timing in (("ours", row.ours), ("torch", row.torch)):
        if timing is not None:
            data[name] = {"threads": timing.threads, "seconds": timing.seconds}
    return data


def lifecycle_markdown(rows: Sequence[ShapeRow], costs: Sequence[ModelCost], gemm: float, tokens: int) -> str:
    """The table of shapes and that of models."""
    threads = rows[0].threads
    theirs = "1" if threads == 1 else f"1 or {threads}, the better"
    return "\n\n".join(
        [
            f"One matrix of each shape, float32, threads: {threads}; torch's: {theirs}.",
            _shapes_table(rows),
            f"A look at every block matrix, every {EVERY} steps of {tokens} tokens. Here: measured as above, "
            f"over a step of 6 N flops a token at the {gemm / 1e9:.0f} GF/s of a matrix product. H100: the "
            f"look is predicted, the step assumes {H100_SHARE:.0%} of {H100_FLOPS / 1e12:.0f} TF/s.",
            _models_table(costs),
        ]
    )


def _shapes_table(rows: Sequence[ShapeRow]) -> str:
    cells = []
    for row in rows:
        if row.ours is None or row.torch is None:
            cells.append([str(row), row.status, "", ""])
            continue
        ratio = paired_ratio(row.torch, row.ours)
        times = [f"{digits(1e3 * spread(timing.seconds).median)}" for timing in (row.ours, row.torch)]
        cells.append([str(row), *times, f"{digits(ratio.median)} ({digits(ratio.q1)}–{digits(ratio.q3)})"])
    return markdown_table(["shape", "ours, ms", "torch, ms", "torch / ours"], cells)


def _models_table(costs: Sequence[ModelCost]) -> str:
    headings = ["model", "N", "matrices", "a look, s", "torch.linalg.svdvals, s", "torch / ours"]
    headings += ["a step, s, at least", "share, at most", "torch's share"]
    headings += ["H100: a look, s", "a step, s", "share"]
    cells = [
        [
            *(cost.model.name, f"{cost.parameters / 1e6:.0f}M", str(6 * cost.model.layers)),
            *map(_seconds, (cost.ours, cost.torch, _ratio(cost), cost.step)),
            *(_share(cost.ours, cost.step), _share(cost.torch, cost.step)),
            *(_seconds(cost.h100_look), _seconds(cost.h100_step), _share(cost.h100_look, cost.h100_step)),
        ]
        for cost in costs
    ]
    return markdown_table(headings, cells)


def _ratio(cost: ModelCost) -> float | None:
    return None if cost.ours is None or cost.torch is None else cost.torch / cost.ours


def _seconds(value: float | None) -> str:
    if value is None:
        return "not measured"
    return f"{value:.3g}" if value < 1000 else f"{value:.0f}"


def _share(look: float | None, step: float) -> str:
    return "not measured" if look is None else f"{100 * look / (EVERY * step):.2g} %"
