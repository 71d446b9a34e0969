"""Denoising networks and autoencoders of diffusers, in small configurations."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import diffusers
import torch

from ..entries import Entry, Example
from .torchvision_import import prepare

prepare()


def entries() -> Iterator[Entry]:
    """One entry per configuration."""
    for name, (cls, options, inputs) in MODELS.items():
        yield Entry("diffusers", name, cls, partial(_build, cls, options, inputs))


def _build(cls: str, options: dict[str, Any], inputs: Callable[[], dict[str, Any]]) -> Example:
    model = getattr(diffusers, cls)(**options)
    takes_flag = "return_dict" in inspect.signature(model.forward).parameters
    return Example(model, inputs() | ({"return_dict": False} if takes_flag else {}))


def noisy(*shape: int, text: int = 0, **more: Any) -> Callable[[], dict[str, Any]]:
    """A noisy sample at a time step, with text features of the given size."""

    def make() -> dict[str, Any]:
        inputs = {"sample": torch.randn(shape), "timestep": torch.tensor([3] * shape[0])}
        if text:
            inputs["encoder_hidden_states"] = torch.randn(shape[0], 5, text)
        return inputs | {key: value() if callable(value) else value for key, value in more.items()}

    return make


def hidden(*shape: int, text: int, **more: Any) -> Callable[[], dict[str, Any]]:
    """The same for transformers, which call their input ``hidden_states``."""

    def make() -> dict[str, Any]:
        inputs = noisy(*shape, text=text, **more)()
        inputs["hidden_states"] = inputs.pop("sample")
        return inputs

    return make


def sample(*shape: int) -> Callable[[], dict[str, Any]]:
    return lambda: {"sample": torch.randn(shape)}


BLOCKS = {"block_out_channels": (16, 32), "norm_num_groups": 8, "layers_per_block": 1}
SMALL = {"num_attention_heads": 2, "attention_head_dim": 8, "num_layers": 2}

MODELS: dict[str, tuple[str, dict[str, Any], Callable[[], dict[str, Any]]]] = {
    "unet2d": (
        "UNet2DModel",
        BLOCKS
        | {"sample_size": 16, "down_block_types": ("DownBlock2D", "AttnDownBlock2D"), "attention_head_dim": 8}
        | {"up_block_types": ("AttnUpBlock2D", "UpBlock2D")},
        noisy(2, 3, 16, 16),
    ),
    "unet2d_condition": (
        "UNet2DConditionModel",
        BLOCKS
        | {"sample_size": 16, "cross_attention_dim": 12, "attention_head_dim": 8}
        | {"down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D")}
        | {"up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D")},
        noisy(2, 4, 16, 16, text=12),
    ),
    "unet3d_condition": (
        "UNet3DConditionModel",
        BLOCKS
        | {"sample_size": 16, "cross_attention_dim": 12, "attention_head_dim": 8}
        | {"down_block_types": ("CrossAttnDownBlock3D", "DownBlock3D")}
        | {"up_block_types": ("UpBlock3D", "CrossAttnUpBlock3D")},
        noisy(1, 4, 2, 16, 16, text=12),
    ),
    "unet1d": (
        "UNet1DModel",
        {"block_out_channels": (32, 32, 64), "sample_size": 64, "extra_in_channels": 64},
        noisy(2, 2, 64),
    ),
    "controlnet": (
        "ControlNetModel",
        BLOCKS
        | {"cross_attention_dim": 12, "attention_head_dim": 8, "conditioning_embedding_out_channels": (8, 16)}
        | {"down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D")},
        noisy(2, 4, 16, 16, text=12, controlnet_cond=partial(torch.randn, 2, 3, 32, 32)),
    ),
    "autoencoder_kl": (
        "AutoencoderKL",
        BLOCKS | {"down_block_types": ("DownEncoderBlock2D",) * 2, "up_block_types": ("UpDecoderBlock2D",) * 2},
        sample(2, 3, 16, 16),
    ),
    "autoencoder_tiny": (
        "AutoencoderTiny",
        {
            "encoder_block_out_channels": (16,) * 2,
            "decoder_block_out_channels": (16,) * 2,
            "num_encoder_blocks": (1, 1),
            "num_decoder_blocks": (1, 1),
        },
        sample(2, 3, 16, 16),
    ),
    "vq": (
        "VQModel",
        BLOCKS
        | {
            "down_block_types": ("DownEncoderBlock2D",) * 2,
            "up_block_types": ("UpDecoderBlock2D",) * 2,
            "num_vq_embeddings": 16,
        },
        sample(2, 3, 16, 16),
    ),
    "dit": (
        "DiTTransformer2DModel",
        SMALL | {"in_channels": 4, "sample_size": 8, "patch_size": 2, "num_embeds_ada_norm": 10, "norm_num_groups": 4},
        hidden(2, 4, 8, 8, text=0, class_labels=lambda: torch.tensor([1, 2])),
    ),
    "pixart": (
        "PixArtTransformer2DModel",
        SMALL
        | {
            "in_channels": 4,
            "sample_size": 8,
            "patch_size": 2,
            "caption_channels": 12,
            "cross_attention_dim": 16,
            "norm_num_groups": 4,
        },
        hidden(2, 4, 8, 8, text=12, added_cond_kwargs=lambda: {"resolution": None, "aspect_ratio": None}),
    ),
    "sd3": (
        "SD3Transformer2DModel",
        SMALL
        | {
            "sample_size": 8,
            "in_channels": 4,
            "caption_projection_dim": 16,
            "joint_attention_dim": 12,
            "pooled_projection_dim": 10,
            "out_channels": 4,
            "pos_embed_max_size": 8,
        },
        hidden(2, 4, 8, 8, text=12, pooled_projections=partial(torch.randn, 2, 10)),
    ),
    "flux": (
        "FluxTransformer2DModel",
        {
            "num_layers": 1,
            "num_single_layers": 1,
            "attention_head_dim": 16,
            "num_attention_heads": 2,
            "in_channels": 4,
            "joint_attention_dim": 12,
            "pooled_projection_dim": 10,
            "axes_dims_rope": [4, 4, 8],
            "guidance_embeds": True,
        },
        hidden(
            2,
            16,
            4,
            text=12,
            pooled_projections=partial(torch.randn, 2, 10),
            img_ids=partial(torch.zeros, 16, 3),
            txt_ids=partial(torch.zeros, 5, 3),
            guidance=lambda: torch.ones(2),
        ),
    ),
    "prior": (
        "PriorTransformer",
        {
            "num_attention_heads": 2,
            "attention_head_dim": 8,
            "num_layers": 2,
            "embedding_dim": 12,
            "num_embeddings": 5,
            "additional_embeddings": 4,
        },
        hidden(2, 12, text=12, proj_embedding=partial(torch.randn, 2, 12)),
    ),
    "cogvideox": (
        "CogVideoXTransformer3DModel",
        SMALL
        | {
            "in_channels": 4,
            "out_channels": 4,
            "time_embed_dim": 8,
            "text_embed_dim": 12,
            "sample_width": 8,
            "sample_height": 8,
            "sample_frames": 5,
            "max_text_seq_length": 5,
        },
        hidden(1, 2, 4, 8, 8, text=12),
    ),
    "wan": (
        "WanTransformer3DModel",
        {
            "num_attention_heads": 2,
            "attention_head_dim": 12,
            "in_channels": 4,
            "out_channels": 4,
            "text_dim": 12,
            "freq_dim": 16,
            "ffn_dim": 32,
            "num_layers": 2,
            "rope_max_seq_len": 32,
        },
        hidden(1, 4, 2, 8, 8, text=12),
    ),
    "adapter": (
        "T2IAdapter",
        {"in_channels": 3, "channels": [8, 16], "num_res_blocks": 1, "downscale_factor": 4},
        lambda: {"x": torch.randn(2, 3, 16, 16)},
    ),
    "uvit": (
        "UVit2DModel",
        {
            "hidden_size": 16,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "intermediate_size": 32,
            "cond_embed_dim": 16,
            "encoder_hidden_size": 12,
            "micro_cond_encode_dim": 4,
            "micro_cond_embed_dim": 20,
            "vocab_size": 18,
            "codebook_size": 16,
            "block_out_channels": 8,
            "block_num_heads": 2,
            "in_channels": 8,
        },
        lambda: {
            "input_ids": torch.randint(16, (2, 8, 8)),
            "encoder_hidden_states": torch.randn(2, 5, 12),
            "pooled_text_emb": torch.randn(2, 16),
            "micro_conds": torch.rand(2, 5),
        },
    ),
}
