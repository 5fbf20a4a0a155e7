"""A decoder-only transformer as GPT-2 has it (Radford et al. 2019), with Q, K, V and O apart.

    x = E[tokens] + P[positions]
    x = x + O attention(Q n(x), K n(x), V n(x))        for each of the L blocks
    x = x + D gelu(U n(x))
    logits = E n(x)

n is a LayerNorm; E is both the embedding and the output head. Linear maps have no bias. Matrices start
normal with a standard deviation of 0.02, but O and D, which write into the residual stream 2L times in all,
of 0.02 / √(2L).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from spectral_fast.lifecycle.config import ModelConfig

_INITIAL_STD = 0.02


class Block(nn.Module):
    """Attention and MLP, each added to what it read: (batch, tokens, width) to the same."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        d = config.width
        self.heads = config.heads
        self.norm_1 = nn.LayerNorm(d)
        self.q_proj = nn.Linear(d, d, bias=False)
        self.k_proj = nn.Linear(d, d, bias=False)
        self.v_proj = nn.Linear(d, d, bias=False)
        self.o_proj = nn.Linear(d, d, bias=False)
        self.norm_2 = nn.LayerNorm(d)
        self.up_proj = nn.Linear(d, 4 * d, bias=False)
        self.down_proj = nn.Linear(4 * d, d, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        batch, length, d = x.shape
        h = self.norm_1(x)
        q, k, v = (
            proj(h).view(batch, length, self.heads, -1).transpose(1, 2)
            for proj in (self.q_proj, self.k_proj, self.v_proj)
        )
        h = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.o_proj(h.transpose(1, 2).reshape(batch, length, d))
        return x + self.down_proj(F.gelu(self.up_proj(self.norm_2(x))))


class GPT(nn.Module):
    """The model of a :class:`ModelConfig`, with its first weights.

    Its blocks are the ``nn.ModuleList`` ``layers``; blocks may be taken out of it, and what is left runs on.

    Args:
        config: its sizes.
        generator: of the first weights; torch's global one if not given.
    """

    def __init__(self, config: ModelConfig, generator: torch.Generator | None = None) -> None:
        super().__init__()
        self.config = config
        self.token_embedding = nn.Embedding(config.vocabulary, config.width)
        self.position_embedding = nn.Embedding(config.context, config.width)
        self.layers = nn.ModuleList(Block(config) for _ in range(config.layers))
        self.norm = nn.LayerNorm(config.width)
        for name, parameter in self.named_parameters():
            if parameter.dim() == 2:
                writes = name.endswith(("o_proj.weight", "down_proj.weight"))
                std = _INITIAL_STD / (2 * config.layers) ** 0.5 if writes else _INITIAL_STD
                nn.init.normal_(parameter, std=std, generator=generator)

    def forward(self, tokens: Tensor) -> Tensor:
        """Logits of the next token.

        Args:
            tokens: (batch, length) int64, length at most ``config.context``.

        Returns:
            (batch, length, vocabulary), in the parameters' dtype or autocast's.

        Raises:
            ValueError: more tokens than the context.
        """
        length = tokens.shape[1]
        if length > self.config.context:
            raise ValueError(f"GPT: {length} tokens are more than its context of {self.config.context}")
        positions = torch.arange(length, device=tokens.device)
        x = self.token_embedding(tokens) + self.position_embedding(positions)
        for layer in self.layers:
            x = layer(x)
        return F.linear(self.norm(x), self.token_embedding.weight)
