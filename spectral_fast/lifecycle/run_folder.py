"""The folder of a training run: its description, its result, its model.

    RUN/run.json            the configurations, the corpus' fingerprint and, once finished, the result
    RUN/looks/              a Parquet run: every matrix, exactly, at step 0 and at multiples of `every`
    RUN/losses.csv          loss and gradient norm of each step
    RUN/checkpoint.pt       the latest: weights, optimizer, step, losses
    RUN/model.safetensors   the last weights, once finished

Files are written whole or not at all, but losses.csv, which grows; `run.json` gets its result last of all.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from spectral_fast import __version__
from spectral_fast.export import write_atomically
from spectral_fast.lifecycle.config import ModelConfig, TrainConfig, differences
from spectral_fast.lifecycle.corpus import Corpus
from spectral_fast.lifecycle.gpt import GPT

# Raised when a file of a run changes its meaning.
FORMAT = 1


class TrainingError(ValueError):
    """A run cannot be begun, gone on with or read; the message says why and what to do."""


@dataclass(frozen=True)
class RunSummary:
    """A finished run.

    Attributes:
        steps, parameters: of the run and its model.
        held_out_loss: final, in nats a token.
        tokens: seen in training.
        seconds, look_seconds: wall time of the training, and of that in looks. What was made twice because a
            process was killed counts once.
    """

    steps: int
    parameters: int
    held_out_loss: float
    tokens: int
    seconds: float
    look_seconds: float


class Description:
    """What run.json says: the configurations, where the tokens came from and, once finished, the result."""

    def __init__(self, content: dict[str, Any]) -> None:
        self._content = content

    @classmethod
    def of(cls, model: ModelConfig, training: TrainConfig, corpus: Corpus) -> Description:
        """Of a run that begins."""
        return cls(
            {
                "format": FORMAT,
                "model": asdict(model),
                "training": asdict(training),
                "corpus": corpus.fingerprint,
                "parameters": model.parameters,
                "made_with": {"torch": torch.__version__, "spectral_fast": __version__},
            }
        )

    @classmethod
    def read(cls, folder: Path) -> Description | None:
        """That of a folder; None where nothing is there yet.

        Raises:
            TrainingError: the folder holds something else, or a run that this version does not know.
        """
        file = folder / "run.json"
        if not file.exists():
            if folder.is_file() or _in_use(folder):
                raise TrainingError(f"{folder}: is no training run (it has no run.json); give a new folder")
            return None
        try:
            content = json.loads(file.read_text(encoding="utf-8"))
            version = content["format"]
        except (ValueError, KeyError, TypeError) as error:
            raise TrainingError(
                f"{file}: describes no training run ({error!r}); give a new folder"
            ) from error
        if version != FORMAT:
            raise TrainingError(
                f"{file}: has format {version}, this version knows {FORMAT}; give a new folder"
            )
        return cls(content)

    def write(self, folder: Path) -> None:
        text = json.dumps(self._content, indent=1) + "\n"
        write_durably(folder / "run.json", lambda part: part.write_text(text, encoding="utf-8"))

    def finished(self, **result: Any) -> Description:
        """The same with the result: the fields of a `RunSummary` that are not known before."""
        return Description({**self._content, "result": result})

    @property
    def model(self) -> ModelConfig:
        return ModelConfig(**self._content["model"])

    @property
    def summary(self) -> RunSummary | None:
        """None before the run is finished."""
        if "result" not in self._content:
            return None
        steps, parameters = self._content["training"]["steps"], self._content["parameters"]
        return RunSummary(steps=steps, parameters=parameters, **self._content["result"])

    def require_same(self, folder: Path, model: ModelConfig, training: TrainConfig, corpus: Corpus) -> None:
        """Raise TrainingError naming what is not as described."""
        differ = differences(model, self._content["model"])
        differ += differences(training, self._content["training"])
        if corpus.fingerprint != self._content["corpus"]:
            differ.append("the corpus has other tokens")
        if differ:
            raise TrainingError(
                f"{folder}: holds another run: {'; '.join(differ)}. Give its options, or a new folder"
            )


def load_model(run: str | os.PathLike[str]) -> tuple[GPT, ModelConfig]:
    """The model of a finished run, on the CPU, and its configuration.

    Raises:
        TrainingError: no run, or one that is not finished.
    """
    folder = Path(run)
    description = Description.read(folder)
    if description is None:
        raise TrainingError(f"{folder}: is no training run (it has no run.json)")
    if description.summary is None:
        raise TrainingError(f"{folder}: is not finished; train it again with its options, it goes on")
    model = GPT(description.model)
    model.load_state_dict(load_file(folder / "model.safetensors"))
    return model, description.model


def write_durably(path: Path, write: Callable[[Path], Any]) -> None:
    """Write a file whole or not at all, also if the power fails."""

    def to_disk(part: Path) -> None:
        write(part)
        descriptor = os.open(part, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    write_atomically(path, to_disk)


def remove_leftovers(folder: Path) -> None:
    """Parts of files that a killed process was writing."""
    for part in folder.glob(".*.tmp"):
        part.unlink()


def _in_use(folder: Path) -> bool:
    """Whether anything is there; a run that was killed before it had a description leaves no such thing."""
    return any(file.is_file() and not file.name.startswith((".", "_lock")) for file in folder.rglob("*"))
