"""Who a GPU is asked to compute the values with besides us, and on how many matrices that is affordable.

Libraries loop over a batch, so a matrix costs them the same in any batch; some need seconds for one. Each is
therefore timed on the first k matrices of the stack, as many as its share of the time allows, and times are
given per matrix.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from benchmarks.baselines import BASELINES, Baseline
from benchmarks.cases import bind
from benchmarks.measure import NOT_MEASURED
from benchmarks.timing import Clock, Contestant, failure_status


def _torch_loop(A: Tensor) -> Tensor:
    return torch.stack([torch.linalg.svdvals(matrix) for matrix in A])


PEERS: dict[str, Baseline] = {
    **{
        name: BASELINES[name]
        for name in ("torch", "torch-gesvd", "torch-gesvdj", "torch-gesvda", "gram", "cupy")
    },
    "torch-loop": Baseline(("cpu", "cuda"), _torch_loop),
}


@dataclass(frozen=True)
class Plan:
    """A peer on the first ``matrices`` of a stack; without a contestant, ``status`` says why."""

    name: str
    status: str = "ok"
    matrices: int = 0
    contestant: Contestant | None = None


def plan(name: str, A: Tensor, seconds: float, calls: int, clock: Clock) -> Plan:
    """How many matrices of the stack A the peer can be timed on, `calls` calls within `seconds`."""
    peer = PEERS[name]
    if obstacle := peer.obstacle(A.device):
        return Plan(name, obstacle)
    try:
        one = bind(peer.values, peer.prepare(A[:1]), "batch")
        each = clock(one, 1)  # loads the library, too
        if each < seconds / calls:
            each = min(each, clock(one, 1))
        matrices = min(len(A), int(seconds / (calls * each)))
        if matrices == 0:
            took = f"one matrix took {each:.2g} s, {calls} calls are more than its {seconds:.2g} s"
            return Plan(name, f"{NOT_MEASURED}: {took}")
        call = bind(peer.values, peer.prepare(A[:matrices]), "batch")
    except Exception as error:  # whatever a library raises is its row, not the run's end
        return Plan(name, failure_status(error))
    return Plan(name, "ok", matrices, Contestant(name, call))


def values_of(result: Any) -> Tensor:
    """The values a peer returned, of any library."""
    return torch.as_tensor(result)
