"""Finding the weight matrices of a model."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from spectral_fast.models.roles import EMBEDDING_ROLES, role_and_layer


@dataclass(frozen=True, eq=False)
class WeightMatrix:
    """One weight matrix of a model.

    Attributes:
        name: its name in the model or state dict.
        layer: the layer it belongs to, None for embeddings, heads and what has no number.
        role: what it does: "q", "k", "v", "o", "mlp_in", "mlp_out", "mlp_gate", "embedding",
            "position_embedding", "token_type_embedding", "pooler", "head" or "other"; "qkv", "kv"
            and "mlp_gate_in" are matrices that hold several of these fused, as stored.
        tensor: shape (rows, cols), floating point, a detached view that shares the model's memory.
    """

    name: str
    layer: int | None
    role: str
    tensor: torch.Tensor

    @property
    def is_embedding(self) -> bool:
        """True for token, position and token-type embeddings, which analyses mostly leave out."""
        return self.role in EMBEDDING_ROLES


def weight_matrices(
    model_or_state_dict: torch.nn.Module | Mapping[str, Any],
) -> list[WeightMatrix]:
    """List the weight matrices of a model, in the model's own order.

    A matrix here is a dense two-dimensional floating-point tensor with at least one entry. A module
    is searched for parameters, a mapping for tensors; other values of a mapping are passed over.
    Embeddings are listed too: leave them out with ``[w for w in weights if not w.is_embedding]``.
    Tied weights (one memory under two names, transposed or not) are listed once, under the name of
    the embedding if one of them is an embedding, else under the first name.

    Attention weights that hold query, key and value in one matrix (``c_attn``,
    ``query_key_value``, ``qkv_proj``...) have the role "qkv" and are not split: models order the
    parts differently, and splitting per model comes in a later version.

    Args:
        model_or_state_dict: a module, or a mapping from names to tensors.

    Returns:
        One `WeightMatrix` a matrix; its tensor is a view, nothing is copied.

    Raises:
        TypeError: the argument is neither a module nor a mapping.
    """
    named: Iterable[tuple[str, Any]]
    if isinstance(model_or_state_dict, torch.nn.Module):
        named = model_or_state_dict.named_parameters(remove_duplicate=False)
    elif isinstance(model_or_state_dict, Mapping):
        named = model_or_state_dict.items()
    else:
        raise TypeError(
            "weight_matrices expects a torch.nn.Module or a mapping from names to tensors, not "
            f"{type(model_or_state_dict).__name__}"
        )
    matrices = []
    for name, tensor in without_ties(named).items():
        if tensor.layout == torch.strided and is_matrix(tensor.shape, tensor.dtype):
            role, layer = role_and_layer(name)
            matrices.append(WeightMatrix(name, layer, role, tensor.detach()))
    return matrices


def is_matrix(shape: Iterable[int], dtype: torch.dtype) -> bool:
    """Whether a tensor of this shape and dtype counts as a weight matrix."""
    sizes = tuple(shape)
    return len(sizes) == 2 and min(sizes) > 0 and dtype.is_floating_point


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
    # The address of the storage object, not of its data: meta tensors have no data.
    storage = tensor.untyped_storage()._cdata
    return (
        storage,
        tensor.storage_offset(),
        tensor.dtype,
        tuple(sorted(zip(tensor.shape, tensor.stride(), strict=True))),
    )
