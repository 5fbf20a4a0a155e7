"""LoRA adapters: finding the two factors of an update B A, and its singular values cheaply.

The update of a weight (out, in) is B A with A (r, in), B (out, r) and r small. Its nonzero singular
values are those of R_B R_A^T, where B = Q_B R_B and A^T = Q_A R_A: a matrix of r×r instead of out×in,
and without the out×in matrix's rounding noise in place of exact zeros.
"""

import re
from dataclasses import dataclass

import torch

# PEFT's names; ".weight" is missing for the factors of embeddings, NAME in saved adapters.
_FACTOR = re.compile(
    r"^(?P<base>.+)\.lora_(?:embedding_)?(?P<letter>[AB])(?:\.(?P<adapter>\w+?))??(?:\.weight)?$"
)


@dataclass(frozen=True)
class Factor:
    """One factor of a LoRA pair.

    Attributes:
        base: the name of the layer it belongs to.
        adapter: the adapter's name, "" in a saved adapter.
        letter: "A" or "B".
    """

    base: str
    adapter: str
    letter: str

    @property
    def label(self) -> str:
        """What follows the layer's name in the name of the product."""
        return f"[lora.{self.adapter}]" if self.adapter else "[lora]"


def lora_factor(name: str) -> Factor | None:
    """Read a tensor's name as that of a LoRA factor; None if it is none."""
    match = _FACTOR.match(name)
    return Factor(match["base"], match["adapter"] or "", match["letter"]) if match else None


def product_core(b: torch.Tensor, a: torch.Tensor) -> torch.Tensor:
    """A small matrix with the nonzero singular values of b @ a.

    Args:
        b: shape (out, r), float32 or float64.
        a: shape (r, in), of b's dtype.

    Returns:
        R_b R_a^T of shape (min(out, r), min(in, r)).
    """
    r_b = torch.linalg.qr(b, mode="r").R
    r_a = torch.linalg.qr(a.mT, mode="r").R
    return r_b @ r_a.mT
