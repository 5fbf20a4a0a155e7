"""Folders, sharded checkpoints and .npy arrays: what is read, and what is refused."""

import json
import pickle

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from spectral_fast.models import CheckpointError, open_checkpoint

LAYERS = range(3)
NAME = "model.layers.{}.self_attn.q_proj.weight"
INDEX = "model.safetensors.index.json"


def state_dict(layer):
    generator = torch.Generator().manual_seed(layer)
    return {
        NAME.format(layer): torch.randn(6, 4, generator=generator),
        f"model.layers.{layer}.norm.weight": torch.ones(4),
    }


def write_shards(folder, *, safetensors=True):
    """Three shards and their index; returns the path of the index and what it says."""
    suffix = "safetensors" if safetensors else "bin"
    stem = "model" if safetensors else "pytorch_model"
    weight_map = {}
    for layer in LAYERS:
        file = f"{stem}-{layer + 1:05}-of-00003.{suffix}"
        (save_file if safetensors else torch.save)(state_dict(layer), folder / file)
        weight_map |= dict.fromkeys(state_dict(layer), file)
    index = folder / f"{stem}.{suffix}.index.json"
    index.write_text(json.dumps({"metadata": {"total_size": 0}, "weight_map": weight_map}))
    return index, weight_map


def assert_refused(path, *parts):
    with pytest.raises(CheckpointError) as caught:
        open_checkpoint(path)
    for part in parts:
        assert part in str(caught.value)


@pytest.mark.parametrize("safetensors", [True, False])
def test_a_sharded_checkpoint_by_folder_and_by_index(tmp_path, safetensors):
    index, weight_map = write_shards(tmp_path, safetensors=safetensors)
    for path in (tmp_path, index):
        checkpoint = open_checkpoint(path)
        assert checkpoint.path == path
        assert [t.name for t in checkpoint] == list(weight_map)
        matrices = checkpoint.matrices()
        assert [(w.layer, w.role) for w in matrices] == [(layer, "q") for layer in LAYERS]
        for layer, matrix in zip(LAYERS, matrices, strict=True):
            assert torch.equal(matrix.tensor, state_dict(layer)[matrix.name])


@pytest.mark.parametrize(
    "files",
    [
        ["model.safetensors", "pytorch_model.bin"],
        ["pytorch_model.bin", "adapter_model.safetensors"],
        ["adapter_model.safetensors", "optimizer.pt"],
        ["adapter_model.bin"],
    ],
)
def test_the_preferred_file_of_a_folder_is_read(tmp_path, files):
    for layer, name in enumerate(files):
        (save_file if name.endswith(".safetensors") else torch.save)(state_dict(layer), tmp_path / name)
    assert {t.name for t in open_checkpoint(tmp_path)} == set(state_dict(0))


def test_folders_without_weights(tmp_path):
    assert_refused(tmp_path, str(tmp_path), "is a folder without model.safetensors", "Check the path")
    torch.save(state_dict(0), tmp_path / "epoch3.pt")
    assert_refused(tmp_path, "is a folder without", "one file in it, such as epoch3.pt")


def test_shards_that_are_not_there_or_do_not_belong(tmp_path):
    index, weight_map = write_shards(tmp_path)
    index.write_text(json.dumps({"weight_map": {**weight_map, "extra": weight_map[NAME.format(0)]}}))
    assert_refused(tmp_path, "places the tensor 'extra' in", "does not hold it")
    (tmp_path / weight_map[NAME.format(1)]).unlink()
    assert_refused(tmp_path, INDEX, weight_map[NAME.format(1)], "missing")


def test_a_damaged_shard_is_named(tmp_path):
    _, weight_map = write_shards(tmp_path)
    shard = tmp_path / weight_map[NAME.format(2)]
    shard.write_bytes(shard.read_bytes()[:-1])
    assert_refused(tmp_path, shard.name, "is truncated")


@pytest.mark.parametrize(
    "shard", ["../secret.safetensors", "a/../../secret.safetensors", "..", "", ".", "a\0b"]
)
def test_an_index_cannot_reach_outside_its_folder(tmp_path, shard):
    folder = tmp_path / "model"
    folder.mkdir()
    save_file(state_dict(0), tmp_path / "secret.safetensors")
    (folder / INDEX).write_text(json.dumps({"weight_map": {NAME.format(0): shard}}))
    assert_refused(folder, INDEX, "not inside its folder; refused")
    absolute = str(tmp_path / "secret.safetensors")
    (folder / INDEX).write_text(json.dumps({"weight_map": {NAME.format(0): absolute}}))
    assert_refused(folder, INDEX, "not inside its folder; refused")


@pytest.mark.parametrize(
    ("content", "part"),
    [
        (b"{", "is not valid JSON"),
        (b"\xff\xfe", "is not valid JSON"),
        (b"[" * 100_000, "is not valid JSON"),
        (b"[]", "has no weight_map"),
        (b'{"weight_map": []}', "has no weight_map"),
        (b'{"weight_map": {}}', "has no weight_map"),
        (b'{"weight_map": {"a": 3}}', "has no weight_map"),
    ],
)
def test_damaged_indexes(tmp_path, content, part):
    (tmp_path / INDEX).write_bytes(content)
    assert_refused(tmp_path, INDEX, part)


FUSED = "gpt_neox.layers.0.attention.query_key_value.weight"


@pytest.mark.parametrize(
    ("config", "warning"),
    [
        ('{"model_type": "gpt_neox", "num_attention_heads": 2}', None),
        (None, None),
        ("{", "config.json: is not valid JSON"),
        ("[1]", "config.json: holds no JSON object"),
    ],
)
def test_a_config_splits_and_a_broken_one_is_ignored_with_a_warning(tmp_path, config, warning):
    save_file({FUSED: torch.randn(12, 4)}, tmp_path / "model.safetensors")
    if config is not None:
        (tmp_path / "config.json").write_text(config)
    split = config is not None and warning is None
    for path in (tmp_path, tmp_path / "model.safetensors"):
        checkpoint = open_checkpoint(path)
        assert [w.role for w in checkpoint.matrices()] == (["q", "k", "v"] if split else ["qkv"])
        assert len(checkpoint.warnings) == (warning is not None)
        assert all(warning in text for text in checkpoint.warnings)


def test_one_expert_is_read_without_its_stack(tmp_path, monkeypatch):
    stack = torch.randn(5, 4, 3)
    save_file({"layers.0.mlp.experts.down_proj": stack}, tmp_path / "model.safetensors")
    monkeypatch.setattr(
        "spectral_fast.models.files.bytearray", lambda n: sizes.append(n) or bytearray(n), raising=False
    )
    sizes = []
    matrices = open_checkpoint(tmp_path).matrices()
    assert torch.equal(matrices[3].tensor, stack[3])
    assert sizes == [4 * 3 * 4]


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_arrays(tmp_path, dtype):
    array = np.random.default_rng(0).normal(size=(3, 5, 4)).astype(dtype)
    np.save(tmp_path / "stack.npy", array)
    np.save(tmp_path / "matrix.npy", array[1])
    np.save(tmp_path / "fortran.npy", np.asfortranarray(array[1]))
    stack = open_checkpoint(tmp_path / "stack.npy").matrices()
    assert [w.name for w in stack] == ["stack[0]", "stack[1]", "stack[2]"]
    for matrix, expected in zip(stack, array, strict=True):
        assert np.array_equal(matrix.tensor.numpy(), expected)
    for name in ("matrix", "fortran"):
        (matrix,) = open_checkpoint(tmp_path / f"{name}.npy").matrices()
        assert matrix.name == name
        assert np.array_equal(matrix.tensor.numpy(), array[1])


class CreatesFile:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


def test_arrays_that_are_refused(tmp_path):
    path = tmp_path / "array.npy"
    for array, part in [
        (np.ones(3), "holds an array of shape (3,)"),
        (np.ones((2, 2, 2, 2)), "holds an array of shape (2, 2, 2, 2)"),
        (np.ones((2, 2), dtype=np.int64), "dtype int64"),
        (np.ones((2, 2), dtype=np.complex128), "dtype complex128"),
        (np.ones((2, 2), dtype=[("a", "f4")]), "dtype [('a'"),
        (np.ones((2, 2), dtype=">f4"), "big-endian"),
        (np.asfortranarray(np.ones((2, 3, 4))), "Fortran order"),
        (np.ones((0, 3)), "no weight matrix"),
    ]:
        np.save(path, array)
        assert_refused(path, str(path), part)
    np.save(path, np.ones((5, 5)))
    whole = path.read_bytes()
    path.write_bytes(whole[:-1])
    assert_refused(path, f"promises {len(whole)} bytes, the file has {len(whole) - 1}")
    path.write_bytes(whole[:40])
    assert_refused(path, "damaged .npy header")
    for shape in (b"(5,-5)", b"(5, -5", b"(5, x)"):
        path.write_bytes(whole.replace(b"(5, 5)", shape))
        assert_refused(path, "damaged .npy header")
    path.write_bytes(b"\x93NUMPY\x09\x00" + whole[8:])
    assert_refused(path, "damaged .npy header")


def test_pickled_arrays_are_refused_not_run(tmp_path):
    trace, path = tmp_path / "trace", tmp_path / "evil.npy"
    np.save(path, np.array([[CreatesFile(trace)]], dtype=object), allow_pickle=True)
    assert_refused(path, "holds Python objects", "could run code")
    path.write_bytes(pickle.dumps(CreatesFile(trace)))
    assert_refused(path, str(path))
    assert not trace.exists()
