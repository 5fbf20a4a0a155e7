"""How exact the GPU pipeline is at the sizes of layers, on a machine without a GPU: prints a markdown table.

    python -m benchmarks.gpu_accuracy [--sizes 256x256 768x256] [--members graded all_equal]

CUDA kernels run in tests/cuda_emulator, Triton kernels in triton's interpreter: half a minute for the largest
matrix and chip. An error is the largest of any value, in eps sigma_1: of the band, of the bidiagonal, and of
what comes out, the first two by LAPACK in float64; beside them torch's on the same matrix. The last column is
the worst error as a part of what the contract allows (tests/oracles/accuracy.py).

The interpreter leaves a product to BLAS. Compiled, a dot is one chain of FMAs that begins with the sum it is
given, and errs more: so do the products here, each FMA in float64 and rounded. --blas: as in the tests.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Iterator
from typing import Any
from unittest.mock import patch

os.environ["TRITON_INTERPRET"] = "1"  # triton looks when it is imported

import numpy as np
import torch
from torch import Tensor
from triton.runtime.interpreter import InterpreterBuilder, TensorHandle

from spectral_fast.cuda import pipeline
from spectral_fast.cuda.workspace import Chip
from spectral_fast.heuristics import CUDA_BLOCK as BLOCK
from tests.cuda_emulator import Emulator
from tests.oracles.accuracy import exact_values, judge
from tests.oracles.zoo import ZOO

CHIPS = {
    "double": Chip(227 * 1024, fast_float64=True),  # sm_90: the small stages in float64
    "float": Chip(99 * 1024, fast_float64=False),  # sm_89: float32 throughout
}
SIZES = ("256x256", "512x512", "768x768", "768x256")
MEMBERS = (
    "gaussian",
    "power_law",
    "graded",
    "rank_deficient",
    "one_huge_entry",
    "all_equal",
    "two_clusters",
    "repeated",
)


def chain_dot(builder: Any, a: Any, b: Any, d: Any, precision: Any, imprecise: Any) -> TensorHandle:
    """d + a b, term by term: an FMA each. The product of two float32 is exact in float64."""
    total = d.data
    if total.dtype == np.float32:
        x, y = a.data.astype(np.float64), b.data.astype(np.float64)
        for k in range(x.shape[1]):
            total = (total + x[:, k, None] * y[k]).astype(np.float32)
    else:
        for k in range(a.data.shape[1]):
            total = total + a.data[:, k, None] * b.data[k]
    return TensorHandle(total, d.dtype.scalar)


def values(A: Tensor, chip: Chip) -> tuple[Tensor, dict[str, Tensor]]:
    """By the pipeline, of one matrix on the CPU, m >= n; and those of what the stages leave."""
    n = A.shape[-1]
    found: dict[str, Tensor] = {}
    scale = 2.0 ** (torch.frexp(A.abs().max().double()).exponent - 1)  # load's

    def bidiagonal(of: Any, a: Tensor, *size: int) -> tuple[Tensor, Tensor]:
        found["band"] = torch.linalg.svdvals(a[0, :n, :n].triu().tril(BLOCK).double()) * scale
        d, e = stage(of, a, *size)
        B = torch.diag(d[0].double()) + torch.diag(e[0, :-1].double(), 1)
        found["bidiagonal"] = torch.linalg.svdvals(B) * scale
        return d, e

    S, info = A.new_empty((1, n)), torch.zeros(1, dtype=torch.int32)
    stage = pipeline._bidiagonal
    with patch.object(pipeline, "_bidiagonal", bidiagonal), patch.object(pipeline, "launch", Emulator()):
        pipeline.svdvals(A[None], S, info, chip)
    if info.item():
        raise RuntimeError(f"info = {info.item()}")
    return S[0], found


def rows(sizes: list[str], members: list[str], chips: list[str], dtype: torch.dtype) -> Iterator[str]:
    eps = torch.finfo(dtype).eps
    shown = "values" if dtype == torch.float64 else "band, bidiagonal, values"
    heads = [f"{chip}: {shown}" for chip in chips]
    yield "| m x n | matrix | " + " | ".join(heads) + " | torch | of what is allowed |"
    yield "|---" * (4 + len(chips)) + "|"
    for size in sizes:
        m, n = map(int, size.split("x"))
        for name in members:
            A = ZOO[name](m, n, torch.Generator().manual_seed(0)).to(dtype)
            exact = exact_values(A)
            unit = eps * float(exact[0])
            cells, worst = [], 0.0
            for chip in chips:
                got, stages = values(A, CHIPS[chip])
                found = judge(A, got, exact)
                if dtype == torch.float64:  # LAPACK's own errors would show
                    stages.clear()
                errors = [float(np.abs(S.numpy() - exact).max()) for S in stages.values()]
                cells.append(", ".join(f"{x / unit:.2f}" for x in (*errors, found.error)))
                worst = max(worst, found.error / found.allowed)
            cells.append(f"{found.torch_error / unit:.2f}")
            yield f"| {size} | {name} | " + " | ".join(cells) + f" | {worst:.0%} |"


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu_accuracy")
    parser.add_argument("--sizes", nargs="+", default=list(SIZES), metavar="MxN")
    parser.add_argument("--members", nargs="+", default=list(MEMBERS), choices=list(ZOO), metavar="NAME")
    parser.add_argument("--chips", nargs="+", default=list(CHIPS), choices=list(CHIPS))
    parser.add_argument("--dtype", default="float32", choices=["float32", "float64"])
    parser.add_argument("--blas", action="store_true", help="products by BLAS, as in the tests")
    args = parser.parse_args()
    torch.set_num_threads(1)  # small products; threads would wait for each other
    if not args.blas:
        InterpreterBuilder.create_dot = chain_dot
    start = time.monotonic()
    for row in rows(args.sizes, args.members, args.chips, getattr(torch, args.dtype)):
        print(row, flush=True)
    print(f"\n{'BLAS' if args.blas else 'Chains of FMAs'}. {time.monotonic() - start:.0f} s.")


if __name__ == "__main__":
    main()
