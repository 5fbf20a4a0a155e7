"""Ten thousand looks leave nothing behind."""

from __future__ import annotations

import gc
from pathlib import Path

import pytest
import torch
from torch import nn

from spectral_fast.monitor import Look, SpectralMonitor

LOOKS = 10_000


def resident_bytes() -> int:
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return pages * 4096


def objects() -> int:
    gc.collect()
    return len(gc.get_objects())


@pytest.mark.parametrize(
    ("n", "every"),
    [
        # Looked at exactly by the tracker too: the monitor's own objects.
        pytest.param(8, 10, id="small"),
        # The least that is tracked: 4 ms a look.
        pytest.param(256, 25, id="tracked", marks=pytest.mark.slow),
    ],
)
def test_nothing_is_left_behind(n: int, every: int) -> None:
    model = nn.Sequential(nn.Linear(n, n, bias=False), nn.Linear(n, n, bias=False))
    kinds: dict[str, int] = {}

    def count(look: Look) -> None:
        kinds[look.kind] = kinds.get(look.kind, 0) + 1

    with SpectralMonitor(model, every=every, budget=None, sinks=[count]) as monitor:

        def go(steps: int) -> None:
            for _ in range(steps):
                with torch.no_grad():
                    model[0].weight.mul_(1.0001)
                monitor.step()

        go(LOOKS // 5)  # medians, allocator and caches fill
        before_objects, before_bytes = objects(), resident_bytes()
        go(LOOKS - LOOKS // 5)
        # Of 8000 looks, each leaving one object, or a kilobyte, would show.
        assert objects() - before_objects < 800
        assert resident_bytes() - before_bytes < 8000 * 1024
        assert monitor.report().looks["tracked"] > 0.8 * LOOKS
