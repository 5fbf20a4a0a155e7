"""A causal language model as a row of blocks that can be taken out, whoever built it.

Nothing of a model's forward pass is repeated here: blocks go by being absent from the ``nn.ModuleList`` that
the model itself runs through, and embeddings, masks, positions, norm and head stay the model's. The others
keep their ``layer_idx``, by which GPT-2 may scale its attention; it also says which slot of a key/value cache
is a block's, so that no cache is used (without block 0 transformers would take it for empty).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from spectral_fast.models import CheckpointError

# Where transformers' models keep their blocks. Others may index by layer what they run through.
_BLOCKS = {"gpt2": "transformer.h", "gpt_neox": "gpt_neox.layers"}


@dataclass(frozen=True, eq=False)
class Decoder:
    """A causal language model whose blocks can be taken out.

    Attributes:
        model: the whole model.
        holder, attribute: the module that has the list of blocks, and under which name.
        context: tokens it takes at most.
        vocabulary: tokens there are.
        config: what its weights do not tell, as plain data.
    """

    model: nn.Module
    holder: nn.Module
    attribute: str
    context: int
    vocabulary: int
    config: dict[str, Any]

    @classmethod
    def of(cls, model: nn.Module) -> Decoder:
        """For GPT-2 and GPT-NeoX (Pythia) of transformers, and modules like our own GPT.

        Those map tokens (batch, length) to logits, run through an ``nn.ModuleList`` named ``layers`` and have
        ``config.context`` and ``config.vocabulary``.

        Raises:
            ValueError: the model is another one.
        """
        config: Any = getattr(model, "config", None)
        kind = getattr(config, "model_type", None)
        if isinstance(kind, str):
            path = _BLOCKS.get(kind)
            if path is None or not hasattr(model, "lm_head"):
                raise ValueError(
                    f"blocks can be taken out of transformers' causal language models of types "
                    f"{', '.join(_BLOCKS)}, not of a {type(model).__name__} of type {kind}"
                )
            holder, _, attribute = path.rpartition(".")
            # Paths and versions change without the model doing so.
            plain = {k: v for k, v in config.to_dict().items() if k[0] != "_" and k != "transformers_version"}
            sizes = int(config.max_position_embeddings), int(config.vocab_size)
            return cls(model, model.get_submodule(holder), attribute, *sizes, plain)
        described = hasattr(config, "context") and hasattr(config, "vocabulary")
        if not described or not isinstance(getattr(model, "layers", None), nn.ModuleList):
            raise ValueError(
                f"{type(model).__name__} lacks an nn.ModuleList 'layers', 'config.context' or "
                f"'config.vocabulary'; of transformers' models, {', '.join(_BLOCKS)} need none of them"
            )
        sizes = int(config.context), int(config.vocabulary)
        return cls(model, model, "layers", *sizes, dict(vars(config)))

    @property
    def blocks(self) -> tuple[nn.Module, ...]:
        return tuple(getattr(self.holder, self.attribute))

    @property
    def depth(self) -> int:
        return len(self.blocks)

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device

    def logits(self, tokens: Tensor) -> Tensor:
        """(batch, length) int64 -> (batch, length, vocabulary), with the blocks that are there now."""
        if self.holder is self.model:
            logits: Tensor = self.model(tokens)
        else:
            logits = self.model(input_ids=tokens, use_cache=False).logits
        return logits

    @contextmanager
    def running(self, modules: Sequence[nn.Module]) -> Iterator[None]:
        """Run these modules in place of the blocks, without dropout; the model is itself again afterwards."""
        blocks = getattr(self.holder, self.attribute)
        training = [(module, module.training) for module in self.model.modules()]
        self.model.eval()
        setattr(self.holder, self.attribute, nn.ModuleList(modules).eval())
        try:
            yield
        finally:
            setattr(self.holder, self.attribute, blocks)
            for module, was in training:
                module.training = was

    def fingerprint(self) -> str:
        """A hash of weights and configuration, equal for models that are the same."""
        found = hashlib.sha256(json.dumps(self.config, sort_keys=True, default=str).encode())
        for name, tensor in self.model.state_dict().items():
            found.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
            found.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
        return found.hexdigest()[:32]


def load_decoder(path: Path) -> Decoder:
    """The model in a training run's folder, or in a Hugging Face folder with GPT-2 or GPT-NeoX, in float32.

    Nothing is downloaded and no code of the folder is run.

    Raises:
        CheckpointError: there is no such model, or it lacks weights.
        ImportError: a Hugging Face folder, and transformers is not installed.
    """
    if (path / "run.json").is_file():
        from spectral_fast.lifecycle.run_folder import load_model

        model, _ = load_model(path)
        return Decoder.of(model)
    config = path / "config.json"
    if not config.is_file():
        raise CheckpointError(path, "is no folder with a run.json or a config.json", "Give one of a model")
    try:
        kind = json.loads(config.read_text(encoding="utf-8")).get("model_type")
    except (ValueError, AttributeError) as error:
        raise CheckpointError(config, "is not valid JSON of a model", "Download it again") from error
    if kind not in _BLOCKS:
        raise CheckpointError(
            path, f"holds a model of type {kind!r}", f"Of transformers' models, give {' or '.join(_BLOCKS)}"
        )
    return Decoder.of(_load_transformers(path))


def _load_transformers(path: Path) -> nn.Module:
    from transformers import AutoModelForCausalLM

    try:
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            path, local_files_only=True, output_loading_info=True
        )
    except (OSError, RuntimeError, ValueError) as error:
        first = str(error).strip().partition("\n")[0]
        raise CheckpointError(path, f"cannot be loaded ({first})", "Download or save it again") from error
    model, report = loaded
    if missing := sorted(report["missing_keys"]):  # transformers makes them up
        raise CheckpointError(path, f"lacks weights, such as {missing[0]}", "Download or save it again")
    found: nn.Module = model.float()
    return found
