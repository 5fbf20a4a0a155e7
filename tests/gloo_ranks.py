"""Processes with a gloo group that stay and run one function after another: starting them takes seconds."""

from __future__ import annotations

import datetime
import os
import tempfile
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection, wait
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

SECONDS = 60  # for any one function; a rank that hangs fails the test instead
# Imported once, before the processes part.
PRELOAD = ["torch._dynamo", "torch.distributed.fsdp", "torch.distributed.tensor.parallel", "spectral_fast"]


def _serve(rank: int, size: int, store: str, orders: Connection) -> None:
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    limit = datetime.timedelta(seconds=SECONDS)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=size, timeout=limit)
    while (order := orders.recv()) is not None:
        function, args = order
        torch.manual_seed(20260422)
        try:
            orders.send((True, function(*args)))
        except BaseException:
            orders.send((False, traceback.format_exc()))
    dist.destroy_process_group()


class GlooRanks:
    """``size`` processes; call(function, *args) runs function(*args) on each, in their default group.

    After a failure they are started anew: nobody knows who waits for whom.
    """

    def __init__(self, size: int) -> None:
        self._size = size
        self._start()

    def call(self, function: Callable[..., Any], *args: Any) -> list[Any]:
        """What each rank returned, as plain data: tensors would have to be shared between processes."""
        for _, orders in self._ranks:
            orders.send((function, args))
        results: dict[int, Any] = {}
        try:
            while len(results) < self._size:
                pending = {o: rank for rank, (_, o) in enumerate(self._ranks) if rank not in results}
                ready = wait(list(pending), timeout=SECONDS)
                assert ready, f"ranks {sorted(pending.values())} did not answer in {SECONDS} s"
                for orders in ready:
                    assert isinstance(orders, Connection)
                    fine, result = orders.recv()
                    assert fine, f"rank {pending[orders]}:\n{result}"
                    results[pending[orders]] = result
        except BaseException:
            self._kill()
            self._start()
            raise
        return [results[rank] for rank in range(self._size)]

    def close(self) -> None:
        for _, orders in self._ranks:
            orders.send(None)
        for process, _ in self._ranks:
            process.join(5)
        self._kill()

    def _start(self) -> None:
        context = mp.get_context("forkserver")
        context.set_forkserver_preload(PRELOAD)
        self._folder = tempfile.TemporaryDirectory()
        self._ranks = []
        for rank in range(self._size):
            ours, theirs = context.Pipe()
            store = f"{self._folder.name}/store"
            process = context.Process(target=_serve, args=(rank, self._size, store, theirs), daemon=True)
            process.start()
            self._ranks.append((process, ours))

    def _kill(self) -> None:
        for process, _ in self._ranks:
            process.kill()
            process.join()
        self._folder.cleanup()
