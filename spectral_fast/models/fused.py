"""Splitting stored weights that hold several matrices: fused attention, fused MLPs, stacked experts.

Models of different families lay out the same fused weight differently, and a wrong split gives
spectra that look plausible and mean nothing. So a weight is split only where its layout is known:
from its name and shape alone (GPT-2's Conv1D, torch's `in_proj_weight`), or from the `model_type`
and head counts of the model's config. Everything else stays whole, and the note says why. Each
family in the tables is tested against the model's own computation.

Layouts of a fused attention weight with d input features, h heads and head size s:

  consecutive   rows [all q; all k; all v], with fewer k and v rows under grouped-query attention
  interleaved   rows of (h, 3, s): head by head its q, its k, its v
  grouped       rows of (key-value heads, h / key-value heads + 2, s): a group's queries, its k, its v
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from spectral_fast.models.roles import plain_path

Config = Mapping[str, Any]
Split = Callable[[tuple[int, int], Config], "list[Part]"]


@dataclass(frozen=True)
class Part:
    """One matrix inside a stored tensor.

    Attributes:
        label: what stands in brackets after the tensor's name, "" for the whole tensor.
        role: what the matrix does.
        shape: (rows, cols) of the matrix.
        start, stop: the part lies in these entries of the tensor's first dimension.
        take: makes the matrix from tensor[start:stop]; a view wherever strides can express it.
        by_rows: whether row i of the matrix comes from entry start + i alone.
    """

    label: str
    role: str
    shape: tuple[int, int]
    start: int
    stop: int
    take: Callable[[torch.Tensor], torch.Tensor]
    by_rows: bool = False


class _LayoutUnknown(Exception):
    """The weight cannot be split; the message completes "left whole: "."""


def split(
    name: str, role: str, shape: tuple[int, ...], config: Callable[[], Config]
) -> tuple[list[Part], str]:
    """The matrices inside a weight, and a note if a fused one among them had to be left whole.

    Args:
        name: the stored tensor's name.
        role: its role by name, such as "qkv".
        shape: (rows, cols), or (experts, rows, cols) for stacked experts.
        config: gives the model's config, asked only if it is needed.
    """
    *stack, rows, cols = shape
    last = plain_path(name).rpartition(".")[2]
    splitter = _splitter(last, role, (rows, cols), of_experts=bool(stack))
    parts, note = [_whole(role, (rows, cols))], ""
    if splitter is not None:
        try:
            parts = splitter((rows, cols), config())
        except _LayoutUnknown as unknown:
            note = f"left whole: {unknown}"
    if stack:
        parts = [_expert(index, part) for index in range(stack[0]) for part in parts]
    return parts, note


def _splitter(last: str, role: str, shape: tuple[int, int], *, of_experts: bool) -> Split | None:
    rows, cols = shape
    if role == "qkv":
        if last == "in_proj_weight":  # torch.nn.MultiheadAttention
            return _thirds
        if last == "c_attn" and cols == 3 * rows:  # Conv1D keeps (in, out), no Linear has this shape
            return _conv1d_thirds
        return _attention
    if role == "kv":
        return _conv1d_halves if last == "c_attn" and cols == 2 * rows else _no_table
    if role == "mlp_gate_in":
        return _expert_gate_up if of_experts else _gate_up
    return None


def _whole(role: str, shape: tuple[int, int]) -> Part:
    return Part("", role, shape, 0, shape[0], _as_it_is, by_rows=True)


def _as_it_is(tensor: torch.Tensor) -> torch.Tensor:
    return tensor


def _expert(index: int, part: Part) -> Part:
    label = f"{index},{part.label}" if part.label else str(index)
    take = partial(_of_expert, part)
    return Part(label, part.role, part.shape, index, index + 1, take)


def _of_expert(part: Part, tensor: torch.Tensor) -> torch.Tensor:
    return part.take(tensor[0, part.start : part.stop])


def _consecutive(cols: int, sizes: Iterable[tuple[str, str, int]]) -> list[Part]:
    """Row blocks one after the other, each given as (label, role, rows)."""
    parts, start = [], 0
    for label, role, rows in sizes:
        parts.append(Part(label, role, (rows, cols), start, start + rows, _as_it_is, by_rows=True))
        start += rows
    return parts


def _columns(shape: tuple[int, int], cuts: Iterable[tuple[str, str, slice]]) -> list[Part]:
    """Column blocks, each given as (label, role, columns)."""
    rows, cols = shape
    return [
        Part(label, role, (rows, len(range(cols)[cut])), 0, rows, partial(_take_columns, cut), True)
        for label, role, cut in cuts
    ]


def _take_columns(cut: slice, tensor: torch.Tensor) -> torch.Tensor:
    return tensor[:, cut]


def _interleaved(shape: tuple[int, int], groups: int, slots: int, order: str = "qkv") -> list[Part]:
    """Rows of (groups, slots, s): in each group queries, unless `order` says otherwise, a k and a v.

    No stride steps over such rows, so taking a part copies it, except where there is one group.
    """
    rows, cols = shape
    size = rows // (groups * slots)
    ends = {"q": slots - 2, "k": 1, "v": 1}
    parts, first = [], 0
    for role in order:
        last = first + ends[role]
        take = partial(_take_interleaved, groups, slots, first, last)
        parts.append(Part(role, role, (groups * ends[role] * size, cols), 0, rows, take))
        first = last
    return sorted(parts, key=lambda part: "qkv".index(part.role))


def _take_interleaved(groups: int, slots: int, first: int, last: int, tensor: torch.Tensor) -> torch.Tensor:
    return tensor.unflatten(0, (groups, slots, -1))[:, first:last].flatten(0, 2)


# Fused attention.


def _attention(shape: tuple[int, int], config: Config) -> list[Part]:
    return _by_model_type(_ATTENTION, config)(shape, config)


def _thirds(shape: tuple[int, int], config: Config) -> list[Part]:
    rows, cols = shape
    _require(rows % 3 == 0, f"{rows} rows are not three times as many")
    return _consecutive(cols, [(role, role, rows // 3) for role in "qkv"])


def _conv1d_thirds(shape: tuple[int, int], config: Config) -> list[Part]:
    d = shape[0]
    return _columns(shape, [(role, role, slice(i * d, (i + 1) * d)) for i, role in enumerate("qkv")])


def _conv1d_halves(shape: tuple[int, int], config: Config) -> list[Part]:
    d = shape[0]
    return _columns(shape, [("k", "k", slice(0, d)), ("v", "v", slice(d, 2 * d))])


def _per_head(shape: tuple[int, int], config: Config) -> list[Part]:
    rows, cols = shape
    heads = _heads(config)
    _require(rows == 3 * cols and cols % heads == 0, f"{rows}×{cols} does not fit {heads} heads")
    return _interleaved(shape, heads, 3)


def _grouped_consecutive(shape: tuple[int, int], config: Config) -> list[Part]:
    rows, cols = shape
    heads = _heads(config)
    kv_heads = _integer(config, "num_key_value_heads", default=heads)
    size = _integer(config, "head_dim", default=cols // heads)
    _require(
        rows == (heads + 2 * kv_heads) * size,
        f"{rows} rows do not fit {heads} heads and {kv_heads} key-value heads of size {size}",
    )
    kv_rows = kv_heads * size
    return _consecutive(cols, [("q", "q", heads * size), ("k", "k", kv_rows), ("v", "v", kv_rows)])


def _falcon(shape: tuple[int, int], config: Config) -> list[Part]:
    rows, cols = shape
    heads = _heads(config)
    if _flag(config, "new_decoder_architecture"):
        groups = _integer(config, "num_kv_heads")
    elif not _flag(config, "multi_query"):
        groups = heads
    else:
        groups = 1
    _require(
        cols % heads == 0 and heads % groups == 0 and rows == (heads + 2 * groups) * (cols // heads),
        f"{rows}×{cols} does not fit {heads} heads in {groups} groups",
    )
    return _interleaved(shape, groups, heads // groups + 2)


def _bigcode(shape: tuple[int, int], config: Config) -> list[Part]:
    rows, cols = shape
    if not _flag(config, "multi_query"):
        return _per_head(shape, config)
    _require(rows > cols and (rows - cols) % 2 == 0, f"{rows}×{cols} is not multi-query attention")
    size = (rows - cols) // 2
    return _consecutive(cols, [("q", "q", cols), ("k", "k", size), ("v", "v", size)])


def _codegen(shape: tuple[int, int], config: Config) -> list[Part]:
    rows, cols = shape
    # Four groups whatever the head count: the cores of the machine it was trained on.
    _require(rows == 3 * cols and cols % 4 == 0, f"{rows}×{cols} is not four groups of q, v and k")
    return _interleaved(shape, 4, 3, order="qvk")


_ATTENTION: dict[str, Split] = {
    "bloom": _per_head,
    "codegen": _codegen,
    "falcon": _falcon,
    "gpt_bigcode": _bigcode,
    "gpt_neox": _per_head,
    "gpt_neox_japanese": _per_head,
    "modernbert": _thirds,
    "mpt": _thirds,
    "nanogpt": _thirds,  # not in transformers: for config={"model_type": "nanogpt"}
    "persimmon": _per_head,
    "phi3": _grouped_consecutive,
}

# Fused gate and input of an MLP. The gate is the half that goes through the activation function.


def _gate_up(shape: tuple[int, int], config: Config) -> list[Part]:
    return _by_model_type(_GATE_UP, config)(shape, config)


def _expert_gate_up(shape: tuple[int, int], config: Config) -> list[Part]:
    return _by_model_type(_EXPERT_GATE_UP, config)(shape, config)


def _row_halves(shape: tuple[int, int], config: Config) -> list[Part]:
    rows, cols = shape
    _require(rows % 2 == 0, f"{rows} rows have no halves")
    return _consecutive(cols, [("gate", "mlp_gate", rows // 2), ("in", "mlp_in", rows // 2)])


def _column_halves(shape: tuple[int, int], config: Config) -> list[Part]:
    cols = shape[1]
    _require(cols % 2 == 0, f"{cols} columns have no halves")
    half = cols // 2
    return _columns(shape, [("gate", "mlp_gate", slice(0, half)), ("in", "mlp_in", slice(half, cols))])


def _alternate_columns(shape: tuple[int, int], config: Config) -> list[Part]:
    cols = shape[1]
    _require(cols % 2 == 0, f"{cols} columns do not alternate")
    return _columns(shape, [("gate", "mlp_gate", slice(0, cols, 2)), ("in", "mlp_in", slice(1, cols, 2))])


_GATE_UP: dict[str, Split] = {
    "glm": _row_halves,
    "glm4": _row_halves,
    "modernbert": _row_halves,
    "phi3": _row_halves,
}
_EXPERT_GATE_UP: dict[str, Split] = {
    "deepseek_v3": _row_halves,
    "gpt_oss": _alternate_columns,
    "granitemoe": _row_halves,
    "llama4_text": _column_halves,
    "mixtral": _row_halves,
    "olmoe": _row_halves,
    "qwen2_moe": _row_halves,
    "qwen3_moe": _row_halves,
}


# Reading the config.


def _no_table(shape: tuple[int, int], config: Config) -> list[Part]:
    raise _LayoutUnknown("no model with this weight is known")


def _by_model_type(table: Mapping[str, Split], config: Config) -> Split:
    model_type = config.get("model_type")
    if not isinstance(model_type, str):
        raise _LayoutUnknown("its layout depends on the model, and no config with a model_type is known")
    if model_type not in table:
        raise _LayoutUnknown(f"the layout of model_type {model_type!r} is not known")
    return table[model_type]


def _heads(config: Config) -> int:
    return _integer(config, "num_attention_heads", "n_head", "n_heads", "num_heads")


def _integer(config: Config, *names: str, default: int | None = None) -> int:
    value = next((config[name] for name in names if config.get(name) is not None), default)
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:  # true is an int, too
        raise _LayoutUnknown(f"the config has no usable {names[0]}")
    return value


def _flag(config: Config, name: str) -> bool:
    value = config.get(name)
    if not isinstance(value, bool):
        raise _LayoutUnknown(f"the config does not say {name}")
    return value


def _require(condition: bool, otherwise: str) -> None:
    if not condition:
        raise _LayoutUnknown(otherwise)
