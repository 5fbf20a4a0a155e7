"""tracked_look: the compiled look against the same in float64 torch, and the same bits however it runs."""

from __future__ import annotations

from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from spectral_fast import _ops
from spectral_fast.backends import reference
from spectral_fast.look import Look, Probes, Repeat
from tests.same_bits import MATRICES, check_threads_and_places

# (m, n, vectors, probes, of them for the drift): pieces of 128 rows; registers hold 2 to 16 columns.
SHAPES = [
    (300, 256, 32, 16, 4),
    (130, 129, 33, 5, 1),
    (200, 300, 17, 16, 4),
    (40, 30, 2, 0, 0),
    (128, 100, 70, 20, 9),
]
NEVER, ALWAYS = Repeat(1e9, 1, 4), Repeat(0.0, 1, 3)


class Problem(NamedTuple):
    A: list[Tensor]
    V: Tensor
    fresh: Tensor
    probes: Probes | None

    def look(self, repeat: Repeat, of: Any = _ops.tracked_look) -> Look:
        kept = (None, None, None) if self.probes is None else self.probes
        return Look(*of(self.A, self.V, self.fresh, *kept, *repeat))

    def part(self, where: list[int]) -> Problem:
        probes = None if self.probes is None else Probes(*(x[where] for x in self.probes))
        return Problem([self.A[i] for i in where], self.V[where], self.fresh[where], probes)

    def double(self) -> Problem:
        probes = None if self.probes is None else Probes(*(x.double() for x in self.probes))
        return Problem([a.double() for a in self.A], self.V.double(), self.fresh.double(), probes)


def problem(
    m: int, n: int, s: int, p: int, d: int, dtype: torch.dtype = torch.float32, count: int = 3
) -> Problem:
    """Matrices with decaying values, and vectors near their leading ones."""
    compute = _ops.compute_dtype(dtype)
    decay = torch.arange(1, n + 1, dtype=torch.float64) ** -0.3
    A = [torch.randn(m, n, dtype=torch.float64) * decay for _ in range(count)]
    right = torch.stack([torch.linalg.svd(a)[2][:s].mT for a in A])
    V = torch.linalg.qr(right + 0.01 * torch.randn(count, n, s, dtype=torch.float64)).Q.to(compute)
    probes = None
    if p:
        vectors = torch.randn(count, n, p, dtype=compute)
        images = torch.stack([a.mT @ (a @ x.double()) for a, x in zip(A, vectors[..., p - d :], strict=True)])
        line = torch.rand(count, 2, dtype=torch.float64)
        probes = Probes(vectors, (1.1 * images).to(compute), line)
    return Problem([a.to(dtype) for a in A], V, torch.randn(count, n, dtype=compute), probes)


def check(given: Problem, repeat: Repeat) -> None:
    """Against float64 from the same numbers.

    A product errs by g = (sqrt m + sqrt n + 2) u |A|_F^2 (test_gram_product), the sums of a piece by less.
    T and G take over twice that, and so do their eigenvalues. The span of Z turns by at most g sqrt(s) over
    its least singular value.
    """
    found, exact = given.look(repeat), given.double().look(repeat, reference.tracked_look)
    m, n = given.A[0].shape
    s = given.V.shape[-1]
    g = (m**0.5 + n**0.5 + 2) * torch.finfo(given.V.dtype).eps / 2 * exact.energy
    assert ((found.energy - exact.energy).abs() <= g).all()
    assert ((found.squares - exact.squares).abs() <= 4 * g[:, None]).all()
    # Differences of Ritz values, relative; the last of them may be divided by a gap of 0.01.
    assert ((found.pending - exact.pending).abs() <= 400 * g[:, None] / exact.squares).all()
    turned = (4 * g * s**0.5 / exact.squares[:, -1])[:, None, None]
    span, true = (x.vectors.double() @ x.vectors.double().mT for x in (found, exact))
    assert ((span - true).abs() <= turned).all()
    unit = found.vectors.double().mT @ found.vectors.double()
    assert ((unit - torch.eye(s)).abs() <= turned).all()
    if given.probes is None:
        assert found.bulk.isnan().all()
    else:
        # Sums of products of entries that are each off by g at most, relative to |A|_F^2.
        torch.testing.assert_close(found.bulk, exact.bulk, rtol=float(8 * (g / exact.energy).max()), atol=0)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_the_same_as_in_double(isa: str, shape: tuple[int, int, int, int, int]) -> None:
    for dtype in (torch.float32, torch.float64):
        for repeat in (NEVER, ALWAYS):
            check(problem(*shape, dtype=dtype), repeat)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_halves_and_strides(dtype: torch.dtype) -> None:
    given = problem(140, 100, 20, 16, 4, dtype=dtype)
    check(given, NEVER)
    expected = given.look(NEVER)
    turned = given._replace(
        A=[given.A[0].mT.contiguous().mT, given.A[1].clone(), given.A[2].mT.contiguous().mT]
    )
    check(turned, NEVER)
    for got, want in zip(turned.look(NEVER), expected, strict=True):
        assert torch.equal(got[1], want[1])


def test_threads_and_places_change_no_bit(isa: str) -> None:
    """Matrices worth several threads (5e6 flops each), apart and, one of them, together."""
    given = problem(500, 330, 20, 16, 4, count=MATRICES)
    check_threads_and_places(lambda where: given.part(where).look(ALWAYS))


def test_what_is_not_finite_stays_in_its_matrix(isa: str) -> None:
    given = problem(150, 140, 20, 16, 4)
    expected = given.look(NEVER)
    given.A[1][3, 5] = torch.nan
    found = given.look(NEVER)
    for got, want in zip(found, expected, strict=True):
        assert torch.equal(got[[0, 2]], want[[0, 2]])
    assert found.squares[1].isnan().all()
    assert found.pending[1].isnan().all()
    assert found.bulk[1].isnan().all()
    # Its vectors are those handed in, but for the last.
    assert torch.equal(found.vectors[1, :, :-1], given.V[1, :, :-1])
    assert found.vectors[1].isfinite().all()


def test_fewer_directions_than_vectors_are_left_to_torch(isa: str) -> None:
    given = problem(150, 140, 20, 16, 4)
    expected = given.look(ALWAYS)
    given.A[2][:] = torch.randn(150, 3) @ torch.randn(3, 140)
    given.A[0].zero_()
    found = given.look(ALWAYS)
    for got, want in zip(found, expected, strict=True):
        assert torch.equal(got[1], want[1])
    twin = given.part([0, 2]).look(ALWAYS, reference.tracked_look)
    for got, want in zip(found, twin, strict=True):
        torch.testing.assert_close(got[[0, 2]], want, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("scale", [1e-8, 1e8])
def test_any_size(scale: float) -> None:
    given = problem(150, 140, 20, 16, 4)
    small = given._replace(A=[a * scale for a in given.A], probes=None)
    expected = given.look(NEVER).squares
    torch.testing.assert_close(small.look(NEVER).squares, expected * scale**2, rtol=1e-5, atol=0)


def test_spectra_that_are_hard_for_an_eigenvalue_solver(isa: str) -> None:
    """All values equal, and values apart by factors that leave an exactly diagonal problem."""
    n, s = 64, 8
    unit = torch.eye(n, dtype=torch.float64)
    steps = 2.0 ** torch.arange(0, -n, -1, dtype=torch.float64).clamp_min(-20)
    given = Problem(
        [3 * unit, unit * steps], torch.stack([unit[:, :s]] * 2), torch.randn(2, n).double(), None
    )
    found = given.look(NEVER)
    torch.testing.assert_close(found.squares[0], torch.full((s,), 9.0).double(), rtol=1e-15, atol=0)
    torch.testing.assert_close(found.squares[1], steps[:s] ** 2, rtol=1e-15, atol=0)
    for vectors in found.vectors:
        torch.testing.assert_close(vectors.mT @ vectors, torch.eye(s).double(), rtol=0, atol=1e-14)


def test_refusals() -> None:
    given = problem(50, 40, 8, 6, 2)
    assert given.probes is not None
    vectors, images, line = given.probes
    A, V, fresh, repeat = given.A, given.V, given.fresh, tuple(NEVER)
    for args, said in (
        (([], V, fresh, None, None, None), "no matrices"),
        (([A[0], A[1], A[2][:-1]], V, fresh, None, None, None), r"of one shape.* and, at 2, \(49, 40\)"),
        ((A, V[:2], fresh, None, None, None), r"takes V \(3, 40, s\)"),
        ((A, V[..., :1], fresh, None, None, None), "2 <= s <= 40"),
        ((A, V.double(), fresh, None, None, None), r"takes V .* of torch.float32"),
        ((A, V, fresh[:, 1:], None, None, None), r"takes fresh \(3, 40\)"),
        ((A, V, fresh, vectors, None, line), "all of probes, reference and line, or none"),
        ((A, V, fresh, images, vectors, line), "0 < d < p"),
        ((A, V, fresh, vectors, images, line.float()), r"takes line \(3, 2\) of torch.float64"),
    ):
        for call in (_ops.tracked_look, reference.tracked_look):
            with pytest.raises(ValueError, match=said):
                call(*args, *repeat)
    with pytest.raises(TypeError, match=r"not torch\.complex64"):
        _ops.tracked_look([a.to(torch.complex64) for a in A], V, fresh, None, None, None, *repeat)


def test_fake() -> None:
    given = problem(50, 40, 8, 6, 2)
    assert given.probes is not None
    with FakeTensorMode() as mode:
        fake = [mode.from_tensor(a) for a in given.A]
        rest = [mode.from_tensor(x) for x in (given.V, given.fresh, *given.probes)]
        fakes = _ops.tracked_look(fake, *rest, *NEVER)
    for got, want in zip(fakes, given.look(NEVER), strict=True):
        assert (got.shape, got.dtype, got.stride()) == (want.shape, want.dtype, want.stride())
