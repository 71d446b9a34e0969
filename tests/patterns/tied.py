"""One Parameter or one module in several places."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .subclasses import CosineClassifier, EqualisedLinear
from .table import pattern


class LanguageModel(nn.Module):
    """The head is the embedding."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(9, 6)
        self.body = nn.Linear(6, 6)
        self.head = nn.Linear(6, 9, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, index: Tensor) -> Tensor:
        return self.head(torch.tanh(self.body(self.embedding(index))))


@pattern("an embedding tied to a head: the lookup has to read the sample too")
def tied_head():
    return LanguageModel(), (torch.randint(0, 9, (2, 4)),)


class SequenceToSequence(nn.Module):
    """Three embeddings and a head on one table (T5, BART)."""

    def __init__(self) -> None:
        super().__init__()
        self.shared = nn.Embedding(9, 6)
        self.encoder, self.decoder = nn.Embedding(9, 6), nn.Embedding(9, 6)
        self.head = nn.Linear(6, 9)
        self.encoder.weight = self.decoder.weight = self.head.weight = self.shared.weight

    def forward(self, source: Tensor, target: Tensor) -> Tensor:
        return self.head(self.encoder(source).mean(1, keepdim=True) + self.decoder(target))


@pattern("four modules on one Parameter, the first of which is never called")
def tied_four_ways():
    return SequenceToSequence(), (torch.randint(0, 9, (2, 4)), torch.randint(0, 9, (2, 3)))


class TwoLinears(nn.Module):
    """Weight and bias shared by two Linears."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(5, 5), nn.Linear(5, 5)
        self.two.weight, self.two.bias = self.one.weight, self.one.bias

    def forward(self, x: Tensor) -> Tensor:
        return self.two(torch.tanh(self.one(x)))


@pattern("two Linears on one weight and one bias")
def two_linears():
    return TwoLinears(), (torch.randn(3, 5),)


class TwoNames(nn.Module):
    """One module under two names, called through both."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(5, 5)
        self.second = self.first
        self.blocks = nn.ModuleList([self.first, nn.Linear(5, 5)])

    def forward(self, x: Tensor) -> Tensor:
        return self.blocks[1](self.second(self.first(x)))


@pattern("one module under three names, called twice")
def two_names():
    return TwoNames(), (torch.randn(3, 5),)


class SharedBlocks(nn.Module):
    """The same block over and over (ALBERT, deep equilibrium)."""

    def __init__(self) -> None:
        super().__init__()
        block = nn.Sequential(nn.Linear(5, 5), nn.Tanh())
        self.blocks = nn.Sequential(*[block] * 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.blocks(x)


@pattern("a block repeated by reference")
def repeated_block():
    return SharedBlocks(), (torch.randn(3, 5),)


class AutoEncoder(nn.Module):
    """The decoder is the transposed encoder."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Linear(6, 3)
        self.bias = nn.Parameter(torch.zeros(6))

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(torch.relu(self.encoder(x)), self.encoder.weight.t(), self.bias)


@pattern("a Linear is called, and its weight is read transposed as well")
def transposed_tie():
    return AutoEncoder(), (torch.randn(3, 6),)


class AcrossKinds(nn.Module):
    """One Parameter as a raw weight, of a Linear, and of subclasses with their own forward."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(5, 5, bias=False)
        self.scaled = EqualisedLinear(5, 5)
        self.cosine = CosineClassifier(5, 5, bias=False)
        self.raw = self.scaled.weight = self.cosine.weight = self.linear.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.cosine(self.scaled(torch.tanh(self.linear(x)))) + x @ self.raw


@pattern("a Linear, two subclasses and a raw Parameter on one weight: twins and sampled weights mixed")
def tied_across_kinds():
    return AcrossKinds(), (torch.randn(3, 5),)


@pattern("kernels shared by convolutions that dilate differently")
def tied_convs():
    return TiedConvs(), (torch.randn(2, 3, 8),)


class TiedConvs(nn.Module):
    """One kernel at two dilations."""

    def __init__(self) -> None:
        super().__init__()
        self.near, self.far = nn.Conv1d(3, 3, 3, padding=1), nn.Conv1d(3, 3, 3, padding=2, dilation=2)
        self.far.weight = self.near.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.near(x) + self.far(x)


@pattern("attention weights shared between layers")
def tied_attention():
    layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)
    model = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
    model.layers[1].self_attn.in_proj_weight = model.layers[0].self_attn.in_proj_weight
    model.layers[1].linear1.weight = model.layers[0].linear1.weight
    return model, (torch.randn(2, 5, 8),)


class FrozenTie(nn.Module):
    """A frozen embedding tied to the head."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(9, 6)
        self.embedding.weight.requires_grad_(False)
        self.body, self.head = nn.Linear(6, 6), nn.Linear(6, 9)
        self.head.weight = self.embedding.weight

    def forward(self, index: Tensor) -> Tensor:
        return self.head(self.body(self.embedding(index)))


@pattern("a frozen tie stays on both ends, and its head's bias with it", stays=("embedding.weight",))
def frozen_tie():
    return FrozenTie(), (torch.randint(0, 9, (2, 4)),)


class PerRowBias(nn.Module):
    """A bias of one Linear is also added elsewhere."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(5, 5)
        self.offset = self.linear.bias

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x + self.offset)


@pattern("the bias of a Linear is registered on its parent as well")
def tied_bias():
    return PerRowBias(), (torch.randn(3, 5),)


class TwoNamesInOne(nn.Module):
    """One Parameter under two names of one module."""

    def __init__(self) -> None:
        super().__init__()
        self.encode = self.decode = nn.Parameter(torch.randn(5, 5))

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(x @ self.encode) @ self.decode.t()


@pattern("one Parameter under two names of the same module")
def two_names_in_one():
    return TwoNamesInOne(), (torch.randn(3, 5),)


class Renormalised(nn.Module):
    """A tied embedding that renormalises its rows while it looks them up."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.body = nn.Embedding(9, 6, max_norm=1.0), nn.Linear(6, 6)
        self.head = nn.Linear(6, 9, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, index: Tensor) -> Tensor:
        return self.head(self.body(self.embedding(index)))


@pattern("an embedding with max_norm writes into the weight that it shares with the head", stays=("embedding.weight",))
def tied_with_max_norm():
    return Renormalised(), (torch.arange(9).view(3, 3),)
