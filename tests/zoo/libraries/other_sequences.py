"""Networks for sequences and tables: x-transformers, recurrent and convolutional ones, tabular ones."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import nn

from .inputs import Inputs, normal, several, tokens

Row = tuple[str, Callable[[Any], nn.Module], Inputs]


def xt(build: Callable[[Any], nn.Module], inputs: Inputs | None = None) -> Row:
    return "x_transformers", build, inputs or tokens()


def lm(m: Any, layers: str = "Decoder", outer: dict[str, Any] | None = None, **options: Any) -> nn.Module:
    """A language model of x-transformers."""
    attention = getattr(m, layers)(dim=32, depth=2, heads=2, attn_dim_head=16, **options)
    return m.TransformerWrapper(num_tokens=50, max_seq_len=16, attn_layers=attention, **(outer or {}))


def sub(library: str, path: str, build: Callable[[Any], nn.Module], inputs: Inputs) -> Row:
    return library, lambda m: build(importlib.import_module(path)), inputs


def adapter(kind: str, **options: Any) -> Row:
    """A frozen language model with trainable adapters."""

    def build(peft: Any) -> nn.Module:
        from .transformers_models import example

        model: nn.Module = peft.get_peft_model(example("llama").model, getattr(peft, kind)(**options))
        return model

    return "peft", build, lambda: {"input_ids": torch.randint(1, 90, (2, 8))}


MODELS: dict[str, Row] = {
    "gpt": xt(lm),
    "tied": xt(partial(lm, outer={"tie_embedding": True})),
    "rotary_glu": xt(partial(lm, rotary_pos_emb=True, ff_glu=True, ff_swish=True, use_rmsnorm=True)),
    "alibi": xt(partial(lm, alibi_pos_bias=True, alibi_num_heads=2)),
    "relative_bias": xt(partial(lm, rel_pos_bias=True, attn_qk_norm=True)),
    "memory": xt(partial(lm, outer={"num_memory_tokens": 3}, attn_num_mem_kv=4)),
    "talking_heads": xt(partial(lm, attn_pre_talking_heads=True, attn_post_talking_heads=True, attn_gate_values=True)),
    "one_kv_head": xt(partial(lm, attn_one_kv_head=True, sandwich_norm=True)),
    "macaron": xt(partial(lm, macaron=True, scale_residual=True)),
    "shift_tokens": xt(partial(lm, shift_tokens=1, attn_sparse_topk=4)),
    "weight_tied_layers": xt(partial(lm, layers_execute_order=(0, 1, 0, 1))),
    "encoder": xt(partial(lm, layers="Encoder", attn_flash=True)),
    "seq2seq": xt(
        lambda m: m.XTransformer(
            dim=32,
            enc_num_tokens=50,
            enc_depth=1,
            enc_heads=2,
            enc_max_seq_len=16,
            dec_num_tokens=50,
            dec_depth=1,
            dec_heads=2,
            dec_max_seq_len=16,
            tie_token_emb=True,
        ),
        several(tokens(), tokens()),
    ),
    "continuous": xt(
        lambda m: m.ContinuousTransformerWrapper(
            dim_in=6, dim_out=4, max_seq_len=16, attn_layers=m.Encoder(dim=32, depth=2, heads=2)
        ),
        normal(2, 8, 6),
    ),
    "tabnet": sub(
        "pytorch_tabnet",
        "pytorch_tabnet.tab_network",
        lambda m: m.TabNet(
            8, 3, n_steps=2, cat_idxs=[0], cat_dims=[4], cat_emb_dim=[2], group_attention_matrix=torch.ones(1, 8) / 8
        ),
        lambda: torch.cat([torch.randint(4, (6, 1)).float(), torch.randn(6, 7)], 1),
    ),
    "ft_transformer": (
        "rtdl_revisiting_models",
        lambda m: m.FTTransformer(
            n_cont_features=4,
            cat_cardinalities=[3, 5],
            d_out=2,
            n_blocks=2,
            d_block=16,
            attention_n_heads=2,
            attention_dropout=0.1,
            ffn_d_hidden=24,
            ffn_d_hidden_multiplier=None,
            ffn_dropout=0.1,
            residual_dropout=0.0,
        ),
        several(normal(5, 4), lambda: torch.randint(3, (5, 2))),
    ),
    "resnet": (
        "rtdl_revisiting_models",
        lambda m: m.ResNet(
            d_in=6, d_out=2, n_blocks=2, d_block=16, d_hidden=24, d_hidden_multiplier=None, dropout1=0.1, dropout2=0.0
        ),
        normal(5, 6),
    ),
    "perceiver": (
        "perceiver_pytorch",
        lambda m: m.Perceiver(
            num_freq_bands=2,
            depth=2,
            max_freq=4.0,
            input_channels=3,
            num_latents=6,
            latent_dim=16,
            cross_heads=1,
            latent_heads=2,
            cross_dim_head=8,
            latent_dim_head=8,
            num_classes=4,
            weight_tie_layers=True,
        ),
        partial(torch.randn, 2, 8, 8, 3),
    ),
    "perceiver_io": (
        "perceiver_pytorch",
        lambda m: m.PerceiverIO(
            depth=1,
            dim=8,
            queries_dim=8,
            logits_dim=5,
            num_latents=6,
            latent_dim=16,
            cross_dim_head=8,
            latent_dim_head=8,
            latent_heads=2,
        ),
        lambda: {"data": torch.randn(2, 10, 8), "queries": torch.randn(4, 8)},
    ),
    "conformer": (
        "conformer",
        lambda m: m.Conformer(dim=16, depth=2, dim_head=8, heads=2, ff_mult=2),
        normal(2, 12, 16),
    ),
    "local": (
        "local_attention",
        lambda m: m.LocalTransformer(
            num_tokens=50, max_seq_len=16, dim=16, depth=2, heads=2, dim_head=8, local_attn_window_size=4
        ),
        tokens(),
    ),
    "ltc": sub(
        "ncps",
        "ncps.torch",
        lambda m: m.LTC(4, importlib.import_module("ncps.wirings").AutoNCP(12, 3)),
        normal(2, 5, 4),
    ),
    "cfc": sub(
        "ncps",
        "ncps.torch",
        lambda m: m.CfC(4, importlib.import_module("ncps.wirings").AutoNCP(12, 3), mixed_memory=True),
        normal(2, 5, 4),
    ),
    "tcn": (
        "pytorch_tcn",
        lambda m: m.TCN(4, [8, 8], kernel_size=3, use_skip_connections=True, use_norm="weight_norm"),
        normal(2, 4, 20),
    ),
    "lora": adapter("LoraConfig", r=4, target_modules=["q_proj", "v_proj"]),
    "dora": adapter("LoraConfig", r=4, target_modules=["q_proj", "v_proj"], use_dora=True),
    "ia3": adapter("IA3Config", target_modules=["k_proj", "down_proj"], feedforward_modules=["down_proj"]),
}
