"""Splitting fused weights: against the q, k, v, gate and input that models compute from them."""

import contextlib
import importlib

import pytest
import torch
from torch import nn

from spectral_fast.models import open_checkpoint, weight_matrices

transformers = pytest.importorskip("transformers")

D, HEADS, KV_HEADS, LAYERS = 48, 4, 2, 2
COMMON = {
    "hidden_size": D,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "intermediate_size": 40,
    "vocab_size": 64,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
    "attn_implementation": "eager",
}
GPT2 = {"n_embd": D, "n_layer": LAYERS, "n_head": HEADS, **COMMON}
FALCON = {"alibi": False, **COMMON}
GQA = {"num_key_value_heads": KV_HEADS, **COMMON}
MOE = {"num_experts": 3, "num_local_experts": 3, "moe_intermediate_size": 24, "head_dim": 12, **GQA}
DEEPSEEK = {
    **COMMON,
    "n_routed_experts": 4,
    "n_group": 2,
    "topk_group": 1,
    "num_experts_per_tok": 2,
    "first_k_dense_replace": 0,
    "moe_intermediate_size": 24,
    "q_lora_rank": 8,
    "kv_lora_rank": 8,
}


def build(name, options):
    """A small model with random weights; biases are zero, so that activations show weights alone."""
    config = getattr(transformers, f"{name}Config")(**options)
    names = {
        "GPT2": "GPT2LMHeadModel",
        "Llama4Text": "Llama4ForCausalLM",
        "Bert": "BertModel",
        "ModernBert": "ModernBertModel",
    }
    model = getattr(transformers, names.get(name, f"{name}ForCausalLM"))(config)
    model.eval()
    with torch.no_grad():
        for parameter_name, parameter in model.named_parameters():
            if parameter_name.rpartition(".")[2].endswith("bias"):
                parameter.zero_()
            elif parameter.dim() > 1:
                parameter.normal_(std=0.3)
    return model


def by_role(matrices, layer):
    return {w.role: w.tensor for w in matrices if w.layer == layer}


class Recorder:
    """Keeps the q, k and v with which a model's attention is called, one entry a layer."""

    def __init__(self):
        self.calls = []

    def keep(self, *tensors):
        self.calls.append(tensors)

    def around(self, function):
        def wrapped(module, query, key, value, *args, **kwargs):
            self.keep(query, key, value)
            return function(module, query, key, value, *args, **kwargs)

        return wrapped

    def of_result(self, function):
        def wrapped(*args, **kwargs):
            result = function(*args, **kwargs)
            self.keep(*result)
            return result

        return wrapped


def without_rotation(*args, **kwargs):
    return args[:2]


@contextlib.contextmanager
def recorded_attention(model, monkeypatch):
    """Record what the model's own code splits off the fused projection, before any rotation."""
    modeling = importlib.import_module(type(model).__module__)
    recorder = Recorder()
    with monkeypatch.context() as patch:
        model_type = model.config.model_type
        if hasattr(modeling, "apply_rotary_pos_emb"):
            keep_first = model_type == "codegen"  # which rotates one tensor a call
            patch.setattr(
                modeling, "apply_rotary_pos_emb", (lambda x, *a: x) if keep_first else without_rotation
            )
        if model_type == "bloom":
            cls = modeling.BloomAttention
            patch.setattr(cls, "_reshape", recorder.of_result(cls._reshape))
        elif model_type == "falcon":
            cls = modeling.FalconAttention
            patch.setattr(cls, "_split_heads", recorder.of_result(cls._split_heads))
        elif model_type in ("codegen", "gpt_neox_japanese"):
            cls = modeling.CodeGenAttention if model_type == "codegen" else modeling.GPTNeoXJapaneseAttention
            patch.setattr(cls, "_attn", recorder.around(cls._attn))
        elif model_type == "mpt":  # multiplies q with k transposed, then the weights with v
            products = []
            matmul = torch.matmul
            patch.setattr(torch, "matmul", lambda a, b: products.append((a, b)) or matmul(a, b))
        else:
            patch.setattr(
                modeling, "eager_attention_forward", recorder.around(modeling.eager_attention_forward)
            )
        yield recorder
        if model_type == "mpt":
            for scores, context in zip(products[::2], products[1::2], strict=True):
                recorder.keep(scores[0], scores[1].mT, context[1])


def heads_last(tensor, model_type):
    """From (batch, heads, time, size), or Falcon's (batch, time, heads, size), to (batch, time, features)."""
    return (tensor if model_type == "falcon" else tensor.transpose(1, 2)).flatten(2)


ATTENTION = [
    ("GPT2", GPT2, "c_attn"),
    ("GPTBigCode", {**GPT2, "multi_query": True}, "c_attn"),
    ("GPTBigCode", {**GPT2, "multi_query": False}, "c_attn"),
    ("GPTNeoX", COMMON, "query_key_value"),
    ("GPTNeoXJapanese", COMMON, "query_key_value"),
    ("Persimmon", {**COMMON, "qk_layernorm": False}, "query_key_value"),
    ("Bloom", {**COMMON, "n_layer": LAYERS, "n_head": HEADS}, "query_key_value"),
    (
        "Falcon",
        {**FALCON, "new_decoder_architecture": True, "num_kv_heads": KV_HEADS},
        "query_key_value",
    ),
    ("Falcon", {**FALCON, "new_decoder_architecture": False, "multi_query": True}, "query_key_value"),
    ("Falcon", {**FALCON, "new_decoder_architecture": False, "multi_query": False}, "query_key_value"),
    ("CodeGen", {**GPT2, "rotary_dim": 4}, "qkv_proj"),
    ("Phi3", GQA, "qkv_proj"),
    ("Mpt", {**COMMON, "d_model": D, "n_heads": HEADS, "n_layers": LAYERS}, "Wqkv"),
    ("ModernBert", {**COMMON, "cls_token_id": 1, "sep_token_id": 2}, "Wqkv"),
    ("Llama", GQA, "q_proj"),
    ("Mixtral", MOE, "q_proj"),
    ("Bert", COMMON, "query"),
]


@pytest.mark.parametrize(("name", "options", "projection"), ATTENTION)
def test_q_k_v_are_those_the_model_computes(name, options, projection, monkeypatch):
    model = build(name, options)
    model_type = model.config.model_type
    matrices = weight_matrices(model)
    assert not matrices.skipped
    assert not any(w.note for w in matrices)
    inputs = []
    for module_name, module in model.named_modules():
        if module_name.endswith("." + projection):
            module.register_forward_pre_hook(lambda module, args: inputs.append(args[0]))
    with torch.no_grad(), recorded_attention(model, monkeypatch) as recorder:
        model(torch.randint(3, 60, (2, 5)))
    assert len(recorder.calls) == len(inputs) == LAYERS
    for layer in range(LAYERS):
        weights = by_role(matrices, layer)
        for role, computed in zip("qkv", recorder.calls[layer], strict=True):
            if model_type == "falcon" and role != "q" and weights[role].shape[0] < D:
                # Falcon repeats k and v for every query of their group.
                groups = weights[role].shape[0] // (D // HEADS)
                computed = computed.unflatten(2, (groups, -1))[:, :, :, 0]
            weight = weights[role].T if model_type == "gpt2" else weights[role]  # Conv1D is (in, out)
            expected = heads_last(computed, model_type)
            torch.testing.assert_close(
                inputs[layer] @ weight.mT,
                expected,
                rtol=1e-4,
                atol=1e-5 * float(expected.abs().max()),
            )


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("Phi3", GQA),
        ("Glm", {**GQA, "head_dim": 12}),
        ("Glm4", {**GQA, "head_dim": 12}),
        ("ModernBert", {**COMMON, "cls_token_id": 1, "sep_token_id": 2}),
    ],
)
def test_gate_and_input_are_those_the_mlp_computes(name, options):
    model = build(name, options)
    weights = by_role(weight_matrices(model), 1)
    (mlp,) = (module for path, module in model.named_modules() if path.endswith("layers.1.mlp"))
    (activation,) = (m for p, m in mlp.named_children() if p in ("activation_fn", "act"))
    x = torch.randn(3, D)
    with torch.no_grad():
        expected = mlp(x)
        hidden = activation(x @ weights["mlp_gate"].T) * (x @ weights["mlp_in"].T)
        torch.testing.assert_close(hidden @ weights["mlp_out"].T, expected)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("Mixtral", MOE),
        ("Qwen2Moe", MOE),
        ("Qwen3Moe", MOE),
        ("Olmoe", MOE),
        ("GraniteMoe", MOE),
        ("DeepseekV3", DEEPSEEK),
        ("GptOss", MOE),
        ("Llama4Text", {**MOE, "intermediate_size_mlp": 24}),
    ],
)
def test_each_expert_is_the_one_the_model_computes(name, options):
    model = build(name, options)
    matrices = weight_matrices(model)
    assert not matrices.skipped
    assert not any(w.note for w in matrices)
    assert sum(w.role == "router" and "shared" not in w.name for w in matrices) == LAYERS
    ((path, experts),) = (
        (path, module)
        for path, module in model.named_modules()
        if path.endswith(".experts") and ".1." in path
    )
    weights = {w.name.removeprefix(path + "."): w.tensor for w in matrices if w.name.startswith(path + ".")}
    count = model.config.n_routed_experts if name == "DeepseekV3" else 3
    assert len(weights) == 3 * count
    x = torch.randn(count, D)
    with torch.no_grad():
        if name == "Llama4Text":
            computed = experts(x)  # the first token for the first expert, and so on
        else:
            computed = experts(x, torch.arange(count)[:, None], torch.ones(count, 1))
        for index in range(count):
            gate, up = (weights[f"gate_up_proj[{index},{part}]"] for part in ("gate", "in"))
            down = weights[f"down_proj[{index}]"]
            if name in ("GptOss", "Llama4Text"):  # which keep (in, out)
                gate, up, down = gate.T, up.T, down.T
            gate, up = gate @ x[index], up @ x[index]
            if name == "GptOss":
                gate, up = gate.clamp(max=experts.limit), up.clamp(-experts.limit, experts.limit)
                hidden = (up + 1) * gate * torch.sigmoid(gate * experts.alpha)
            else:
                hidden = experts.act_fn(gate) * up
            torch.testing.assert_close(down @ hidden, computed[index], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("name", "options", "views"),
    [("GPT2", GPT2, True), ("Phi3", GQA, True), ("Mixtral", MOE, True), ("GPTNeoX", COMMON, False)],
)
def test_parts_are_views_where_strides_allow_and_always_up_to_date(name, options, views):
    model = build(name, options)
    matrices = [w for w in weight_matrices(model) if "[" in w.name]
    parameters = dict(model.named_parameters())
    assert matrices
    for w in matrices:
        storage = parameters[w.name.partition("[")[0]].untyped_storage().data_ptr()
        assert (w.tensor.untyped_storage().data_ptr() == storage) == views
        assert tuple(w.tensor.shape) == w.shape
        assert not w.tensor.requires_grad
    before = [w.tensor.clone() for w in matrices]
    with torch.no_grad():
        for parameter in parameters.values():
            parameter.mul_(2)
    assert all(torch.equal(w.tensor, 2 * old) for w, old in zip(matrices, before, strict=True))


def test_a_model_its_state_dict_with_config_and_its_folder_agree(tmp_path):
    for name, options in (
        ("GPTNeoX", COMMON),
        ("Phi3", GQA),
        ("Bloom", {**COMMON, "n_layer": 1, "n_head": 4}),
    ):
        model = build(name, options)
        folder = tmp_path / name
        model.save_pretrained(folder)
        # transformers renames the head of GPT-NeoX when it saves, so only the layers are compared.
        of_model = {w.name: w for w in weight_matrices(model) if w.layer is not None}
        assert any(name.endswith("[k]") for name in of_model)
        state = {
            key: value for key, value in model.state_dict().items() if key in dict(model.named_parameters())
        }
        for others in (
            weight_matrices(state, config=model.config),
            weight_matrices(state, config=model.config.to_dict()),
            open_checkpoint(folder).matrices(),
            open_checkpoint(folder / "model.safetensors").matrices(),
        ):
            others = [w for w in others if w.layer is not None]
            assert {w.name for w in others} == set(of_model)
            for w in others:
                assert (w.role, w.layer, w.shape) == (
                    of_model[w.name].role,
                    of_model[w.name].layer,
                    of_model[w.name].shape,
                )
                assert torch.equal(w.tensor, of_model[w.name].tensor)


def test_nanogpt_with_its_config_given():
    class CausalSelfAttention(nn.Module):
        def __init__(self):
            super().__init__()
            self.c_attn = nn.Linear(D, 3 * D, bias=False)

        def forward(self, x):
            return self.c_attn(x).split(D, dim=-1)

    model = nn.ModuleDict({"h": nn.ModuleList([nn.ModuleDict({"attn": CausalSelfAttention()})])})
    (whole,) = weight_matrices(model)
    assert whole.role == "qkv"
    assert "no config with a model_type" in whole.note
    weights = by_role(weight_matrices(model, config={"model_type": "nanogpt"}), 0)
    x = torch.randn(3, D)
    for role, computed in zip("qkv", model["h"][0]["attn"](x), strict=True):
        torch.testing.assert_close(x @ weights[role].T, computed)


def test_multihead_attention_needs_no_config():
    attention = nn.MultiheadAttention(D, HEADS, bias=False)
    model = nn.ModuleDict({"layers": nn.ModuleList([nn.ModuleDict({"self_attn": attention})])})
    weights = by_role(weight_matrices(model), 0)
    x = torch.randn(5, 1, D)
    q, k, v = ((x @ weights[role].T).unflatten(2, (HEADS, -1)).permute(1, 2, 0, 3) for role in "qkv")
    mixed = nn.functional.scaled_dot_product_attention(q, k, v).permute(2, 0, 1, 3).flatten(2)
    torch.testing.assert_close(mixed @ weights["o"].T, attention(x, x, x, need_weights=False)[0])


NEOX = "gpt_neox.layers.0.attention.query_key_value.weight"
PHI3 = "model.layers.0.self_attn.qkv_proj.weight"


@pytest.mark.parametrize(
    ("name", "shape", "config", "reason"),
    [
        (NEOX, (36, 12), None, "no config with a model_type is known"),
        (NEOX, (36, 12), {"model_type": "chatglm"}, "the layout of model_type 'chatglm' is not known"),
        (NEOX, (36, 12), {"model_type": ["gpt_neox"]}, "no config with a model_type is known"),
        (NEOX, (36, 12), {"model_type": "gpt_neox"}, "no usable num_attention_heads"),
        (NEOX, (36, 12), {"model_type": "gpt_neox", "num_attention_heads": "4"}, "no usable"),
        (NEOX, (36, 12), {"model_type": "gpt_neox", "num_attention_heads": 0}, "no usable"),
        (NEOX, (36, 12), {"model_type": "gpt_neox", "num_attention_heads": 5}, "36×12 does not fit 5 heads"),
        (NEOX, (30, 12), {"model_type": "gpt_neox", "num_attention_heads": 2}, "30×12 does not fit"),
        (NEOX, (36, 12), {"model_type": "falcon", "num_attention_heads": 4}, "new_decoder_architecture"),
        (PHI3, (36, 12), {"model_type": "phi3", "num_attention_heads": 4, "num_key_value_heads": 2}, "fit"),
        ("h.0.attn.c_attn.weight", (12, 30), {"model_type": "gpt2"}, "model_type 'gpt2' is not known"),
        ("h.0.mlp.gate_up_proj.weight", (10, 4), None, "no config with a model_type"),
        ("h.0.mlp.gate_up_proj.weight", (11, 4), {"model_type": "phi3"}, "11 rows have no halves"),
        ("h.0.mlp.experts.gate_up_proj", (2, 10, 4), {"model_type": "phi3"}, "'phi3' is not known"),
        ("h.0.attn.to_kv.weight", (8, 4), {"model_type": "phi3"}, "no model with this weight is known"),
    ],
)
def test_what_is_not_known_stays_whole_and_says_why(name, shape, config, reason):
    matrices = weight_matrices({name: torch.randn(shape)}, config=config)
    assert not matrices.skipped
    for w in matrices:
        assert w.role in ("qkv", "kv", "mlp_gate_in")
        assert w.note.startswith("left whole: ")
        assert reason in w.note
        assert w.shape == shape[-2:]


def test_the_innermost_config_decides():
    model = nn.Module()
    model.config = {"model_type": "some_pair", "num_attention_heads": 4}
    model.vision = build("Mpt", {**COMMON, "d_model": D, "n_heads": HEADS, "n_layers": 1})
    model.text = build("GPTNeoX", {**COMMON, "num_hidden_layers": 1})
    alone = {w.name: w.tensor for w in weight_matrices(model.text)}
    together = {w.name: w.tensor for w in weight_matrices(model)}
    assert all(torch.equal(together["text." + name], alone[name]) for name in alone)
    assert any(name.startswith("vision.") and name.endswith("Wqkv.weight[k]") for name in together)
