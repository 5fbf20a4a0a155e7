"""Many threads in many processes, with mixed calls on batches that grow and shrink: the bits of one alone."""

from __future__ import annotations

import multiprocessing
import random
import threading
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import NamedTuple

import torch
from torch import Tensor

import spectral_fast as sf
from spectral_fast import _ops

COUNTS = (7, 5, 3, 2, 1)
Call = Callable[[int], tuple[Tensor, ...]]  # the results for the first so many matrices


class Stress(NamedTuple):
    """Calls made, and what was wrong."""

    calls: int
    problems: tuple[str, ...]


def calls() -> dict[str, Call]:
    """Each call on the first matrices of its batch; the same in every process."""
    g = torch.Generator().manual_seed(9)
    most = max(COUNTS)
    found: dict[str, Call] = {}
    for m, n in ((6, 5), (40, 30), (300, 140), (140, 150)):
        for dtype in (torch.float32, torch.float64, torch.bfloat16):
            A = torch.randn(most, m, n, generator=g).to(dtype)
            found[f"svdvals {m}x{n} {dtype}"] = lambda c, A=A: (sf.svdvals(A[:c]),)
    A, X = torch.randn(most, 500, 330, generator=g), torch.randn(most, 330, 16, generator=g)
    found["gram_product"] = lambda c: _ops.gram_product(A[:c], X[:c])
    found["spectral_stats"] = lambda c: tuple(
        getattr(sf.spectral_stats(A[:c, :90, :80]), name) for name in sf.stats.scalar_fields()
    )
    evals = torch.rand(most * 40, 200, generator=g, dtype=torch.float64) ** -0.7
    found["fit_powerlaw"] = lambda c: tuple(sf.fit_powerlaw(evals[: c * 40])[:5])
    found["tail_stats"] = lambda c: (
        sf.tail_stats(A[:c, :64, :48], generator=torch.Generator().manual_seed(3)).stable_rank,
    )

    def tracked(c: int) -> tuple[Tensor, ...]:
        tracker = sf.SpectralTracker(k=4, generator=torch.Generator().manual_seed(4))
        threads = torch.get_num_threads()
        torch.set_num_threads(1)  # the first vectors come from torch.linalg.qr, whose bits depend on threads
        tracker.exact(A[:c, :, :290])
        torch.set_num_threads(threads)
        look = tracker.track(A[:c, :, :290])
        return look.leading, look.stable_rank, look.alpha_hill

    found["tracked look"] = tracked
    return found


def same(found: tuple[Tensor, ...], expected: tuple[Tensor, ...]) -> bool:
    return all(torch.equal(x.nan_to_num(7), y.nan_to_num(7)) for x, y in zip(found, expected, strict=True))


def stress(threads: int, processes: int, seconds: float, seed: int = 1) -> Stress:
    """`threads` callers in each process, with 1 to 4 threads a call, for this long."""
    context = multiprocessing.get_context("spawn")
    ends, children = [], []
    for process in range(processes):
        ours, theirs = context.Pipe(duplex=False)
        arguments = (threads, seconds, seed + process, theirs)
        children.append(context.Process(target=_process, args=arguments))
        children[-1].start()
        theirs.close()
        ends.append(ours)
    made, problems = 0, []
    for process, (end, child) in enumerate(zip(ends, children, strict=True)):
        try:
            count, found = end.recv()
            made += count
            problems += found
        except EOFError:
            problems.append("ended without an answer")
        child.join()
        if child.exitcode:
            problems.append(f"process {process} of seed {seed} ended with {child.exitcode}")
    return Stress(made, tuple(problems))


def _process(threads: int, seconds: float, seed: int, answer: Connection) -> None:
    answer.send(stress_here(threads, seconds, seed))
    answer.close()


def stress_here(threads: int, seconds: float, seed: int) -> tuple[int, list[str]]:
    """The same in this process: how many calls, and those whose bits were others than alone on one thread."""
    torch.set_num_threads(1)
    mine = calls()
    expected = {(name, count): call(count) for name, call in mine.items() for count in COUNTS}
    made, problems = [0] * threads, []
    end = time.monotonic() + seconds

    def caller(number: int) -> None:
        rng = random.Random(seed * 1000 + number)
        while not problems and (made[number] == 0 or time.monotonic() < end):
            name = rng.choice(list(mine))
            torch.set_num_threads(rng.randint(1, 4))  # of this thread
            for count in rng.sample(COUNTS, 3):
                try:
                    right = same(mine[name](count), expected[name, count])
                except Exception as error:
                    problems.append(f"{name}, {count} matrices, seed {seed}: {type(error).__name__}: {error}")
                    return
                if not right:
                    problems.append(f"{name}, {count} matrices: other bits (seed {seed}, caller {number})")
                made[number] += 1

    callers = [threading.Thread(target=caller, args=(number,)) for number in range(threads)]
    for one in callers:
        one.start()
    for one in callers:
        one.join()
    return sum(made), problems
