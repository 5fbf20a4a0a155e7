"""Small language models with random weights, a text for them, and sets of their blocks."""

from __future__ import annotations

import itertools

import torch
from torch import nn

from spectral_fast.lifecycle.config import ModelConfig
from spectral_fast.lifecycle.evaluations import Removed
from spectral_fast.lifecycle.gpt import GPT
from spectral_fast.lifecycle.perplexity import EvaluationText

LAYERS, WIDTH, VOCABULARY, CONTEXT = 4, 32, 64, 24


def every_set(depth: int) -> list[Removed]:
    return [frozenset(c) for size in range(depth + 1) for c in itertools.combinations(range(depth), size)]


def text(windows: int = 6, context: int = CONTEXT, seed: int = 3) -> EvaluationText:
    tokens = torch.randint(
        VOCABULARY, (windows * (context + 1),), generator=torch.Generator().manual_seed(seed)
    )
    return EvaluationText.of(tokens, context=context, count=windows)


def ours() -> GPT:
    model = GPT(ModelConfig(LAYERS, WIDTH, 2, CONTEXT, VOCABULARY), torch.Generator().manual_seed(1))
    return _louder(model)


def _louder(model: nn.Module) -> nn.Module:
    """First weights are so small that a block hardly matters; these do."""
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 2:
                parameter.mul_(4)
    return model


def transformers_model(kind: str, vocabulary: int = VOCABULARY, **options: object) -> nn.Module:
    """A causal language model of transformers, of the type "gpt2" or "gpt_neox"."""
    from transformers import GPT2Config, GPT2LMHeadModel, GPTNeoXConfig, GPTNeoXForCausalLM

    torch.manual_seed(7)
    special = {"bos_token_id": 0, "eos_token_id": 0}
    if kind == "gpt2":
        sizes = {"n_layer": LAYERS, "n_embd": WIDTH, "n_head": 2, "n_positions": CONTEXT}
        # Dropout as released: an evaluation that forgot eval() would be random.
        return _louder(GPT2LMHeadModel(GPT2Config(vocab_size=vocabulary, **special, **sizes, **options)))
    sizes = {"num_hidden_layers": LAYERS, "hidden_size": WIDTH, "num_attention_heads": 2}
    sizes |= {"intermediate_size": 4 * WIDTH, "max_position_embeddings": CONTEXT}
    return _louder(GPTNeoXForCausalLM(GPTNeoXConfig(vocab_size=vocabulary, **special, **sizes, **options)))
