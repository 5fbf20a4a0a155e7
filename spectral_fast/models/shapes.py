"""The nine models measured here: depth, width and the shape of every weight matrix.

GPT-2 (Radford et al. 2019) keeps its weights as (in, out), Pythia (Biderman et al. 2023) as (out, in), so
their MLP matrices are each other's transposes. Fused attention weights are counted as q, k and v, each
d x d, because that is how spectra are looked at. Pythia ties no embeddings; its output head is named "head".
The custom models stand for the sizes of arXiv 2604.22778 that have no public checkpoint; their widths are
this project's choice.
"""

from __future__ import annotations

from dataclasses import dataclass

ATTENTION_ROLES = ("q", "k", "v", "o")


@dataclass(frozen=True)
class ModelShape:
    """A decoder-only transformer with an MLP four times as wide as the model."""

    name: str
    layers: int
    width: int
    vocabulary: int
    positions: int = 0  # learned position embeddings; 0 for rotary ones
    mlp_in_is_wide: bool = False  # stored as (d, 4d), as GPT-2 does
    tied: bool = True  # the embedding is the output head

    def block_matrices(self) -> list[tuple[str, int, int]]:
        """(role, rows, columns) of the matrices of one layer."""
        d = self.width
        tall, wide = (4 * d, d), (d, 4 * d)
        mlp_in, mlp_out = (wide, tall) if self.mlp_in_is_wide else (tall, wide)
        return [*((role, d, d) for role in ATTENTION_ROLES), ("mlp_in", *mlp_in), ("mlp_out", *mlp_out)]

    def embedding_matrices(self) -> list[tuple[str, int, int]]:
        """(role, rows, columns) of what lies outside the layers."""
        matrices = [("embedding", self.vocabulary, self.width)]
        if self.positions:
            matrices.append(("position_embedding", self.positions, self.width))
        if not self.tied:
            matrices.append(("head", self.vocabulary, self.width))
        return matrices


def _gpt2(name: str, layers: int, width: int) -> ModelShape:
    return ModelShape(name, layers, width, vocabulary=50257, positions=1024, mlp_in_is_wide=True)


def _pythia(name: str, layers: int, width: int) -> ModelShape:
    return ModelShape(name, layers, width, vocabulary=50304, tied=False)


def _custom(name: str, layers: int, width: int) -> ModelShape:
    return ModelShape(name, layers, width, vocabulary=50304)


MODELS = {
    model.name: model
    for model in (
        _gpt2("gpt2-124m", 12, 768),
        _gpt2("gpt2-355m", 24, 1024),
        _gpt2("gpt2-774m", 36, 1280),
        _pythia("pythia-160m", 12, 768),
        _pythia("pythia-410m", 24, 1024),
        _pythia("pythia-1b", 16, 2048),
        _custom("custom-30m", 8, 352),
        _custom("custom-124m", 12, 768),
        _custom("custom-282m", 16, 1088),
    )
}
