"""Networks for images: segmentation-models-pytorch, open_clip, vit-pytorch, pytorchcv, kornia and single ones."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import nn

from .inputs import Inputs, image, several, tokens

Row = tuple[str, Callable[[Any], nn.Module], Inputs]


def smp(name: str, encoder: str = "resnet18", **options: Any) -> Row:
    return (
        "segmentation_models_pytorch",
        lambda m: getattr(m, name)(encoder, encoder_weights=None, classes=3, **options),
        image(64),
    )


def vit(path: str, cls: str, side: int = 32, **options: Any) -> Row:
    def build(package: Any) -> nn.Module:
        model: nn.Module = getattr(importlib.import_module(f"vit_pytorch.{path}"), cls)(**options)
        return model

    return "vit_pytorch", build, image(side)


def cv(name: str) -> Row:
    return (
        "pytorchcv",
        lambda m: importlib.import_module("pytorchcv.model_provider").get_model(name, num_classes=7),
        image(224),
    )


def sub(library: str, path: str, build: Callable[[Any], nn.Module], inputs: Inputs) -> Row:
    return library, lambda m: build(importlib.import_module(path)), inputs


TINY_VIT = {"image_size": 32, "patch_size": 8, "num_classes": 5, "dim": 32, "depth": 2, "heads": 2, "mlp_dim": 48}

MODELS: dict[str, Row] = {
    "unet": smp("Unet"),
    "unet_scse": smp("Unet", decoder_attention_type="scse"),
    "unetplusplus": smp("UnetPlusPlus"),
    "manet": smp("MAnet"),
    "linknet": smp("Linknet"),
    "fpn": smp("FPN", "timm-regnetx_002"),
    "pspnet": smp("PSPNet"),
    "deeplabv3": smp("DeepLabV3"),
    "deeplabv3plus": smp("DeepLabV3Plus", "efficientnet-b0"),
    "upernet": smp("UPerNet", "mit_b0"),
    "segformer": smp("Segformer", "mit_b0"),
    "dpt": smp("DPT", "tu-vit_tiny_patch16_224", dynamic_img_size=True),
    "clip": (
        "open_clip",
        lambda m: m.model.CLIP(
            16,
            {"image_size": 32, "patch_size": 8, "layers": 2, "width": 32, "head_width": 16},
            {"context_length": 12, "vocab_size": 50, "width": 32, "heads": 2, "layers": 2},
        ),
        several(image(32), tokens()),
    ),
    "clip_resnet": (
        "open_clip",
        lambda m: m.model.CLIP(
            16,
            {"image_size": 64, "layers": (1, 1, 1, 1), "width": 16, "head_width": 16},
            {"context_length": 12, "vocab_size": 50, "width": 32, "heads": 2, "layers": 2},
        ),
        several(image(64), tokens()),
    ),
    "coca": (
        "open_clip",
        lambda m: m.coca_model.CoCa(
            32,
            m.coca_model.MultimodalCfg(width=32, heads=2, layers=1, context_length=12, vocab_size=50, mlp_ratio=2),
            {
                "context_length": 12,
                "vocab_size": 50,
                "width": 32,
                "heads": 2,
                "layers": 1,
                "embed_cls": True,
                "output_tokens": True,
            },
            {
                "image_size": 32,
                "patch_size": 8,
                "layers": 1,
                "width": 32,
                "head_width": 16,
                "attentional_pool": True,
                "attn_pooler_heads": 2,
                "output_tokens": True,
            },
        ),
        several(image(32), tokens()),
    ),
    "vit": vit("vit", "ViT", **TINY_VIT),
    "simple_vit": vit("simple_vit", "SimpleViT", **TINY_VIT),
    "simple_vit_qk_norm": vit("simple_vit_with_qk_norm", "SimpleViT", **TINY_VIT),
    "simple_vit_register": vit("simple_vit_with_register_tokens", "SimpleViT", **TINY_VIT),
    "deepvit": vit("deepvit", "DeepViT", **TINY_VIT),
    "cait": vit("cait", "CaiT", **TINY_VIT, cls_depth=1),
    "look_vit": vit(
        "look_vit",
        "LookViT",
        image_size=32,
        patch_size=8,
        num_classes=5,
        dim=32,
        depth=2,
        heads=2,
        dim_head=16,
        highres_patch_size=4,
    ),
    "max_vit": vit(
        "max_vit", "MaxViT", 64, num_classes=5, dim_conv_stem=16, dim=16, dim_head=8, depth=(1, 1), window_size=4
    ),
    "mobile_vit": vit(
        "mobile_vit",
        "MobileViT",
        64,
        image_size=(64, 64),
        dims=[24, 32, 40],
        channels=[8, 8, 12, 12, 16, 16, 20, 20, 24, 24, 48],
        num_classes=5,
    ),
    "crossformer": vit("crossformer", "CrossFormer", 224, dim=(32, 32, 64, 64), depth=(1, 1, 1, 1), num_classes=5),
    "cvt": vit("cvt", "CvT", 64, num_classes=5, s1_emb_dim=16, s2_emb_dim=16, s3_emb_dim=32, s3_depth=1, s2_depth=1),
    "twins_svt": vit(
        "twins_svt",
        "TwinsSVT",
        224,
        num_classes=5,
        s1_emb_dim=16,
        s2_emb_dim=16,
        s3_emb_dim=32,
        s4_emb_dim=32,
        s3_depth=1,
    ),
    "regionvit": vit("regionvit", "RegionViT", 224, dim=(16, 16, 32, 32), depth=(1, 1, 1, 1), num_classes=5),
    "nest": vit(
        "nest",
        "NesT",
        32,
        image_size=32,
        patch_size=4,
        dim=16,
        heads=2,
        num_hierarchies=2,
        block_repeats=1,
        num_classes=5,
    ),
    "xcit": vit(
        "xcit", "XCiT", image_size=32, patch_size=8, num_classes=5, dim=32, depth=2, cls_depth=1, heads=2, mlp_dim=48
    ),
    "scalable_vit": vit(
        "scalable_vit",
        "ScalableViT",
        64,
        num_classes=5,
        dim=16,
        heads=(2, 2),
        depth=(1, 1),
        ssa_dim_key=(8, 8),
        ssa_dim_value=(8, 8),
        reduction_factor=(2, 1),
        window_size=(4, None),
    ),
    "learnable_memory": vit("learnable_memory_vit", "ViT", **TINY_VIT),
    "small_dataset": vit("vit_for_small_dataset", "ViT", **TINY_VIT),
    **{
        name: cv(name)
        for name in (
            "resnet10",
            "preresnet10",
            "seresnet10",
            "diaresnet10",
            "shufflenetv2_wd2",
            "menet108_8x1_g3",
            "igcv3_wd4",
            "mnasnet_b1",
            "squeezenet_v1_0",
            "xdensenet121_2",
            "hrnet_w18_small_v1",
            "darts",
            "octresnet10_ad2",
            "condensenet74_c8_g8",
        )
    },
    "b0": ("efficientnet_pytorch", lambda m: m.EfficientNet.from_name("efficientnet-b0", num_classes=5), image(64)),
    "unet_denoising": (
        "denoising_diffusion_pytorch",
        lambda m: m.Unet(dim=16, dim_mults=(1, 2), attn_dim_head=8, attn_heads=2),
        several(image(16), lambda: torch.tensor([3, 5])),
    ),
    "axial": (
        "axial_attention",
        lambda m: m.AxialImageTransformer(dim=16, depth=2, heads=2, reversible=True),
        image(8, 16),
    ),
    "dexined": sub("kornia", "kornia.filters.dexined", lambda m: m.DexiNed(pretrained=False), image(64)),
    "disk": sub("kornia", "kornia.feature", lambda m: m.DISK(), lambda: (torch.rand(1, 3, 64, 64),)),
    "hardnet": sub("kornia", "kornia.feature", lambda m: m.HardNet(False), partial(torch.rand, 4, 1, 32, 32)),
    "sosnet": sub("kornia", "kornia.feature", lambda m: m.SOSNet(False), partial(torch.rand, 4, 1, 32, 32)),
    "tiny_vit": sub(
        "kornia",
        "kornia.models.tiny_vit",
        lambda m: m.TinyViT(
            img_size=64,
            num_classes=4,
            embed_dims=[16, 32, 32, 48],
            depths=[1, 1, 1, 1],
            num_heads=[1, 2, 2, 3],
            window_sizes=[4, 4, 4, 2],
        ),
        image(64),
    ),
}
