"""Tiny configurations: the default configuration of a model type with every size turned down."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from transformers import CONFIG_MAPPING, PreTrainedConfig


def _sizes(**groups: str) -> dict[str, int]:
    return {name: int(size.removeprefix("n")) for size, names in groups.items() for name in names.split()}


#: Largest value of a field, by its name. Positions and queries stay small, so that tables are a small part.
LIMITS = _sizes(
    n0="encoder_layerdrop decoder_layerdrop layerdrop",
    n1="n_group topk_group num_expert_group",
    n2="num_hidden_layers n_layer num_layers n_layers encoder_layers decoder_layers num_decoder_layers"
    " num_encoder_layers depth decoder_num_hidden_layers encoder_num_hidden_layers vision_layers num_hidden_groups"
    " e_layers num_key_value_heads n_kv_heads num_kv_heads decoder_num_key_value_heads encoder_num_key_value_heads"
    " num_experts_per_tok moe_topk top_k_experts experts_per_token",
    n4="num_attention_heads n_head n_heads num_heads encoder_attention_heads decoder_attention_heads"
    " decoder_num_attention_heads encoder_num_attention_heads attention_heads n_attn_heads num_experts"
    " num_local_experts n_routed_experts moe_num_experts num_expert",
    n6="num_queries latent_query_num num_detection_tokens",
    n8="head_dim attention_head_dim d_kv kv_channels attn_head_dim qk_rope_head_dim qk_nope_head_dim v_head_dim d_head"
    " index_head_dim kv_head_dim patch_size",
    n16="moe_intermediate_size shared_expert_intermediate_size expert_ffn_hidden_size shared_intermediate_size"
    " moe_shared_expert_intermediate_size q_lora_rank kv_lora_rank o_lora_rank num_mel_bins",
    n24="max_position_embeddings n_positions max_source_positions max_target_positions n_ctx",
    n32="hidden_size d_model dim n_embd embed_dim embedding_size emb_dim hidden_dim projection_dim word_embed_proj_dim"
    " out_hidden_size decoder_hidden_size codebook_dim model_dim output_dim text_dim encoder_hidden_dim"
    " attention_hidden_size output_hidden_size d_embed lstm_dim text_hidden_size vision_hidden_size embed_proj_dim"
    " proj_hidden_size fpn_hidden_size mask_feature_size conv_dim encoder_hidden_size projector_hidden_size"
    " cross_attention_hidden_size image_size pretrain_image_size",
    n48="intermediate_size ffn_dim d_ff encoder_ffn_dim decoder_ffn_dim d_inner n_inner ffn_hidden_size dim_feedforward"
    " dense_size",
    n99="vocab_size text_vocab_size decoder_vocab_size entity_vocab_size",
)
#: Lists of widths and of depths, one number a stage.
WIDTHS = "hidden_sizes embed_dims encoder_hidden_sizes hidden_size_list neck_hidden_sizes embed_dim stage_dims widths"
DEPTHS = "depths layer_depths blocks"
TOKENS = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 1}


def tiny_config(model_type: str, **settings: Any) -> PreTrainedConfig:
    """The configuration of a model type in its smallest useful form.

    Args:
        model_type: Key of ``transformers.CONFIG_MAPPING``.
        settings: Fields to set afterwards; ``a__b`` is field ``b`` of the configuration ``a``.
    """
    config = shrink(CONFIG_MAPPING[model_type]())
    for path, value in settings.items():
        *owners, name = path.split("__")
        target = config
        for owner in owners:
            target = getattr(target, owner)
        setattr(target, name, value)
    return config


def shrink(config: PreTrainedConfig, seen: Iterable[int] = ()) -> PreTrainedConfig:
    """Turn down every size of a configuration and of those inside it, in place."""
    seen = {*seen, id(config)}
    for name, value in list(vars(config).items()):
        if isinstance(value, PreTrainedConfig):
            if id(value) not in seen:
                shrink(value, seen)
        elif type(value) in (int, float) and name in LIMITS:
            setattr(config, name, min(value, LIMITS[name]))
        elif name in ("image_size", "patch_size") and isinstance(value, (list, tuple)):
            setattr(config, name, type(value)(min(side, LIMITS[name]) for side in value))
        elif isinstance(value, (list, tuple)) and name in WIDTHS.split():
            setattr(config, name, type(value)(16 * (i + 1) for i in range(len(value))))
        elif isinstance(value, (list, tuple)) and name in DEPTHS.split() and all(type(v) is int for v in value):
            setattr(config, name, type(value)(1 for _ in value))
        elif name.endswith("token_id") and isinstance(value, int) and value >= 90:
            setattr(config, name, TOKENS.get(name, 3))
    kinds = vars(config).get("layer_types")
    if isinstance(kinds, (list, tuple)) and isinstance(getattr(config, "num_hidden_layers", None), int):
        distinct = list(dict.fromkeys(kinds))
        config.num_hidden_layers = max(2, len(distinct))
        config.layer_types = (distinct * 2)[: config.num_hidden_layers]
    if hasattr(config, "use_cache"):
        config.use_cache = False
    return config


def lookup(config: PreTrainedConfig, *names: str, default: Any = None) -> Any:
    """The first of the fields that a configuration or one inside it has."""
    for name in names:
        if getattr(config, name, None) is not None:
            return getattr(config, name)
    for value in vars(config).values():
        if isinstance(value, PreTrainedConfig):
            found = lookup(value, *names)
            if found is not None:
                return found
    return default
