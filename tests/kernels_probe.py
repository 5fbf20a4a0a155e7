"""Every path of the kernels, without torch: tests/test_build.py runs this with other builds of _cpu.

    python kernels_probe.py PATH_OF_THE_MODULE

Checks values and that no thread count changes a bit. Prints a digest of all values for each instruction set.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import sys
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

SHAPES = [
    *((m, n) for m in range(1, 21) for n in range(1, 21)),
    *((1, 90), (90, 1), (17, 33), (140, 130), (70, 300), (1500, 20), (129, 400), (300, 270)),
]


def load(path: str) -> Any:
    spec = importlib.util.spec_from_file_location("spectral_fast._cpu", path)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def svdvals(cpu: Any, a: Any, threads: int) -> Any:
    *batch, m, n = a.shape
    s, info = np.empty((*batch, min(m, n)), a.dtype), np.empty(batch, np.int32)
    strides = tuple(x // a.itemsize for x in a.strides)
    element = cpu.element_types[a.dtype.name]
    assert cpu.svdvals(a.ctypes.data, element, a.shape, strides, s.ctypes.data, info.ctypes.data, threads)
    return s


def digest(cpu: Any) -> str:
    rng = np.random.default_rng(1)
    digest = hashlib.sha256()
    for dtype, tolerance in ((np.float32, 1e-5), (np.float64, 1e-13)):
        for m, n in SHAPES:
            order = "CF"[(m + n) % 2]
            a = np.array(rng.standard_normal((5, m, n)), dtype=dtype, order=order)
            s = svdvals(cpu, a, 2)
            exact = np.linalg.svd(a.astype(np.float64), compute_uv=False)
            assert np.abs(s - exact).max() <= tolerance * exact.max(), (m, n)
            digest.update(s.tobytes())
            for threads in (1, 4):
                assert (svdvals(cpu, a, threads) == s).all(), (m, n, threads)
            if m * n > 400:
                assert (svdvals(cpu, a[:1], 2) == s[:1]).all(), (m, n)
        for order in (63, 64):  # the longest groups
            group = np.asarray(rng.standard_normal((33, order, order)), dtype)
            digest.update(svdvals(cpu, group, 2).tobytes())
    return digest.hexdigest()


def callers_at_once(cpu: Any) -> None:
    a = np.random.default_rng(2).standard_normal((9, 60, 40))
    one = np.random.default_rng(3).standard_normal((1, 260, 260))
    expected = svdvals(cpu, a, 1), svdvals(cpu, one, 1)

    def call(_: int) -> bool:
        return all(
            (svdvals(cpu, a, 3) == expected[0]).all() and (svdvals(cpu, one, 2) == expected[1]).all()
            for _ in range(5)
        )

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(call, range(4)))


def fork(cpu: Any) -> None:
    a = np.random.default_rng(4).standard_normal((9, 60, 40))
    expected = svdvals(cpu, a, 3)
    # TSan does not know threads that a child of several threads starts.
    threads = 1 if "tsan" in os.environ.get("LD_PRELOAD", "") else 3
    child = os.fork()
    if child == 0:
        os._exit(0 if (svdvals(cpu, a, threads) == expected).all() else 1)
    assert os.waitpid(child, 0)[1] == 0


def main() -> None:
    cpu = load(sys.argv[1])
    digests = {}
    for isa in cpu.runnable_isas():
        cpu.use_isa(isa)
        digests[isa] = digest(cpu)
    callers_at_once(cpu)
    fork(cpu)
    print(json.dumps(digests))


if __name__ == "__main__":
    main()
