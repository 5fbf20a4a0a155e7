"""What a weight matrix does, read from its name: its role and its layer.

Frameworks name the same matrix differently; the table below lists the endings of the names in use.
A name is compared without its wrappers (``module.``, ``_orig_mod.``...) and without ``.weight``.
"""

import re

EMBEDDING_ROLES = frozenset({"embedding", "position_embedding", "token_type_embedding"})

# The order in which a reader expects the matrices of a layer; unknown roles come last.
ROLE_ORDER = (
    "embedding",
    "position_embedding",
    "token_type_embedding",
    "q",
    "k",
    "v",
    "kv",
    "qkv",
    "o",
    "mlp_gate",
    "mlp_in",
    "mlp_gate_in",
    "mlp_out",
    "router",
    "conv",
    "pooler",
    "head",
    "other",
)

# A parent that is an attention block, under any of its names: attn, self_attn, SelfAttention, ...
_ATTENTION = r"\w*att(?:n|ention)"

# (role, endings), first match wins, letter case ignored. An ending starts at a component of the
# name, so "gate" never matches "gate_proj".
_ENDINGS: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("position_embedding", (
        "position_embeddings?",                 # BERT, CLIP
        "wpe",                                  # GPT-2
        "embed_positions",                      # OPT, BART
        r"pos(?:itional)?_emb(?:ed|edding)?",   # ViT, Whisper
        "relative_attention_bias",              # T5
    )),
    ("token_type_embedding", ("token_type_embeddings?",)),
    ("embedding", (
        "word_embeddings?",                     # BERT, BLOOM
        "wte",                                  # GPT-2
        "embed_tokens",                         # Llama, OPT
        "embed_in",                             # GPT-NeoX
        "tok_embeddings",                       # Llama (original), ModernBERT
        "token_embeddings?",                    # CLIP, Whisper
        "^shared",                              # T5, BART
        "embeddings?",
    )),
    # Before "head": Switch Transformers call the matrix of a router its classifier.
    ("router", (
        r"router(?:\.\w+)?",
        r"(?:mlp|moe|block_sparse_moe|ffn|feed_forward)\.gate",  # Mixtral, Qwen, DeepSeek
        "shared_expert_gate",                   # Qwen2-MoE
    )),
    # Before "o": RoBERTa's lm_head.dense and BART's classification_head.out_proj are heads.
    ("head", (
        r"(?:lm_head|classifier|classification_head|score|qa_outputs)(?:\.\w+)*",
        r"^heads?(?:\.\w+)*",                   # ViT; deeper inside, heads are attention heads
        r"cls\.predictions\.(?:decoder|transform\.dense)",  # BERT
        r"cls\.seq_relationship",               # BERT
        "embed_out",                            # GPT-NeoX
        "vocab_projector",                      # DistilBERT
        "proj_out",                             # Whisper
        "^output",                              # Llama (original)
    )),
    ("pooler", (r"pooler(?:\.\w+)?",)),
    # Cross-attention of GPT-2 fuses keys and values only.
    ("kv", (r"crossattention\.c_attn", "kv_proj", "to_kv")),
    ("qkv", (
        "c_attn",                               # GPT-2
        "query_key_value",                      # GPT-NeoX, BLOOM, Falcon
        "qkv_proj",                             # Phi-3
        r"w?qkv",                               # ViT, MPT, ModernBERT, InternLM2
        "to_qkv",
        "in_proj_weight",                       # torch.nn.MultiheadAttention
        rf"{_ATTENTION}\.(?:self\.)?in_proj",   # DeBERTa
        "w_pack",                               # Baichuan
    )),
    # Before "k" and "v": the feed-forward block of RWKV names its matrices key and value.
    ("mlp_in", (r"feed_forward\.key",)),
    ("mlp_out", (r"feed_forward\.value",)),
    ("q", (
        "query", "q_proj", "q_proj_weight", "query_proj", "q_lin", "wq", "to_q",
        "q_attn",                               # GPT-2 cross-attention
        rf"{_ATTENTION}\.q",                    # T5, MPNet
    )),
    ("k", (
        "key", "k_proj", "k_proj_weight", "key_proj", "k_lin", "wk", "to_k", rf"{_ATTENTION}\.k",
    )),
    ("v", (
        "value", "v_proj", "v_proj_weight", "value_proj", "v_lin", "wv", "to_v",
        rf"{_ATTENTION}\.v",
    )),
    # Before "mlp_out": BERT ends the attention in attention.output.dense, the MLP in output.dense.
    ("o", (
        rf"{_ATTENTION}\.output\.dense",        # BERT
        "o_proj",                               # Llama
        rf"{_ATTENTION}\.out(?:_proj)?",        # OPT, GPT-J, CLIP, Whisper
        rf"{_ATTENTION}\.(?:c_)?proj",          # GPT-2, ViT
        rf"{_ATTENTION}\.dense",                # GPT-NeoX, BLOOM, Phi, ALBERT
        rf"{_ATTENTION}\.w?o",                  # T5, MPNet, Llama (original), ModernBERT
        "out_lin",                              # DistilBERT
        r"to_out(?:\.0)?",
    )),
    ("mlp_gate_in", (
        "gate_up_proj",                         # Phi-3: gate and up rows in one matrix
        r"(?-i:mlp\.Wi)",                       # ModernBERT; Switch's mlp.wi is a plain one
    )),
    ("mlp_gate", (
        "gate_proj",                            # Llama
        "wi_0",                                 # T5 1.1
        r"(?:feed_forward|experts\.\d+)\.w1",   # Llama (original), Mixtral
    )),
    ("mlp_in", (
        r"intermediate\.dense",                 # BERT
        "up_proj",                              # Llama
        "fc1",                                  # OPT, ViT
        "c_fc",                                 # GPT-2
        "dense_h_to_4h",                        # GPT-NeoX, BLOOM
        "fc_in",                                # GPT-J
        "wi(?:_1)?",                            # T5
        r"(?:feed_forward|experts\.\d+)\.w3",   # Llama (original), Mixtral
        "lin1",                                 # DistilBERT
        "linear1",                              # torch.nn.TransformerEncoderLayer
        "ffn",                                  # ALBERT
    )),
    ("mlp_out", (
        r"output\.dense",                       # BERT
        "down_proj",                            # Llama
        "fc2",                                  # OPT, ViT
        r"mlp\.c_proj",                         # GPT-2
        "dense_4h_to_h",                        # GPT-NeoX, BLOOM
        "fc_out",                               # GPT-J
        r"(?:mlp|densereludense|expert_\d+)\.wo",  # ModernBERT, T5, Switch
        r"(?:feed_forward|experts\.\d+)\.w2",   # Llama (original), Mixtral
        "lin2",                                 # DistilBERT
        "linear2",                              # torch.nn.TransformerEncoderLayer
        "ffn_output",                           # ALBERT
    )),
    ("conv", (r"\w*conv(?:1d|2d|3d)?\d*", r"patch_embeddings?\.proj(?:ection)?", r"patch_embed\.proj")),
)  # fmt: skip

_TABLE = tuple(
    (role, re.compile(rf"(?:^|\.)(?:{'|'.join(endings)})$", re.IGNORECASE)) for role, endings in _ENDINGS
)

# Components that wrappers add to a name: torch.compile, data parallel, FSDP, checkpointing, PEFT.
_WRAPPERS = frozenset(
    {"_orig_mod", "module", "_fsdp_wrapped_module", "_checkpoint_wrapped_module", "base_layer"}
)


def plain_path(name: str) -> str:
    """The name without wrappers and without ``.weight``."""
    components = [part for part in name.split(".") if part not in _WRAPPERS]
    if len(components) > 1 and components[-1] == "weight":
        components.pop()
    return ".".join(components)


def role_and_layer(name: str) -> tuple[str, int | None]:
    """Read the role and the layer of a weight matrix from its name.

    The layer is the first whole number among the dotted components of the name, so that in
    ``model.layers.3.mlp.experts.5.up_proj.weight`` it is 3. Embeddings, heads and the pooler
    belong to no layer.

    Args:
        name: parameter name as in a state dict, such as ``encoder.layer.0.output.dense.weight``.

    Returns:
        (role, layer): a role of `ROLE_ORDER`, "other" where the name is not known, and the layer
        or None.
    """
    path = plain_path(name)
    role = next((role for role, ending in _TABLE if ending.search(path)), "other")
    if role in EMBEDDING_ROLES or role in ("head", "pooler"):
        return role, None
    return role, next((int(part) for part in path.split(".") if part.isdecimal()), None)


def reading_order(role: str, layer: int | None) -> tuple[int, int, int]:
    """Sort key: embeddings, then layer by layer in the order of `ROLE_ORDER`, then the rest."""
    rank = ROLE_ORDER.index(role)
    if layer is not None:
        return 1, layer, rank
    return (0 if role in EMBEDDING_ROLES else 2), 0, rank
