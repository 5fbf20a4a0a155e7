"""Finding weight matrices: what counts as one, its role and layer, ties."""

import pickle

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
        ("model.layers.3.mlp.gate.weight", "router", 3),
        ("model.layers.3.block_sparse_moe.gate.weight", "router", 3),
        ("model.layers.3.mlp.shared_expert_gate.weight", "router", 3),
        ("encoder.block.1.layer.1.mlp.router.classifier.weight", "router", 1),
        ("encoder.block.1.layer.1.mlp.experts.expert_2.wi.weight", "mlp_in", 1),
        ("encoder.block.1.layer.1.mlp.experts.expert_2.wo.weight", "mlp_out", 1),
        ("encoder.block.0.layer.1.mlp.wi.weight", "mlp_in", 0),
        ("model.layers.0.mlp.Wi.weight", "mlp_gate_in", 0),
        ("model.layers.3.mlp.experts.gate_up_proj", "mlp_gate_in", 3),
        ("vit.embeddings.patch_embeddings.projection.weight", "conv", None),
        ("layer1.0.conv2.weight", "conv", 0),
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
        (layer, role) for layer in (0, 1) for role in ("q", "k", "v", "o", "mlp_in", "mlp_out")
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


def test_a_model_without_memory_is_skipped_with_the_reason():
    with torch.device("meta"):
        model = nn.Sequential(nn.Linear(5, 6), nn.Linear(6, 5), nn.Linear(5, 6))
    found = weight_matrices(model)
    assert found == []
    assert [(t.name, t.shape) for t in found.skipped] == [
        ("0.weight", (6, 5)),
        ("1.weight", (5, 6)),
        ("2.weight", (6, 5)),
    ]
    assert {t.reason for t in found.skipped} == {"on the meta device, so it has no values"}


def skipped_of(state):
    return {t.name: t.reason for t in weight_matrices(state).skipped}


@pytest.mark.filterwarnings("ignore:Sparse CSR:UserWarning")
def test_what_cannot_be_read_is_skipped_with_the_reason():
    reasons = skipped_of(
        {
            "fp8.weight": torch.ones(4, 4).to(torch.float8_e4m3fn),
            "int8.weight": torch.ones(4, 4, dtype=torch.int8),
            "complex.weight": torch.ones(4, 4, dtype=torch.complex64),
            "sparse.weight": torch.eye(4).to_sparse(),
            "csr.weight": torch.eye(4).to_sparse_csr(),
            "stack": torch.ones(2, 3, 4),
            "half.weight": torch.ones(4, 4),
        }
    )
    assert list(reasons) == [
        "fp8.weight",
        "int8.weight",
        "complex.weight",
        "sparse.weight",
        "csr.weight",
        "stack",
    ]
    for name, part in [
        ("fp8.weight", "float8_e4m3fn entries need scales"),
        ("int8.weight", "int8 entries are a quantized weight"),
        ("complex.weight", "complex entries"),
        ("sparse.weight", "sparse_coo, not dense"),
        ("csr.weight", "sparse_csr, not dense"),
        ("stack", "neither stacked experts nor a convolution"),
    ]:
        assert part in reasons[name]
    (record,) = weight_matrices({"w": torch.ones(2, 3, dtype=torch.int8)}).skipped
    assert (record.name, record.shape, record.dtype) == ("w", (2, 3), "int8")


@pytest.mark.parametrize(
    ("packed", "companions"),
    [
        (  # GPTQ, AWQ
            {"qweight": torch.ones(2, 8, dtype=torch.int32)},
            {"qzeros": torch.ones(2, 2, dtype=torch.int32), "scales": torch.ones(2, 8).half()},
        ),
        ({"weight": torch.ones(9, 1, dtype=torch.uint8)}, {"weight.absmax": torch.ones(4)}),  # bitsandbytes
        ({"weight": torch.ones(4, 4).to(torch.float8_e4m3fn)}, {"weight_scale_inv": torch.ones(2, 2)}),
        (  # MXFP4 of gpt-oss
            {"gate_up_proj_blocks": torch.ones(2, 3, 4, 5, dtype=torch.uint8)},
            {"gate_up_proj_scales": torch.ones(2, 3, 4, dtype=torch.uint8)},
        ),
    ],
)
def test_scales_next_to_a_packed_weight_are_part_of_it(packed, companions):
    state = {f"layers.0.mlp.up_proj.{name}": value for name, value in {**packed, **companions}.items()}
    found = weight_matrices(state)
    assert found == []
    assert [t.name.rpartition(".")[2] for t in found.skipped] == list(packed)
    # Alone, a matrix of scales is a matrix like any other.
    assert len(weight_matrices({"mix.scales": torch.ones(3, 3)})) == 1


def test_packed_buffers_of_a_module_are_skipped_and_other_buffers_are_nothing():
    layer = nn.Module()
    layer.register_buffer("qweight", torch.ones(2, 8, dtype=torch.int32))
    layer.register_buffer("running", torch.ones(2, 8))
    layer.register_buffer("mask", torch.ones(8, 8, dtype=torch.bool))
    found = weight_matrices(nn.ModuleDict({"up_proj": layer}))
    assert found == []
    assert [t.name for t in found.skipped] == ["up_proj.qweight"]


def test_biases_masks_and_learned_vectors_are_no_weights():
    found = weight_matrices(
        {
            "h.0.attn.bias": torch.ones(1, 1, 8, 8),  # GPT-2's causal mask
            "experts.gate_up_proj_bias": torch.ones(3, 8),
            "cls_token": torch.ones(1, 1, 8),
            "ids": torch.ones(1, 8, dtype=torch.int64),
            "embeddings.position_embeddings": torch.randn(1, 5, 8),
        }
    )
    assert not found.skipped
    assert [(w.role, w.shape, tuple(w.tensor.shape)) for w in found] == [
        ("position_embedding", (5, 8), (5, 8))
    ]


def test_a_convolution_is_the_matrix_of_its_filters():
    model = nn.ModuleDict({"conv1": nn.Conv2d(3, 4, (2, 5), bias=False), "conv": nn.Conv1d(3, 4, 2)})
    two, one = weight_matrices(model)
    assert (two.name, two.role, two.shape) == ("conv1.weight", "conv", (4, 30))
    assert (one.role, one.shape) == ("conv", (4, 6))
    assert two.tensor.data_ptr() == model["conv1"].weight.data_ptr()
    patch = torch.randn(1, 3, 2, 5)
    torch.testing.assert_close(two.tensor @ patch.flatten(), model["conv1"](patch).flatten())
    channels_last = model.to(memory_format=torch.channels_last)
    torch.testing.assert_close(weight_matrices(channels_last)[0].tensor, two.tensor)


@pytest.mark.parametrize(
    ("a", "b", "name"),
    [
        ("q_proj.lora_A.weight", "q_proj.lora_B.weight", "layers.1.q_proj[lora]"),
        ("q_proj.lora_A.default.weight", "q_proj.lora_B.default.weight", "layers.1.q_proj[lora.default]"),
        ("q_proj.lora_embedding_A.x", "q_proj.lora_embedding_B.x", "layers.1.q_proj[lora.x]"),
    ],
)
def test_a_lora_pair_is_one_matrix_with_the_singular_values_of_its_product(a, b, name):
    factors = {f"layers.1.{a}": torch.randn(4, 30).bfloat16(), f"layers.1.{b}": torch.randn(20, 4).bfloat16()}
    base = {"layers.1.q_proj.base_layer.weight": torch.randn(20, 30)}
    plain, product = weight_matrices({**base, **factors})
    assert (plain.role, product.role, product.layer) == ("q", "q", 1)
    assert (product.name, product.shape, product.dtype) == (name, (4, 4), torch.float32)
    assert "rank 4 of a 20×30 LoRA product" in product.note
    low, high = (factor.double() for factor in factors.values())
    exact = torch.linalg.svdvals(high @ low)
    torch.testing.assert_close(
        torch.linalg.svdvals(product.tensor.double()), exact[:4], rtol=0, atol=1e-6 * float(exact[0])
    )
    assert float(exact[4]) < 1e-12 * float(exact[0])  # nothing is lost
    copied = pickle.loads(pickle.dumps(product))  # as to another process
    assert torch.equal(copied.tensor, product.tensor)


def test_lora_factors_without_a_partner_that_fits_are_skipped():
    reasons = skipped_of(
        {
            "a.lora_A.weight": torch.ones(2, 8),
            "b.lora_A.weight": torch.ones(2, 8),
            "b.lora_B.weight": torch.ones(8, 3),
            "c.lora_A.one.weight": torch.ones(2, 8),
            "c.lora_B.two.weight": torch.ones(8, 2),
            "d.lora_A.weight": torch.ones(2, 8, 3, 3),
        }
    )
    assert len(reasons) == 6
    assert {reason for name, reason in reasons.items() if name[0] != "d"} == {
        "a LoRA factor without its partner"
    }
    assert reasons["d.lora_A.weight"] == "a LoRA factor of a convolution"


def test_experts_are_numbered_and_each_is_a_view():
    stack = torch.randn(3, 4, 5)
    matrices = weight_matrices({"layers.2.mlp.experts.down_proj": stack})
    assert [w.name for w in matrices] == [f"layers.2.mlp.experts.down_proj[{i}]" for i in range(3)]
    assert {(w.layer, w.role, w.shape) for w in matrices} == {(2, "mlp_out", (4, 5))}
    for w, expert in zip(matrices, stack, strict=True):
        assert w.tensor.data_ptr() == expert.data_ptr()


@pytest.mark.parametrize("wrong", [None, [torch.ones(2, 2)], torch.ones(2, 2), "model.safetensors"])
def test_anything_else_is_a_type_error(wrong):
    with pytest.raises(TypeError, match=rf"mapping from names to tensors, not {type(wrong).__name__}"):
        weight_matrices(wrong)
