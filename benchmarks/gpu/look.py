"""What a look costs on a GPU: every block matrix of GPT-2 124M to all statistics; stacks kernel by kernel."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

import spectral_fast
from benchmarks.accuracy_gate import Gate, GateResult
from benchmarks.cases import Case
from benchmarks.gpu.cases import COMPARED, REPEATS
from benchmarks.gpu.cost_model import predict, total_seconds
from benchmarks.gpu.cost_tables import Stack
from benchmarks.gpu.device import Gpu, KernelTime
from benchmarks.gpu.peers import plan
from benchmarks.measure import GATE_FAILED
from benchmarks.timing import Contestant, Spread, failure_status, interleave, spread
from spectral_fast.cuda import sources

LOOK_MODEL = "gpt2-124m"

_CUDA_KERNEL = r'extern "C" __global__ void\s+(?:__launch_bounds__\((?:[^()]|\([^()]*\))*\)\s*)?(\w+)\s*\('


@dataclass
class LookWay:
    """One way of taking the look; seconds and bytes are of all matrices."""

    name: str
    status: str = "ok"
    calls: int = 0
    seconds: list[float] = field(default_factory=list)
    spread: Spread | None = None
    peak_bytes: int | None = None


@dataclass
class Look:
    """All block matrices of a model, random weights in float32."""

    model: str
    matrices: int
    status: str = "ok"
    gates: list[GateResult] = field(default_factory=list)
    alpha_error: float | None = (
        None  # the largest relative one of a gate's matrices, against values in float64
    )
    predicted: float | None = None  # seconds, a call a shape
    ways: list[LookWay] = field(default_factory=list)

    @property
    def failed(self) -> bool:
        return self.status.startswith((GATE_FAILED, "failed"))


def measure_look(gpu: Gpu, cases: Sequence[Case], seconds: float) -> Look:
    """spectral_stats with a call a role and with a call a shape, and torch's values with a call a role.

    cases: a stack for each shape, which says for how many roles it stands. m x n and n x m are one shape.
    """
    shapes, stacks = (
        [case.matrices(torch.float32, gpu.device) for case in cases],
        [case.stacks for case in cases],
    )
    roles = [A for A, count in zip(shapes, stacks, strict=True) for _ in range(count)]
    alike: dict[torch.Size, list[Tensor]] = {}
    for A in roles:
        tall = A if A.shape[1] >= A.shape[2] else A.mT
        alike.setdefault(tall.shape[1:], []).append(tall)
    whole = [torch.cat(stack) for stack in alike.values()]
    look = Look(LOOK_MODEL, sum(map(len, roles)))
    if gpu.chip is not None:
        chip = gpu.chip
        look.predicted = total_seconds(
            predict(len(A), A.shape[1], A.shape[2], torch.float32, chip) for A in whole
        )
    try:
        for A in shapes:
            _check(look, A)
        if not look.failed:
            _time(look, gpu, seconds, roles, whole)
    except Exception as error:
        look.status = failure_status(error)
    return look


def _check(look: Look, A: Tensor) -> None:
    """The gate on the values that the statistics are made of, and how far alpha is off."""
    gate = Gate(A, COMPARED)
    stats = spectral_fast.spectral_stats(A, return_svdvals=True)
    assert stats.svdvals is not None
    result = gate.check(stats.svdvals)
    look.gates.append(result)
    if not result.holds:
        look.status = f"{GATE_FAILED}: {result.failure}"
        return
    for index in result.compared:
        exact = spectral_fast.spectral_stats(A[index].cpu().double())
        error = abs(float(stats.alpha[index]) / float(exact.alpha) - 1)
        look.alpha_error = max(look.alpha_error or 0.0, error)


def _time(look: Look, gpu: Gpu, seconds: float, roles: list[Tensor], whole: list[Tensor]) -> None:
    def stats_of(stacks: list[Tensor]) -> None:
        for A in stacks:
            spectral_fast.spectral_stats(A)

    ways = {"ours, a call a role": roles, "ours, a call a shape": whole}
    contestants = [Contestant(name, partial(stats_of, stacks)) for name, stacks in ways.items()]
    calls = {name: len(stacks) for name, stacks in ways.items()}
    torch_name = "torch.linalg.svdvals, values only"
    # torch's loop over the largest stack says whether all of them fit.
    probe = plan("torch", roles[-1], seconds * len(roles[-1]) / look.matrices, REPEATS + 2, gpu.clock)
    if probe.matrices == len(roles[-1]):
        contestants.append(Contestant(torch_name, lambda: [torch.linalg.svdvals(A) for A in roles]))
        calls[torch_name] = len(roles)
    for timing, contestant in zip(interleave(contestants, gpu.clock, REPEATS), contestants, strict=True):
        way = LookWay(timing.name, timing.status, calls[timing.name], timing.seconds)
        if timing.ok:
            way.spread = spread(timing.seconds)
            way.peak_bytes = gpu.peak_memory(contestant.call)
        look.ways.append(way)
    if torch_name not in calls:
        status = probe.status if probe.status != "ok" else f"not measured: more than its {seconds:.0f} s"
        look.ways.append(LookWay(torch_name, status))


@dataclass(frozen=True)
class KernelRow:
    """One kernel of a call, and what the cost model says of it."""

    kernel: str
    stage: str
    launches: int
    seconds: float
    predicted: float | None
    bound: str


@dataclass
class StagesRow:
    """spectral_stats of one stack by the times of its kernels. whole: between two events, gaps included."""

    stack: Stack
    status: str = "ok"
    whole: float | None = None
    kernels: list[KernelRow] = field(default_factory=list)


def measure_stages(gpu: Gpu, case: Case, dtype: torch.dtype) -> StagesRow:
    """The kernels of one call."""
    stack = Stack(case.roles, case.count, case.m, case.n)
    row = StagesRow(stack)
    try:
        A = case.matrices(dtype, gpu.device)

        def call() -> None:
            spectral_fast.spectral_stats(A)

        gpu.clock(call, 1)
        row.whole = min(gpu.clock(call, 1) for _ in range(3))
        row.kernels = _kernel_rows(gpu, gpu.profile(call), stack, dtype)
    except Exception as error:
        row.status = failure_status(error)
    return row


def _kernel_rows(gpu: Gpu, kernels: list[KernelTime], stack: Stack, dtype: torch.dtype) -> list[KernelRow]:
    predicted: dict[str, float] = defaultdict(float)
    bounds: dict[str, str] = {}
    if gpu.chip is not None:
        for work in predict(stack.count, stack.m, stack.n, dtype, gpu.chip).works:
            predicted[work.kernel] += work.seconds
            bounds[work.kernel] = work.bound
    stages = kernel_stages()
    return [
        KernelRow(
            *(one.name[:80], stages.get(one.name, "other"), one.launches, one.seconds),
            *(predicted.get(one.name), bounds.get(one.name, "")),
        )
        for one in kernels
    ]


def kernel_stages() -> dict[str, str]:
    """Kernels of ours and the file, without its ending, that each is in: CUDA's and Triton's."""
    found = {}
    for file in sorted(sources.folder().glob("*.cu")):
        for name in re.findall(_CUDA_KERNEL, file.read_text()):
            found[name] = file.stem
    for file in sorted((Path(spectral_fast.__file__).parent / "triton").glob("*.py")):
        for name in re.findall(r"@triton\.jit[^\n]*\ndef (\w+_kernel)\(", file.read_text()):
            found[name] = file.stem
    return found
