"""The same bits with any number of threads and among any other matrices."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor

MATRICES = 5
_PLACES = ([0, 1, 2, 3, 4], [4, 0], [3])
_THREADS = (1, 2, 3, 5)


def check_threads_and_places(run: Callable[[list[int]], Iterable[Tensor]]) -> None:
    """run: the outputs, each with an entry a matrix, for those of its MATRICES that are at these places.

    A matrix should be worth several threads (5e6 flops each).
    """
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        expected = list(run(list(range(MATRICES))))
        for count in _THREADS:
            torch.set_num_threads(count)
            for where in _PLACES:
                for got, want in zip(run(where), expected, strict=True):
                    assert torch.equal(got, want[where]), (count, where)
    finally:
        torch.set_num_threads(before)
