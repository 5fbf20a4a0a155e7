"""Text becomes tokens: which files, which split, which tokens, what the cache promises, which batches."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer

from spectral_fast.lifecycle import corpus as module
from spectral_fast.lifecycle.corpus import Corpus, CorpusError

VOCABULARY = 300
# What a tokenizer may trip over: its own mark, indentation, line ends, letters of several bytes.
AWKWARD = "if x:\r\n\t    return '<|endoftext|>'  # größer, 数, 🙂\n\n\n"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Sixty files in two folders, some of which are no text."""
    root = tmp_path / "text"
    (root / "deep").mkdir(parents=True)
    for index in range(60):
        place = root / ("deep" if index % 2 else ".") / f"file{index}.txt"
        text = f"file {index}: the quick brown fox {index * 7919}\n" * 3 + AWKWARD
        place.write_bytes(text.encode())
    (root / "binary").write_bytes(b"text\0text")
    (root / "latin").write_bytes("größer".encode("latin-1"))
    (root / "empty").write_bytes(b"")
    (root / ".hidden").write_text("hidden")
    (root / ".git").mkdir()
    (root / ".git" / "config").write_text("hidden")
    return root


def made(folder: Path | None, cache: Path) -> tuple[Corpus, Tokenizer, dict[str, object]]:
    """A corpus with a cache of its own, and what is in that."""
    corpus = Corpus.from_folder(folder, VOCABULARY, cache)
    (place,) = cache.iterdir()
    about = json.loads((place / "corpus.json").read_text(encoding="utf-8"))
    return corpus, Tokenizer.from_file(str(place / "tokenizer.json")), about


def documents(tokens: np.ndarray, tokenizer: Tokenizer) -> list[str]:
    ends = np.flatnonzero(tokens == 0)
    assert ends[-1] == len(tokens) - 1
    return [tokenizer.decode(part[part != 0].tolist()) for part in np.split(tokens, ends[:-1] + 1)]


def test_every_text_file_is_there_once_and_on_one_side(folder: Path, tmp_path: Path) -> None:
    corpus, tokenizer, about = made(folder, tmp_path / "cache")
    assert corpus.vocabulary == VOCABULARY
    assert corpus.train.dtype == np.uint16
    assert corpus.held_out.dtype == torch.int64
    files = {f.relative_to(folder).as_posix(): f.read_bytes().decode() for f in folder.rglob("file*.txt")}
    share = {name: int(hashlib.sha256(name.encode()).hexdigest(), 16) / 2**256 for name in files}
    held_out = sorted(name for name in files if share[name] < 0.05)
    assert 0 < len(held_out) < 10
    assert about["held_out_files"] == held_out
    assert documents(corpus.held_out.numpy(), tokenizer) == [files[name] for name in held_out]
    trained = [files[name] for name in sorted(files) if name not in held_out]
    assert documents(corpus.train, tokenizer) == trained


def test_the_tokenizer_has_not_read_what_is_held_out(folder: Path, tmp_path: Path) -> None:
    before, tokenizer, about = made(folder, tmp_path / "cache")
    held_out = about["held_out_files"]
    assert isinstance(held_out, list)
    for name in held_out:
        (folder / name).write_text("zyzzyva " * 500)  # would be a token of its own at once
    after, same, _ = made(folder, tmp_path / "cache2")
    assert same.to_str() == tokenizer.to_str()
    assert np.array_equal(after.train, before.train)
    assert after.fingerprint != before.fingerprint


def test_the_second_call_reads_the_cache(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    first = Corpus.from_folder(folder, VOCABULARY)
    assert len(list((tmp_path / "xdg" / "spectral_fast").iterdir())) == 1
    with monkeypatch.context() as patched:
        patched.setattr(module, "_tokenizer", None)  # not to be called
        second = Corpus.from_folder(folder, VOCABULARY)
    assert second.fingerprint == first.fingerprint
    assert second.vocabulary == first.vocabulary
    assert np.array_equal(second.train, first.train)
    assert torch.equal(second.held_out, first.held_out)

    (folder / "file0.txt").write_text("another text")
    assert Corpus.from_folder(folder, VOCABULARY).fingerprint != first.fingerprint
    assert Corpus.from_folder(folder, VOCABULARY + 1).vocabulary == VOCABULARY + 1
    assert len(list((tmp_path / "xdg" / "spectral_fast").iterdir())) == 3


def test_the_cache_is_in_the_home_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    for value in ("", "relative"):
        monkeypatch.setenv("XDG_CACHE_HOME", value)
        assert module._cache_folder(None) == tmp_path / ".cache" / "spectral_fast"


def test_of_two_that_tokenize_the_first_stays(folder: Path, tmp_path: Path) -> None:
    files = module._TextFiles(folder)
    place = tmp_path / "cache" / files.key(VOCABULARY)
    module._fill(place, files, VOCABULARY)
    (place / "mark").write_text("first")
    module._fill(place, files, VOCABULARY)
    assert (place / "mark").exists()
    assert list(place.parent.iterdir()) == [place]


@pytest.mark.parametrize("name", ["train.npy", "held_out.npy", "corpus.json"])
@pytest.mark.parametrize("damage", ["changed", "cut", "emptied", "removed"])
def test_a_damaged_cache_is_refused(folder: Path, tmp_path: Path, name: str, damage: str) -> None:
    Corpus.from_folder(folder, VOCABULARY, tmp_path / "cache")
    (file,) = tmp_path.glob(f"cache/*/{name}")
    content = bytearray(file.read_bytes())
    if damage == "changed":
        content[content.index(b"{") + 20 if name.endswith("json") else -2] ^= 1
    file.write_bytes({"changed": content, "cut": content[:-2], "emptied": b"", "removed": b""}[damage])
    if damage == "removed":
        file.unlink()
    with pytest.raises(CorpusError, match=r"is damaged .*; remove it"):
        Corpus.from_folder(folder, VOCABULARY, tmp_path / "cache")


def test_what_is_no_corpus(folder: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    with pytest.raises(CorpusError, match="nowhere: does not exist; give a folder of text"):
        Corpus.from_folder(tmp_path / "nowhere", cache=cache)
    with pytest.raises(CorpusError, match=r"file0\.txt: is not a folder"):
        Corpus.from_folder(folder / "file0.txt", cache=cache)
    (tmp_path / "few").mkdir()
    for count, name in enumerate(("binary.bin", "one.txt")):
        (tmp_path / "few" / name).write_bytes(b"\xff" if count == 0 else b"text")
        with pytest.raises(CorpusError, match=f"has {count} UTF-8 text files .* two are needed"):
            Corpus.from_folder(tmp_path / "few", cache=cache)
    with pytest.raises(ValueError, match="257 tokens or more, got 256"):
        Corpus.from_folder(folder, 256, cache)
    cache.write_text("in the way")
    with pytest.raises(CorpusError, match="give another cache folder"):
        Corpus.from_folder(folder, VOCABULARY, cache)


def test_two_files_make_a_corpus(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).write_text(name * 9)
    corpus = Corpus.from_folder(tmp_path, VOCABULARY, tmp_path / ".cache")
    assert corpus.vocabulary < VOCABULARY  # there is nothing more to merge
    assert len(corpus.train) > 1
    assert len(corpus.held_out) > 1
    corpus.require(1)
    with pytest.raises(CorpusError, match=r"tokens for training, too few for a context of 9: give more text"):
        corpus.require(9)
    with pytest.raises(CorpusError, match=r"2 tokens held out, too few for a context of 2"):
        Corpus(np.arange(9, dtype=np.uint16), torch.arange(2), 9).require(2)


def test_a_file_that_changes_meanwhile(folder: Path) -> None:
    files = module._TextFiles(folder)
    (folder / files.train[3]).write_text("changed")
    with pytest.raises(CorpusError, match="changed while it was read"):
        list(files.texts(files.train))
    (folder / files.train[0]).unlink()
    with pytest.raises(CorpusError, match=r"cannot be read \(No such file"):
        list(files.texts(files.train))


def test_a_batch_follows_from_seed_and_step() -> None:
    corpus = Corpus(np.arange(1000, dtype=np.uint16), torch.arange(10), 1000)
    batches = {(seed, step): corpus.batch(seed, step, 4, 8) for seed in range(3) for step in range(50)}
    for batch in batches.values():
        assert batch.shape == (4, 9)
        assert batch.dtype == torch.int64
        assert bool((batch.diff() == 1).all())  # each token's successor
    assert len({tuple(batch[:, 0].tolist()) for batch in batches.values()}) == 150
    assert torch.equal(corpus.batch(2, 7, 4, 8), batches[2, 7])
    starts = torch.cat([batch[:, 0] for batch in batches.values()])
    # Uniform on 0 ... 991: the mean of 600 has a standard deviation of 992 / sqrt(12 · 600) = 11.7.
    assert abs(float(starts.double().mean()) - 495.5) < 5 * 11.7
    # The first and the last place are drawn too: of 600 draws from two places both occur.
    ends = Corpus(np.arange(10, dtype=np.uint16), torch.arange(10), 10).batch(0, 0, 600, 8)
    assert set(ends[:, 0].tolist()) == {0, 1}


def test_the_standard_library_is_found() -> None:
    files = module._TextFiles(None)
    names = {*files.train, *files.held_out}
    assert {"json/__init__.py", "argparse.py"} <= names
    assert not any("site-packages" in name or not name.endswith(".py") for name in names)
    # Of N files a share of 0.05 with a standard deviation of sqrt(0.0475 / N).
    assert abs(len(files.held_out) / len(names) - 0.05) < 5 * (0.0475 / len(names)) ** 0.5
