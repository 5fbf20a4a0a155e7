"""``spectral-fast lifecycle train``: a GPT from a few options, trained under the monitor."""

from __future__ import annotations

import argparse
import math
import os
from dataclasses import fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist

from spectral_fast.arguments import device_of
from spectral_fast.lifecycle.commands.failure import failed, not_installed
from spectral_fast.lifecycle.config import SIZES, ModelConfig, TrainConfig

if TYPE_CHECKING:
    from spectral_fast.lifecycle.training import Progress

_EXIT_CODES = """\
exit codes:
  0    the run is finished
  2    bad usage, a run or corpus that cannot be used, or a file that cannot be read or written
  130  interrupted (Ctrl-C); the same command goes on from the last checkpoint
"""
_SIZE_HELP = {
    "layers": "blocks",
    "width": "of the residual stream",
    "heads": "attention heads a block",
    "context": "tokens the model sees",
    "vocabulary": "tokens of the byte-level BPE, at most",
}
_TRAINING_HELP = {
    "steps": "optimizer steps (%(default)s)",
    "batch": "sequences a step, over all processes (%(default)s)",
    "lr": "largest learning rate (%(default)s)",
    "final_lr": "the last one, as a share of it (%(default)s)",
    "warm_up": "steps in which it rises (%(default)s)",
    "weight_decay": "of matrices (%(default)s)",
    "clip": "norm that gradients are scaled down to (%(default)s)",
    "seed": "of first weights and order of the data (%(default)s)",
    "every": "steps between looks (%(default)s)",
}
_DEFAULT_STEPS = 1000
_LINES = 40  # of progress, about


def add(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command to those of ``spectral-fast lifecycle``."""
    train = commands.add_parser(
        "train",
        help="train a GPT and look at all its weight matrices every 25 steps",
        description=(
            "Train a decoder-only GPT and look at every weight matrix of its blocks, exactly, at step 0 and\n"
            "every so many steps. RUN gets looks (Parquet), losses, checkpoints, the last weights and a\n"
            "description. A run that was killed goes on with the same command, to the same bits; a finished\n"
            "one is left as it is. Under torchrun the processes share each batch; one of them writes."
        ),
        epilog=_EXIT_CODES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    train.add_argument("path", metavar="RUN", type=Path, help="the run's folder; made, or gone on with")
    train.add_argument(
        "--size",
        choices=SIZES,
        default="thin-4",
        help="a model by name, which the options below change (%(default)s)",
    )
    for name, text in _SIZE_HELP.items():
        train.add_argument(f"--{name}", metavar="N", type=int, help=text)
    for field in fields(TrainConfig):
        default: Any = _DEFAULT_STEPS if field.name == "steps" else field.default
        option = "--" + field.name.replace("_", "-")
        metavar = "X" if isinstance(default, float) else "N"
        text = _TRAINING_HELP[field.name]
        train.add_argument(option, metavar=metavar, type=type(default), default=default, help=text)
    train.add_argument(
        "--data",
        metavar="FOLDER",
        type=Path,
        help="of text files (default: the sources of Python's standard library)",
    )
    train.add_argument(
        "--device", metavar="DEVICE", help="cpu, cuda, cuda:1, ... (default: the first GPU if there is one)"
    )
    train.add_argument("--threads", metavar="N", type=int, help="CPU threads to use, in each process")
    train.set_defaults(run=_run)


def _run(arguments: argparse.Namespace) -> int:
    try:
        from spectral_fast.monitor.parquet import RunError
    except ImportError as error:
        return not_installed(error)
    try:
        _train(arguments)
    except (ImportError, ValueError, RunError) as error:  # TrainingError and CorpusError are ValueErrors
        return failed(error)
    except OSError as error:
        return failed(f"{error.filename or arguments.path}: {error.strerror or error}")
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()
    return 0


def _train(arguments: argparse.Namespace) -> None:
    from spectral_fast.lifecycle.corpus import Corpus
    from spectral_fast.lifecycle.training import train

    model, training = _configurations(arguments)
    device = None if arguments.device is None else device_of(arguments.device)
    if arguments.threads is not None:
        if arguments.threads < 1:
            raise ValueError(f"--threads {arguments.threads}: is not a positive number")
        torch.set_num_threads(arguments.threads)
    first = _join(device)
    if not first:  # one tokenizes, the others read its cache
        dist.barrier()
    corpus = Corpus.from_folder(arguments.data, vocabulary=model.vocabulary)
    if first:
        if dist.is_initialized():
            dist.barrier()
        print(
            f"{model.parameters:,} parameters, {len(corpus.train):,} tokens of a vocabulary of "
            f"{corpus.vocabulary}, {len(corpus.held_out):,} held out",
            flush=True,
        )
    show = _Lines(training) if first else None
    summary = train(arguments.path, model, training, corpus, progress=show, device=device)
    if first:
        print(
            f"finished: {summary.steps} steps, {summary.tokens:,} tokens, {summary.seconds:.0f} s, of which "
            f"looks took {summary.look_seconds / max(summary.seconds, 1e-9):.1%}\n"
            f"held-out loss {summary.held_out_loss:.4f} nats a token (perplexity "
            f"{math.exp(summary.held_out_loss):.4g}); all of it is in {arguments.path}"
        )


def _configurations(arguments: argparse.Namespace) -> tuple[ModelConfig, TrainConfig]:
    given = {name: getattr(arguments, name) for name in _SIZE_HELP if getattr(arguments, name) is not None}
    training = TrainConfig(**{field.name: getattr(arguments, field.name) for field in fields(TrainConfig)})
    return replace(SIZES[arguments.size], **given), training


def _join(device: torch.device | None) -> bool:
    """Join the processes that torchrun started; whether this is the first, or the only one."""
    if not dist.is_torchelastic_launched():
        return True
    on_gpu = torch.cuda.is_available() if device is None else device.type == "cuda"
    if on_gpu:
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    dist.init_process_group("nccl" if on_gpu else "gloo")
    return dist.get_rank() == 0


class _Lines:
    """Progress, a line every so often."""

    def __init__(self, training: TrainConfig) -> None:
        self._steps = training.steps
        looks = -(-training.steps // training.every)
        self._each = max(1, looks // _LINES)
        self._count = 0

    def __call__(self, progress: Progress) -> None:
        self._count += 1
        if self._count % self._each and progress.step < self._steps:
            return
        minutes = (self._steps - progress.step) * progress.step_seconds / (1 - progress.look_share) / 60
        print(
            f"step {progress.step:>6}/{self._steps}  loss {progress.loss:.3f}  lr {progress.lr:.2e}  "
            f"{progress.step_seconds * 1e3:.0f} ms a step  looks {progress.look_share:.1%}  "
            f"{minutes:.1f} min left",
            flush=True,
        )
