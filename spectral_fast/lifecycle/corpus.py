"""Text as tokens: any folder of text files, byte-level BPE, a cache, a split by file, batches.

- **Files.** Every file below the folder that is UTF-8 without NUL bytes, hidden ones aside; without a folder,
  the .py files of the installed Python's standard library.
- **Split.** A file is held out where the SHA-256 of its relative path, as a fraction of 2²⁵⁶, is below 0.05;
  where those are none or all, the file of the smallest. So the machine makes no difference.
- **Tokens.** Byte-level BPE (Sennrich et al. 2016; Radford et al. 2019) of the library ``tokenizers``,
  trained on the training files only. Every file ends with the token 0.
- **Cache.** Keyed by the content of all files, the vocabulary and the version of ``tokenizers``; a folder
  that is there whole or not at all. What is read from it is checked against its fingerprint.
- **Batches.** A function of (seed, step) alone: to resume, nothing has to be replayed.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
import sysconfig
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

# Raised when the same files and settings give other tokens.
_FORMAT = 1
_HELD_OUT = 0.05
_END = "<|endoftext|>"  # of a file; the token 0
_BYTES = 256
# Characters encoded at a time: enough for all threads, and the library's records of them stay small.
_CHUNK = 2**21

_log = logging.getLogger(__name__)


class CorpusError(ValueError):
    """There is no corpus to be had; the message says why and what to do."""


@dataclass(frozen=True, eq=False)
class Corpus:
    """Tokens to train on and to evaluate with.

    Attributes:
        train: (N,) uint16 or int32, files one after another; may be mapped from the cache.
        held_out: (M,) int64 on the CPU, of files that are not in ``train``.
        vocabulary: tokens are below it.
    """

    train: NDArray[Any]
    held_out: Tensor
    vocabulary: int

    @classmethod
    def from_folder(
        cls, folder: str | Path | None = None, vocabulary: int = 2048, cache: str | Path | None = None
    ) -> Corpus:
        """Tokens of the text files below a folder; made at the first call, then from the cache.

        Args:
            folder: of text; the sources of Python's standard library if not given.
            vocabulary: most tokens the BPE may have, at least 257. A small corpus may have fewer.
            cache: folder for tokens; ``spectral_fast`` in $XDG_CACHE_HOME or ~/.cache if not given.

        Raises:
            CorpusError: no such folder, fewer than two text files in it, files that change or cannot be read,
                a cache that is damaged or cannot be written.
            ValueError: a vocabulary below 257.
        """
        if vocabulary <= _BYTES:
            raise ValueError(f"Corpus: a byte-level vocabulary has 257 tokens or more, got {vocabulary}")
        files = _TextFiles(folder)
        place = _cache_folder(cache) / files.key(vocabulary)
        try:
            if not place.is_dir():
                _log.info("tokenizing %s into %s", files, place)
                _fill(place, files, vocabulary)
            return _read(place)
        except OSError as error:
            raise CorpusError(
                f"{error.filename or place}: {error.strerror or error}; give another cache folder"
            ) from error

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of the tokens, training and held out."""
        digest = hashlib.sha256(f"{self.train.dtype} {len(self.train)} ".encode())
        digest.update(np.ascontiguousarray(self.train).data)
        digest.update(self.held_out.numpy().astype(self.train.dtype).data)
        return digest.hexdigest()

    def require(self, context: int) -> None:
        """Raise CorpusError where training or held-out tokens do not fill one sequence and its successor."""
        for part, count in (("for training", len(self.train)), ("held out", len(self.held_out))):
            if count <= context:
                raise CorpusError(
                    f"the corpus has {count} tokens {part}, too few for a context of {context}: "
                    "give more text or a shorter context"
                )

    def batch(self, seed: int, step: int, size: int, context: int) -> Tensor:
        """The batch of a step: sequences from anywhere in the training tokens, drawn with replacement.

        Returns:
            (size, context + 1) int64 on the CPU: tokens, each followed by its successor.
        """
        draw = np.random.default_rng([_DATA_STREAM, seed, step])
        starts = draw.integers(len(self.train) - context, size=(size, 1))
        return torch.from_numpy(self.train[starts + np.arange(context + 1)].astype(np.int64))


# Tells this stream of numbers from the others that a seed begins; see training.py.
_DATA_STREAM = 2


class _TextFiles:
    """The text files of a folder, by relative path, with the digests they had when first read."""

    def __init__(self, folder: str | Path | None) -> None:
        library = folder is None
        self.folder = Path(sysconfig.get_path("stdlib") if folder is None else folder)
        if not self.folder.is_dir():
            problem = "is not a folder" if self.folder.exists() else "does not exist"
            raise CorpusError(f"{self.folder}: {problem}; give a folder of text files")
        self._digests: dict[str, str] = {}
        for name in sorted(_names(self.folder, library)):
            content = self._content(name)
            if _text(content):
                self._digests[name] = hashlib.sha256(content).hexdigest()
        if len(self._digests) < 2:
            kind = ".py files" if library else "UTF-8 text files"
            raise CorpusError(
                f"{self.folder}: has {len(self._digests)} {kind} that are not empty, and two are needed, "
                "one to train on and one to hold out; "
                + ("give a folder of text" if library else "add or split files")
            )
        shares = {name: _share(name) for name in self._digests}
        smallest = min(shares, key=shares.__getitem__)
        chosen = [name for name, share in shares.items() if share < _HELD_OUT]
        self.held_out = chosen if 0 < len(chosen) < len(shares) else [smallest]
        self.train = sorted(set(shares) - set(self.held_out))

    def __str__(self) -> str:
        return f"{len(self._digests)} files of {self.folder}"

    def key(self, vocabulary: int) -> str:
        """Of the tokens in the cache: what they are a function of."""
        try:
            import tokenizers
        except ImportError as error:
            raise ImportError(
                "a corpus needs tokenizers, which the extra 'lifecycle' brings: "
                "pip install 'spectral_fast[lifecycle]'"
            ) from error

        of = [_FORMAT, _HELD_OUT, tokenizers.__version__, vocabulary, sorted(self._digests.items())]
        return hashlib.sha256(json.dumps(of).encode()).hexdigest()[:32]

    def texts(self, names: Sequence[str]) -> Iterator[str]:
        """Their contents. Raises CorpusError where a file is not what it was."""
        for name in names:
            content = self._content(name)
            if hashlib.sha256(content).hexdigest() != self._digests[name]:
                raise CorpusError(f"{self.folder / name}: changed while it was read; run again")
            yield content.decode()

    def _content(self, name: str) -> bytes:
        try:
            return (self.folder / name).read_bytes()
        except OSError as error:
            raise CorpusError(
                f"{self.folder / name}: cannot be read ({error.strerror}); remove it or run again"
            ) from error


def _names(folder: Path, library: bool) -> Iterator[str]:
    """Relative paths of the files that may be text, with forward slashes."""
    for at, folders, files in os.walk(folder):
        folders[:] = [
            name for name in folders if not name.startswith(".") and not (library and name == "site-packages")
        ]
        for name in files:
            path = Path(at, name)
            if not name.startswith(".") and (not library or path.suffix == ".py") and path.is_file():
                yield path.relative_to(folder).as_posix()


def _text(content: bytes) -> bool:
    if not content or b"\0" in content:
        return False
    try:
        content.decode()
    except UnicodeDecodeError:
        return False
    return True


def _share(name: str) -> float:
    return int.from_bytes(hashlib.sha256(name.encode(errors="surrogateescape")).digest()) / 2**256


def _cache_folder(cache: str | Path | None) -> Path:
    if cache is not None:
        return Path(cache)
    base = os.environ.get("XDG_CACHE_HOME", "")
    # The specification has relative paths ignored.
    return (Path(base) if os.path.isabs(base) else Path.home() / ".cache") / "spectral_fast"


def _fill(place: Path, files: _TextFiles, vocabulary: int) -> None:
    """Make the tokens beside their place, then move them there; another process may be first."""
    place.parent.mkdir(parents=True, exist_ok=True)
    beside = Path(tempfile.mkdtemp(prefix=f".{place.name}.", dir=place.parent))
    try:
        tokenizer = _tokenizer(files, vocabulary)
        known = tokenizer.get_vocab_size()
        train, held_out = (_encoded(tokenizer, files, names) for names in (files.train, files.held_out))
        corpus = Corpus(train, torch.from_numpy(held_out.astype(np.int64)), known)
        np.save(beside / "train.npy", train)
        np.save(beside / "held_out.npy", held_out)
        tokenizer.save(str(beside / "tokenizer.json"))
        about = {
            "fingerprint": corpus.fingerprint,
            "vocabulary": known,
            "folder": str(files.folder),
            "train_files": len(files.train),
            "held_out_files": files.held_out,
        }
        (beside / "corpus.json").write_text(json.dumps(about, indent=1), encoding="utf-8")
        try:
            beside.rename(place)
        except OSError:
            if not place.is_dir():
                raise
    finally:
        shutil.rmtree(beside, ignore_errors=True)


def _tokenizer(files: _TextFiles, vocabulary: int) -> Any:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=[_END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(files.texts(files.train), trainer)
    tokenizer.encode_special_tokens = True  # where a file speaks of the token, it is text
    return tokenizer


def _encoded(tokenizer: Any, files: _TextFiles, names: Sequence[str]) -> NDArray[Any]:
    """The tokens of files, each with its end."""
    dtype = np.uint16 if tokenizer.get_vocab_size() <= 2**16 else np.int32
    end = np.array([tokenizer.token_to_id(_END)], dtype)
    pieces: list[NDArray[Any]] = []
    for texts in _chunks(files.texts(names)):
        for encoding in tokenizer.encode_batch_fast(texts, add_special_tokens=False):
            pieces += np.array(encoding.ids, dtype), end
    return np.concatenate(pieces)


def _chunks(texts: Iterator[str]) -> Iterator[list[str]]:
    chunk: list[str] = []
    for text in texts:
        chunk.append(text)
        if sum(map(len, chunk)) >= _CHUNK:
            yield chunk
            chunk = []
    if chunk:
        yield chunk


def _read(place: Path) -> Corpus:
    try:
        about = json.loads((place / "corpus.json").read_text(encoding="utf-8"))
        # Copy on write: torch takes no read-only memory.
        train = np.load(place / "train.npy", mmap_mode="c")
        held_out = np.load(place / "held_out.npy")
        corpus = Corpus(train, torch.from_numpy(held_out.astype(np.int64)), about["vocabulary"])
        whole = corpus.fingerprint == about["fingerprint"]
    except (ValueError, KeyError, FileNotFoundError, EOFError) as error:
        raise CorpusError(f"{place}: is damaged ({error}); remove it, it is made again") from error
    if not whole:
        raise CorpusError(
            f"{place}: is damaged (the tokens are not those written); remove it, it is made again"
        )
    return corpus
