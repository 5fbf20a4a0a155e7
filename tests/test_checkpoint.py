"""Reading checkpoints: what is read lazily, and what every kind of broken file is told."""

import json
import os
import pickle
import random
import resource
import struct
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from spectral_fast.models import CheckpointError, open_checkpoint

NAME = "model.layers.0.self_attn.q_proj.weight"


def state_dict():
    generator = torch.Generator().manual_seed(0)
    return {
        NAME: torch.randn(20, 10, generator=generator),
        "half": torch.randn(4, 6, generator=generator).bfloat16(),
        "norm": torch.ones(10),
        "ids": torch.arange(6).reshape(2, 3),
    }


@pytest.fixture
def safetensors_file(tmp_path):
    path = tmp_path / "good.safetensors"
    save_file(state_dict(), path)
    return path


class CreatesFile:
    """Unpickling it naively opens a file for writing: the trace of executed code."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


def save_zip(path, content):
    torch.save(content, path)


def save_legacy(path, content):
    torch.save(content, path, _use_new_zipfile_serialization=False)


def save_safetensors(path, content):
    save_file(content, path)


@pytest.mark.parametrize("suffix", [".pt", ".data"])
@pytest.mark.parametrize("save", [save_safetensors, save_zip, save_legacy])
def test_content_decides_the_format_not_the_suffix(tmp_path, save, suffix):
    path = tmp_path / f"weights{suffix}"
    save(path, state_dict())
    checkpoint = open_checkpoint(path)
    expected = state_dict()
    assert len(checkpoint) == len(expected)
    for tensor in checkpoint:
        assert tensor.shape == tuple(expected[tensor.name].shape)
        assert tensor.dtype == expected[tensor.name].dtype
        assert torch.equal(tensor.load(), expected[tensor.name])
    assert {matrix.name for matrix in checkpoint.matrices()} == {NAME, "half"}
    for matrix in checkpoint.matrices():
        assert torch.equal(matrix.tensor, expected[matrix.name])


@pytest.mark.parametrize("save", [save_zip, save_legacy])
@pytest.mark.parametrize("keys", [["state_dict"], ["model"], ["model", "state_dict"]])
def test_nested_state_dicts_are_found(tmp_path, save, keys):
    content = state_dict()
    for key in reversed(keys):
        content = {"epoch": torch.tensor(3), key: content, "optimizer": {"m": torch.ones(9, 9)}}
    save(tmp_path / "nested.pt", content)
    assert [t.name for t in open_checkpoint(tmp_path / "nested.pt")] == list(state_dict())


def test_parameters_load_detached_and_ties_are_listed_once(tmp_path):
    weight = torch.nn.Parameter(torch.randn(5, 4))
    torch.save({"lm_head.weight": weight, "embed_tokens.weight": weight}, tmp_path / "tied.pt")
    (tensor,) = open_checkpoint(tmp_path / "tied.pt")
    assert tensor.name == "embed_tokens.weight"
    assert not tensor.load().requires_grad


@pytest.mark.parametrize("save", [save_zip, save_legacy])
def test_tensors_of_any_stride_and_rows_of_them(tmp_path, save):
    whole = torch.randn(6, 8, dtype=torch.float64)
    content = {"t": whole.T, "rows": whole[1:3], "step": whole[::2, ::3], "wide": whole[:1].expand(4, 8)}
    save(tmp_path / "strided.pt", content)
    for tensor in open_checkpoint(tmp_path / "strided.pt"):
        assert torch.equal(tensor.load(), content[tensor.name])
        for start, stop in ((1, 2), (1, 9), (-1, None), (-9, -1), (2, 1), (9, None)):
            assert torch.equal(tensor.load(start, stop), content[tensor.name][start:stop])


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning")
def test_quantized_tensors_of_torch_are_skipped(tmp_path):
    quantized = torch.quantize_per_tensor(torch.ones(3, 3), 0.1, 0, torch.qint8)
    torch.save({"q": quantized, "w": torch.ones(2, 3)}, tmp_path / "q.pt")
    found = open_checkpoint(tmp_path / "q.pt").matrices()
    assert [w.name for w in found] == ["w"]
    assert torch.equal(found[0].tensor, torch.ones(2, 3))
    assert [(t.name, t.dtype) for t in found.skipped] == [("q", "qint8")]


def test_a_file_that_shrinks_is_an_error_not_a_crash(tmp_path):
    mapped = torch.__version__.startswith("2.9")  # which can only map zip files
    for save in (save_safetensors,) if mapped else (save_safetensors, save_zip):
        path = tmp_path / "model.pt"
        save(path, state_dict())
        tensor = next(t for t in open_checkpoint(path) if t.name == NAME)
        os.truncate(path, 100)
        with pytest.raises(CheckpointError, match="truncated or damaged"):
            tensor.load()


def test_pickles_are_never_run_and_zipped_ones_stay_on_disk(tmp_path, monkeypatch):
    calls = []
    load = torch.load
    monkeypatch.setattr(torch, "load", lambda *a, **k: calls.append(k) or load(*a, **k))
    for save in (save_zip, save_legacy):
        save(tmp_path / "model.pt", state_dict())
        open_checkpoint(tmp_path / "model.pt")
    assert all(call["weights_only"] for call in calls)
    # Under torch 2.9, which tells no places in the file, the file is mapped.
    assert calls[0]["map_location"] == "meta" or calls[1]["mmap"]
    assert calls[-1]["map_location"] == "cpu"


def test_opening_and_loading_one_matrix_reads_only_that_matrix(tmp_path):
    path = tmp_path / "huge.safetensors"
    huge, small = 4 << 30, 400
    entries = {
        "huge": {"dtype": "F32", "shape": [32768, 32768], "data_offsets": [0, huge]},
        "small": {"dtype": "F32", "shape": [10, 10], "data_offsets": [huge, huge + small]},
    }
    header = json.dumps(entries).encode()
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(header)) + header)
        file.truncate(8 + len(header) + huge + small)  # a hole: takes no room on the disk
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    tensors = {tensor.name: tensor for tensor in open_checkpoint(path)}
    assert tensors["small"].load().shape == (10, 10)
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert grown < 256 << 10  # kilobytes; the huge matrix alone has 4 GiB


def assert_refused(path, *parts):
    with pytest.raises(CheckpointError) as caught:
        open_checkpoint(path)
    message = str(caught.value)
    assert isinstance(caught.value, ValueError)
    assert message.startswith(f"{path}: ")
    for part in parts:
        assert part in message


def test_missing_and_odd_paths(tmp_path):
    assert_refused(tmp_path / "absent.pt", "does not exist", "Check the path")
    (tmp_path / "empty.safetensors").touch()
    assert_refused(tmp_path / "empty.safetensors", "is empty")
    os.mkfifo(tmp_path / "pipe.pt")
    assert_refused(tmp_path / "pipe.pt", "not a regular file")


def test_unreadable_file(safetensors_file, monkeypatch):
    def refuse(*args, **kwargs):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", refuse)  # not chmod: root may read everything
    assert_refused(safetensors_file, "cannot be read (Permission denied)", "rights")


@pytest.mark.parametrize(
    ("name", "content", "part"),
    [
        ("model.safetensors", b"PK\x03\x04 and so on", "Rename it to .pt"),
        ("model.npy", b"\x93NUMPY\x01\x00v\x00", "damaged .npy header"),
        ("notes.txt", b"hello", "unknown kind"),
        ("model.pt", b"hello", "neither a zip archive nor a pickle"),
        ("model.safetensors", b"version https://git-lfs.github.com/spec/v1\n", "Git LFS pointer"),
        ("model.safetensors", b"hello", "cut off inside its header"),
    ],
)
def test_other_files(tmp_path, name, content, part):
    (tmp_path / name).write_bytes(content)
    assert_refused(tmp_path / name, part)


def test_damaged_safetensors(safetensors_file):
    whole = safetensors_file.read_bytes()
    header_size = struct.unpack("<Q", whole[:8])[0]

    def rewrite(content, *parts):
        safetensors_file.write_bytes(content)
        assert_refused(safetensors_file, *parts, "again")

    rewrite(whole[:-1], f"promises {len(whole)} bytes, the file has {len(whole) - 1}")
    rewrite(whole[: 8 + header_size], "truncated")
    rewrite(whole[:50], "cut off inside its header")
    rewrite(struct.pack("<Q", 1 << 40) + whole[8:], "cut off inside its header", str(1 << 40))
    rewrite(struct.pack("<Q", (1 << 64) - 1) + whole[8:], "cut off inside its header")
    rewrite(whole.replace(b'"F32"', b'"F3\xff"', 1), "not a valid safetensors file")
    rewrite(whole.replace(b'"shape":[20,10]', b'"shape":[20,11]', 1), "not a valid safetensors file")
    rewrite(whole + b"x", "not a valid safetensors file")


def test_damaged_pickles(tmp_path):
    path = tmp_path / "model.pt"
    save_zip(path, state_dict())
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    assert_refused(path, "truncated or damaged zip archive")
    save_legacy(path, state_dict())
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    assert_refused(path, "no readable PyTorch checkpoint", "ends too early")
    path.write_bytes(b"\x80\x02" + random.Random(0).randbytes(500))
    assert_refused(path, "no readable PyTorch checkpoint")


@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize("save", [save_zip, save_legacy])
def test_code_in_a_pickle_is_refused_not_run(tmp_path, save, nested):
    trace = tmp_path / "trace"
    content = {**state_dict(), "evil": CreatesFile(trace)}
    path = tmp_path / "evil.pt"
    save(path, {"state_dict": content} if nested else content)
    assert_refused(path, "open", "could run code", "state_dict()")
    assert not trace.exists()


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_code_in_a_plain_pickle_is_refused_not_run(tmp_path, protocol):
    trace = tmp_path / "trace"
    content = pickle.dumps(CreatesFile(trace), protocol)
    for name in ("evil.pt", "evil.bin", "evil.pkl", "evil.safetensors", "evil"):
        (tmp_path / name).write_bytes(content)
        assert_refused(tmp_path / name, "could run code" if protocol == 2 and name == "evil" else "")
    assert not trace.exists()
    pickle.loads(content).close()
    assert trace.exists()  # the pickle does what the test believes it does


def test_pickles_of_other_things(tmp_path):
    path = tmp_path / "model.pt"
    for content, part in [
        ({"lr": 0.1, "name": "x"}, "holds no tensors (its keys: lr, name)"),
        ({"state_dict": {}}, "holds no tensors (its keys: none)"),
        ([torch.ones(2, 2)], "holds a list"),
        (torch.ones(2, 2), "holds a Tensor"),
        ({"norm": torch.ones(3), "ids": torch.ones(2, 2).long()}, "no weight matrix (2 tensors"),
    ]:
        torch.save(content, path)
        assert_refused(path, part)
    torch.save(torch.nn.Linear(2, 2), path)
    assert_refused(path, "torch.nn.modules.linear.Linear", "state_dict()")


def test_a_recompressed_checkpoint_is_refused_not_misread(tmp_path):
    import zipfile

    save_zip(tmp_path / "model.pt", state_dict())
    with zipfile.ZipFile(tmp_path / "model.pt") as old, zipfile.ZipFile(tmp_path / "new.pt", "w") as new:
        for member in old.namelist():
            new.writestr(member, old.read(member), zipfile.ZIP_DEFLATED)
    assert_refused(tmp_path / "new.pt", "compressed after it was saved", "torch.save")


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_torchscript_and_other_archives(tmp_path):
    import zipfile

    path = tmp_path / "script.pt"
    torch.jit.script(torch.nn.Linear(2, 2)).save(str(path))
    assert_refused(path, "TorchScript", "state_dict()")
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("readme.txt", "hello")
    assert_refused(path, "not a PyTorch checkpoint")


@pytest.mark.parametrize("save", [save_safetensors, save_zip, save_legacy])
def test_random_damage_is_an_error_of_ours_or_harmless(tmp_path, save):
    path = tmp_path / "model.pt"
    save(path, state_dict())
    whole = path.read_bytes()
    rng = random.Random(0)
    refused = 0
    for _ in range(150):
        content = bytearray(whole)
        if rng.random() < 0.3:
            del content[rng.randrange(len(content)) :]
        for _ in range(rng.randrange(4)):
            if content:
                content[rng.randrange(min(len(content), 800))] = rng.randrange(256)
        path.write_bytes(content)
        try:
            for tensor in open_checkpoint(path):
                tensor.load().sum()
        except CheckpointError as error:
            refused += 1
            assert str(Path(path)) in str(error)  # noqa: PT017 - what matters is the type
    assert refused > 30
