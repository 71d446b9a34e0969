"""Networks written with torch alone; they need no further library, so the ordinary test run includes them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import nn

from ..architectures import raw, sequences, vision
from ..entries import Entry, Example
from .inputs import image, normal, several, tokens


def entries() -> Iterator[Entry]:
    """One entry per network."""
    for name, (family, model, inputs) in NETWORKS.items():
        yield Entry("torch", name, family, partial(_build, model, inputs))


def _build(model: Callable[[], nn.Module], inputs: Callable[[], Any]) -> Example:
    return Example(model(), inputs())


def _click() -> tuple[dict[str, torch.Tensor]]:
    return ({"items": torch.randint(20, (3, 4)), "user": torch.randint(10, (3,)), "dense": torch.randn(3, 4)},)


def _graph() -> torch.Tensor:
    return (torch.rand(7, 7) < 0.4).float() / 3


NETWORKS: dict[str, tuple[str, Callable[[], nn.Module], Callable[[], Any]]] = {
    "mlp": ("mlp", lambda: nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Dropout(0.2), nn.Linear(16, 3)), normal(4, 6)),
    "double": (
        "mlp",
        lambda: nn.Sequential(nn.Linear(6, 8), nn.ELU(), nn.Linear(8, 3)).double(),
        lambda: torch.randn(4, 6).double(),
    ),
    "mixed_precision": ("mlp", raw.MixedPrecision, normal(4, 8)),
    "resnet": ("cnn", vision.ResNet, image()),
    "unet": ("cnn", vision.UNet, image()),
    "squeeze_excite": ("cnn", vision.SqueezeExcite, image()),
    "super_resolution": ("cnn", vision.SuperResolution, image(8)),
    "spatial_transformer": ("cnn", vision.SpatialTransformer, image()),
    "volume": ("cnn", vision.Volume, normal(2, 1, 8, 8, 8)),
    "discriminator": ("reparametrized", vision.Discriminator, image()),
    "wavenet": ("reparametrized", sequences.WaveNet, normal(2, 1, 24)),
    "autoencoder": ("generative", vision.Autoencoder, normal(2, 3, 4, 4)),
    "flow": ("generative", raw.Flow, normal(5, 4)),
    "made": ("generative", raw.Made, normal(5, 6)),
    "pointnet": ("geometry", vision.PointNet, normal(2, 3, 20)),
    "siren": ("geometry", vision.Siren, normal(9, 2)),
    "graph": ("geometry", raw.GraphConvolution, several(normal(7, 5), _graph)),
    "siamese": ("shared", vision.Siamese, several(normal(2, 3, 4, 4), normal(2, 3, 4, 4))),
    "recursive": ("shared", raw.RecursiveSharing, normal(3, 6)),
    "tagger": ("recurrent", sequences.Tagger, tokens(7, 40)),
    "packed": ("recurrent", sequences.PackedClassifier, several(normal(6, 3, 6), lambda: torch.tensor([4, 6, 2]))),
    "elman": ("recurrent", sequences.Elman, normal(5, 3, 4)),
    "cells": ("recurrent", sequences.CellDecoder, normal(2, 4, 8)),
    "encoder": ("attention", sequences.Encoder, normal(2, 6, 16)),
    "encoder_norm_first": ("attention", partial(sequences.Encoder, norm_first=True), normal(2, 6, 16)),
    "seq2seq": ("attention", sequences.Seq2Seq, several(tokens(6, 30), tokens(5, 30))),
    "cross_attention": ("attention", sequences.CrossAttention, several(normal(2, 5, 6), normal(2, 5, 10))),
    "relative_attention": ("attention", sequences.Sinusoids, normal(2, 6, 8)),
    "language_model": ("tied", sequences.LanguageModel, tokens(9, 50)),
    "language_model_reentrant": ("tied", partial(sequences.LanguageModel, use_reentrant=True), tokens(9, 50)),
    "state_space": ("raw", sequences.StateSpace, normal(2, 6, 8)),
    "experts": ("raw", raw.Experts, normal(6, 8)),
    "looped_experts": ("raw", raw.LoopedExperts, normal(12, 8)),
    "raw_mlp": ("raw", raw.RawMLP, normal(4, 6)),
    "low_rank": ("raw", raw.LowRankAdapter, normal(4, 10)),
    "hypernetwork": ("raw", raw.HyperNetwork, several(normal(4, 5), normal(4, 3))),
    "recommender": ("raw", raw.Recommender, _click),
    "early_exit": ("raw", raw.EarlyExit, normal(4, 6)),
}
