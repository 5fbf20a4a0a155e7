"""Finding weight matrices: what counts as one, its role and layer, ties."""

import pytest
import torch
from torch import nn

from spectral_fast.models import EMBEDDING_ROLES, weight_matrices
from spectral_fast.models.roles import ROLE_ORDER, reading_order, role_and_layer

BERT = {
    "attention.self.query": "q",
    "attention.self.key": "k",
    "attention.self.value": "v",
    "attention.output.dense": "o",
    "intermediate.dense": "mlp_in",
    "output.dense": "mlp_out",
}
LLAMA = {
    "self_attn.q_proj": "q",
    "self_attn.k_proj": "k",
    "self_attn.v_proj": "v",
    "self_attn.o_proj": "o",
    "mlp.gate_proj": "mlp_gate",
    "mlp.up_proj": "mlp_in",
    "mlp.down_proj": "mlp_out",
}
OPT = {
    "self_attn.q_proj": "q",
    "self_attn.k_proj": "k",
    "self_attn.v_proj": "v",
    "self_attn.out_proj": "o",
    "fc1": "mlp_in",
    "fc2": "mlp_out",
}


@pytest.mark.parametrize(
    ("prefix", "roles"),
    [
        ("encoder.layer.", BERT),
        ("bert.encoder.layer.", BERT),
        ("model.layers.", LLAMA),
        ("_orig_mod.module.model.layers.", LLAMA),
        ("model.decoder.layers.", OPT),
    ],
)
@pytest.mark.parametrize("layer", [0, 7, 31])
def test_every_matrix_of_a_layer_has_its_role(prefix, roles, layer):
    found = {name: role_and_layer(f"{prefix}{layer}.{name}.weight") for name in roles}
    assert found == {name: (role, layer) for name, role in roles.items()}


@pytest.mark.parametrize(
    ("name", "role", "layer"),
    [
        ("embeddings.word_embeddings.weight", "embedding", None),
        ("embeddings.position_embeddings.weight", "position_embedding", None),
        ("embeddings.token_type_embeddings.weight", "token_type_embedding", None),
        ("pooler.dense.weight", "pooler", None),
        ("model.embed_tokens.weight", "embedding", None),
        ("model.decoder.embed_positions.weight", "position_embedding", None),
        ("transformer.wte.weight", "embedding", None),
        ("transformer.wpe.weight", "position_embedding", None),
        ("lm_head.weight", "head", None),
        # The head of a classifier is no attention output, nor a layer.
        ("classification_head.out_proj.weight", "head", None),
        ("classifier.1.weight", "head", None),
        ("cls.predictions.transform.dense.weight", "head", None),
        ("output.weight", "head", None),
        # Fused attention is not split, and its siblings of the same name are told apart.
        ("transformer.h.3.attn.c_attn.weight", "qkv", 3),
        ("transformer.h.3.crossattention.c_attn.weight", "kv", 3),
        ("transformer.h.3.attn.c_proj.weight", "o", 3),
        ("transformer.h.3.mlp.c_fc.weight", "mlp_in", 3),
        ("transformer.h.3.mlp.c_proj.weight", "mlp_out", 3),
        ("gpt_neox.layers.2.attention.query_key_value.weight", "qkv", 2),
        ("gpt_neox.layers.2.attention.dense.weight", "o", 2),
        ("gpt_neox.layers.2.mlp.dense_h_to_4h.weight", "mlp_in", 2),
        ("gpt_neox.layers.2.mlp.dense_4h_to_h.weight", "mlp_out", 2),
        ("model.layers.5.self_attn.qkv_proj.weight", "qkv", 5),
        ("model.layers.5.mlp.gate_up_proj.weight", "mlp_gate_in", 5),
        ("layers.4.self_attn.in_proj_weight", "qkv", 4),
        ("layers.4.linear1.weight", "mlp_in", 4),
        # Other projections called in_proj and out_proj are no attention.
        ("backbone.layers.4.mixer.in_proj.weight", "other", 4),
        ("backbone.layers.4.mixer.out_proj.weight", "other", 4),
        ("layers.1.attention.wq.weight", "q", 1),
        ("layers.1.attention.wo.weight", "o", 1),
        ("layers.1.feed_forward.w1.weight", "mlp_gate", 1),
        ("layers.1.feed_forward.w2.weight", "mlp_out", 1),
        ("layers.1.feed_forward.w3.weight", "mlp_in", 1),
        ("model.layers.3.block_sparse_moe.experts.5.w2.weight", "mlp_out", 3),
        ("model.layers.3.mlp.gate.weight", "other", 3),
        ("rwkv.blocks.2.feed_forward.key.weight", "mlp_in", 2),
        ("rwkv.blocks.2.attention.key.weight", "k", 2),
        ("decoder.block.6.layer.0.SelfAttention.q.weight", "q", 6),
        ("decoder.block.6.layer.2.DenseReluDense.wo.weight", "mlp_out", 6),
        ("base_model.model.model.layers.0.self_attn.q_proj.base_layer.weight", "q", 0),
        ("base_model.model.model.layers.0.self_attn.q_proj.lora_A.default.weight", "other", 0),
        ("blocks.0.sa.heads.3.key.weight", "k", 0),
        ("0.weight", "other", 0),
        ("weight", "other", None),
    ],
)
def test_role_and_layer(name, role, layer):
    assert role_and_layer(name) == (role, layer)


def test_reading_order():
    places = [("head", None), ("mlp_out", 0), ("q", 10), ("q", 2), ("o", 0), ("embedding", None), ("q", 0)]
    places.sort(key=lambda place: reading_order(*place))
    assert places == [
        ("embedding", None),
        ("q", 0),
        ("o", 0),
        ("mlp_out", 0),
        ("q", 2),
        ("q", 10),
        ("head", None),
    ]


def test_every_role_of_the_table_has_a_place_in_the_order():
    from spectral_fast.models.roles import _ENDINGS

    assert {role for role, _ in _ENDINGS} | {"other"} == set(ROLE_ORDER)
    assert set(ROLE_ORDER) >= EMBEDDING_ROLES


def test_a_module_and_its_state_dict_give_the_same_matrices():
    model = nn.TransformerEncoder(
        nn.TransformerEncoderLayer(8, 2, 16), num_layers=2, enable_nested_tensor=False
    )
    of_module, of_state = weight_matrices(model), weight_matrices(model.state_dict())
    key = [(w.name, w.role, w.layer, w.tensor.data_ptr()) for w in of_module]
    assert key == [(w.name, w.role, w.layer, w.tensor.data_ptr()) for w in of_state]
    assert [(w.layer, w.role) for w in of_module] == [
        (layer, role) for layer in (0, 1) for role in ("qkv", "o", "mlp_in", "mlp_out")
    ]


def test_tensors_are_detached_views():
    model = nn.Linear(3, 2)
    (matrix,) = weight_matrices(model)
    assert not matrix.tensor.requires_grad
    with torch.no_grad():
        model.weight[0, 0] = 42
    assert matrix.tensor[0, 0] == 42


def test_only_dense_floating_matrices_count():
    state = {
        "vector": torch.ones(3),
        "image": torch.ones(2, 3, 4),
        "ids": torch.ones(2, 3, dtype=torch.int64),
        "complex": torch.ones(2, 3, dtype=torch.complex64),
        "empty": torch.ones(0, 3),
        "sparse": torch.eye(3).to_sparse(),
        "step": 7,
        "_extra_state": b"",
        "a": torch.ones(2, 3, dtype=torch.bfloat16),
        "b": torch.ones(1, 1, dtype=torch.float64),
    }
    assert [w.name for w in weight_matrices(state)] == ["a", "b"]
    assert weight_matrices({}) == []


def test_tied_weights_are_listed_once_as_the_embedding():
    model = nn.Module()
    model.lm_head = nn.Linear(4, 9, bias=False)
    model.other = nn.Linear(4, 9, bias=False)
    model.embed_tokens = nn.Embedding(9, 4)
    model.embed_tokens.weight = model.lm_head.weight
    for listed in (weight_matrices(model), weight_matrices(model.state_dict())):
        assert [(w.name, w.role) for w in listed] == [
            ("embed_tokens.weight", "embedding"),
            ("other.weight", "other"),
        ]
        assert [w.name for w in listed if not w.is_embedding] == ["other.weight"]


def test_a_tie_to_the_transpose_is_a_tie_but_slices_of_one_memory_are_not():
    fused = torch.randn(6, 2)
    state = {"a": fused, "b": fused.T, "q": fused[:2], "k": fused[2:4], "v": fused[4:]}
    assert [w.name for w in weight_matrices(state)] == ["a", "q", "k", "v"]


def test_matrices_of_a_model_without_memory():
    with torch.device("meta"):
        model = nn.Sequential(nn.Linear(5, 6), nn.Linear(6, 5), nn.Linear(5, 6))
    found = [(w.name, tuple(w.tensor.shape)) for w in weight_matrices(model)]
    assert found == [("0.weight", (6, 5)), ("1.weight", (5, 6)), ("2.weight", (6, 5))]


@pytest.mark.parametrize("wrong", [None, [torch.ones(2, 2)], torch.ones(2, 2), "model.safetensors"])
def test_anything_else_is_a_type_error(wrong):
    with pytest.raises(TypeError, match=rf"mapping from names to tensors, not {type(wrong).__name__}"):
        weight_matrices(wrong)
