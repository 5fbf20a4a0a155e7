"""How much of each section a run of ``python -m benchmarks all`` measures."""

from __future__ import annotations

from dataclasses import dataclass

from benchmarks.singular_values import stages
from benchmarks.statistics import tail
from benchmarks.statistics.weightwatcher import MODELS as WW_MODELS
from examples.train_gpt import Size

Shapes = tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class Sizes:
    """None stands for all there is.

    Attributes:
        layers, max_n: of each stack of the nine models, and of their matrices.
        nine_calls: how a stack is passed.
        float64_max_n: the same in float64.
        growth, batches: columns of one square matrix; of each number of columns, batches.
        threads: (matrices, columns) of the squares measured on every number of threads.
        conditions, seeds, conditioned: decades of the condition number, matrices of each, their shape.
        operations: columns, and values of a spectrum.
        memory: (matrices, rows, columns).
        tracking, monitor: the model that is trained, and the steps at most.
        weightwatcher: models, layers of them, and whether randomized.
    """

    layers: int | None
    max_n: int | None
    nine_calls: tuple[str, ...]
    float64_max_n: int | None
    growth: tuple[int, ...]
    batches: dict[int, tuple[int, ...]]
    threads: tuple[tuple[int, int], ...]
    conditions: tuple[int, ...]
    seeds: int
    conditioned: tuple[int, int]
    stages: Shapes
    stats_n: tuple[int, ...] | None
    operations: int
    tail: tuple[int, ...]
    leading: Shapes
    memory: tuple[tuple[int, int, int], ...]
    tracking: Size
    tracking_steps: int
    monitor: Size
    monitor_steps: int
    weightwatcher: tuple[str, ...]
    layers_watched: int | None
    randomize: tuple[bool, ...]


# 240×136: the smallest for which driver="gram" is compiled, so that the oracle in extended precision is fast.
DEFAULT = Sizes(
    layers=2,
    max_n=5120,
    nine_calls=("batch",),
    float64_max_n=3072,
    growth=(32, 64, 128, 256, 512, 1024, 2048, 4096, 8192),
    batches={64: (1, 4, 16, 64, 256, 1024, 4096), 256: (1, 4, 16, 64, 256)},
    threads=((1, 512), (1, 1024), (1, 2048), (12, 768), (1024, 64)),
    conditions=tuple(range(0, 15, 2)),
    seeds=2,
    conditioned=(240, 136),
    stages=stages.SHAPES,
    stats_n=None,
    operations=768,
    tail=tail.SIZES,
    leading=((768, 768), (1024, 1024), (3072, 768), (4096, 1024)),
    memory=((1, 1024, 1024), (1, 2048, 2048), (1, 4096, 1024), (12, 768, 768), (4096, 64, 64)),
    tracking=Size(width=768, heads=12, layers=2, batch=8, context=128),
    tracking_steps=500,
    monitor=Size(),
    monitor_steps=300,
    weightwatcher=WW_MODELS[::-1],
    layers_watched=None,
    randomize=(False,),
)

FULL = Sizes(
    layers=None,
    max_n=None,
    nine_calls=("batch", "loop"),
    float64_max_n=None,
    growth=DEFAULT.growth,
    batches={32: (1, 4, 16, 64, 256, 1024, 4096), **DEFAULT.batches, 768: (1, 4, 16, 64)},
    threads=DEFAULT.threads,
    conditions=tuple(range(15)),
    seeds=5,
    conditioned=DEFAULT.conditioned,
    stages=(*stages.SHAPES, (4096, 4096), (8192, 2048)),
    stats_n=None,
    operations=DEFAULT.operations,
    tail=DEFAULT.tail,
    leading=(*DEFAULT.leading, (8192, 2048)),
    memory=(*DEFAULT.memory, (1, 4096, 4096), (1, 8192, 2048)),
    tracking=DEFAULT.tracking,
    tracking_steps=500,
    monitor=DEFAULT.monitor,
    monitor_steps=300,
    weightwatcher=DEFAULT.weightwatcher,
    layers_watched=None,
    randomize=(False, True),
)
