"""What the GPU pipeline launches. Its values are in tests/cuda_pipeline_interpreted.py."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from benchmarks.gpu.chips import CHIPS as MODELLED
from benchmarks.gpu.cost_model import predict
from spectral_fast.cuda.workspace import Chip
from tests import gates

jit = gates.module("triton").runtime.jit

from spectral_fast.cuda import pipeline, workspace  # noqa: E402  imports triton
from spectral_fast.triton.load import load_kernel  # noqa: E402

CHIPS = {
    "sm_75": Chip(64 * 1024, fast_float64=False),
    "sm_80": Chip(163 * 1024, fast_float64=True),
    "sm_89": Chip(99 * 1024, fast_float64=False),
    "sm_90": Chip(227 * 1024, fast_float64=True),
}
SHAPES = [
    (3, 30, 20),
    (3, 128, 64),
    (3, 500, 20),
    (12, 768, 768),
    (2, 1000, 900),
    (4, 3072, 768),
    (2, 8192, 8192),
]


@pytest.fixture
def launches(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int, int]]:
    """What the host code launches, in order: name, threads of a block, shared memory. Nothing runs."""
    recorded: list[tuple[str, int, int]] = []

    def cuda(
        stage: str, kernel: str, types: Any, grid: tuple[int, int], threads: int, args: Any, shared: int = 0
    ) -> None:
        assert 0 < grid[0] < 2**31
        assert 0 < grid[1] < 2**16
        recorded.append((kernel, threads, shared))

    def triton(kernel: Any, *args: Any, grid: tuple[int, ...], warmup: bool, **options: Any) -> None:
        assert 0 < grid[0] < 2**31
        assert all(0 < size < 2**16 for size in grid[1:])
        recorded.append((kernel.__name__, 0, 0))

    monkeypatch.setattr(pipeline, "launch", cuda)
    monkeypatch.setattr(jit.JITFunction, "run", triton)
    return recorded


def call(shape: tuple[int, int, int], dtype: torch.dtype, chip: Chip) -> None:
    """With tensors that have no memory: looking at a value, as a synchronization would, raises."""
    batch, _, n = shape
    with FakeTensorMode():
        A, S = torch.empty(shape, dtype=dtype), torch.empty((batch, n), dtype=dtype)
        pipeline.svdvals(A, S, torch.empty(batch, dtype=torch.int32), chip)


@pytest.mark.parametrize("chip", CHIPS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("shape", SHAPES)
def test_a_launch_fits_the_chip(
    shape: tuple[int, int, int], dtype: torch.dtype, chip: str, launches: list[tuple[str, int, int]]
) -> None:
    call(shape, dtype, CHIPS[chip])
    assert launches
    for kernel, threads, shared in launches:
        assert shared <= CHIPS[chip].shared_bytes, kernel
        assert threads <= 1024, kernel


def test_what_triton_specializes() -> None:
    """Pointers are torch's, and aligned; sizes in the band's kernels are multiples of 32; so cols is left."""
    parameters = {p.name for p in load_kernel.params if not (p.do_not_specialize or p.is_constexpr)}
    assert parameters == {"a", "peaks", "dst", "cols", "exponents", "infos"}
    assert [p.do_not_specialize_on_alignment for p in load_kernel.params if p.name == "a"] == [True]


@pytest.mark.parametrize("batch", [1, 12, 5000])
def test_large_batches_go_through_in_chunks(batch: int, launches: list[tuple[str, int, int]]) -> None:
    for m, n in ((768, 768), (4096, 1024), (30, 20)):
        launches.clear()
        call((batch, m, n), torch.float32, CHIPS["sm_90"])
        types = pipeline.types_for(torch.float32, CHIPS["sm_90"])
        size = workspace.chunk(batch, m, n, types, CHIPS["sm_90"])
        bytes_at_once = size * workspace.matrix_bytes(m, n, types, CHIPS["sm_90"])
        assert bytes_at_once <= CHIPS["sm_90"].workspace_bytes
        assert Counter(name for name, *_ in launches)["finish"] == -(-batch // size)


def test_a_layer_stack_of_a_large_model_fits_the_budget() -> None:
    """Pythia 1B and Llama 70B: chunks of at least one matrix, the largest of which sets the need."""
    types = pipeline.types_for(torch.float32, CHIPS["sm_90"])
    for m, n, least in ((2048, 2048, 16), (8192, 2048, 16), (11008, 4096, 4), (28672, 8192, 1)):
        size = workspace.chunk(1000, m, n, types, CHIPS["sm_90"])
        assert size >= least, (m, n)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_cost_model_counts_these_launches(
    shape: tuple[int, int, int], dtype: torch.dtype, launches: list[tuple[str, int, int]]
) -> None:
    call(shape, dtype, CHIPS["sm_90"])
    predicted = predict(*shape, dtype, MODELLED["h100"], stats=False)
    counted: Counter[str] = Counter()
    for work in predicted.works:
        counted[work.kernel] += work.launches
    del counted["triu"]  # torch's
    assert counted == Counter(name for name, *_ in launches)
