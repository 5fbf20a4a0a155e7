"""May the products of `band` use tf32x3? A model of its rounding on the CPU: python -m benchmarks.tf32x3

Triton's input_precision="tf32x3" multiplies float32 on tensor cores. Compiled by 3.7.1 for sm_80 and sm_90,

    hi = x to 10 bits of mantissa, ties away (cvt.rna.tf32)     lo = x - hi, exactly

of both operands. The tensor core reads 10 bits of the mantissa of lo, which has 11 at most: hi + lo is x but
for a last bit, 2^-23 of the power of two below |x|. For each step of STEP terms, from zero and in this order,

    c <- c + lo hi',   c <- c + hi lo',   c <- c + hi hi'       some products at a time
    total <- total + c                                          outside, rounded to nearest

lo lo', which is left out, is at most 2^-22 |x x'|. What tensor cores do with c + x_1 y_1 + ... is measured,
not documented: products are exact, addends are aligned to the largest and cut off, and the sum is truncated
toward zero (Fasi, Higham, Mikaitis, Pranesh: Numerical behavior of NVIDIA tensor cores, PeerJ CS 7:e330,
2021). Ootomo and Yokota (Recovering single precision accuracy from tensor cores, arXiv 2203.03341, 2022) keep
`total` outside because of it. For tf32 the H100 adds 8 products with two bits below the last of the largest,
A100 and Ada 4 with one (Khattak, Mikaitis: Accurate models of NVIDIA tensor cores, arXiv 2512.07004, 2025).

Rounding to nearest errs either way. Truncation makes every c smaller, by 2^-24 on the average or more, so
that W and Y come out as (1 - delta) W and (1 - delta) Y; and I - (1 - delta) V T V^T takes 2 delta off the
length of what it reflects, with the same sign in each block: the errors of blocks add up.

The reduction here is that of spectral_fast/triton/band.py, the products by the arithmetic in question, panels
factored in float64 and rounded. The values of its band are LAPACK's in float64: no other stage errs.

It may not be used. Of equal values at n = 256 the band alone errs by 9 to 10 eps, where svdvals, all stages
together, may err by 8.4 to 9.4 (twice LAPACK's, which depends on its threads); plain float32 makes 4.
Repeated and clustered values come to 4 to 7, about or above the 4 that hold whatever another SVD does.
Rounding to nearest would do: it is truncation that decides.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from tests.oracles.accuracy import constant
from tests.oracles.zoo import ZOO

BLOCK, STEP = 32, 16  # spectral_fast/triton/band.py
MANTISSA = 23
Product = Callable[[Tensor, Tensor], Tensor]  # of float32 matrices


def to_tf32(x: Tensor) -> Tensor:
    """To nearest, ties away from zero: cvt.rna.tf32.f32. x is finite."""
    return ((x.view(torch.int32) + (1 << 12)) & -(1 << 13)).view(torch.float32)


def read_tf32(x: Tensor) -> Tensor:
    """What a tensor core reads of a float32."""
    return (x.view(torch.int32) & -(1 << 13)).view(torch.float32)


def split(x: Tensor) -> tuple[Tensor, Tensor]:
    hi = to_tf32(x)
    return hi, read_tf32(x - hi)


def truncate(x: Tensor) -> Tensor:
    """float64 to 24 bits, toward zero."""
    return (x.view(torch.int64) & -(1 << (52 - MANTISSA))).view(torch.float64)


def nearest(x: Tensor) -> Tensor:
    return x.float().double()


@dataclass(frozen=True)
class TensorCore:
    """c + x y for a group of columns of x. What is in float64 is a number of float32 or a sum of products."""

    rounded: Callable[[Tensor], Tensor]
    group: int = 8
    guard: int | None = None  # bits beyond MANTISSA of an addend; None: all

    def add(self, c: Tensor, x: Tensor, y: Tensor) -> Tensor:
        if self.guard is None:
            return self.rounded(torch.addmm(c, x, y))
        addends = torch.cat([c[None], x.T[:, :, None] * y[:, None, :]])
        _, exponent = torch.frexp(addends.abs().amax(0))
        unit = torch.ldexp(torch.ones_like(c), exponent - 1 - MANTISSA - self.guard)
        return self.rounded((addends / unit).trunc_().sum(0) * unit)


def tf32x3(core: TensorCore, outside: bool = True) -> Product:
    """outside: each step is summed from zero and added in float32, as Triton does; else all in the core."""

    def product(x: Tensor, y: Tensor) -> Tensor:
        (x_hi, x_lo), (y_hi, y_lo) = ([part.double() for part in split(z)] for z in (x, y))
        total = torch.zeros(x.shape[0], y.shape[1], dtype=torch.float64)
        for step in range(0, x.shape[1], STEP):
            c = torch.zeros_like(total) if outside else total
            for left, right in ((x_lo, y_hi), (x_hi, y_lo), (x_hi, y_hi)):
                for k in range(step, min(step + STEP, x.shape[1]), core.group):
                    c = core.add(c, left[:, k : k + core.group], right[k : k + core.group])
            total = nearest(total + c) if outside else c
        return total.float()

    return product


def tf32(x: Tensor, y: Tensor) -> Tensor:
    """Plain TF32, for comparison: the best it can do."""
    return (to_tf32(x).double() @ to_tf32(y).double()).float()


def chain(x: Tensor, y: Tensor) -> Tensor:
    """input_precision="ieee" as one sum: a float32 FMA for each term, one after the other."""
    left, right = x.double(), y.double()
    total = torch.zeros(x.shape[0], y.shape[1], dtype=torch.float64)
    for k in range(x.shape[1]):
        total = nearest(torch.addcmul(total, left[:, k, None], right[k]))
    return total.float()


def plain(x: Tensor, y: Tensor) -> Tensor:
    """What band.py does: steps from zero, added up. BLAS stands for the FMAs of a step."""
    total = torch.zeros(x.shape[0], y.shape[1])
    for k in range(0, x.shape[1], STEP):
        total += x[:, k : k + STEP] @ y[k : k + STEP]
    return total


def exact(x: Tensor, y: Tensor) -> Tensor:
    return (x.double() @ y.double()).float()


def factor(panel: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """V, T and R with (I - V T V^T)^T panel = R: LAPACK's in float64, T made for V as it is rounded."""
    packed, tau = torch.geqrf(panel.double())
    v = packed.tril(-1).float()
    v.diagonal().copy_(tau != 0)  # the last reflector of a square panel is none
    gram = v.double().T @ v.double()
    # I - V T V^T is orthogonal for T^-1 + T^-T = V^T V.
    t = torch.linalg.inv(gram.triu(1) + torch.diag(gram.diagonal() / 2 + (tau == 0)))
    return v, t.float(), packed.triu().float()


def band(a: Tensor, multiply: Product) -> Tensor:
    """a (n, n) in float32 -> the upper band with the same values, but for rounding."""
    a, n = a.clone(), len(a)
    for top in range(0, n, BLOCK):
        end = top + BLOCK
        v, t, r = factor(a[top:, top:end])
        a[top:, top:end] = r
        if end == n:
            break
        rows, below = a[top:end, end:], a[end:, end:]
        w = multiply(t.T.contiguous(), multiply(v.T.contiguous(), a[top:, end:]))
        rows -= multiply(v[:BLOCK], w)
        v2, t2, r2 = factor(rows.T)
        rows.copy_(r2.T)
        y = multiply(below, v2) - multiply(v[BLOCK:], multiply(w, v2))
        y = multiply(y, t2)
        below -= multiply(torch.cat([v[BLOCK:], y], 1), torch.cat([w, v2.T]))
    return a


def error(a: Tensor, multiply: Product) -> float:
    """Of any value, at most, in eps sigma_1."""
    return distance(torch.linalg.svdvals(band(a, multiply).double()), a)


def distance(got: Tensor, a: Tensor) -> float:
    want = torch.linalg.svdvals(a.double())
    return float((got - want).abs().max() / want[0]) / torch.finfo(torch.float32).eps


ARITHMETICS: dict[str, Product] = {
    "exact": exact,
    "plain float32": plain,
    "tf32x3, to nearest": tf32x3(TensorCore(nearest)),
    "tf32x3, truncated": tf32x3(TensorCore(truncate)),
    "tf32x3, all in the core": tf32x3(TensorCore(truncate), outside=False),
}
SMALL_ONLY: dict[str, Product] = {
    "one chain": chain,
    "tf32x3 of an H100": tf32x3(TensorCore(truncate, 8, guard=2)),
    "tf32x3 of an A100": tf32x3(TensorCore(truncate, 4, guard=1)),
    "tf32": tf32,
}
SMALL, LARGE = 256, 768
SPECTRA = ("gaussian", "power_law", "rank_deficient", "repeated", "two_clusters", "all_equal")


def main() -> None:
    torch.set_num_threads(1)  # small products; threads would wait for each other
    print("Largest error of a value after `band`, in eps sigma_1\n")
    names = [*ARITHMETICS, *SMALL_ONLY]
    print(f"| n | matrix | allowed | {' | '.join(names)} |\n" + "|---" * (3 + len(names)) + "|")
    for n, spectra in ((SMALL, SPECTRA), (LARGE, SPECTRA[2::3])):
        for spectrum in spectra:
            a = ZOO[spectrum](n, n, torch.Generator().manual_seed(0)).float()
            # Of svdvals, all stages together: tests/oracles/accuracy.py.
            allowed = max(constant(n), 2 * distance(torch.linalg.svdvals(a), a))
            cells = [f"{error(a, multiply):.2f}" for multiply in ARITHMETICS.values()]
            for multiply in SMALL_ONLY.values():
                cells.append(f"{error(a, multiply):.2f}" if n == SMALL else "")
            print(f"| {n} | {spectrum} | {allowed:.2f} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
