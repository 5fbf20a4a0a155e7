"""svdvals on a real GPU: what the emulator, the interpreter and the compile gates cannot show."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

import spectral_fast as sf
from spectral_fast.cuda import workspace
from tests.oracles.accuracy import exact_values, judge
from tests.oracles.zoo import FLOAT64_ONLY, ZOO
from tests.test_accuracy import CASES
from tests.test_stats_values import same_bits

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available() or torch.version.hip is not None, reason="needs CUDA"),
    pytest.mark.filterwarnings("ignore:.*deterministic"),
]


@pytest.fixture
def errors_on_synchronization() -> Iterator[None]:
    """torch raises where it waits for the device."""
    torch.cuda.set_sync_debug_mode("error")
    yield
    torch.cuda.set_sync_debug_mode("default")


def check(A: torch.Tensor) -> None:
    accuracy = judge(A, sf.svdvals(A.cuda()).cpu(), exact_values(A))
    assert accuracy.holds, accuracy


def test_the_kernels_run() -> None:
    found = sf.capabilities()["cuda"]
    assert "svdvals_ex" in found["kernels"], found["no_kernels"]
    sf.svdvals(torch.randn(2, 100, 80, device="cuda"), driver="bidiag")  # raises where the first check failed


@pytest.mark.parametrize(("dtype", "name"), CASES, ids=lambda v: str(v).removeprefix("torch."))
def test_zoo(dtype: torch.dtype, name: str) -> None:
    for shape in ((40, 33), (31, 90), (90, 75), (400, 129), (200, 192)):
        check({**ZOO, **FLOAT64_ONLY}[name](*shape, torch.Generator().manual_seed(0)).to(dtype))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("shape", [(768, 768), (3072, 768), (1000, 1000), (2048, 2048), (2500, 2100)])
def test_layer_sizes(shape: tuple[int, int], dtype: torch.dtype) -> None:
    """Panels in shared memory, and beyond what fits there."""
    A = ZOO["power_law"](*shape, torch.Generator().manual_seed(0)).to(dtype)
    got = sf.svdvals(A.cuda()).cpu().double()
    want = sf.svdvals(A.double())  # the CPU kernels: 8 eps at the most
    slack = 8 * torch.finfo(torch.float64).eps
    allowed = (4 if min(shape) <= 1024 else 8) * torch.finfo(dtype).eps + slack
    assert float((got - want).abs().max() / want[0]) <= allowed


@pytest.mark.parametrize("shape", [(300, 500, 300), (5000, 32, 32), (40, 700, 200), (70000, 8, 4)])
def test_a_batch_is_its_matrices_bit_for_bit_every_time(shape: tuple[int, ...]) -> None:
    """More blocks than run at once, several times: a race would show."""
    A = torch.randn(shape, device="cuda")
    whole = sf.svdvals(A)
    for _ in range(10):
        assert same_bits(sf.svdvals(A), whole)
    for i in range(0, len(A), len(A) // 7):
        assert same_bits(sf.svdvals(A[i]), whole[i])


@pytest.mark.parametrize("shape", [(8, 300, 200), (4, 900, 200), (100, 30, 20)])
def test_nothing_waits_for_the_device(shape: tuple[int, ...], request: pytest.FixtureRequest) -> None:
    A = torch.randn(shape, device="cuda")
    sf.spectral_stats(A)  # compiles and checks
    request.getfixturevalue("errors_on_synchronization")
    sf.svdvals_ex(A)
    sf.spectral_stats(A)


@pytest.mark.parametrize("shape", [(8, 300, 200), (4, 900, 200), (100, 30, 20)])
def test_in_a_cuda_graph(shape: tuple[int, ...]) -> None:
    A = torch.randn(shape, device="cuda")
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        sf.svdvals_ex(A)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        S, info = sf.svdvals_ex(A)
    A.copy_(torch.randn(shape, device="cuda"))
    graph.replay()
    assert same_bits(S, sf.svdvals(A))
    assert not info.any()


def test_on_another_stream() -> None:
    """On torch's current stream, after what is queued there and before what follows."""
    want = sf.svdvals(torch.ones(50, 300, 200, device="cuda") + torch.eye(300, 200, device="cuda"))
    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        A = torch.zeros(50, 300, 200, device="cuda")
        torch.cuda._sleep(50_000_000)
        A += torch.ones_like(A) + torch.eye(300, 200, device="cuda")
        got = sf.svdvals_ex(A).S
        A.zero_()
    torch.cuda.current_stream().wait_stream(side)
    assert same_bits(got, want)


def test_memory_stays_within_the_budget() -> None:
    A = torch.randn(2500, 768, 768, device="cuda")
    sf.svdvals_ex(A[:1])
    torch.cuda.reset_peak_memory_stats()
    before, total = torch.cuda.memory_allocated(), torch.cuda.get_device_properties(0).total_memory
    sf.svdvals_ex(A)
    assert torch.cuda.max_memory_allocated() - before <= 1.05 * workspace.WORKSPACE_SHARE * total


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_on_another_device() -> None:
    A = torch.randn(5, 200, 150)
    assert same_bits(sf.svdvals(A.to("cuda:1")).cpu(), sf.svdvals(A.to("cuda:0")).cpu())
