"""Every test runs with torch's uninitialised memory filled with NaN, and with the same seed."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator

import pytest

# Before torch loads OpenMP: threads that wait by spinning keep another worker from the core it needs.
os.environ["OMP_WAIT_POLICY"] = "passive"

import torch

from spectral_fast import _cpu
from tests.gloo_ranks import GlooRanks

# A shell that starts the suite in the background has it ignore Ctrl-C, and its children too.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests that take long, by the time they ask for, come first: the last one would run beside nothing."""
    items.sort(key=lambda item: item.get_closest_marker("timeout") is None)


@pytest.fixture(autouse=True)
def poisoned_memory() -> Iterator[None]:
    """torch.empty returns NaN, so that an output nobody wrote is seen."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    torch.manual_seed(20260422)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture(params=_cpu.built_isas())
def isa(request: pytest.FixtureRequest) -> Iterator[str]:
    """Runs a test once with every instruction set that was built."""
    if request.param not in _cpu.runnable_isas():
        pytest.skip(f"this CPU does not run {request.param}")
    before = _cpu.current_isa()
    _cpu.use_isa(request.param)
    yield request.param
    _cpu.use_isa(before)


@pytest.fixture(scope="session")
def ranks() -> Iterator[GlooRanks]:
    """Four processes on torch.distributed."""
    processes = GlooRanks(4)
    yield processes
    processes.close()


@pytest.fixture
def two_threads() -> Iterator[None]:
    """At least two threads, whatever the machine has."""
    before = torch.get_num_threads()
    torch.set_num_threads(max(2, before))
    yield
    torch.set_num_threads(before)


def pytest_report_header(config: pytest.Config) -> str:
    isas = ", ".join(_cpu.runnable_isas())
    return f"torch {torch.__version__}, instruction sets {isas}, {os.cpu_count()} CPUs"
