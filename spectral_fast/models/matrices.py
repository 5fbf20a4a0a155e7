"""Finding the weight matrices of a model."""

import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Protocol

import torch

from spectral_fast.models.fused import Config, split
from spectral_fast.models.lora import Factor, lora_factor, product_core
from spectral_fast.models.roles import EMBEDDING_ROLES, role_and_layer

_READABLE = frozenset({torch.float64, torch.float32, torch.float16, torch.bfloat16})
# Position and token ids, masks: never weights.
_NO_WEIGHTS = frozenset({torch.bool, torch.int64, torch.uint64})
# What lies next to a packed weight: scales, zero points, codebooks.
_COMPANION = re.compile(
    r"(?:^|[._])(?:scales?|scale_inv|scale_\d|q?zeros?|zero_points?|absmax|scb|quant_map|codebooks?)$",
    re.IGNORECASE,
)
_BIAS = re.compile(r"(?:^|[._])bias$")


@dataclass(frozen=True, eq=False)
class Piece:
    """Entries start to stop of a stored tensor's first dimension, from which a matrix is made."""

    stored: "StoredTensor"
    start: int
    stop: int


@dataclass(frozen=True, eq=False)
class WeightMatrix:
    """One weight matrix of a model or checkpoint.

    Attributes:
        name: the name of the tensor that holds it. Where a tensor holds several matrices, which one
            follows in brackets: "h.0.attn.c_attn.weight[q]", "experts.down_proj[3]",
            "experts.gate_up_proj[3,gate]"; the product of a LoRA pair is "q_proj[lora]", or
            "q_proj[lora.NAME]" for an adapter with a name.
        layer: the layer it belongs to, None for embeddings, heads and what has no number.
        role: what it does: "q", "k", "v", "o", "mlp_in", "mlp_out", "mlp_gate", "router", "conv",
            "embedding", "position_embedding", "token_type_embedding", "pooler", "head" or "other";
            "qkv", "kv" and "mlp_gate_in" hold several of these fused and could not be split.
        shape: (rows, cols) of `tensor`.
        dtype: the dtype of `tensor`.
        note: what a reader should know about it, such as why a fused weight was left whole, or "".
        pieces: what it is made of: one piece of one tensor, or for a LoRA product both factors.
        by_rows: its row i is made of entry i of its only piece alone, so that some of the entries
            make a matrix of some of the rows.
    """

    name: str
    layer: int | None
    role: str
    shape: tuple[int, int]
    dtype: torch.dtype
    note: str = ""
    pieces: tuple[Piece, ...] = field(kw_only=True, repr=False)
    by_rows: bool = field(default=False, kw_only=True, repr=False)
    _make: Callable[..., torch.Tensor] = field(kw_only=True, repr=False)

    @property
    def tensor(self) -> torch.Tensor:
        """The matrix as it is now: shape (rows, cols), real floating point, detached.

        Of a model, a view that shares the model's memory, except where no stride can express the
        matrix (heads interleaved in a fused weight, LoRA products, convolutions in channels_last
        memory): that is gathered anew on each access. Of a model whose parameters are DTensors, a
        DTensor; cutting it out of a fused weight may be a collective. Of a checkpoint, read from the
        file on each access.
        """
        return self.made_of([piece.stored.load(piece.start, piece.stop) for piece in self.pieces])

    def made_of(self, entries: Sequence[torch.Tensor]) -> torch.Tensor:
        """The matrix made of the entries of its `pieces`, however they were read."""
        return self._make(*entries)

    @property
    def is_embedding(self) -> bool:
        """True for token, position and token-type embeddings, which analyses mostly leave out."""
        return self.role in EMBEDDING_ROLES


@dataclass(frozen=True)
class SkippedTensor:
    """A tensor that holds, or may hold, weights which cannot be read as matrices.

    Attributes:
        name: its name in the model or checkpoint.
        shape: its shape as stored.
        dtype: the name of its dtype as stored, such as "int8".
        reason: why it was skipped.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    reason: str


class WeightMatrices(list[WeightMatrix]):
    """A list of weight matrices; `skipped` holds what could not be read, with the reasons."""

    def __init__(self, matrices: Iterable[WeightMatrix] = (), skipped: Iterable[SkippedTensor] = ()) -> None:
        super().__init__(matrices)
        self.skipped = tuple(skipped)


class StoredTensor(Protocol):
    """A tensor of a model or checkpoint, as `find_matrices` needs it."""

    @property
    def name(self) -> str: ...

    @property
    def shape(self) -> tuple[int, ...]: ...

    @property
    def dtype(self) -> torch.dtype: ...

    @property
    def problem(self) -> str:
        """Why its values cannot be read, "" if they can."""

    def load(self, start: int = 0, stop: int | None = None) -> torch.Tensor:
        """Entries start to stop of the first dimension, detached."""


def weight_matrices(
    model_or_state_dict: torch.nn.Module | Mapping[str, Any],
    *,
    config: Config | object | None = None,
) -> WeightMatrices:
    """List the weight matrices of a model, in the model's own order.

    A module is searched for parameters, a mapping for tensors; other values of a mapping are passed
    over, and so are vectors and biases. Weights that hold several matrices are split:

    - fused attention (``c_attn``, ``query_key_value``, ``qkv_proj``...) into "q", "k" and "v", and
      fused MLPs (``gate_up_proj``) into "mlp_gate" and "mlp_in", if the model's layout is known;
      if not, the weight is listed whole with the role "qkv" or "mlp_gate_in" and a note that says why;
    - stacked experts (experts, rows, cols) into one matrix an expert;
    - convolutions (out, in, *kernel) become one matrix (out, in * kernel), each row a filter;
    - LoRA pairs A (r, in), B (out, r) become one matrix (r, r) with the nonzero singular values of
      B A, without the adapter's factor alpha / r.

    Embeddings are listed too: leave them out with ``[w for w in weights if not w.is_embedding]``.
    Tied weights (one memory under two names, transposed or not) are listed once, under the name of
    the embedding if one of them is an embedding, else under the first name.

    Args:
        model_or_state_dict: a module, or a mapping from names to tensors.
        config: the model's config, as a mapping (the content of a config.json) or an object such
            as ``model.config``: its model_type and head counts tell how fused weights are laid out.
            A module that has one as ``config`` (transformers models do) needs none.

    Returns:
        A list of one `WeightMatrix` a matrix; nothing is copied. Its attribute ``skipped`` lists
        the weights that cannot be read (quantized, complex, sparse, on the meta device) and why.

    Raises:
        TypeError: the argument is neither a module nor a mapping.
    """
    named: Iterable[tuple[str, Any]]
    if isinstance(model_or_state_dict, torch.nn.Module):
        named = _parameters(model_or_state_dict)
    elif isinstance(model_or_state_dict, Mapping):
        named = model_or_state_dict.items()
    else:
        raise TypeError(
            "weight_matrices expects a torch.nn.Module or a mapping from names to tensors, not "
            f"{type(model_or_state_dict).__name__}"
        )
    stored = [LiveTensor(name, tensor) for name, tensor in without_ties(named).items()]
    if config is None and isinstance(model_or_state_dict, torch.nn.Module):
        return find_matrices(stored, partial(_nearest_config, model_or_state_dict))
    known = _as_mapping(config)
    return find_matrices(stored, lambda name: known)


def find_matrices(stored: Iterable[StoredTensor], config_of: Callable[[str], Config]) -> WeightMatrices:
    """The matrices in stored tensors; `config_of` gives the config of the model a tensor belongs to."""
    matrices: list[WeightMatrix] = []
    skipped: list[SkippedTensor] = []
    factors: dict[tuple[str, str], dict[str, tuple[Factor, StoredTensor]]] = {}
    stored = [tensor for tensor in stored if _may_be_weight(tensor)]
    packed = {_parent(tensor.name) for tensor in stored if _quantized(tensor.dtype)}
    for tensor in stored:
        factor = lora_factor(tensor.name)
        reason = tensor.problem or _unreadable(tensor.dtype)
        if _COMPANION.search(tensor.name) and _parent(tensor.name) in packed:
            continue
        if not reason and factor is None:
            found = list(_split(tensor, config_of))
            matrices += found
            reason = "" if found else "its name tells neither stacked experts nor a convolution"
        elif not reason and factor is not None and len(tensor.shape) == 2:
            factors.setdefault((factor.base, factor.adapter), {})[factor.letter] = (factor, tensor)
        elif not reason:
            reason = "a LoRA factor of a convolution"
        if reason:
            skipped.append(_skip(tensor, reason))
    for pair in factors.values():
        if (product := _lora_product(pair)) is not None:
            matrices.append(product)
        else:
            skipped += [_skip(tensor, "a LoRA factor without its partner") for _, tensor in pair.values()]
    return WeightMatrices(matrices, skipped)


def _may_be_weight(tensor: StoredTensor) -> bool:
    if len(tensor.shape) < 2 or math.prod(tensor.shape) == 0:
        return False
    if tensor.dtype in _NO_WEIGHTS or _BIAS.search(tensor.name):
        return False
    # Learned vectors with leading ones, such as ViT's (1, 1, d) class token.
    return len(tensor.shape) == 2 or sum(size > 1 for size in tensor.shape) > 1


def _quantized(dtype: torch.dtype) -> bool:
    return dtype not in _READABLE and not dtype.is_complex


def _unreadable(dtype: torch.dtype) -> str:
    if dtype in _READABLE:
        return ""
    if dtype.is_complex:
        return "complex entries"
    what = (
        "need scales that are stored apart" if dtype.is_floating_point else "are a quantized weight, packed"
    )
    return f"{_plain(dtype)} entries {what}; dequantize the model to read it"


def _skip(tensor: StoredTensor, reason: str) -> SkippedTensor:
    return SkippedTensor(tensor.name, tensor.shape, _plain(tensor.dtype), reason)


def _plain(kind: torch.dtype | torch.layout) -> str:
    return str(kind).removeprefix("torch.")


def _parent(name: str) -> str:
    return name.rpartition(".")[0]


def _split(tensor: StoredTensor, config_of: Callable[[str], Config]) -> Iterator[WeightMatrix]:
    """The matrices in one tensor; none if it is not understood."""
    name, shape = tensor.name, tensor.shape
    role, layer = role_and_layer(name)
    components = name.split(".")
    if len(shape) == 2 or (len(shape) == 3 and "experts" in components):
        parts, note = split(name, role, shape, partial(config_of, name))
        for part in parts:
            label = f"[{part.label}]" if part.label else ""
            yield WeightMatrix(
                name + label,
                layer,
                part.role,
                part.shape,
                tensor.dtype,
                note,
                pieces=(Piece(tensor, part.start, part.stop),),
                by_rows=part.by_rows,
                _make=part.take,
            )
    elif len(shape) == 3 and shape[0] == 1 and role in EMBEDDING_ROLES:  # ViT's position embedding
        squeeze = partial(torch.squeeze, dim=0)
        pieces = (Piece(tensor, 0, 1),)
        yield WeightMatrix(name, layer, role, shape[1:], tensor.dtype, pieces=pieces, _make=squeeze)
    elif components[-1] == "weight" and (len(shape) > 3 or "conv" in name.lower()):
        yield WeightMatrix(
            name,
            layer,
            "conv" if role == "other" else role,
            (shape[0], math.prod(shape[1:])),
            tensor.dtype,
            pieces=(Piece(tensor, 0, shape[0]),),
            by_rows=True,
            _make=partial(torch.flatten, start_dim=1),
        )


def _lora_product(pair: Mapping[str, tuple[Factor, StoredTensor]]) -> WeightMatrix | None:
    if len(pair) < 2:
        return None
    (factor, a), (_, b) = pair["A"], pair["B"]
    if b.shape[1] != a.shape[0]:
        return None
    role, layer = role_and_layer(factor.base)
    rank = a.shape[0]
    shape = (min(b.shape[0], rank), min(a.shape[1], rank))
    dtype = torch.float64 if torch.float64 in (a.dtype, b.dtype) else torch.float32
    return WeightMatrix(
        factor.base + factor.label,
        layer,
        role,
        shape,
        dtype,
        f"rank {rank} of a {b.shape[0]}×{a.shape[1]} LoRA product",
        pieces=(Piece(b, 0, b.shape[0]), Piece(a, 0, rank)),
        _make=partial(_product_core, dtype),
    )


def _product_core(dtype: torch.dtype, b: torch.Tensor, a: torch.Tensor) -> torch.Tensor:
    return product_core(b.to(dtype), a.to(dtype))


@dataclass(frozen=True, eq=False)
class LiveTensor:
    """A tensor of a model in memory; pieces of a model's matrices are of these."""

    name: str
    tensor: torch.Tensor

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.tensor.shape)

    @property
    def dtype(self) -> torch.dtype:
        return self.tensor.dtype

    @property
    def problem(self) -> str:
        if self.tensor.layout != torch.strided:
            return f"stored as {_plain(self.tensor.layout)}, not dense"
        return "on the meta device, so it has no values" if self.tensor.is_meta else ""

    def load(self, start: int = 0, stop: int | None = None) -> torch.Tensor:
        tensor = self.tensor.detach()
        # The whole tensor itself, not a slice of it, which a DTensor might have to redistribute.
        return tensor if start == 0 and stop in (None, tensor.shape[0]) else tensor[start:stop]


def _parameters(module: torch.nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    """Parameters, and of the buffers those that hold packed weights, as GPTQ's do."""
    yield from module.named_parameters(remove_duplicate=False)
    for name, buffer in module.named_buffers(remove_duplicate=False):
        if _quantized(buffer.dtype) and buffer.dtype not in _NO_WEIGHTS:
            yield name, buffer


def _nearest_config(model: torch.nn.Module, name: str) -> Config:
    """The config of the innermost module around a parameter that has one with a model_type.

    Innermost, because a model of several towers has a config for each.
    """
    found: Config = {}
    module: Any = model
    for component in ["", *name.split(".")[:-1]]:
        module = getattr(module, component) if component else module
        config = getattr(module, "config", None)
        if config is not None and isinstance(_field(config, "model_type"), str):
            found = _as_mapping(config)
    return found


def _field(config: object, key: str) -> Any:
    return config.get(key) if isinstance(config, Mapping) else getattr(config, key, None)


def _as_mapping(config: object) -> Config:
    if config is None:
        return {}
    if isinstance(config, Mapping):
        return config
    # A transformers config knows better than its attributes what belongs to it.
    to_dict = getattr(config, "to_dict", None)
    content = to_dict() if callable(to_dict) else getattr(config, "__dict__", {})
    return {**content, "model_type": getattr(config, "model_type", None)}


def without_ties(named: Iterable[tuple[str, Any]]) -> dict[str, torch.Tensor]:
    """Keep the tensors among named values, and of tensors tied to one memory a single name."""
    kept: dict[object, tuple[str, torch.Tensor]] = {}
    for name, value in named:
        if not isinstance(value, torch.Tensor):
            continue
        key = _memory(value)
        if key not in kept or (_is_embedding(name) and not _is_embedding(kept[key][0])):
            kept[key] = (name, value)
    return dict(kept.values())


def _is_embedding(name: str) -> bool:
    return role_and_layer(name)[0] in EMBEDDING_ROLES


def _memory(tensor: torch.Tensor) -> object:
    """Equal for two tensors exactly if they show the same memory, transposed or not."""
    if tensor.layout != torch.strided:
        return id(tensor)
    storage = tensor.untyped_storage()
    return (
        # A tensor that is still in its file has no memory yet, but a place there. Otherwise the address
        # of the storage object, not of its data: meta tensors have no data.
        (tensor.is_meta and storage._checkpoint_offset) or storage._cdata,
        tensor.storage_offset(),
        tensor.dtype,
        tuple(sorted(zip(tensor.shape, tensor.stride(), strict=True))),
    )
