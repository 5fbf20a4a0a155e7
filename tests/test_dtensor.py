"""svdvals, spectral_stats and the rest on a DTensor: the bits of one process on the whole tensor."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.tensor import DTensor, Partial, Placement, Replicate, Shard, distribute_tensor

import spectral_fast as sf
from tests.gloo_ranks import GlooRanks

# name -> mesh shape, shape of the batch of matrices, placements
LAYOUTS: dict[str, tuple[tuple[int, ...], tuple[int, ...], tuple[Placement, ...]]] = {
    "batch": ((4,), (8, 6, 5), (Shard(0),)),
    "uneven batch": ((4,), (6, 6, 5), (Shard(0),)),
    "ranks without a matrix": ((4,), (2, 6, 5), (Shard(0),)),
    "no matrix at all": ((4,), (0, 6, 5), (Shard(0),)),
    "second batch dimension": ((4,), (2, 5, 6, 5), (Shard(1),)),
    "rows": ((4,), (3, 6, 5), (Shard(1),)),
    "columns of one matrix": ((4,), (6, 5), (Shard(1),)),
    "rows, ranks without one": ((4,), (3, 3, 5), (Shard(-2),)),
    "replicated": ((4,), (3, 6, 5), (Replicate(),)),
    "partial sum": ((4,), (3, 6, 5), (Partial(),)),
    "batch twice": ((2, 2), (5, 6, 5), (Shard(0), Shard(0))),
    "batch and rows": ((2, 2), (5, 6, 5), (Shard(0), Shard(1))),
    "rows and batch": ((2, 2), (3, 6, 5), (Shard(1), Shard(0))),
    "two batch dimensions": ((2, 2), (3, 3, 6, 5), (Shard(1), Shard(0))),
    "batch and replicated": ((2, 2), (5, 6, 5), (Shard(0), Replicate())),
    "partial and batch": ((2, 2), (5, 6, 5), (Partial(), Shard(0))),
    "rows of one, columns of the other": ((2, 2), (6, 5), (Shard(0), Shard(1))),
    "a large matrix": ((4,), (2, 160, 140), (Shard(1),)),
}


def _laid_out(layout: str, dtype: torch.dtype = torch.float64) -> tuple[DTensor, Tensor]:
    """A DTensor and the whole of it, which every rank draws for itself."""
    mesh_shape, shape, placements = LAYOUTS[layout]
    mesh = init_device_mesh("cpu", mesh_shape)
    whole = torch.randn(shape, dtype=dtype)
    if any(p.is_partial() for p in placements):
        # Each of the ranks over which the sum runs holds a power of two of it, so that the sum is exact.
        share = [Replicate() if p.is_partial() else p for p in placements]
        part = distribute_tensor(whole, mesh, share).to_local()
        size = mesh.size([p.is_partial() for p in placements].index(True))
        part = DTensor.from_local(
            part / size, mesh, placements, shape=whole.shape, stride=whole.stride(), run_check=False
        )
        return part, whole
    return distribute_tensor(whole, mesh, placements), whole


def _kept(x: DTensor, layout: str) -> bool:
    """Whether x stays sharded over what is sharded by whole matrices, and is replicated elsewhere."""
    _, shape, placements = LAYOUTS[layout]
    whole_matrices = tuple(
        p if isinstance(p, Shard) and 0 <= p.dim < len(shape) - 2 else Replicate() for p in placements
    )
    return x.placements == whole_matrices


def _same(found: Tensor, expected: Tensor) -> bool:
    assert isinstance(found, DTensor)
    assert found.shape == expected.shape
    assert found.dtype == expected.dtype
    return torch.equal(found.full_tensor().nan_to_num(-1), expected.nan_to_num(-1))


def _values(layout: str, dtype: torch.dtype) -> bool:
    A, whole = _laid_out(layout, dtype)
    S, info = sf.svdvals_ex(A)
    expected = sf.svdvals_ex(whole)
    assert _kept(S, layout)
    assert _kept(info, layout)
    return _same(sf.svdvals(A), expected.S) and _same(S, expected.S) and _same(info, expected.info)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_values_are_those_of_one_process(ranks: GlooRanks, layout: str, dtype: torch.dtype) -> None:
    assert all(ranks.call(_values, layout, dtype))


def _statistics(layout: str) -> list[str]:
    A, whole = _laid_out(layout)
    found = sf.spectral_stats(A, return_svdvals=True)
    expected = sf.spectral_stats(whole, return_svdvals=True)
    names = [field.name for field in dataclasses.fields(expected)]
    assert all(_kept(getattr(found, name), layout) for name in names)
    return [name for name in names if not _same(getattr(found, name), getattr(expected, name))]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_statistics_are_those_of_one_process(ranks: GlooRanks, layout: str) -> None:
    assert ranks.call(_statistics, layout) == [[]] * 4


def _values_gradient(A: Tensor) -> Tensor:
    return torch.autograd.grad(sf.svdvals(A).pow(3).sum(), A)[0]


def _statistics_gradient(A: Tensor) -> Tensor:
    stats = sf.spectral_stats(A, return_svdvals=True)
    return torch.autograd.grad((stats.stable_rank + stats.svdvals.sum(-1)).sum(), A)[0]


def _second_gradient(A: Tensor) -> Tensor:
    (first,) = torch.autograd.grad(sf.spectral_stats(A).effective_rank.sum(), A, create_graph=True)
    return torch.autograd.grad(first.square().sum(), A)[0]


def _func_gradient(A: Tensor) -> Tensor:
    return torch.func.grad(lambda x: sf.svdvals(x).square().sum())(A)


def _gradients(layout: str, gradient: Callable[[Tensor], Tensor]) -> bool:
    A, whole = _laid_out(layout)
    expected = gradient(whole.requires_grad_())
    return _same(gradient(A.detach().requires_grad_()), expected)


@pytest.mark.parametrize(
    "layout", ["uneven batch", "ranks without a matrix", "rows", "partial sum", "rows and batch"]
)
@pytest.mark.parametrize(
    "gradient", [_values_gradient, _statistics_gradient, _second_gradient, _func_gradient]
)
def test_gradients_are_those_of_one_process(
    ranks: GlooRanks, layout: str, gradient: Callable[[Tensor], Tensor]
) -> None:
    assert all(ranks.call(_gradients, layout, gradient))


def _forward_mode() -> str:
    A, _ = _laid_out("batch")
    try:
        torch.func.jvp(sf.svdvals, (A,), (A,))
    except NotImplementedError as error:
        return str(error)
    return ""


def test_forward_mode_raises(ranks: GlooRanks) -> None:
    """torch 2.13 has no dual DTensor; were there one, a zero tangent would be worse than an error."""
    assert all(ranks.call(_forward_mode))


def _spectra() -> list[bool]:
    S, whole = _laid_out("uneven batch")
    evals, whole = S[..., 0].square(), whole[..., 0].square()
    alone = sf.fit_powerlaw(whole, xmin=torch.arange(6) / 5)
    fits = zip(sf.fit_powerlaw(evals, xmin=torch.arange(6) / 5), alone, strict=True)
    stats = sf.stats_from_svdvals(evals, shape=(6, 9)), sf.stats_from_svdvals(whole, shape=(6, 9))
    return [
        *(_same(found, expected) for found, expected in fits),
        _same(stats[0].alpha, stats[1].alpha),
        _same(sf.hill_alpha(evals), sf.hill_alpha(whole)),
        _same(sf.ranksize_slope(evals), sf.ranksize_slope(whole)),
    ]


def test_functions_of_spectra_take_one_too(ranks: GlooRanks) -> None:
    assert all(all(same) for same in ranks.call(_spectra))


def _out() -> bool:
    A, whole = _laid_out("uneven batch")
    out = distribute_tensor(torch.empty(6, 5, dtype=torch.float64), A.device_mesh, [Shard(0)])
    return sf.svdvals(A, out=out) is out and _same(out, sf.svdvals(whole))


def test_out(ranks: GlooRanks) -> None:
    assert all(ranks.call(_out))


def _error(bad: int) -> str:
    A, whole = _laid_out("uneven batch")
    whole[bad, 1, 2] = torch.nan
    A = distribute_tensor(whole, A.device_mesh, [Shard(0)])
    with pytest.raises(torch.linalg.LinAlgError) as alone:
        sf.svdvals(whole)
    with pytest.raises(torch.linalg.LinAlgError) as raised:
        sf.svdvals(A)
    assert _same(sf.svdvals_ex(A).info, sf.svdvals_ex(whole).info)
    return "same" if str(raised.value) == str(alone.value) else str(raised.value)


def test_every_rank_raises_for_a_nan_on_one(ranks: GlooRanks) -> None:
    """A rank that went on alone would wait for the others at the next collective."""
    assert ranks.call(_error, 3) == ["same"] * 4


def _on_some_ranks(shape: tuple[int, ...]) -> tuple[int, ...]:
    mesh = DeviceMesh("cpu", [0, 2])
    A = distribute_tensor(torch.randn(shape), mesh, [Shard(0)])
    found = sf.spectral_stats(A).stable_rank
    assert found.shape == shape[:-2]
    return tuple(sf.svdvals(A).to_local().shape)


def test_ranks_outside_of_the_mesh_have_nothing(ranks: GlooRanks) -> None:
    assert ranks.call(_on_some_ranks, (3, 6, 5)) == [(2, 5), (0,), (1, 5), (0,)]
    assert ranks.call(_on_some_ranks, (6, 5)) == [(5,), (0,), (5,), (0,)]


def _replicated_work() -> list[bool]:
    """Whether a batch that is sharded by matrices is computed without any communication."""
    from torch.distributed.tensor.debug import CommDebugMode

    silent = []
    for layout in ("uneven batch", "two batch dimensions", "replicated", "rows"):
        A, _ = _laid_out(layout)
        with CommDebugMode() as communication:
            sf.spectral_stats(A)
        silent.append(communication.get_total_counts() == 0)
    return silent


def test_only_matrices_in_pieces_are_sent(ranks: GlooRanks) -> None:
    assert ranks.call(_replicated_work) == [[True, True, True, False]] * 4
