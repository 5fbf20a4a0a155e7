"""The shape grid for 'never slower than torch', ordered so that any prefix covers it evenly."""

from __future__ import annotations

from benchmarks.cases import Case

# Powers of two with their neighbours, where vector widths and block sizes leave remainders; then layer sizes.
SIZES = (
    *(1, 2, 3, 7, 8, 9, 15, 16, 17, 31, 32, 33, 63, 64, 65, 127, 128, 129, 255, 256, 257, 511, 512, 513),
    *(768, 1024, 2048, 4096),
)
BATCHES = (1, 8, 64)


def grid_cases(max_n: int | None = None) -> list[Case]:
    """Every shape of the grid with both dimensions up to max_n, in every batch.

    A shape (i, j) comes at max(rank i, rank j), where rank counts the sizes in the order of halved gaps
    (first, middle, quarters, ...): after r² shapes an r x r sub-grid is done that is spread over the whole.
    """
    sizes = [size for size in SIZES if max_n is None or size <= max_n]
    rank = {sizes[index]: place for place, index in enumerate(halved_gaps(len(sizes)))}
    shapes = [(m, n) for m in sizes for n in sizes]
    shapes.sort(key=lambda shape: (max(rank[shape[0]], rank[shape[1]]), rank[shape[0]] + rank[shape[1]]))
    return [
        Case(m, n, count, calls=("single",) if count == 1 else ("batch",))
        for m, n in shapes
        for count in BATCHES
    ]


def halved_gaps(length: int) -> list[int]:
    """0 ... length - 1 in bit-reversed order: each new index falls into the middle of a largest gap."""
    bits = max(1, (length - 1).bit_length())
    reversed_bits = (int(f"{i:0{bits}b}"[::-1], 2) for i in range(2**bits))
    return [index for index in reversed_bits if index < length]
