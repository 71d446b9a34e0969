"""The layers that have twins, in the corners of their arguments."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .table import pattern


@pattern("Conv, BatchNorm, Linear: the ordinary network")
def small_cnn():
    stem = (nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4), nn.ReLU())
    return nn.Sequential(*stem, nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(16, 3)), (torch.randn(4, 3, 8, 8),)


@pattern("padding modes, strings, dilation, groups")
def conv_arguments():
    model = nn.Sequential(
        nn.Conv2d(4, 8, 3, padding=1, padding_mode="reflect"),
        nn.Conv2d(8, 8, 3, padding="same", dilation=2, groups=4),
        nn.Conv2d(8, 8, (3, 1), stride=(2, 1), padding=(1, 0), groups=8, bias=False),
        nn.Conv2d(8, 4, 3, padding="valid", padding_mode="circular"),
    )
    return model, (torch.randn(2, 4, 8, 8),)


@pattern("one and three dimensions")
def conv_dimensions():
    model = nn.Sequential(
        nn.Conv1d(3, 4, 3), nn.Unflatten(1, (2, 2)), nn.Unflatten(-1, (3, 4)), nn.Conv3d(2, 3, (1, 2, 2))
    )
    return model, (torch.randn(2, 3, 14),)


class UpSample(nn.Module):
    """Transposed convolutions, one told its output size."""

    def __init__(self) -> None:
        super().__init__()
        self.one = nn.ConvTranspose1d(3, 4, 3, stride=2, output_padding=1)
        self.two = nn.ConvTranspose2d(2, 3, 3, stride=2, groups=1)
        self.three = nn.ConvTranspose3d(1, 2, 2, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        x = self.one(x).unflatten(1, (2, 2))
        x = self.two(x, output_size=(6, 2 * x.shape[-1] + 2))
        return self.three(x[:, None])


@pattern("output_size as a further argument of forward")
def transposed_convs():
    return UpSample(), (torch.randn(2, 3, 4),)


@pattern("no batch axis")
def unbatched():
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(0), nn.Linear(4 * 16, 3)), (torch.randn(3, 6, 6),)


@pattern("norms with weights of two dimensions", stays=("1.weight", "1.bias"))
def wide_norm():
    return nn.Sequential(nn.Linear(5, 4), nn.LayerNorm((3, 4)), nn.Linear(4, 2)), (torch.randn(2, 3, 5),)


@pattern("every norm, and activations with parameters")
def norms():
    model = nn.Sequential(
        nn.Conv2d(4, 4, 1), nn.GroupNorm(2, 4), nn.PReLU(4), nn.InstanceNorm2d(4, affine=True), nn.Conv2d(4, 4, 1),
        nn.Flatten(2), nn.RMSNorm(9), nn.Linear(9, 2),
    )  # fmt: skip
    return model, (torch.randn(2, 4, 3, 3),)


class Bag(nn.Module):
    """Lookups before a Linear."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.bag = nn.Embedding(9, 4, padding_idx=0), nn.EmbeddingBag(9, 4)
        self.head = nn.Linear(8, 3)

    def forward(self, index: Tensor) -> Tensor:
        return self.head(torch.cat([self.table(index).sum(1), self.bag(index)], -1))


@pattern("embeddings are left alone", stays=("table.weight", "bag.weight"))
def embeddings():
    return Bag(), (torch.randint(0, 9, (3, 5)),)


@pattern(
    "a Linear as the whole model: the root itself changes its class",
    known={"conversion_succeeds": "the root is exactly a Linear, so it becomes its twin, with another name"},
)
def root_is_a_layer():
    return nn.Linear(5, 3), (torch.randn(4, 5),)


@pattern("a Linear with one output: a matrix of one row")
def one_output():
    return nn.Sequential(nn.Linear(6, 4), nn.Tanh(), nn.Linear(4, 1)), (torch.randn(3, 6),)


@pattern("layers without weights to speak of: nothing goes in, or nothing comes out")
def empty_layers():
    return EmptyLayers(), (torch.randn(3, 6),)


class EmptyLayers(nn.Module):
    """A Linear from nothing, whose output is its bias."""

    def __init__(self) -> None:
        super().__init__()
        self.full, self.nothing = nn.Linear(6, 4), nn.Linear(0, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.full(x) + self.nothing(x[:, :0])


@pattern("lazy layers after their first forward are ordinary ones")
def lazy_materialised():
    model, x = nn.Sequential(nn.LazyConv2d(4, 3), nn.ReLU(), nn.Flatten(), nn.LazyLinear(3)), torch.randn(2, 3, 6, 6)
    model(x)
    return model, (x,)
