"""The same bits from every thread count, caller, process and neighbour."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader

import spectral_fast as sf
from spectral_fast import _ops

pytestmark = pytest.mark.usefixtures("two_threads")


def batch() -> Tensor:
    return torch.randn(9, 70, 40, generator=torch.Generator().manual_seed(7))


def test_bits_do_not_depend_on_threads_place_or_neighbours(isa: str) -> None:
    A = batch()
    expected = sf.svdvals(A)
    for threads in (1, 2, 3, 8):
        torch.set_num_threads(threads)
        assert torch.equal(sf.svdvals(A), expected)
        assert torch.equal(sf.svdvals(A.flip(0)).flip(0), expected)
    assert torch.equal(torch.stack([sf.svdvals(a) for a in A]), expected)
    A[4] = torch.nan
    S = sf.svdvals_ex(A).S
    assert torch.equal(S[[0, 1, 2, 3, 5, 6, 7, 8]], expected[[0, 1, 2, 3, 5, 6, 7, 8]])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_threads_inside_one_matrix_change_no_bit(isa: str, dtype: torch.dtype) -> None:
    """Strips, rows, sweeps and points are shared among threads; 1100 rows are three chunks of `reduce`."""
    for shape in ((129, 129), (160, 257), (1100, 150), (400, 385)):
        A = torch.randn(shape, dtype=dtype)
        torch.set_num_threads(1)
        expected = sf.svdvals(A)
        for threads in (2, 3, 4):
            torch.set_num_threads(threads)
            assert torch.equal(sf.svdvals(A), expected), (shape, threads)


def test_a_caller_that_flushes_subnormals_changes_nothing() -> None:
    """The setting belongs to a thread; the pool's threads would not have it."""
    A = batch() * 1e-40
    expected = sf.svdvals(A)
    assert torch.set_flush_denormal(True)
    try:
        assert torch.equal(sf.svdvals(A).view(torch.int32), expected.view(torch.int32))
        assert torch.equal(sf.svdvals(A[0]).view(torch.int32), expected[0].view(torch.int32))
        assert (torch.tensor([1e-40]) * 1).item() == 0  # the caller's setting is as it was
    finally:
        torch.set_flush_denormal(False)


def test_statistics_of_a_batch_are_those_of_its_matrices() -> None:
    A = batch()
    together = sf.spectral_stats(A)
    for i, a in enumerate(A):
        for name, value in vars(sf.spectral_stats(a)).items():
            assert value is None or torch.equal(value, getattr(together, name)[i]), name


def test_many_callers_at_once() -> None:
    """One of them has the pool, the others go on alone; all get the same bits."""
    A = batch()
    expected = sf.svdvals(A)
    start = threading.Barrier(8)

    def call(_: int) -> list[Tensor]:
        start.wait()
        return [sf.svdvals(A) for _ in range(20)]

    with ThreadPoolExecutor(8) as pool:
        for results in pool.map(call, range(8)):
            assert all(torch.equal(r, expected) for r in results)


THREADS = """
import os, threading, torch, spectral_fast as sf
torch.set_num_threads(2)
A, M = torch.randn(400, 400), torch.randn(600, 600)
count = lambda: len(os.listdir("/proc/self/task"))
M @ M
before = count()
sf.svdvals(A), sf.svdvals(torch.stack([A, A]))
assert count() == before, (before, count())
other = threading.Thread(target=lambda: sf.svdvals(A))
other.start(), other.join()
while threading.active_count() > 1 or str(other.native_id) in os.listdir("/proc/self/task"):
    pass  # the system has not quite ended it
assert count() == before + 1, (before, count())
"""


@pytest.mark.parametrize("binding", ["false", "true"])
def test_threads_are_those_of_torch(binding: str) -> None:
    """They spin after torch's operations, on the cores that others would need. Another caller has ours."""
    env = {**os.environ, "OMP_PROC_BIND": binding, "OMP_WAIT_POLICY": "active"}
    subprocess.run([sys.executable, "-c", THREADS], env=env, check=True, timeout=120)


def test_a_thread_still_awake_takes_no_part_in_a_smaller_call() -> None:
    """Three threads at work, then two matrices: a third thread would have no workspace of its own."""
    A, X = torch.randn(5, 500, 330), torch.randn(5, 330, 16)
    torch.set_num_threads(3)
    expected, _ = _ops.gram_product(A, X)
    for _ in range(1000):
        assert torch.equal(_ops.gram_product(A, X)[0], expected)
        assert torch.equal(_ops.gram_product(A[:2], X[:2])[0], expected[:2])


def test_the_gil_is_released() -> None:
    """Another Python thread runs while a kernel does."""
    A = torch.randn(700, 700)
    ticks, done = [0], threading.Event()

    def tick() -> None:
        while not done.wait(0.0005):
            ticks[0] += 1

    ticker = threading.Thread(target=tick)
    ticker.start()
    before = ticks[0]
    for _ in range(5):
        sf.svdvals(A)
    during = ticks[0] - before
    done.set()
    ticker.join()
    # A held lock would let a tick through between two calls only.
    assert during > 10


def _in_child(A: Tensor, expected: Tensor) -> None:
    os._exit(0 if torch.equal(sf.svdvals(A), expected) else 3)


@pytest.mark.parametrize("threads_in_child", [1, 2])
def test_fork_after_use(threads_in_child: int) -> None:
    """The child has none of the pool's threads and must not wait for them."""
    A = batch()
    expected = sf.svdvals(A)
    context = multiprocessing.get_context("fork")
    torch.set_num_threads(threads_in_child)
    children = [context.Process(target=_in_child, args=(A, expected)) for _ in range(3)]
    for child in children:
        child.start()
    for child in children:
        child.join(timeout=60)
        assert child.exitcode == 0
    assert torch.equal(sf.svdvals(A), expected)


def test_fork_while_the_pool_is_busy() -> None:
    """A child forked in the middle of another thread's call starts with a pool of its own."""
    A, large = batch(), torch.randn(6, 300, 300)
    expected = sf.svdvals(A)
    stop = threading.Event()

    def keep_busy() -> None:
        while not stop.is_set():
            sf.svdvals(large)

    busy = threading.Thread(target=keep_busy)
    busy.start()
    context = multiprocessing.get_context("fork")
    for _ in range(5):
        child = context.Process(target=_in_child, args=(A, expected))
        child.start()
        child.join(timeout=60)
        assert child.exitcode == 0
    stop.set()
    busy.join()


class _Spectra(torch.utils.data.Dataset):  # type: ignore[type-arg]
    def __len__(self) -> int:
        return 6

    def __getitem__(self, index: int) -> Tensor:
        return sf.svdvals(batch()[index])


def test_in_dataloader_workers() -> None:
    expected = sf.svdvals(batch())
    rows = list(DataLoader(_Spectra(), batch_size=None, num_workers=2, timeout=60))
    assert torch.equal(torch.stack(rows), expected[:6])


def _signal_during(call: Callable[[], object], number: signal.Signals, after: float = 0.15) -> float:
    """Runs the call, sends the process a signal meanwhile, returns the time from then to the end."""
    sent = []

    def send() -> None:
        sent.append(time.perf_counter())
        os.kill(os.getpid(), number)

    timer = threading.Timer(after, send)
    timer.start()
    try:
        call()
        if not sent:
            pytest.fail("the call ended before the signal")
    finally:
        ended = time.perf_counter()
        timer.cancel()  # a signal after the call would hit the test runner
        timer.join()
    return ended - sent[0]


LONG_CALLS = {
    "batch": lambda: (torch.randn(300, 300).expand(5000, 300, 300), None),
    "one": lambda: (torch.randn(6000, 6000), None),
    "gram": lambda: (torch.randn(1, 5000).expand(50000, 5000), "gram"),
}


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize(
    "kind",
    [
        "batch",
        "one",
        "gram",
    ],
)
def test_ctrl_c_ends_a_long_call(kind: str, threads: int) -> None:
    A, driver = LONG_CALLS[kind]()
    torch.set_num_threads(threads)
    raised = []

    def call() -> None:
        try:
            sf.svdvals(A, driver=driver)
        except KeyboardInterrupt as error:
            raised.append(error)

    assert _signal_during(call, signal.SIGINT) < 1
    assert len(raised) == 1
    small = batch()
    assert torch.equal(sf.svdvals(small), torch.stack([sf.svdvals(a) for a in small]))


def test_a_signal_that_raises_nothing_changes_nothing() -> None:
    """Its handler runs during the call, and the call goes on."""
    A = batch()[:1, :, :].expand(100000, 70, 40)  # long beside the 50 ms between two looks
    handled: list[float] = []
    before = signal.signal(signal.SIGUSR1, lambda *_: handled.append(time.perf_counter()))
    results = []
    try:
        waited = _signal_during(lambda: results.append(sf.svdvals(A)), signal.SIGUSR1, after=0.1)
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert len(handled) == 1
    assert time.perf_counter() - handled[0] > waited / 2
    assert torch.equal(results[0], sf.svdvals(A[0]).expand(100000, -1))


PROBE = """
import torch, hashlib, spectral_fast as sf
g, h = torch.Generator().manual_seed(3), hashlib.sha256()
for m in (1, 3, 8, 17, 33, 64, 100, 130, 200):
    for n in (1, 2, 7, 16, 31, 65, 129):
        for dtype in (torch.float32, torch.float64, torch.bfloat16):
            h.update(sf.svdvals(torch.randn(m, n, generator=g).to(dtype)).numpy().tobytes())
"""


def test_no_result_depends_on_uninitialised_memory() -> None:
    """The allocator fills what it hands out with 0x7f bytes: about 1e38 as float32, 1e306 as float64."""
    filled = subprocess.run(
        [sys.executable, "-c", f"{PROBE}\nprint(h.hexdigest())"],
        env={**os.environ, "MALLOC_PERTURB_": "128"},
        check=True,
        capture_output=True,
        text=True,
    )
    here: dict[str, Any] = {}
    exec(PROBE, here)
    assert filled.stdout.strip() == here["h"].hexdigest()
