"""SpectralMonitor in one process: what a look holds, how it is made, and that training never notices."""

from __future__ import annotations

import copy
import logging
import pickle
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import spectral_fast
from spectral_fast.monitor import Look, SpectralMonitor
from spectral_fast.monitor.ranks import OneProcess
from spectral_fast.stats import SpectralStats, scalar_fields, spectral_stats
from spectral_fast.tracker import SpectralTracker


class Block(nn.Module):
    def __init__(self, d: int) -> None:
        super().__init__()
        self.q_proj, self.k_proj = nn.Linear(d, d, bias=False), nn.Linear(d, d, bias=False)
        self.up_proj, self.down_proj = nn.Linear(d, 2 * d), nn.Linear(2 * d, d)

    def forward(self, x: Tensor) -> Tensor:
        x = x + torch.tanh(self.q_proj(x)) * self.k_proj(x)
        return x + self.down_proj(torch.relu(self.up_proj(x)))


class Model(nn.Module):
    """Weights of a transformer's names, tied embeddings, dropout."""

    def __init__(self, d: int = 24, layers: int = 2, tied: bool = True) -> None:
        super().__init__()
        self.token_embedding = nn.Embedding(40, d)
        self.layers = nn.ModuleList(Block(d) for _ in range(layers))
        self.dropout = nn.Dropout(0.1)
        self.lm_head = nn.Linear(d, 40, bias=False)
        if tied:
            self.lm_head.weight = self.token_embedding.weight

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.token_embedding(tokens)
        for layer in self.layers:
            x = self.dropout(layer(x))
        return self.lm_head(x)


def train(model: nn.Module, optimizer: torch.optim.Optimizer, steps: int) -> None:
    for _ in range(steps):
        tokens = torch.randint(40, (8, 6))
        loss = nn.functional.cross_entropy(model(tokens).flatten(0, 1), tokens.roll(1).flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


def trained(steps: int, **options: Any) -> tuple[list[Look], SpectralMonitor]:
    looks: list[Look] = []
    model = Model()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    with SpectralMonitor(model, optimizer=optimizer, sinks=[looks.append], budget=None, **options) as monitor:
        train(model, optimizer, steps)
    return looks, monitor


class Wrapped(OneProcess):
    """One process whose trackers are made by the test."""

    def __init__(self, make: Callable[[], Any]) -> None:
        self._make = make

    def tracker(self, group: Any) -> Any:
        return self._make()


class Broken(SpectralTracker):
    """Cannot look at a batch with a NaN, as a driver that raises for it."""

    def exact(self, A: Any) -> SpectralStats:
        if not all(matrix.isfinite().all() for matrix in A):
            raise torch.linalg.LinAlgError("a NaN")
        return super().exact(A)

    def track(self, A: Any) -> Any:
        if not all(matrix.isfinite().all() for matrix in A):
            raise torch.linalg.LinAlgError("a NaN in a tracked look")
        return super().track(A)


def test_a_look_is_the_statistics_of_every_matrix() -> None:
    model = Model()
    look = SpectralMonitor(model).look()
    expected = [w for w in spectral_fast.weight_matrices(model) if not w.is_embedding]
    assert [m.name for m in look.matrices] == [w.name for w in expected]
    assert look.matrices[0].name == "layers.0.q_proj.weight"  # the tied head is an embedding
    assert (look.step, look.kind, look.every, look.track_every) == (0, "exact", 25, 1)
    assert look.share == pytest.approx(1.0, abs=0.5)  # nothing but the look has happened
    for matrix, weight in zip(look.matrices, expected, strict=True):
        stats = spectral_stats(weight.tensor, return_svdvals=True)
        assert (matrix.layer, matrix.role, matrix.dtype) == (weight.layer, weight.role, "float32")
        assert (matrix.rows, matrix.cols) == weight.shape
        assert matrix.kind == "exact"
        assert matrix.statistics == {f: float(getattr(stats, f)) for f in scalar_fields()}
        assert (matrix.errors, matrix.held) == ({}, ())
        assert matrix.svdvals.dtype == np.float32
        assert np.array_equal(matrix.svdvals, stats.svdvals.numpy())


def test_nothing_is_prepared_for_tracked_looks_that_never_come() -> None:
    """The exact looks of a run that tracks, to the bit, and no tracker knows of them."""
    models = [nn.Linear(320, 256, bias=False) for _ in range(2)]
    models[1].load_state_dict(models[0].state_dict())
    found: list[list[Look]] = [[], []]
    for model, looks, track_every in zip(models, found, (0, 5), strict=True):
        monitor = SpectralMonitor(model, every=2, track_every=track_every, budget=None, sinks=[looks.append])
        for _ in range(5):
            monitor.step()
        (followed,) = monitor._following._followed
        assert (followed.tracker._anchor is None) == (track_every == 0)
        monitor.close()
    assert [(look.step, look.kind) for look in found[0]] == [(1, "exact"), (2, "exact"), (4, "exact")]
    for look, tracked in zip(*found, strict=False):
        (mine,), (theirs,) = look.matrices, tracked.matrices
        assert (look.step, mine.kind, mine.statistics) == (tracked.step, "exact", theirs.statistics)
        assert np.array_equal(mine.svdvals, theirs.svdvals)


def test_embeddings_on_request() -> None:
    names = [m.name for m in SpectralMonitor(Model(), embeddings=True).look().matrices]
    assert names[0] == "token_embedding.weight"
    assert "lm_head.weight" not in names  # the same memory


def test_looks_at_the_intervals() -> None:
    looks, monitor = trained(12, every=5, track_every=2)
    steps = [(look.step, look.kind) for look in looks]
    exact = [1, 5, 10]
    assert steps == [(s, "exact" if s in exact else "tracked") for s in (1, 2, 4, 5, 6, 8, 10, 12)]
    report = monitor.report()
    assert report.looks == {"exact": 3, "tracked": 5}
    assert (report.step, report.every, report.track_every, report.asked) == (12, 5, 2, (5, 2))
    assert 0 < report.spent < report.elapsed
    assert report.share == pytest.approx(monitor.share, rel=0.5)
    assert looks[-1].time > looks[0].time


def test_tracked_looks_follow_large_matrices() -> None:
    torch.manual_seed(1)
    model = nn.Linear(320, 256, bias=False)
    looks: list[Look] = []
    monitor = SpectralMonitor(model, budget=None, every=50, sinks=[looks.append])
    monitor.look()
    with torch.no_grad():
        model.weight += 0.1 * torch.outer(torch.randn(256), torch.randn(320)) / 16
    monitor._schedule.made(0, "exact")
    monitor.step()
    (matrix,) = looks[1].matrices
    assert (looks[1].kind, matrix.kind) == ("tracked", "tracked")
    assert set(matrix.errors) == {"spectral_norm", "stable_rank", "alpha", "alpha_hill", "alpha_ranksize"}
    assert "condition_number" not in matrix.statistics
    assert len(matrix.svdvals) == 16
    exact = spectral_stats(model.weight.detach())
    for name in ("spectral_norm", "stable_rank"):
        # The tolerance of the tracker, 1e-3; its error bars have tests of their own.
        assert matrix.statistics[name] == pytest.approx(float(getattr(exact, name)), rel=1e-3)


@pytest.mark.parametrize("amp", [False, True], ids=["float32", "autocast"])
def test_training_is_the_same_to_the_bit(amp: bool) -> None:
    flags = torch.get_num_threads(), torch.is_grad_enabled(), torch.get_float32_matmul_precision()
    states = []
    for monitored in (False, True):
        torch.manual_seed(3)
        model = Model(d=256, layers=1)  # the least that is really tracked
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
        looks: list[Look] = []
        with torch.autocast("cpu", torch.bfloat16, enabled=amp):
            if monitored:
                SpectralMonitor(model, optimizer=optimizer, every=3, budget=None, sinks=[looks.append])
            train(model, optimizer, 10)
            assert torch.is_autocast_enabled("cpu") == amp
        assert len(looks) == (10 if monitored else 0)
        states.append((model.state_dict(), optimizer.state_dict()["state"], torch.get_rng_state()))
    for plain, watched in zip(*map(_tensors, states), strict=True):
        assert torch.equal(plain, watched)
    assert flags == (
        torch.get_num_threads(),
        torch.is_grad_enabled(),
        torch.get_float32_matmul_precision(),
    )


def _tensors(tree: Any) -> list[Tensor]:
    return [leaf for leaf in torch.utils._pytree.tree_leaves(tree) if isinstance(leaf, Tensor)]


def test_autocast_does_not_round_a_look() -> None:
    model = nn.Linear(300, 280, bias=False)
    looks: list[Look] = []
    for enabled in (False, True):
        monitor = SpectralMonitor(model, budget=None, sinks=[looks.append])
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            monitor.step()
            monitor.step()
    plain, rounded = looks[1], looks[3]
    assert plain.kind == "tracked"
    assert plain.matrices[0].statistics == rounded.matrices[0].statistics


def test_a_compiled_optimizer_step_is_followed_by_a_look() -> None:
    model = nn.Linear(8, 8)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    looks: list[Look] = []
    SpectralMonitor(model, optimizer=optimizer, budget=None, sinks=[looks.append])
    step = torch.compile(lambda: optimizer.step(), backend="eager")
    for _ in range(3):
        model(torch.ones(1, 8)).sum().backward()
        step()
        expected = spectral_stats(model.weight.detach()).spectral_norm
        assert looks[-1].matrices[0].statistics["spectral_norm"] == expected
    assert [look.step for look in looks] == [1, 2, 3]


def test_a_step_that_the_scaler_skips_makes_no_look() -> None:
    model = nn.Linear(8, 8)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0)
    with SpectralMonitor(model, optimizer=optimizer, budget=None) as monitor:
        for scale in (1.0, torch.inf, 1.0):
            optimizer.zero_grad()
            scaler.scale(model(torch.ones(1, 8)).sum() * scale).backward()
            scaler.step(optimizer)
            scaler.update()
        assert monitor.report().step == 2
        assert monitor.report().looks == {"exact": 1, "tracked": 1}


def test_gradient_accumulation_counts_optimizer_steps() -> None:
    model = nn.Linear(8, 8)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with SpectralMonitor(model, optimizer=optimizer, budget=None) as monitor:
        for micro in range(12):
            model(torch.ones(1, 8)).sum().backward()
            if micro % 4 == 3:
                optimizer.step()
                optimizer.zero_grad()
        assert monitor.report().step == 3


def test_a_step_is_counted_once() -> None:
    model = nn.Linear(8, 8)
    with SpectralMonitor(model, optimizer=torch.optim.SGD(model.parameters(), lr=0.1)) as monitor:
        with pytest.raises(RuntimeError, match=r"counts its optimizer's steps: leave out monitor\.step\(\)"):
            monitor.step()
        assert monitor.report().step == 0


def test_what_cannot_be_called_is_no_sink() -> None:
    with pytest.raises(TypeError, match="a sink is called with each look, got 'runs/first'"):
        SpectralMonitor(nn.Linear(8, 8), sinks=["runs/first"])


def test_compiled_and_wrapped_models_keep_their_names() -> None:
    model = Model()
    names = [m.name for m in SpectralMonitor(model).look().matrices]
    whole = torch.compile(model, backend="eager")
    parallel = nn.DataParallel(model)
    part = copy.deepcopy(model)
    part.layers[1] = torch.compile(part.layers[1], backend="eager")
    for wrapped in (whole, parallel, part):
        assert [m.name for m in SpectralMonitor(wrapped).look().matrices] == names


def test_a_compiled_model_trains_on() -> None:
    model = torch.compile(Model(), backend="eager")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    looks: list[Look] = []
    with SpectralMonitor(model, optimizer=optimizer, budget=None, sinks=[looks.append]):
        train(model, optimizer, 3)
    assert [look.step for look in looks] == [1, 2, 3]


def test_frozen_and_peft_weights() -> None:
    class Lora(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.q_proj = nn.Module()
            self.q_proj.base_layer = nn.Linear(16, 16, bias=False).requires_grad_(False)
            self.q_proj.lora_A = nn.ModuleDict({"default": nn.Linear(16, 4, bias=False)})
            self.q_proj.lora_B = nn.ModuleDict({"default": nn.Linear(4, 16, bias=False)})

    look = SpectralMonitor(Lora()).look()
    assert [(m.name, m.rows) for m in look.matrices] == [
        ("q_proj.base_layer.weight", 16),
        ("q_proj[lora.default]", 4),
    ]


def test_replaced_weights_are_the_ones_looked_at() -> None:
    model = Model(tied=False)
    monitor = SpectralMonitor(model, budget=None)
    monitor.look()
    model.layers[0].q_proj.weight = nn.Parameter(torch.eye(24))
    model.layers[0].k_proj.weight.data = 2 * torch.eye(24)
    first, second, *_ = monitor.look().matrices
    assert first.statistics["spectral_norm"] == 1.0
    assert second.statistics["spectral_norm"] == 2.0


def test_other_shapes_and_dtypes_are_told_once_and_looked_at(caplog: pytest.LogCaptureFixture) -> None:
    model = Model(tied=False)
    looks: list[Look] = []
    monitor = SpectralMonitor(model, budget=None, sinks=[looks.append])
    monitor.step()
    monitor.step()
    model.layers[1] = Block(24).bfloat16()
    model.layers[0].q_proj = nn.Linear(24, 12)
    monitor.step()
    monitor.step()
    assert [look.kind for look in looks] == ["exact", "tracked", "exact", "tracked"]
    assert (looks[2].matrices[0].rows, looks[2].matrices[0].cols) == (12, 24)
    assert looks[3].matrices[-2].dtype == "bfloat16"
    assert caplog.text.count("the model's weights are others than before") == 1


def test_a_nan_spoils_only_its_matrix() -> None:
    model = Model()
    looks: list[Look] = []
    monitor = SpectralMonitor(model, every=3, budget=None, sinks=[looks.append])
    with torch.no_grad():
        model.layers[1].k_proj.weight[3, 4] = torch.nan
    for _ in range(4):
        monitor.step()
    assert [look.kind for look in looks] == ["exact", "tracked", "exact", "tracked"]
    for look in looks:
        for matrix in look.matrices:
            bad = matrix.name == "layers.1.k_proj.weight"
            assert np.isnan(matrix.statistics["spectral_norm"]) == bad
            assert np.isnan(matrix.svdvals).any() == bad


def test_a_look_that_raises_leaves_the_others(caplog: pytest.LogCaptureFixture) -> None:
    model = Model()
    looks: list[Look] = []
    monitor = SpectralMonitor(model, every=4, budget=None, sinks=[looks.append], ranks=Wrapped(Broken))
    weight = model.layers[1].k_proj.weight

    def spectral_norms(look: Look) -> dict[str, float]:
        return {m.name: m.statistics["spectral_norm"] for m in look.matrices}

    monitor.step()
    good = spectral_norms(looks[-1])
    with torch.no_grad():
        weight[3, 4] = torch.nan
    monitor.step()
    # The tracker of q and k gives up: nothing is known of these four matrices, all of the others.
    tracked = spectral_norms(looks[-1])
    assert [np.isnan(value) for value in tracked.values()] == [True, True, False, False] * 2
    monitor.step()
    # It needs an exact look, which fails for the batch and is made matrix by matrix.
    refreshed = looks[-1]
    assert refreshed.kind == "tracked"
    assert [m.kind for m in refreshed.matrices] == ["exact", "exact", "tracked", "tracked"] * 2
    again = spectral_norms(refreshed)
    assert np.isnan(again.pop("layers.1.k_proj.weight"))
    assert all(again[name] == good[name] for name in again)
    monitor.step()  # an exact look at all
    assert sum(map(np.isnan, spectral_norms(looks[-1]).values())) == 1
    monitor.step()  # nothing to follow, and no second try before the next exact look
    assert len(looks[-1].matrices) == 4
    with torch.no_grad():
        weight[3, 4] = 0.0
    for _ in range(4):
        monitor.step()
    assert len(looks[-1].matrices) == 8
    assert not any(map(np.isnan, spectral_norms(looks[-1]).values()))
    assert caplog.text.count("said once") == 2
    assert "tracking layers.0.q_proj.weight and 3 like it failed: LinAlgError: a NaN" in caplog.text


def test_a_matrix_that_wants_an_exact_look_gets_one() -> None:
    class Wanting(SpectralTracker):
        def track(self, A: Any) -> Any:
            stats = super().track(A)
            stats.needs_exact[0] = len(A) == 4  # one of the queries and keys
            return stats

    looks: list[Look] = []
    monitor = SpectralMonitor(Model(), every=50, budget=None, sinks=[looks.append], ranks=Wrapped(Wanting))
    for _ in range(4):
        monitor.step()
    assert [look.kind for look in looks] == ["exact", "tracked", "tracked", "tracked"]
    exactly = [[m.role for m in look.matrices if m.kind == "exact"] for look in looks]
    # Asked for at step 2, made at step 3, which tracks nothing that could ask again.
    assert exactly[1:] == [[], ["q", "k", "q", "k"], []]


def test_whatever_fails_stays_inside(caplog: pytest.LogCaptureFixture) -> None:
    class Lost(OneProcess):
        def snapshot(self, group: Any, kind: Any) -> Any:
            raise MemoryError("no room")

        def largest(self, numbers: Sequence[float]) -> list[float]:
            if self.lost:
                raise RuntimeError("a rank is gone")
            return super().largest(numbers)

    ranks = Lost()
    ranks.lost = False
    looks: list[Look] = []
    monitor = SpectralMonitor(Model(), budget=None, sinks=[looks.append], ranks=ranks)
    monitor.step()
    assert all(np.isnan(list(m.statistics.values())).all() for m in looks[0].matrices)
    assert all(np.isnan(m.svdvals).all() for m in looks[0].matrices)
    ranks.lost = True
    for _ in range(3):
        monitor.step()
    assert len(looks) == 1
    assert caplog.text.count("a rank is gone") == 1
    assert caplog.text.count("copying layers.0.q_proj.weight and 3 like it failed: MemoryError: no room") == 1


def test_a_failing_sink_does_not_stop_training(caplog: pytest.LogCaptureFixture) -> None:
    looks: list[Look] = []

    def full(look: Look) -> None:
        raise OSError("disk full")

    monitor = SpectralMonitor(Model(), budget=None, sinks=[full, looks.append])
    for _ in range(5):
        monitor.step()
    assert len(looks) == 5
    assert monitor.report().waiting == 5
    assert caplog.text.count("disk full") == 1
    monitor.close()
    assert "5 looks were never delivered" in caplog.text


def test_the_budget_holds_and_widening_is_told(caplog: pytest.LogCaptureFixture) -> None:
    """On a clock of its own: looks cost 3 s and 0.25 s, a step 1 s, and a tenth is allowed."""
    now = [0.0]
    model = Model()

    class Slow(SpectralTracker):
        def exact(self, A: Any) -> SpectralStats:
            now[0] += 1.0
            return super().exact(A)

        def track(self, A: Any) -> Any:
            now[0] += 0.125
            return super().track(A)

    monitor = SpectralMonitor(model, every=10, budget=0.1, ranks=Wrapped(Slow), clock=lambda: now[0])
    for _ in range(1000):
        now[0] += 1.0
        monitor.step()
        if now[0] > 100:
            assert monitor.share <= 0.1 + 3 / now[0]
    # 3 groups: q and k, up, down. 3 s in 10 steps is 30 %, half of the budget 5 %: 60 steps and a margin.
    assert monitor.every == 70
    assert monitor.share <= 0.1
    assert "every is 70 now instead of 10" in caplog.text
    assert monitor.report().reason


def test_closing() -> None:
    closed: list[str] = []

    class Sink:
        def __call__(self, look: Look) -> None:
            closed.append("look")

        def close(self) -> None:
            closed.append("close")

    model = Model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with SpectralMonitor(model, optimizer=optimizer, sinks=[Sink()], budget=None) as monitor:
        optimizer.step()
    optimizer.step()  # no hook any more
    monitor.close()
    assert closed == ["look", "close"]
    assert monitor.report().step == 1
    for call in (monitor.step, monitor.look):
        with pytest.raises(RuntimeError, match="this SpectralMonitor is closed"):
            call()


def test_the_model_is_as_before() -> None:
    model = Model()
    monitor = SpectralMonitor(model, budget=None)
    monitor.look()
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert [m.name for m in SpectralMonitor(other).look().matrices] == [
            m.name for m in monitor.look().matrices
        ]
    for module in model.modules():
        assert not module._forward_hooks
        assert not module._forward_pre_hooks
        assert not module._backward_hooks
    assert all(p.grad is None and p.is_leaf for p in model.parameters())


def test_an_optimizer_with_the_hook_can_be_saved() -> None:
    model = Model()
    optimizer = torch.optim.AdamW(model.parameters())
    SpectralMonitor(model, optimizer=optimizer, budget=None)
    train(model, optimizer, 2)
    other = copy.deepcopy(optimizer)
    other.load_state_dict(pickle.loads(pickle.dumps(optimizer.state_dict())))
    other.step()


def test_resuming_goes_on_counting() -> None:
    _, monitor = trained(7)
    looks: list[Look] = []
    resumed = SpectralMonitor(Model(), budget=None, every=5, sinks=[looks.append])
    resumed.load_state_dict(pickle.loads(pickle.dumps(monitor.state_dict())))
    for _ in range(4):
        resumed.step()
    assert [(look.step, look.kind) for look in looks] == [
        (8, "exact"), (9, "tracked"), (10, "exact"), (11, "tracked")
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"every": 0}, "every must be a number of steps >= 1, got 0"),
        ({"every": 2.5}, "every must be a number of steps >= 1, got 2.5"),
        ({"track_every": -1}, "track_every must be a number of steps >= 0, got -1"),
        ({"budget": 0.0}, r"budget must be a share in \(0, 1\], or None, got 0.0"),
        ({"budget": 2}, r"budget must be a share in \(0, 1\], or None, got 2"),
    ],
)
def test_bad_arguments(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"SpectralMonitor: {message}"):
        SpectralMonitor(Model(), **options)


def test_a_model_without_matrices() -> None:
    with pytest.raises(ValueError, match="no weight matrices"):
        SpectralMonitor(nn.LayerNorm(4))


def test_large_stacks_are_looked_at_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("spectral_fast.monitor.groups.BATCH_BYTES", 3 * 24 * 24 * 4)
    sizes: list[int] = []

    class Counting(SpectralTracker):
        def exact(self, A: Any) -> SpectralStats:
            sizes.append(len(A))
            return super().exact(A)

    model = Model(layers=4)
    look = SpectralMonitor(model, ranks=Wrapped(Counting)).look()
    # 8 of 24x24, 4 of 48x24 and 4 of 24x48, at most three 24x24 at once
    assert sorted(sizes, reverse=True) == [3, 3, 2] + [1] * 8
    assert [m.name for m in look.matrices] == [
        w.name for w in spectral_fast.weight_matrices(model) if not w.is_embedding
    ]


def test_logs_are_of_the_package(caplog: pytest.LogCaptureFixture) -> None:
    def broken(look: Look) -> None:
        raise ValueError

    SpectralMonitor(Model(), sinks=[broken], budget=None).look()
    assert {record.name.split(".")[0] for record in caplog.records} == {"spectral_fast"}
    assert all(record.levelno == logging.WARNING for record in caplog.records)
