"""Networks for volumes and medical images: MONAI."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from .inputs import Inputs, image, normal, several

Row = tuple[str, Callable[[Any], nn.Module], Inputs]


def monai(name: str, inputs: Inputs, **options: Any) -> Row:
    return "monai", lambda m: getattr(importlib.import_module("monai.networks.nets"), name)(**options), inputs


VOLUME = normal(1, 1, 32, 32, 32)

MODELS: dict[str, Row] = {
    "unet3d": monai(
        "UNet",
        VOLUME,
        spatial_dims=3,
        in_channels=1,
        out_channels=2,
        channels=(8, 16, 32),
        strides=(2, 2),
        num_res_units=1,
    ),
    "dynunet": monai(
        "DynUNet",
        VOLUME,
        spatial_dims=3,
        in_channels=1,
        out_channels=2,
        kernel_size=[3, 3, 3],
        strides=[1, 2, 2],
        upsample_kernel_size=[2, 2],
        filters=[8, 16, 32],
        deep_supervision=False,
    ),
    "attention_unet": monai(
        "AttentionUnet", VOLUME, spatial_dims=3, in_channels=1, out_channels=2, channels=(8, 16, 32), strides=(2, 2)
    ),
    "unetr": monai(
        "UNETR",
        VOLUME,
        in_channels=1,
        out_channels=2,
        img_size=(32, 32, 32),
        feature_size=8,
        hidden_size=48,
        mlp_dim=64,
        num_heads=4,
    ),
    "swin_unetr": monai(
        "SwinUNETR", image(64, 1), spatial_dims=2, in_channels=1, out_channels=2, feature_size=12, depths=(1, 1, 1, 1)
    ),
    "segresnet": monai("SegResNet", VOLUME, spatial_dims=3, in_channels=1, out_channels=2, init_filters=8),
    "vnet": monai("VNet", VOLUME, spatial_dims=3, in_channels=1, out_channels=2),
    "densenet3d": monai(
        "DenseNet121",
        normal(2, 1, 32, 32, 32),
        spatial_dims=3,
        in_channels=1,
        out_channels=2,
        block_config=(1, 1, 1, 1),
    ),
    "highresnet": monai("HighResNet", normal(1, 1, 16, 16, 16), spatial_dims=3, in_channels=1, out_channels=2),
    "efficientnet_bn": monai(
        "EfficientNetBN",
        image(64),
        model_name="efficientnet-b0",
        pretrained=False,
        spatial_dims=2,
        in_channels=3,
        num_classes=4,
    ),
    "senet": monai("SEResNet50", image(64), spatial_dims=2, in_channels=3, num_classes=4),
    "autoencoder_kl": monai(
        "AutoencoderKL",
        image(16, 1),
        spatial_dims=2,
        in_channels=1,
        out_channels=1,
        channels=(8, 16),
        latent_channels=4,
        num_res_blocks=1,
        norm_num_groups=8,
        attention_levels=(False, True),
    ),
    "diffusion_unet": monai(
        "DiffusionModelUNet",
        several(image(16, 1), lambda: torch.tensor([3, 5])),
        spatial_dims=2,
        in_channels=1,
        out_channels=1,
        channels=(8, 16),
        attention_levels=(False, True),
        num_res_blocks=1,
        num_head_channels=8,
        norm_num_groups=8,
    ),
    "vit_autoencoder": monai(
        "ViTAutoEnc",
        VOLUME,
        in_channels=1,
        img_size=(32, 32, 32),
        patch_size=(16, 16, 16),
        hidden_size=48,
        mlp_dim=64,
        num_layers=2,
        num_heads=4,
    ),
    "vqvae": monai(
        "VQVAE",
        image(16, 1),
        spatial_dims=2,
        in_channels=1,
        out_channels=1,
        channels=(8, 16),
        num_res_channels=(8, 16),
        num_res_layers=1,
        num_embeddings=8,
        embedding_dim=4,
        downsample_parameters=((2, 4, 1, 1),) * 2,
        upsample_parameters=((2, 4, 1, 1, 0),) * 2,
    ),
}
