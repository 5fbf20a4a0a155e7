"""The monitor on several ranks finds what it finds in one process: replicated and sharded weights."""

from __future__ import annotations

import datetime
import logging
import time
import weakref
from collections.abc import Callable, Iterable
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, Partial
from torch.distributed.tensor.debug import CommDebugMode
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from spectral_fast import spectral_stats
from spectral_fast.models import WeightMatrix, weight_matrices
from spectral_fast.monitor import groups
from spectral_fast.monitor.distributed import DistributedRanks, longest_first
from spectral_fast.monitor.groups import exact_work
from spectral_fast.monitor.monitor import SpectralMonitor
from spectral_fast.monitor.ranks import OneProcess
from spectral_fast.monitor.record import Look
from spectral_fast.monitor.summed import SharedTracker, SummedProducts
from spectral_fast.tracker import SpectralTracker
from tests.gloo_ranks import GlooRanks


class Fused(nn.Module):
    """A weight that holds q, k and v side by side, as GPT-2's does: (in, out), thirds of the columns."""

    def __init__(self, d: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(d, 3 * d) / d**0.5)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (x @ self.weight).chunk(3, -1)
        return q.sigmoid() * k + v


class Block(nn.Module):
    def __init__(self, d: int, wide: int) -> None:
        super().__init__()
        self.c_attn = Fused(d)
        self.self_attn = nn.MultiheadAttention(d, 1, bias=False)  # thirds of the rows
        self.mlp_in = nn.Linear(d, wide)
        self.mlp_out = nn.Linear(wide, d)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.c_attn(x)
        x = x + self.self_attn(x, x, x, need_weights=False)[0]
        return x + self.mlp_out(self.mlp_in(x).relu())


class Net(nn.Module):
    """Rows that two ranks cannot halve: 27 of an embedding, d odd."""

    def __init__(self, d: int = 33, wide: int = 50, layers: int = 2) -> None:
        super().__init__()
        self.embed = nn.Embedding(27, d)
        self.layers = nn.ModuleList(Block(d, wide) for _ in range(layers))
        self.conv = nn.Conv2d(3, 5, 3)  # not trained, looked at
        self.head = nn.Linear(d, 27, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embed(tokens)
        for layer in self.layers:
            x = layer(x)
        return self.head(x)


def _net(**sizes: int) -> Net:
    torch.manual_seed(7)
    return Net(**sizes)


def _fsdp(model: nn.Module, **options: Any) -> nn.Module:
    for layer in model.layers:
        fully_shard(layer, **options)
    return fully_shard(model, **options)


def _ddp(model: nn.Module) -> nn.Module:
    return nn.parallel.DistributedDataParallel(model, find_unused_parameters=True)


def _mixed(model: nn.Module) -> nn.Module:
    return _fsdp(model, mp_policy=MixedPrecisionPolicy(torch.bfloat16, torch.float32))


def _hybrid(model: nn.Module) -> nn.Module:
    return _fsdp(model, mesh=init_device_mesh("cpu", (2, 2), mesh_dim_names=("replicate", "shard")))


WRAPPERS = {"ddp": _ddp, "fsdp": _fsdp, "fsdp, mixed": _mixed, "hsdp": _hybrid}


def _train(model: nn.Module, steps: int, after: Callable[[], object], lr: float = 1e-2) -> None:
    optimizer = torch.optim.AdamW(model.parameters(), lr)
    for step in range(steps):
        tokens = torch.arange(12).reshape(3, 4).mul(step + 3) % 27
        logits = model(tokens).float()
        nn.functional.cross_entropy(logits.flatten(0, 1), tokens.flatten().roll(1)).backward()
        optimizer.step()
        optimizer.zero_grad()
        after()


def _plain(look: Look) -> list[Any]:
    """Everything but times and intervals, as plain data."""
    return [
        (m.name, m.role, m.rows, m.cols, m.dtype, m.kind, dict(m.statistics), m.svdvals.tobytes())
        for m in look.matrices
    ]


def _copy_whole(model: nn.Module, whole: nn.Module) -> None:
    with torch.no_grad():
        named = dict(whole.named_parameters())
        for name, parameter in model.named_parameters():
            full = parameter.full_tensor() if hasattr(parameter, "full_tensor") else parameter
            named[name.removeprefix("module.")].copy_(full)


def _alone(model: nn.Module) -> Look:
    """What one process finds in the model as it is, gathered whole."""
    whole = _net()
    _copy_whole(model, whole)
    with SpectralMonitor(whole, embeddings=True, ranks=OneProcess()) as monitor:
        return monitor.look()


def _exact_looks(wrapper: str) -> list[bool]:
    model = WRAPPERS[wrapper](_net())
    same = []
    with SpectralMonitor(model, every=2, track_every=0, embeddings=True, budget=None) as monitor:

        def compare() -> None:
            same.append(str(_plain(monitor.look())) == str(_plain(_alone(model))))

        _train(model, 2, compare)
    return same


@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_exact_looks_have_the_bits_of_one_process(ranks: GlooRanks, wrapper: str) -> None:
    assert ranks.call(_exact_looks, wrapper) == [[True, True]] * 4


def _parallel(model: Net) -> nn.Module:
    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("fsdp", "tensor"))
    for layer in model.layers:
        plan = {"mlp_in": ColwiseParallel(), "mlp_out": RowwiseParallel()}
        parallelize_module(layer, mesh["tensor"], plan)
    return _fsdp(model, mesh=mesh["fsdp"])


def _tensor_parallel() -> bool:
    model = _parallel(_net())
    with SpectralMonitor(model, embeddings=True) as monitor:
        return str(_plain(monitor.look())) == str(_plain(_alone(model)))


def test_fsdp_over_tensor_parallelism(ranks: GlooRanks) -> None:
    """Strided shards; and weights that lie on another mesh for each rank of the tensor dimension."""
    assert all(ranks.call(_tensor_parallel))


def _trained(wrapper: str, monitored: bool) -> list[bytes]:
    model = WRAPPERS[wrapper](_net(d=64))
    if not monitored:
        _train(model, 4, lambda: None)
    else:
        with SpectralMonitor(model, every=2, budget=None) as monitor:
            _train(model, 4, monitor.step)
            assert monitor.report().looks == {"exact": 3, "tracked": 1}
    local = [getattr(p, "_local_tensor", p).detach() for p in model.parameters()]
    return [p.numpy().tobytes() for p in local]


@pytest.mark.parametrize("wrapper", ["ddp", "fsdp"])
def test_training_is_not_changed_by_a_bit(ranks: GlooRanks, wrapper: str) -> None:
    assert ranks.call(_trained, wrapper, True) == ranks.call(_trained, wrapper, False)


def _shared() -> list[tuple[float, ...]]:
    """Largest relative differences to a tracker that has the whole matrices."""
    rank, size = dist.get_rank(), dist.get_world_size()
    A, drift = torch.randn(2, 3, ROWS, COLUMNS)
    A += 8 * torch.linalg.qr(torch.randn(3, ROWS, 20)).Q @ torch.randn(3, 20, COLUMNS)  # something that leads
    A[:, 150] = 0
    edges = [0, 150, 151, 220, ROWS]  # uneven, one rank with nothing but a row of zeros
    assert len(edges) == size + 1
    here = slice(edges[rank], edges[rank + 1])
    whole, shared = SpectralTracker(), SharedTracker(SummedProducts(dist.all_reduce))
    differences = []
    for step in range(6):
        if step in (0, 3):
            shared.anchor(A[:, here], whole.exact(A))
        A = A + 0.02 * drift
        a, b = whole.track(A), shared.track(A[:, here])
        assert torch.equal(a.needs_exact, b.needs_exact)
        pairs = [(getattr(a, name), getattr(b, name)) for name in SHARED]
        differences.append(tuple(float((y / x - 1).abs().max()) for x, y in pairs))
    return differences


ROWS, COLUMNS = 402, 256
SHARED = ("leading", "stable_rank", "alpha_hill", "frobenius_norm", "drift")


def test_shards_are_followed_like_the_whole(ranks: GlooRanks) -> None:
    """Parts of a product are rounded apart from one another; nothing else is different.

    Each of the two products in Z = A^T (A X) errs by at most a unit roundoff, eps / 2, for each of its terms,
    relative to the products of absolute values. So both ways differ by (m + n) eps at most, in the leading
    values as in what follows from them smoothly. The norm is summed in float64 from short sums in float32,
    and the drift, a difference of two such products, is some percent of them.
    """
    eps = torch.finfo(torch.float32).eps
    rounding = (ROWS + COLUMNS) * eps
    found = ranks.call(_shared)
    assert all(differences == found[0] for differences in found)  # the same bits: ranks decide alike
    for leading, stable_rank, alpha, norm, drift in found[0]:
        assert max(leading, stable_rank, alpha) < rounding
        assert norm < 2 * eps
        assert drift < rounding / 0.01


def _tracked(wrapper: str) -> list[tuple[str, str, float, float]]:
    """(matrix, statistic, difference to one process's tracked look, both errors) over a training run."""
    sizes = {"d": 256, "wide": 300, "layers": 1}
    model, whole = WRAPPERS[wrapper](_net(**sizes)), _net(**sizes)
    looks: list[Look] = []
    alone: list[Look] = []
    kept = DistributedRanks()
    trackers: list[SpectralTracker] = []
    make = kept.tracker
    kept.tracker = lambda group: trackers.append(make(group)) or trackers[-1]
    options = {"every": 3, "track_every": 1, "budget": None}
    with (
        SpectralMonitor(model, sinks=[looks.append], ranks=kept, **options) as monitor,
        SpectralMonitor(whole, sinks=[alone.append], ranks=OneProcess(), **options) as reference,
    ):

        def step() -> None:
            _copy_whole(model, whole)
            reference.step()
            monitor.step()

        _train(model, 5, step, lr=1e-3)
    assert any(isinstance(tracker, SharedTracker) for tracker in trackers) == (wrapper != "ddp")
    if dist.get_rank() > 0:
        assert not looks  # delivered by rank 0 alone
        return []
    assert [look.kind for look in looks] == ["exact", "tracked", "exact", "tracked", "tracked"]
    assert [look.kind for look in alone] == [look.kind for look in looks]
    found = []
    for ours, theirs in zip(looks, alone, strict=True):
        for a, b in zip(ours.matrices, theirs.matrices, strict=True):
            assert a.name == b.name
            # At errors near the tolerance only one of them may ask for an exact look.
            norms = a.statistics["frobenius_norm"], b.statistics["frobenius_norm"]
            assert norms[0] == pytest.approx(norms[1], rel=1e-6)
            for name, value in a.statistics.items():
                if name in a.errors and name in b.errors:
                    errors = (a.errors[name] ** 2 + b.errors[name] ** 2) ** 0.5
                    found.append((a.name, name, value - b.statistics[name], errors))
    return found


@pytest.mark.parametrize("wrapper", ["ddp", "fsdp", "hsdp"])
def test_tracked_looks_agree_with_one_process_within_their_errors(ranks: GlooRanks, wrapper: str) -> None:
    """Other batches draw other probes and learn from other matrices, so not to the bit.

    Of two estimates with standard errors a and b, 5 % of the differences are beyond 1.96 hypot(a, b).
    """
    found = ranks.call(_tracked, wrapper)[0]
    assert len(found) > 100
    beyond = [one for one in found if abs(one[2]) > 1.96 * one[3]]
    assert len(beyond) <= 0.08 * len(found), beyond


class PeakBytes(TorchDispatchMode):
    """The most memory that tensors made inside have at a time."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.most = 0
        self._alive: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if type(tensor) is Tensor:  # a DTensor has no memory of its own
                self._count(tensor.untyped_storage())
        return out

    def _count(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key in self._alive or storage.data_ptr() in self._parameters:
            return
        self._alive.add(key)
        self.now += size
        self.most = max(self.most, self.now)
        weakref.finalize(storage, self._freed, key, size)

    def _freed(self, key: int, size: int) -> None:
        self._alive.discard(key)
        self.now -= size

    def ignore(self, parameters: Iterable[Tensor]) -> PeakBytes:
        self._parameters = {p._local_tensor.untyped_storage().data_ptr() for p in parameters}
        return self


def _memory() -> tuple[float, float]:
    """The peak of an exact look over the largest group, and over the model."""
    groups.BATCH_BYTES = 2 * 128 * 128 * 4  # of that model here, as 64 MiB of a large one
    model = _fsdp(_net(d=128, wide=512, layers=8))
    sizes = [p.numel() * p.element_size() for p in model.parameters()]
    with SpectralMonitor(model, embeddings=True) as monitor:
        monitor.look()  # gloo's buffers, and what is kept between looks
        with PeakBytes().ignore(model.parameters()) as memory:
            monitor.look()
    return memory.most / (128 * 512 * 4), memory.most / sum(sizes)


def test_no_rank_has_more_of_the_model_than_a_group(ranks: GlooRanks) -> None:
    """A group, its results, and what is copied to be sent: a quarter of each of the others' three groups."""
    for groups_held, share in ranks.call(_memory):
        assert 1 <= groups_held < 1.85
        assert share < 0.06


def _front_door() -> list[str]:
    """Matrices of a sharded model whose statistics, read without a monitor, are not those of the whole."""
    model, whole = _fsdp(_net()), _net()
    wrong = []
    for ours, theirs in zip(weight_matrices(model), weight_matrices(whole), strict=True):
        assert (ours.name, ours.shape) == (theirs.name, theirs.shape)
        found = spectral_stats(ours.tensor).stable_rank
        assert isinstance(found, DTensor)
        if found.full_tensor() != spectral_stats(theirs.tensor).stable_rank:
            wrong.append(ours.name)
    return wrong


def test_matrices_of_a_sharded_model_can_be_read_one_by_one(ranks: GlooRanks) -> None:
    assert ranks.call(_front_door) == [[]] * 4


def _all_compute_at_a_time() -> list[int]:
    """Owners of the groups in this rank's order, each of which has its group while the others have theirs."""
    model = nn.Sequential(*(nn.Linear(40, 30) for _ in range(8)))
    fully_shard(model)
    weights = groups.Weights(model, embeddings=False)
    weights.changed()
    ranks = DistributedRanks(timeout=datetime.timedelta(seconds=10))
    batches = weights.groups(ranks.divide(weights.matrices))
    ranks.begin(batches)
    mine = []
    for group in batches:
        if ranks.snapshot(group, "exact") is not None:
            mine.append(group.owner)
            dist.barrier()  # in the place of work that takes as long as that of the others
    ranks.gather(None)
    ranks.close()
    return mine


def test_owners_do_not_wait_for_one_another(ranks: GlooRanks) -> None:
    assert ranks.call(_all_compute_at_a_time) == [[0], [1], [2], [3]]


def _silent_steps() -> list[int]:
    """Collectives in steps between looks; and how many of all were in the training's group."""
    model = _net()  # not wrapped: nothing but the monitor speaks
    counts = []
    with SpectralMonitor(model, every=3, track_every=0, budget=None) as monitor:
        before = dist.group.WORLD._get_sequence_number_for_group()
        for _ in range(6):
            with CommDebugMode() as communication:
                monitor.step()
            counts.append(communication.get_total_counts())
        after = dist.group.WORLD._get_sequence_number_for_group()
    dist.barrier()
    assert dist.group.WORLD._get_sequence_number_for_group() > after
    return [*counts, after - before]


def test_only_looks_communicate_and_in_groups_of_their_own(
    ranks: GlooRanks,
) -> None:
    for *counts, in_group in ranks.call(_silent_steps):
        assert [count > 0 for count in counts] == [True, False, True, False, False, True]
        assert in_group == 0


def _one_stays_away() -> list[str]:
    """What the ranks that come are told, and whether the training's own group goes on."""
    told = []
    handler = logging.Handler()
    handler.emit = lambda record: told.append(record.getMessage())
    logging.getLogger("spectral_fast").addHandler(handler)
    monitor = SpectralMonitor(
        _net(), every=1, budget=None, ranks=DistributedRanks(timeout=datetime.timedelta(seconds=1.5))
    )
    monitor.step()
    seconds = []
    for _ in range(2):
        began = time.perf_counter()
        if dist.get_rank() != 3:
            monitor.step()
        seconds.append(time.perf_counter() - began)
    monitor.close()
    logging.getLogger("spectral_fast").removeHandler(handler)
    assert seconds[0] < 20
    assert seconds[1] < 1
    total = torch.ones(1)
    dist.all_reduce(total)
    assert total == 4
    return told


def test_a_rank_that_stays_away_ends_looking_but_not_training(ranks: GlooRanks) -> None:
    *came, away = ranks.call(_one_stays_away)
    assert not away
    for told in came:
        assert len(told) == 1
        assert "lost the others while a look was being considered" in told[0]
        assert "on every rank after every optimizer step" in told[0]


def _anchor_fails() -> tuple[list[str], set[str], list[str]]:
    told: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: told.append(record.getMessage())
    logging.getLogger("spectral_fast").addHandler(handler)
    anchor = SharedTracker.anchor
    SharedTracker.anchor = lambda *_: torch.linalg.cholesky(torch.zeros(2, 2))
    looks: list[Look] = []
    try:
        with SpectralMonitor(_fsdp(_net(d=256, layers=1)), budget=None, sinks=[looks.append]) as monitor:
            monitor.step()
    finally:
        SharedTracker.anchor = anchor
        logging.getLogger("spectral_fast").removeHandler(handler)
    return [look.kind for look in looks], {m.kind for look in looks for m in look.matrices}, told


def test_an_exact_look_is_reported_where_its_matrices_cannot_be_followed(ranks: GlooRanks) -> None:
    kinds, of_matrices, told = ranks.call(_anchor_fails)[0]
    assert kinds == ["exact"]
    assert of_matrices == {"exact"}
    assert told
    assert all(text.endswith("cannot be followed") for text in told)


def _other_models() -> str:
    with pytest.raises(RuntimeError) as raised:
        SpectralMonitor(_net(d=33 + dist.get_rank() // 3))
    return str(raised.value)


def test_ranks_with_other_models_are_told(ranks: GlooRanks) -> None:
    told = ranks.call(_other_models)
    assert all(text.startswith("ranks 0 and 3 have different weight matrices") for text in told)


def _unknown_placement() -> str:
    model = _net()
    mesh = init_device_mesh("cpu", (4,))
    partial = DTensor.from_local(model.embed.weight.detach(), mesh, [Partial()], run_check=False)
    model.embed.weight = nn.Parameter(partial)
    with pytest.raises(ValueError, match=r"embed\.weight has the placements") as raised:
        SpectralMonitor(model, embeddings=True)
    return str(raised.value)


def test_placements_that_are_not_known_are_named(ranks: GlooRanks) -> None:
    assert all("Redistribute it" in text for text in ranks.call(_unknown_placement))


def _matrices(*shapes: tuple[int, int]) -> list[WeightMatrix]:
    return list(weight_matrices({f"w{i}": torch.empty(shape) for i, shape in enumerate(shapes)}))


GPT = [shape for _ in range(12) for shape in [(96, 96)] * 4 + [(384, 96), (96, 384)]]


@pytest.mark.parametrize("size", [1, 2, 3, 4, 8, 64])
def test_work_is_divided_evenly_and_shapes_stay_together(size: int) -> None:
    matrices = _matrices(*GPT)
    owners = longest_first(matrices, [tuple(range(size))] * len(matrices))
    loads, batches = [0.0] * size, set()
    for matrix, owner in zip(matrices, owners, strict=True):
        loads[owner] += exact_work(matrix)
        batches.add((owner, matrix.shape))
    # Graham's bound with lots of a quarter of the fair share, or a matrix.
    fair = sum(loads) / size
    assert max(loads) <= fair + max(fair / 4, max(map(exact_work, matrices)))
    assert len(batches) <= 3 * size


def test_sharded_matrices_go_to_ranks_that_hold_them() -> None:
    matrices = _matrices(*GPT[:12])
    able = [(0, 2), (1, 3)] * 6
    assert all(owner in ranks for owner, ranks in zip(longest_first(matrices, able), able, strict=True))
