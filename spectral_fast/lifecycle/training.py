"""Training under the monitor, in a folder from which it goes on after kill -9 as if nothing had been.

A step is a function of the weights, the optimizer's state and the step's number: the learning rate and the
batch follow from the number, and nothing else is random. So a checkpoint needs no state of a generator, and a
run that goes on makes the same bits, on the same device with the same number of threads.

A checkpoint is written after the looks up to its step are. What a killed run saw beyond its checkpoint is
seen again, and `read_run` takes the later of the two.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from safetensors.torch import save
from torch import Tensor, nn
from torch.nn import functional as F

from spectral_fast.lifecycle.config import ModelConfig, TrainConfig
from spectral_fast.lifecycle.corpus import Corpus
from spectral_fast.lifecycle.gpt import GPT
from spectral_fast.lifecycle.run_folder import (
    FORMAT,
    Description,
    RunSummary,
    TrainingError,
    load_model,
    remove_leftovers,
    write_durably,
)
from spectral_fast.monitor import ParquetSink, SpectralMonitor

__all__ = ["Progress", "RunSummary", "TrainingError", "held_out_loss", "load_model", "train"]

# The final loss is over at most this many held-out sequences, spread evenly.
_HELD_OUT_SEQUENCES = 512
# Tells the first weights' stream of numbers from the data's, in corpus.py.
_WEIGHTS_STREAM = 1


@dataclass(frozen=True)
class Progress:
    """How far a run is, at each look.

    Attributes:
        step: optimizer steps made.
        loss: mean over the steps since the last report, in nats a token.
        lr: of the last step.
        step_seconds: wall time a step since then, looks and checkpoints left out.
        look_share: of this attempt's wall time, what looks took.
    """

    step: int
    loss: float
    lr: float
    step_seconds: float
    look_share: float


def train(
    run: str | os.PathLike[str],
    model: ModelConfig,
    training: TrainConfig,
    corpus: Corpus,
    *,
    progress: Callable[[Progress], None] | None = None,
    device: torch.device | str | None = None,
    checkpoint_seconds: float = 60.0,
) -> RunSummary:
    """Train a model from its configuration, or go on with a run of the same, and look at its weights.

    AdamW (Loshchilov and Hutter 2019; β 0.9 and 0.95) at `TrainConfig.lr_at`, in bfloat16 autocast where a
    GPU has it. On torch.distributed, with its process group made, every rank calls this: each takes its share
    of every batch, so that a step's data do not depend on how many they are; rank 0 writes.

    Args:
        run: the folder, see `run_folder`; made if it is missing. A finished run returns its summary at once.
        model, training: what to train, and how.
        corpus: the tokens.
        progress: called on rank 0 every ``training.every`` steps and after the last.
        device: where; if not given, the first GPU, or $LOCAL_RANK's on torch.distributed, else the CPU.
        checkpoint_seconds: least wall time between two checkpoints, which are written after looks.

    Raises:
        TrainingError: the folder holds something else, or a run of other configurations or another corpus
            (it says which); a batch that the ranks cannot share; a loss that is not finite; looks that could
            not be written.
        CorpusError: the corpus is too small for the context.
        spectral_fast.monitor.parquet.RunError: another process trains in the folder.
        OSError: the folder cannot be written.
    """
    folder, ranks = Path(run), _Ranks()
    corpus.require(model.context)
    if corpus.vocabulary > model.vocabulary:
        raise TrainingError(
            f"the corpus has {corpus.vocabulary} tokens, and the model a vocabulary of {model.vocabulary}; "
            "give it that many, or a corpus of fewer"
        )
    if training.batch % ranks.size:
        raise TrainingError(f"{ranks.size} ranks cannot share a batch of {training.batch}; give a multiple")
    description = Description.read(folder)
    if description is not None:
        description.require_same(folder, model, training, corpus)
        if description.summary is not None:
            return description.summary
    ranks.meet()  # rank 0 writes what the others have just looked for
    sinks = [ParquetSink(folder / "looks")] if ranks.rank == 0 else []  # and locks the run
    try:
        if ranks.rank == 0:
            remove_leftovers(folder)
        if description is None:
            description = Description.of(model, training, corpus)
            if ranks.rank == 0:
                description.write(folder)
        session = _Session(folder, model, training, corpus, _device(device, ranks), ranks)
        monitor = SpectralMonitor(
            session.model, every=training.every, track_every=0, budget=None, sinks=sinks
        )
    except BaseException:
        for sink in sinks:
            sink.close()
        raise
    with monitor:
        session.go(monitor, progress, checkpoint_seconds)
    lost = monitor.report().waiting + monitor.report().dropped
    if lost:
        raise TrainingError(
            f"{lost} looks could not be written to {folder / 'looks'}, the log says why; run again to go on "
            "from the last checkpoint"
        )
    return session.finish(description)


@torch.no_grad()
def held_out_loss(model: nn.Module, tokens: Tensor, context: int, batch: int) -> float:
    """Mean cross-entropy in nats a token over at most 512 sequences of ``context``, spread evenly.

    Args:
        model: (batch, context) tokens to logits; run on the device of its parameters.
        tokens: (M,) int64, M > context.
        batch: sequences at a time.
    """
    device = next(model.parameters()).device
    count = min(_HELD_OUT_SEQUENCES, (len(tokens) - 1) // context)
    starts = torch.linspace(0, len(tokens) - 1 - context, count, dtype=torch.float64).long()
    total = 0.0
    for some in starts.split(batch):
        rows = tokens[some[:, None] + torch.arange(context + 1)].to(device)
        with _autocast(device):
            total += float(_loss(model, rows)) * len(some)
    return total / count


class _Ranks:
    """This process among those that train together."""

    def __init__(self) -> None:
        together = dist.is_available() and dist.is_initialized()
        self.rank, self.size = (dist.get_rank(), dist.get_world_size()) if together else (0, 1)

    def meet(self) -> None:
        if self.size > 1:
            dist.barrier()

    def mean(self, values: Tensor) -> Tensor:
        if self.size > 1:
            dist.all_reduce(values)
            values /= self.size
        return values

    def require_equal(self, step: int, folder: Path) -> None:
        """Raise TrainingError on all ranks where they are at different steps."""
        if self.size > 1:
            steps: list[Any] = [None] * self.size
            dist.all_gather_object(steps, step)
            if len(set(steps)) > 1:
                raise TrainingError(
                    f"the ranks found checkpoints of different steps ({', '.join(map(str, steps))}): "
                    f"{folder} must be on a file system that all of them share"
                )


class _Session:
    """One attempt at a run: the state between steps, and what is written of it."""

    def __init__(
        self,
        folder: Path,
        model: ModelConfig,
        training: TrainConfig,
        corpus: Corpus,
        device: torch.device,
        ranks: _Ranks,
    ) -> None:
        self._folder, self._training, self._corpus = folder, training, corpus
        self._device, self._ranks, self._context = device, ranks, model.context
        self.model = GPT(model, _generator(training.seed)).to(device)
        decayed = [p for p in self.model.parameters() if p.dim() == 2]
        others = [p for p in self.model.parameters() if p.dim() != 2]
        self._optimizer = torch.optim.AdamW(
            [
                {"params": decayed, "weight_decay": training.weight_decay},
                {"params": others, "weight_decay": 0.0},
            ],
            betas=(0.9, 0.95),
            fused=True,
        )
        self._step, self._seconds, self._look_seconds = 0, 0.0, 0.0
        self._losses = torch.empty(0, 2)  # loss and gradient norm of each step
        self._load()
        ranks.require_equal(self._step, folder)
        self._net: nn.Module = self.model
        if ranks.size > 1:
            self._net = nn.parallel.DistributedDataParallel(self.model)

    def go(
        self,
        monitor: SpectralMonitor,
        progress: Callable[[Progress], None] | None,
        checkpoint_seconds: float,
    ) -> None:
        """Make the steps that are left, with a look at the weights every so often."""
        training = self._training
        before = self._seconds, self._look_seconds
        began = resumed = saved = time.perf_counter()
        with self._losses_file() as write_losses:
            if self._step == 0:
                self._look(monitor)
                resumed = time.perf_counter()
            while self._step < training.steps:
                stop = min(training.steps, self._step - self._step % training.every + training.every)
                recent = self._advance(stop)
                stepped = time.perf_counter()
                write_losses(stop - len(recent), recent)
                if self._step % training.every == 0:
                    self._look(monitor)
                now = time.perf_counter()
                spent = monitor.report().spent
                self._seconds, self._look_seconds = before[0] + now - began, before[1] + spent
                if progress is not None and self._ranks.rank == 0:
                    loss, lr = float(recent[:, 0].mean()), training.lr_at(stop - 1)
                    step_seconds = (stepped - resumed) / len(recent)
                    progress(Progress(stop, loss, lr, step_seconds, spent / (now - began)))
                # A checkpoint promises that the looks before it are written.
                if now - saved >= checkpoint_seconds and not monitor.report().waiting:
                    self._save()
                    saved = time.perf_counter()
                resumed = time.perf_counter()

    def finish(self, description: Description) -> RunSummary:
        """Evaluate, and write what says that the run is finished last of all."""
        training = self._training
        if self._ranks.rank == 0:
            self._save()
            loss = held_out_loss(self.model, self._corpus.held_out, self._context, training.batch)
            weights = save(self.model.state_dict())  # save_file would make a file that others cannot read
            write_durably(self._folder / "model.safetensors", lambda part: part.write_bytes(weights))
            finished = description.finished(
                held_out_loss=loss,
                tokens=training.steps * training.batch * self._context,
                seconds=self._seconds,
                look_seconds=self._look_seconds,
            )
            finished.write(self._folder)
        self._ranks.meet()
        written = Description.read(self._folder)
        assert written is not None
        assert written.summary is not None
        return written.summary

    def _advance(self, stop: int) -> Tensor:
        """Go on to a step; (k, 2) losses and gradient norms of the k steps, mean over the ranks."""
        with _reproducible():
            made = torch.stack([self._optimizer_step(step) for step in range(self._step, stop)])
        recent = self._ranks.mean(made).cpu()
        bad = (~recent.isfinite()).any(1).nonzero()
        if len(bad):
            first = int(bad[0])
            loss, norm = recent[first].tolist()
            raise TrainingError(
                f"step {self._step + first + 1}: the loss is {loss} and the gradient's norm {norm}; train in "
                "a new folder with a lower learning rate"
            )
        self._step = stop
        self._losses = torch.cat([self._losses, recent])
        return recent

    def _optimizer_step(self, step: int) -> Tensor:
        """(2,) loss of this rank's rows and norm of the gradient, on the device."""
        training, ranks = self._training, self._ranks
        share = training.batch // ranks.size
        rows = self._corpus.batch(training.seed, step, training.batch, self._context)
        rows = rows[ranks.rank * share : (ranks.rank + 1) * share].to(self._device)
        for group in self._optimizer.param_groups:
            group["lr"] = training.lr_at(step)
        with _autocast(self._device):
            loss = _loss(self._net, rows)
        loss.backward()
        norm = nn.utils.clip_grad_norm_(self.model.parameters(), training.clip)
        self._optimizer.step()
        self._optimizer.zero_grad()
        return torch.stack([loss.detach(), norm.detach()])

    def _look(self, monitor: SpectralMonitor) -> None:
        # monitor.step() would look by itself, but on CUDA a step late where the last look is not ready yet.
        monitor.load_state_dict({**monitor.state_dict(), "step": self._step})
        monitor.look()

    @contextlib.contextmanager
    def _losses_file(self) -> Iterator[Callable[[int, Tensor], None]]:
        """To write rows of losses.csv after those of the checkpoint: (steps before them, (k, 2) losses)."""
        if self._ranks.rank:
            yield lambda before, rows: None
            return
        with (self._folder / "losses.csv").open("w", encoding="utf-8") as file:

            def write(before: int, rows: Tensor) -> None:
                for step, (loss, norm) in enumerate(rows.tolist(), before + 1):
                    file.write(f"{step},{loss:.9g},{norm:.9g}\n")  # nine digits tell all float32 apart
                file.flush()

            file.write("step,loss,gradient_norm\n")
            write(0, self._losses)
            yield write

    def _save(self) -> None:
        if self._ranks.rank == 0:
            state = {
                "format": FORMAT,
                "step": self._step,
                "model": self.model.state_dict(),
                "optimizer": self._optimizer.state_dict(),
                "losses": self._losses,
                "seconds": self._seconds,
                "look_seconds": self._look_seconds,
            }
            write_durably(self._folder / "checkpoint.pt", lambda part: torch.save(state, part))

    def _load(self) -> None:
        file = self._folder / "checkpoint.pt"
        if not file.exists():
            return
        try:
            state = torch.load(file, map_location="cpu", weights_only=True)
            self._step, self._losses = state["step"], state["losses"]
            self.model.load_state_dict(state["model"])
            self._optimizer.load_state_dict(state["optimizer"])
            self._seconds, self._look_seconds = state["seconds"], state["look_seconds"]
        except Exception as error:  # a damaged pickle can raise anything
            what = str(error).split(".")[0].split("\n")[0]  # torch goes on with advice
            raise TrainingError(
                f"{file}: cannot be read ({what}); remove it to begin the run again"
            ) from error


def _loss(model: nn.Module, rows: Tensor) -> Tensor:
    """Mean cross-entropy of the successors in (batch, context + 1) tokens."""
    return F.cross_entropy(model(rows[:, :-1]).flatten(0, 1), rows[:, 1:].flatten())


def _generator(seed: int) -> torch.Generator:
    mixed = np.random.SeedSequence([_WEIGHTS_STREAM, seed]).generate_state(1, np.uint64)[0]
    return torch.Generator().manual_seed(int(mixed))


def _device(asked: torch.device | str | None, ranks: _Ranks) -> torch.device:
    if asked is not None:
        return torch.device(asked)
    if not torch.cuda.is_available():
        return torch.device("cpu")
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")) if ranks.size > 1 else 0)


def _autocast(device: torch.device) -> torch.autocast:
    # CPUs stay in float32: few have bfloat16 products.
    native = device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
    return torch.autocast(device.type, torch.bfloat16, enabled=native)


@contextlib.contextmanager
def _reproducible() -> Iterator[None]:
    """The same input gives the same bits; on CUDA that excludes sums by atomics."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    options: Any = torch.utils.deterministic
    enabled, filled = torch.are_deterministic_algorithms_enabled(), options.fill_uninitialized_memory
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    torch.use_deterministic_algorithms(True)
    options.fill_uninitialized_memory = False  # a help in debugging, for a pass over memory
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(enabled, warn_only=warn_only)
        options.fill_uninitialized_memory = filled
