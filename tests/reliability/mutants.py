"""Checkpoints that are wrong: structured mutations of valid ones, some with code that would be seen."""

from __future__ import annotations

import io
import json
import os
import pickle
import random
import shutil
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file

NAME = "model.layers.{}.self_attn.q_proj.weight"
Mutation = Callable[[Path, random.Random], Path]  # writes a checkpoint below a folder, returns its path

HUGE = (0, 1, 7, 2**31 - 1, 2**31, 2**32, 2**53, 2**63 - 1, 2**63, 2**64 - 1, 10**30, -1)
JUNK: tuple[Any, ...] = (*HUGE, None, True, "", "x", 1.5, [], {}, [1], {"a": 1}, float("nan"), float("inf"))


BOMB = bytes(1 << 20)  # 300 of these, which compress to 300 kB


class Payload:
    """Unpickling it naively creates the canary file."""

    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.canary}",)


def canary(folder: Path) -> Path:
    return folder / "CANARY"


def state(seed: int = 0, layer: int = 0) -> dict[str, torch.Tensor]:
    g = torch.Generator().manual_seed(seed)
    return {
        NAME.format(layer): torch.randn(12, 10, generator=g),
        f"model.layers.{layer}.mlp.up_proj.weight": torch.randn(6, 4, generator=g).bfloat16(),
        f"model.layers.{layer}.norm.weight": torch.ones(10),
    }


def _damaged(content: bytes, rng: random.Random, first: int = 0) -> bytes:
    """Bits, bytes, stretches changed, removed, repeated; mostly near the front, where the structure is."""
    data = bytearray(content)
    for _ in range(rng.randint(1, 6)):
        if not data:
            break
        at = (
            min(len(data) - 1, first + int(rng.expovariate(1 / 200)))
            if rng.random() < 0.7
            else rng.randrange(len(data))
        )
        kind = rng.randrange(6)
        if kind == 0:
            data[at] ^= 1 << rng.randrange(8)
        elif kind == 1:
            data[at] = rng.randrange(256)
        elif kind == 2:
            del data[at : at + rng.randint(1, 64)]
        elif kind == 3:
            data[at:at] = data[at : at + rng.randint(1, 64)]
        elif kind == 4:
            data[at : at + 8] = struct.pack("<Q", rng.choice(HUGE) & (2**64 - 1))
        else:
            del data[at:]
    return bytes(data)


# ------------------------------------------------------------------ safetensors


def _safetensors(header: Any, data: bytes, size: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if size is None else size) + text + data


def _parts(folder: Path) -> tuple[dict[str, Any], bytes]:
    save_file(state(), folder / "valid.safetensors")
    whole = (folder / "valid.safetensors").read_bytes()
    (folder / "valid.safetensors").unlink()
    size = struct.unpack("<Q", whole[:8])[0]
    return json.loads(whole[8 : 8 + size]), whole[8 + size :]


def safetensors_header(folder: Path, rng: random.Random) -> Path:
    """An entry's dtype, shape or offsets, an entry of another kind, entries that overlap, names."""
    header, data = _parts(folder)
    names = [name for name in header if name != "__metadata__"]
    name, other = rng.choice(names), rng.choice(names)
    entry = header[name]
    match rng.randrange(10):
        case 0:
            entry["dtype"] = rng.choice(
                ["F32", "F64", "F8_E4M3", "F4", "C64", "I64", "BOOL", "f32", "Q99", *JUNK]
            )
        case 1:
            entry["shape"] = rng.choice([[rng.choice(HUGE) for _ in range(rng.randint(0, 5))], *JUNK])
        case 2:
            entry["data_offsets"] = rng.choice([[rng.choice(HUGE), rng.choice(HUGE)], *JUNK])
        case 3:
            entry["data_offsets"] = header[other]["data_offsets"]
        case 4:
            header[name] = rng.choice(JUNK)
        case 5:
            del entry[rng.choice(list(entry))]
        case 6:
            header["__metadata__"] = rng.choice(JUNK)
        case 7:
            header[rng.choice(["", "a\0b", "../../x", "\ud800", "n" * 100_000])] = header.pop(name)
        case 8:
            start, end = entry["data_offsets"]
            entry["data_offsets"] = [start + rng.randint(-9, 9), end + rng.randint(-9, 9)]
        case _:
            header = rng.choice([*JUNK, {f"t{i}": entry for i in range(3000)}])
    path = folder / "model.safetensors"
    path.write_bytes(_safetensors(header, data))
    return path


def safetensors_text(folder: Path, rng: random.Random) -> Path:
    """A header that is no JSON, or JSON of the nasty kind, or has another length than it says."""
    header, data = _parts(folder)
    text = json.dumps(header).encode()
    texts = [
        b"[" * 50_000,
        b'{"a":' * 50_000,
        text[:-1],
        text + b"}",
        b"\xff" * 50,
        b"{" + text,
        text.replace(b"10", b"NaN"),
    ]
    texts += [
        text.replace(b"10", b"1e400"),
        text.replace(b"12", b"9" * 5000),
        text[:-1] + b"," + text[1:],
        b" " * 99 + text,
    ]
    size = rng.choice([None, None, *(value & (2**64 - 1) for value in HUGE), len(text) - 1, len(text) + 1])
    path = folder / "model.safetensors"
    path.write_bytes(_safetensors(rng.choice(texts), data, size))
    return path


def safetensors_bytes(folder: Path, rng: random.Random) -> Path:
    header, data = _parts(folder)
    path = folder / rng.choice(["model.safetensors", "weights", "model.bin"])
    path.write_bytes(_damaged(_safetensors(header, data), rng))
    return path


# ------------------------------------------------------------------ pickles


def _zip_members(content: Any) -> dict[str, bytes]:
    buffer = io.BytesIO()
    torch.save(content, buffer)
    with zipfile.ZipFile(buffer) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def zip_members(folder: Path, rng: random.Random) -> Path:
    """Members damaged, missing, twice, renamed, truncated, compressed; a bomb among them."""
    members = _zip_members(state())
    path = folder / rng.choice(["model.pt", "model.bin", "weights"])
    name = rng.choice(list(members))
    compression = zipfile.ZIP_STORED
    match rng.randrange(7):
        case 0:
            members[name] = _damaged(members[name], rng)
        case 1:
            del members[name]
        case 2:
            members[
                rng.choice(["../../escaped", "/absolute", "archive/data.pkl/x", "\\", "archive/data/../0"])
            ] = members.pop(name)
        case 3:
            members[name] = members[name][: rng.randrange(len(members[name]) + 1)]
        case 4:
            members["archive/constants.pkl"] = members[name]
        case 5:
            compression = zipfile.ZIP_DEFLATED
            name = rng.choice(["archive/byteorder", "archive/version", name])
            members[name] = BOMB
        case _:
            pickled = next(key for key in members if key.endswith("data.pkl"))
            members[pickled] = _damaged(members[pickled], rng, first=rng.randrange(len(members[pickled])))
    with zipfile.ZipFile(path, "w", compression) as archive:
        for member, content in members.items():
            with archive.open(member, "w") as file:
                for _ in range(300 if content == BOMB else 1):
                    file.write(content)
    return path


def zip_bytes(folder: Path, rng: random.Random) -> Path:
    buffer = io.BytesIO()
    torch.save(state(), buffer)
    path = folder / rng.choice(["model.pt", "model.bin"])
    content = buffer.getvalue()
    # The directory of a zip archive is at its end.
    path.write_bytes(_damaged(content, rng, first=rng.choice([0, len(content) - 600])))
    return path


def legacy_bytes(folder: Path, rng: random.Random) -> Path:
    buffer = io.BytesIO()
    torch.save(state(), buffer, _use_new_zipfile_serialization=False)
    path = folder / rng.choice(["model.pt", "model.bin", "weights"])
    path.write_bytes(_damaged(buffer.getvalue(), rng))
    return path


def code(folder: Path, rng: random.Random) -> Path:
    """Pickles that would run a command, wherever a pickle may be."""
    payload = Payload(canary(folder))
    content = rng.choice([payload, {"state_dict": {**state(), "x": payload}}, {**state(), "x": [payload]}])
    path = folder / rng.choice(["model.pt", "pytorch_model.bin", "model.safetensors", "model.npy", "weights"])
    match rng.randrange(4):
        case 0:
            torch.save(content, path)
        case 1:
            torch.save(content, path, _use_new_zipfile_serialization=False)
        case 2:
            path.write_bytes(pickle.dumps(content, protocol=rng.randrange(6)))
        case _:
            with path.open("wb") as file:
                np.save(file, np.array([[content]], dtype=object), allow_pickle=True)
    return path


def nested_pickle(folder: Path, rng: random.Random) -> Path:
    """Opcodes by hand: deep nesting, sizes of gigabytes, marks without ends, memo entries not there."""
    pieces = [
        b"(" * rng.randint(1, 100_000),
        b"]" * 1000 + b"a" * 999,
        b"\x8e" + struct.pack("<Q", rng.choice(HUGE) & (2**64 - 1)),
        b"B" + struct.pack("<I", 2**32 - 1),
        b"X" + struct.pack("<I", 2**31) + b"x",
        b"\x8b" + struct.pack("<i", 2**31 - 1) + b"\x01",
        b"j" + struct.pack("<I", 2**32 - 1),
        b"r" + struct.pack("<I", 2**31 - 1),
        b"}q\x00" + b"(h\x00h\x00u" * 100,
        b"cos\nsystem\n(X\x04\x00\x00\x00true\x85R",
    ]
    body = b"\x80\x02" + b"".join(rng.sample(pieces, rng.randint(1, 3))) + b"."
    path = folder / "model.pt"
    if rng.random() < 0.5:
        path.write_bytes(body)
        return path
    members = _zip_members(state())
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, body if name.endswith("data.pkl") else content)
    return path


# ------------------------------------------------------------------ arrays


def npy_header(folder: Path, rng: random.Random) -> Path:
    values = {"descr": "<f4", "fortran_order": False, "shape": (12, 10)}
    key = rng.choice(list(values))
    shapes = [
        tuple(rng.choice(HUGE) for _ in range(rng.randint(0, 5))),
        (10, 12),
        (3, 5, 8),
        (2**31, 2**31, 2**31),
    ]
    descrs = ["<f8", ">f4", "|O", "<c8", "<M8[s]", [("a", "<f4")], "<f2", "|V4", "<U3", "f999999999999"]
    values[key] = rng.choice({"descr": descrs, "fortran_order": [True], "shape": shapes}[key] + list(JUNK))
    text = repr(values)
    if rng.random() < 0.3:
        texts = [
            "(" * 3000,
            "[" * 100_000,
            "{" + "'a':" * 999,
            "__import__('os').system('true')",
            "9" * 9999,
            "",
        ]
        text = rng.choice(texts)
    header = text.encode() + b"\n"
    length = rng.choice([len(header)] * 4 + [0, 65535, len(header) - 1])
    content = (
        b"\x93NUMPY"
        + bytes([rng.choice([1, 1, 1, 2, 3, 9]), 0])
        + struct.pack("<H", length & 0xFFFF)
        + header
    )
    path = folder / "array.npy"
    path.write_bytes(content + np.ones(120, np.float32).tobytes())
    return path


def npy_bytes(folder: Path, rng: random.Random) -> Path:
    buffer = io.BytesIO()
    np.save(buffer, np.ones((12, 10), np.float32))
    path = folder / "array.npy"
    path.write_bytes(_damaged(buffer.getvalue(), rng))
    return path


# ------------------------------------------------------------------ folders


def shards(folder: Path, rng: random.Random) -> Path:
    """An index that reaches outside, names what is not there, is none; shards that are links or swapped."""
    places = {}
    for layer in range(2):
        name = f"model-{layer}.safetensors"
        save_file(state(layer, layer), folder / name)
        places |= dict.fromkeys(state(layer, layer), name)
    index: Any = {"metadata": {}, "weight_map": places}
    text = None
    key = NAME.format(0)
    match rng.randrange(9):
        case 0:
            outside = [
                "../x",
                "/etc/passwd",
                "a/../../x",
                "..",
                ".",
                "",
                "\0",
                "x" * 5000,
                "\ud800",
                "//",
                "a\\..\\b",
            ]
            places[key] = rng.choice(outside)
        case 1:
            places[key] = rng.choice(JUNK)
        case 2:
            index = rng.choice(JUNK)
        case 3:
            index["weight_map"] = rng.choice(JUNK)
        case 4:
            text = rng.choice(
                ["[" * 100_000, '{"weight_map":' * 20_000, "NaN", '{"weight_map": NaN}', "{", "\ufeff{}"]
            )
        case 5:
            (folder / "model-1.safetensors").unlink()
            target = rng.choice(
                ["/etc/passwd", "model-1.safetensors", "/dev/zero", "/dev/null", str(folder), "missing"]
            )
            (folder / "model-1.safetensors").symlink_to(target)
        case 6:
            places["extra"] = "model-0.safetensors"
        case 7:
            shutil.copy(folder / "model-0.safetensors", folder / "model-1.safetensors")
        case _:
            shard = folder / "model-1.safetensors"
            shard.write_bytes(_damaged(shard.read_bytes(), rng))
    path = folder / "model.safetensors.index.json"
    path.write_text(json.dumps(index) if text is None else text)
    return rng.choice([path, folder])


def config(folder: Path, rng: random.Random) -> Path:
    """A good model beside a config.json that is not: what it says is used to split fused weights."""
    fused = {
        "gpt_neox.layers.0.attention.query_key_value.weight": torch.randn(12, 4),
        "lm_head.weight": torch.randn(9, 4),
    }
    save_file(fused, folder / "model.safetensors")
    keys = (
        "model_type",
        "num_attention_heads",
        "hidden_size",
        "num_key_value_heads",
        "head_dim",
        "num_hidden_layers",
    )
    keys += (
        "multi_query",
        "new_decoder_architecture",
        "n_head",
        "num_kv_heads",
        "tie_word_embeddings",
        "text_config",
    )
    types = [
        "gpt_neox",
        "gpt2",
        "phi3",
        "falcon",
        "bloom",
        "mixtral",
        "llama",
        "qwen2",
        "dbrx",
        "mpt",
        "chatglm",
    ]
    content: Any = {"model_type": rng.choice(types), "num_attention_heads": 2}
    for key in rng.sample(keys, rng.randint(1, 5)):
        content[key] = rng.choice(types if key == "model_type" and rng.random() < 0.7 else JUNK)
    text = json.dumps(content)
    if rng.random() < 0.2:
        text = rng.choice(
            [
                "[" * 100_000,
                '{"a":' * 50_000,
                "NaN",
                "",
                "\ufeff{}",
                "9" * 10_000,
                json.dumps(rng.choice(JUNK)),
            ]
        )
    (folder / "config.json").write_text(text)
    return folder


MUTATIONS: dict[str, Mutation] = {
    one.__name__: one
    for one in (
        *(safetensors_header, safetensors_text, safetensors_bytes, zip_members, zip_bytes, legacy_bytes),
        *(code, nested_pickle, npy_header, npy_bytes, shards, config),
    )
}
