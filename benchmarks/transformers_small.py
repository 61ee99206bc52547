"""Small configurations for the families of transformers: fields that have well-known names are set, the others keep what they are."""

from __future__ import annotations

import dataclasses
import functools
import re
from collections.abc import Callable, Iterator
from typing import Any

SIZES: dict[str, Any] = {
    r"vocab_size(_per_layer_input)?|.*_vocab_size": 128,
    r"hidden_size|d_model|n_embd|dim|(model|embed|emb|word_embed_proj|hidden)_dim|embedding_size|d_embed|width": 64,
    r"(.*_)?intermediate_size|((en|de)coder_)?ffn_dim|d_ff|n_inner|ffn_hidden_size|mlp_dim|inner_dim|d_inner": 96,
    r"num_hidden_layers|n_layers?|num_layers|(en|de)coder_layers|num_(en|de)coder_layers|depth": 2,
    r"swa_num_key_value_heads|num_key_value_heads|num_kv_heads|multi_query_group_num|num_query_groups|num_global_key_value_heads": 2,
    r"(num_)?(.*_)?attention_heads|n_heads?|num_heads|linear_num_.*_heads|num_attention_heads_per_layer": 4,
    r"(swa_|global_)?head_dim|d_kv|d_head|attention_head_(dim|size)|v_head_dim|linear_(key|value)_head_dim|kv_channels": 16,
    r"qk_rope_head_dim|qk_nope_head_dim|index_head_dim": 8,
    r"(kv|q|o)_lora_rank": 16,
    r"max_position_embeddings|n_positions|max_seq_len|max_sequence_length|seq_length|max_(target|source)_positions|n_ctx": 64,
    r"num_experts|num_local_experts|n_routed_experts|moe_num_experts|num_routed_experts": 4,
    r"num_experts_per_tok(en)?|moe_top_?k|top_k_experts|moe_k|num_selected_experts|experts_top_k": 2,
    r"n_shared_experts|num_shared_experts|n_group|topk_group|first_k_dense_replace|num_nextn_predict_layers": 1,
    r"sliding_window|attention_window_size|local_attention|attention_chunk_size": 4,
    r"pad_token_id": 0,
    r"bos_token_id|decoder_start_token_id": 1,
    r"eos_token_id": 2,
    r".*dropout.*|.*_drop|drop_path_rate|layerdrop|.*_pdrop": 0.0,
    r"rotary_dim|rotary_ndims|patch_size|mamba_d_state|ssm_state_size|state_size|mamba_state_dim": 8,
    r"index_n_heads|index_topk": 4,
    r"image_size": 32,
    r"mamba_n_heads|mamba_num_heads|num_mamba_heads": 8,
    r"mamba_d_head|mamba_head_dim": 16,
    r"attn_logit_softcapping": 2.0,
}
"""What fields of these names are set to, if they hold a number."""
ABSENT = {"pad_token_id", "num_key_value_heads", "head_dim", "num_experts_per_tok", "n_routed_experts", "num_experts"}
"""Fields that are set where the stock configuration has none."""
FAMILIES: dict[str, dict[str, Any]] = {
    "bamba": {"attn_layer_indices": [1], "num_hidden_layers": 2, "mamba_expand": 2},
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1, "num_hidden_layers": 2},
    "granitemoehybrid": {"layer_types": ["mamba", "attention"], "num_hidden_layers": 2},
    "recurrent_gemma": {"num_hidden_layers": 3},
    "falcon_h1": {"mamba_d_ssm": 128},
    "gpt_neo": {"attention_types": [[["global", "local"], 1]], "num_layers": 2, "window_size": 4},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"], "num_dense_layers": 1},
    "dots1": {"n_shared_experts": 1},
    "musicgen_decoder": {"num_codebooks": 1},
    "xmod": {"default_language": "en_XX"},
}
"""What the sizes of a family have to agree on."""
_TEXT = {"vocab_size": 128, "hidden_size": 64, "pad_token_id": 0, "num_attention_heads": 4}
_SHARED = {"num_hidden_layers": 4, "layer_types": ["sliding_attention", "full_attention"] * 2, "num_kv_shared_layers": 2}
_GEMMA = {
    **_TEXT,
    **_SHARED,
    "num_key_value_heads": 2,
    "sliding_window": 4,
    "vocab_size_per_layer_input": 128,
    "hidden_size_per_layer_input": 16,
}
WHOLE: dict[str, dict[str, Any]] = {
    "gemma3n_text": {
        **_GEMMA,
        "intermediate_size": [96] * 4,
        "activation_sparsity_pattern": [0.0] * 4,
        "head_dim": 16,
        "laurel_rank": 8,
    },
    "gemma4_text": {**_GEMMA, "intermediate_size": 96},
    "esm": {**_TEXT, "intermediate_size": 96, "num_hidden_layers": 2, "mask_token_id": 5, "position_embedding_type": "rotary"},
    "mpt": {"d_model": 64, "n_heads": 4, "n_layers": 2, "vocab_size": 128, "max_seq_len": 64},
    "swin": {"image_size": 32, "patch_size": 4, "embed_dim": 24, "depths": [2, 2], "num_heads": [2, 4], "window_size": 4},
}
"""Families whose fields are all set here."""
LAYERS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers")


def configurations(kind: type) -> Iterator[Callable[[], Any]]:
    """What makes small configurations of a class, the smallest first: a layer of every type, or as it likes; heads small, or as it likes."""
    for types, heads in ((True, True), (False, True), (True, False), (False, False)):
        yield functools.partial(_small, kind, types, heads)


def _small(kind: Any, types: bool, heads: bool) -> Any:
    """A small configuration, nested ones made alike."""
    if kind.model_type in WHOLE:
        return kind(**WHOLE[kind.model_type])
    stock = kind()
    given = dict(_sized(kind, stock, types, heads))
    names = {field.name for field in dataclasses.fields(kind)}
    if "qk_rope_head_dim" in names and "head_dim" in given:
        given["head_dim"] = given.get("qk_rope_head_dim", given["head_dim"])
    if {"kv_lora_rank", "num_key_value_heads"} <= set(given):
        given["num_key_value_heads"] = given["num_attention_heads"]  # the latent has all heads
    every = getattr(stock, "layer_types", None)
    if every and types and "layer_types" in names:
        given["layer_types"] = once = list(dict.fromkeys(every)) if len(set(every)) > 1 else list(every)[:2]
        given |= {name: len(once) for name in LAYERS if name in given}
    return kind(**given | FAMILIES.get(kind.model_type, {}))


def _sized(kind: Any, stock: Any, types: bool, heads: bool) -> Iterator[tuple[str, Any]]:
    """The fields that are set, and to what."""
    for field in dataclasses.fields(kind):
        try:
            value = getattr(stock, field.name, None)
        except AttributeError:  # one that differs from layer to layer
            continue
        if field.name in (getattr(kind, "sub_configs", None) or {}):
            if value is not None:
                yield field.name, _small(type(value), types, heads)
        elif (heads or "head" not in field.name) and _is_set(field.name, value):
            found = next((size for pattern, size in SIZES.items() if re.fullmatch(pattern, field.name)), None)
            if found is not None:
                yield field.name, found


def _is_set(name: str, value: Any) -> bool:
    return name in ABSENT if value is None else isinstance(value, int | float) and not isinstance(value, bool)
