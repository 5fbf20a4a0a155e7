"""A monitored training run, killed with SIGKILL at random times and resumed: what can be read."""

from __future__ import annotations

import math
import multiprocessing
import random
import time
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple

Key = tuple[int, str]  # step, name of the matrix
FIELDS = ("spectral_norm", "stable_rank")


class Kills(NamedTuple):
    """Kills made, looks acknowledged in all, those of them lost or changed, attempts that made none."""

    kills: int
    acknowledged: int
    lost: int
    without_looks: int
    problems: tuple[str, ...]


def train_until_killed(run: str, first: int, acknowledged: Connection) -> None:
    """Train from step `first` and send what each look showed once its sink has returned."""
    import torch

    from spectral_fast import SpectralMonitor
    from spectral_fast.monitor import Look, ParquetSink

    torch.set_num_threads(1)
    torch.manual_seed(first)
    model = torch.nn.Sequential(torch.nn.Linear(48, 32), torch.nn.Tanh(), torch.nn.Linear(32, 24))
    optimizer = torch.optim.AdamW(model.parameters())
    sink = ParquetSink(run)

    def acknowledge(look: Look) -> None:
        sink(look)
        acknowledged.send(
            {(look.step, m.name): tuple(m.statistics[f] for f in FIELDS) for m in look.matrices}
        )

    monitor = SpectralMonitor(model, every=5, budget=None, sinks=[acknowledge], optimizer=optimizer)
    monitor.load_state_dict({**monitor.state_dict(), "step": first})
    acknowledged.send({})
    while True:
        optimizer.zero_grad()
        model(torch.randn(16, 48)).square().mean().backward()
        optimizer.step()


def kill_often(run: Path, kills: int, seed: int, longest: float) -> Kills:
    """Kill a run `kills` times, at most `longest` seconds after it began to train; read all after each."""
    from spectral_fast.monitor.parquet import ParquetSink, read_run

    rng = random.Random(seed)
    context = multiprocessing.get_context("forkserver")
    # torch._dynamo: what an optimizer imports at its first step, and takes seconds.
    context.set_forkserver_preload(["torch._dynamo", "spectral_fast.monitor.parquet", "pyarrow.parquet"])
    expected: dict[Key, tuple[float, ...]] = {}
    problems: list[str] = []
    lost = last = without = 0
    for kill in range(kills):
        ours, theirs = context.Pipe()
        process = context.Process(target=train_until_killed, args=(str(run), last, theirs), daemon=True)
        process.start()
        theirs.close()
        ours.recv()  # it trains
        time.sleep(rng.uniform(0, longest))
        process.kill()
        process.join()
        before = len(expected)
        try:
            while True:
                expected |= ours.recv()
        except EOFError:
            pass
        without += len(expected) == before
        last = max((step for step, _ in expected), default=0)
        table = read_run(run, ["step", "name", *FIELDS]).to_pylist() if expected else []
        found = {(row["step"], row["name"]): tuple(row[f] for f in FIELDS) for row in table}
        missing = [key for key, values in expected.items() if not _same(found.get(key), values)]
        if missing:
            lost += len(missing)
            problems.append(f"kill {kill}: {len(missing)} lost or changed, first {missing[0]}")
        if len(found) != len(table):
            problems.append(f"kill {kill}: {len(table) - len(found)} rows twice")
        if beyond := {step for step, _ in found.keys() - expected.keys()} - {last + 1}:
            problems.append(f"kill {kill}: looks at {sorted(beyond)}, which nobody made")
    ParquetSink(run).close()  # takes the run up where it was left, and closes it
    if expected and len(read_run(run, ["step"])) < len(expected):
        problems.append("after the run was closed fewer looks can be read")
    return Kills(kills, len(expected), lost, without, tuple(problems))


def _same(found: Any, values: tuple[float, ...]) -> bool:
    return found is not None and all(
        a == b or (math.isnan(a) and math.isnan(b)) for a, b in zip(found, values, strict=True)
    )
