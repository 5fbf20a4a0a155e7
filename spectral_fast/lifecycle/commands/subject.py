"""The model, the text and the folder that ``importance`` and ``prune`` work on."""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from spectral_fast.arguments import positive
from spectral_fast.lifecycle.adapters import Decoder, load_decoder
from spectral_fast.lifecycle.evaluations import Evaluations
from spectral_fast.lifecycle.outputs import write_figure, write_json
from spectral_fast.lifecycle.perplexity import EvaluationText
from spectral_fast.models import CheckpointError

if TYPE_CHECKING:  # scipy takes its time, and the parser has to be there without it
    from spectral_fast.lifecycle.importance import Importance

EVALUATIONS = "evaluations.jsonl"
EXIT_CODES = """\
exit codes:
  0    the table, the JSON file and the pictures are there
  2    bad usage, or files that cannot be read or written
  130  interrupted (Ctrl-C); what was evaluated is kept, and the same command goes on from there
"""
_PROGRESS_SECONDS = 10.0


@dataclass(frozen=True, eq=False)
class Subject:
    """What is measured, on which text, and where the results go."""

    path: Path
    decoder: Decoder
    text: EvaluationText
    out: Path
    evaluations: Evaluations

    def importance(self) -> Importance:
        from spectral_fast.lifecycle.importance import layer_alphas, measure_importance

        return measure_importance(
            self.decoder, self.text, layer_alphas(self.path), self.evaluations, progress_line("blocks")
        )

    def about(self) -> dict[str, Any]:
        """What the results depend on, JSON-ready."""
        return {
            "model": self.path.resolve().name,
            "model_fingerprint": self.decoder.fingerprint(),
            "text_fingerprint": self.text.fingerprint(),
            "windows": len(self.text.windows),
            "context": self.text.windows.shape[1] - 1,
        }


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add(
        "path", metavar="MODEL", type=Path, help="a training run, or a Hugging Face folder of GPT-2 or Pythia"
    )
    add("--text", metavar="FILE", type=Path, help="held-out text, UTF-8; needed for a Hugging Face folder")
    add("--data", metavar="FOLDER", type=Path, help="the text a run was trained on, if not the default")
    add("--context", metavar="N", type=positive, help="tokens of a window (the model's, at most 1024)")
    add("--tokens", metavar="N", type=positive, default=16384, help="about so many are predicted (16384)")
    add("--out", metavar="DIR", type=Path, help="where the files go (MODEL-pruning)")
    add("--threads", metavar="N", type=positive, help="CPU threads to use")


@contextmanager
def opened(arguments: argparse.Namespace) -> Iterator[Subject]:
    """Load everything, and close the file of evaluations in the end.

    Raises:
        ValueError, OSError: with a message for the user.
    """
    if importlib.util.find_spec("matplotlib") is None:  # after the evaluations would be late
        raise ValueError("the pictures need matplotlib: pip install 'spectral_fast[lifecycle]'")
    before = torch.get_num_threads()
    torch.set_num_threads(arguments.threads or before)
    try:
        decoder = load_decoder(arguments.path)
        context = arguments.context or min(decoder.context, 1024)
        tokens = _tokens(arguments, decoder)
        text = EvaluationText.of(tokens, context=context, count=max(2, arguments.tokens // context))
        run = arguments.path.resolve()
        out = arguments.out or run.with_name(f"{run.name}-pruning")
        out.mkdir(parents=True, exist_ok=True)
        with Evaluations(out / EVALUATIONS) as evaluations:
            yield Subject(arguments.path, decoder, text, out, evaluations)
    finally:
        torch.set_num_threads(before)


def write_results(out: Path, name: str, data: dict[str, Any]) -> None:
    """Write one JSON file and say so."""
    write_json(out / name, {"format": 1, **data})
    print(f"wrote {out / name}")


def save_figure(figure: Any, out: Path, name: str) -> None:
    """Write one PNG and say so."""
    write_figure(out / name, figure)
    print(f"wrote {out / name}")


class progress_line:
    """Tells standard error now and then how many sets are done."""

    def __init__(self, what: str) -> None:
        self._what = what
        self._next = time.monotonic() + _PROGRESS_SECONDS

    def __call__(self, done: int, total: int) -> None:
        if time.monotonic() >= self._next:
            self._next = time.monotonic() + _PROGRESS_SECONDS
            print(f"{self._what}: {done} of {total} evaluated", file=sys.stderr, flush=True)


def _tokens(arguments: argparse.Namespace, decoder: Decoder) -> Tensor:
    run = arguments.path / "run.json"
    if run.is_file():
        if arguments.text is not None:
            raise ValueError("a run is evaluated on what its corpus held out: leave out --text")
        return _held_out(arguments.path, arguments.data, decoder.vocabulary)
    if arguments.text is None:
        raise ValueError(f"{arguments.path} is no training run with a corpus of its own: give --text FILE")
    return _tokenized(arguments.path, arguments.text)


def _held_out(run: Path, folder: Path | None, vocabulary: int) -> Tensor:
    from spectral_fast.lifecycle.corpus import Corpus

    corpus = Corpus.from_folder(folder, vocabulary=vocabulary)
    if corpus.fingerprint != json.loads((run / "run.json").read_text(encoding="utf-8"))["corpus"]:
        raise ValueError(f"{run}: was trained on another corpus than this; give its folder as --data")
    return corpus.held_out


def _tokenized(checkpoint: Path, file: Path) -> Tensor:
    from transformers import AutoTokenizer

    try:
        content = file.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{file}: is not UTF-8 text ({error.reason} at byte {error.start})") from error
    try:
        tokenizer = AutoTokenizer.from_pretrained(os.fspath(checkpoint), local_files_only=True)
    except (OSError, ValueError) as error:
        first = str(error).strip().partition("\n")[0]
        raise CheckpointError(
            checkpoint, f"has no tokenizer ({first})", "Download its tokenizer files too"
        ) from error
    tokens = tokenizer(content, add_special_tokens=False, verbose=False)["input_ids"]
    if len(tokens) == 0:  # without its files transformers makes a tokenizer that knows no words
        raise CheckpointError(checkpoint, f"has no tokenizer that reads {file}", "Download its files too")
    return torch.tensor(tokens)
