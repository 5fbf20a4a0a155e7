"""Every threaded kernel, without torch, on batches that shrink and grow: for builds with sanitizers.

    python -m tests.reliability.stress_kernels PATH_OF_THE_MODULE SECONDS [SEED]

Several Python threads call with 1 to 5 threads each and compare the bits with those of one thread.
"""

from __future__ import annotations

import random
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from tests.kernels_probe import gram_product, load, look, statistics, svdvals

CALLERS = 3
COUNTS = (7, 5, 3, 2, 1)
Call = Callable[[int, int], list[Any]]  # (matrices, threads) -> results, a row for each matrix


def calls(cpu: Any) -> dict[str, Call]:
    """Each computes the first matrices of a batch of its own."""
    rng = np.random.default_rng(8)
    most = max(COUNTS)
    found: dict[str, Call] = {}
    # Groups, direct, the whole walk with threads inside, reduced first, more columns than rows.
    for m, n in ((6, 5), (40, 30), (70, 66), (300, 140), (140, 150), (400, 35)):
        for dtype in (np.float32, np.float64):
            a = rng.standard_normal((most, m, n)).astype(dtype)
            found[f"svdvals {m}x{n} {dtype.__name__}"] = lambda c, t, a=a: [svdvals(cpu, a[:c], t)]
    a = rng.standard_normal((most, 400, 140)).astype(np.float32)
    found["gram driver"] = lambda c, t, a=a: [svdvals(cpu, a[:c], t, gram=True)]
    for m, n, columns in ((500, 330, 16), (330, 500, 3)):
        a = rng.standard_normal((most, m, n)).astype(np.float32)
        x = rng.standard_normal((most, n, columns)).astype(np.float32)
        found[f"products {m}x{n}"] = lambda c, t, a=a, x=x: list(gram_product(cpu, a[:c], x[:c], t))
    for probes, drift in ((0, 0), (9, 4)):
        a = (rng.standard_normal((most, 500, 300)) / np.arange(1, 301) ** 0.3).astype(np.float32)
        rest = [rng.standard_normal((most, 300, k)).astype(np.float32) for k in (16, probes, drift)]
        rest[0] = np.linalg.qr(rest[0])[0].astype(np.float32)
        fresh = rng.standard_normal((most, 300)).astype(np.float32)
        found[f"look {probes}"] = lambda c, t, a=a, r=rest, f=fresh: look(
            cpu, a[:c], *(np.ascontiguousarray(x[:c]) for x in (*r, f)), t
        )
    spectra = (1 - rng.random((most * 40, 300))) ** -0.7
    found["statistics"] = lambda c, t: [np.frombuffer(statistics(cpu, spectra[: c * 40], t), np.uint8)]
    return found


def same(found: list[Any], expected: list[Any], count: int) -> bool:
    return all(
        (x.view(np.uint8) == y[: len(x)].view(np.uint8)).all() for x, y in zip(found, expected, strict=True)
    )


def stress(cpu: Any, seconds: float, seed: int) -> tuple[int, list[str]]:
    """How many calls were made, and those whose bits differed."""
    # Bits of one thread; of the statistics, whose results are one buffer, for each count.
    mine = calls(cpu)
    expected = {(name, c): call(c, 1) for name, call in mine.items() for c in COUNTS}
    wrong: list[str] = []
    made = [0] * CALLERS
    end = time.monotonic() + seconds

    def caller(number: int) -> None:
        rng = random.Random(seed * CALLERS + number)
        while not wrong and (made[number] == 0 or time.monotonic() < end):
            name, threads = rng.choice(list(mine)), rng.randint(2, 5)
            # A large batch wakes the threads; smaller ones follow while they spin.
            for count in rng.sample(COUNTS, 4):
                if not same(mine[name](count, threads), expected[name, count], count):
                    wrong.append(f"{name}, {count} matrices, {threads} threads, seed {seed}")
                made[number] += 1

    callers = [threading.Thread(target=caller, args=(number,)) for number in range(CALLERS)]
    for thread in callers:
        thread.start()
    for thread in callers:
        thread.join()
    return sum(made), wrong


def main() -> None:
    seed = int(sys.argv[3]) if len(sys.argv) > 3 else 1
    made, wrong = stress(load(sys.argv[1]), float(sys.argv[2]), seed)
    print(f"{made} calls, {len(wrong)} with other bits {'; '.join(wrong)}")
    sys.exit(bool(wrong))


if __name__ == "__main__":
    main()
