"""The small reproduction: a grid of depths and seeds trained, every analysis run on it, all of it resumable.

    OUT/runs/<layers>-layers-seed-<seed>/     a training run (spectral_fast.lifecycle.run_folder)
    OUT/evaluations/<the same>.jsonl          losses without blocks (spectral_fast.lifecycle.evaluations)

Runs are independent, so as many as there are cores are trained side by side, one thread each: a thin model
does not fill more. What is finished is not done again, and a training run goes on from its checkpoint.
"""

from __future__ import annotations

import multiprocessing
import os
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from spectral_fast.lifecycle.config import ModelConfig, TrainConfig
from spectral_fast.lifecycle.corpus import Corpus
from spectral_fast.lifecycle.findings import ALPHAS, Measurement, measure_all, read_run
from spectral_fast.lifecycle.findings import Run as LookedAt
from spectral_fast.lifecycle.importance import Importance, layer_alphas, measure_importance
from spectral_fast.lifecycle.pruning import Pruning, measure_pruning
from spectral_fast.lifecycle.run_folder import RunSummary

Say = Callable[[str], None]


@dataclass(frozen=True)
class Plan:
    """What is trained and evaluated.

    Attributes:
        depths: numbers of layers, ascending.
        seeds: of each depth.
        model: its layers are replaced by each depth.
        training: its seed is replaced by each seed.
        data: folder of text; None for the sources of Python's standard library.
        evaluated_tokens: held-out tokens on which blocks are removed, about.
        random_orders: of pruning, for each run.

    Raises ValueError for depths or seeds that are not ascending and positive.
    """

    depths: tuple[int, ...]
    seeds: tuple[int, ...]
    model: ModelConfig
    training: TrainConfig
    data: Path | None = None
    evaluated_tokens: int = 16384
    random_orders: int = 20

    def __post_init__(self) -> None:
        for name, least in (("depths", 1), ("seeds", 0)):
            values = getattr(self, name)
            if not values or list(values) != sorted(set(values)) or values[0] < least:
                raise ValueError(f"Plan: {name} must ascend from {least} or more, got {values}")

    @property
    def runs(self) -> list[tuple[int, int]]:
        """(layers, seed) of each run, the shallow ones first."""
        return [(layers, seed) for layers in self.depths for seed in self.seeds]

    def model_of(self, layers: int) -> ModelConfig:
        return replace(self.model, layers=layers)

    def training_of(self, seed: int) -> TrainConfig:
        return replace(self.training, seed=seed)


@dataclass(frozen=True, eq=False)
class Trained:
    """One run and what was found without its blocks; those are None where it has one or two blocks."""

    layers: int
    seed: int
    name: str
    summary: RunSummary
    looks: LookedAt
    importance: Importance | None
    pruning: Pruning | None


@dataclass(frozen=True, eq=False)
class Reproduction:
    """All that the page shows.

    Attributes:
        plan: what was asked for.
        runs: in the plan's order.
        measurements: of every phenomenon, see :func:`spectral_fast.lifecycle.findings.measure_all`.
        seconds: wall time of this call; what earlier ones had done is not in it.
    """

    plan: Plan
    runs: Sequence[Trained]
    measurements: Sequence[Measurement]
    seconds: float


def reproduce(
    out: str | os.PathLike[str], plan: Plan, *, jobs: int | None = None, say: Say = print
) -> Reproduction:
    """Train what is not trained yet, and measure everything.

    Args:
        out: the folder of runs and evaluations; made, or gone on with.
        plan: what to do. A run that is there with other settings is an error, not overwritten.
        jobs: processes, one thread each; as many as torch has threads if not given.
        say: told of the progress, a line at a time.

    Raises:
        spectral_fast.lifecycle.training.TrainingError: as `train` does; what else was trained is kept.
        CorpusError: there is no corpus.
        OSError: files cannot be written.
    """
    began, folder = time.monotonic(), Path(out)
    corpus = _corpus(plan)  # tokenized once, before the processes want it
    jobs = torch.get_num_threads() if jobs is None else jobs
    tasks = [(folder, plan, layers, seed) for layers, seed in sorted(plan.runs, key=lambda run: -run[0])]
    _in_processes(jobs, _train, tasks, say)
    say(f"{len(tasks)} runs are trained; removing blocks")
    _in_processes(jobs, _remove_blocks, [task for task in tasks if task[2] > 2], say)
    say("measuring the phenomena")
    runs = [_trained(folder, plan, corpus, layers, seed) for layers, seed in plan.runs]
    measurements = measure_all([run.looks for run in runs], ALPHAS)
    return Reproduction(plan, runs, measurements, time.monotonic() - began)


def name_of(layers: int, seed: int) -> str:
    return f"{layers}-layers-seed-{seed}"


Task = tuple[Path, Plan, int, int]


def _in_processes(jobs: int, work: Callable[[Task], str], tasks: Sequence[Task], say: Say) -> None:
    """Each task in a process of its own number of threads, one; the first that fails stops the others."""
    if jobs == 1 or len(tasks) < 2:
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            for task in tasks:
                say(work(task))
        finally:
            torch.set_num_threads(threads)
        return
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(
        min(jobs, len(tasks)), mp_context=context, initializer=torch.set_num_threads, initargs=(1,)
    ) as pool:
        waiting = [pool.submit(work, task) for task in tasks]
        try:
            for done in as_completed(waiting):
                say(done.result())
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _corpus(plan: Plan) -> Corpus:
    return Corpus.from_folder(plan.data, vocabulary=plan.model.vocabulary)


def _train(task: Task) -> str:
    from spectral_fast.lifecycle.training import Progress, train

    folder, plan, layers, seed = task
    name = name_of(layers, seed)
    tenth = max(plan.training.every, plan.training.steps // 10)

    def progress(at: Progress) -> None:
        if at.step % tenth < plan.training.every and at.step < plan.training.steps:
            step = f"step {at.step} of {plan.training.steps}, loss {at.loss:.3f}"
            print(f"{name}: {step}, {at.step_seconds * 1e3:.0f} ms a step", flush=True)

    run = folder / "runs" / name
    model, training = plan.model_of(layers), plan.training_of(seed)
    summary = train(run, model, training, _corpus(plan), progress=progress, device="cpu")
    loss, took = f"held-out loss {summary.held_out_loss:.3f}", f"{summary.seconds:.0f} s"
    return f"{name}: {loss} after {summary.steps} steps, {took}"


def _remove_blocks(task: Task) -> str:
    folder, plan, layers, seed = task
    importance, pruning = _without_blocks(folder, plan, _corpus(plan), layers, seed)
    assert pruning is not None
    return (
        f"{name_of(layers, seed)}: {importance.depth} blocks removed in {len(pruning.curves)} kinds of order"
    )


def _without_blocks(
    folder: Path, plan: Plan, corpus: Corpus, layers: int, seed: int
) -> tuple[Importance, Pruning]:
    """From the file of evaluations where they are there."""
    from spectral_fast.lifecycle.adapters import load_decoder
    from spectral_fast.lifecycle.evaluations import Evaluations
    from spectral_fast.lifecycle.perplexity import EvaluationText

    name, context = name_of(layers, seed), plan.model.context
    run = folder / "runs" / name
    text = EvaluationText.of(corpus.held_out, context=context, count=max(2, plan.evaluated_tokens // context))
    (folder / "evaluations").mkdir(exist_ok=True)
    decoder = load_decoder(run)
    with Evaluations(folder / "evaluations" / f"{name}.jsonl") as evaluations:
        importance = measure_importance(decoder, text, layer_alphas(run), evaluations)
        pruning = measure_pruning(decoder, text, importance, evaluations, seeds=plan.random_orders)
    return importance, pruning


def _trained(folder: Path, plan: Plan, corpus: Corpus, layers: int, seed: int) -> Trained:
    from spectral_fast.lifecycle.training import train

    name = name_of(layers, seed)
    run = folder / "runs" / name
    summary = train(run, plan.model_of(layers), plan.training_of(seed), corpus)  # finished: only its summary
    found = _without_blocks(folder, plan, corpus, layers, seed) if layers > 2 else (None, None)
    return Trained(layers, seed, name, summary, read_run(run, name), *found)
