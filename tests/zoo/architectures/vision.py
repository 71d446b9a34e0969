"""Networks for images, volumes, points and coordinates."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations, weight_norm


class ResidualBlock(nn.Module):
    def __init__(self, channels: int, stride: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(channels, 2 * channels, 3, stride, 1, bias=False),
            nn.BatchNorm2d(2 * channels),
            nn.ReLU(inplace=True),
            nn.Conv2d(2 * channels, 2 * channels, 3, padding=1, bias=False),
            nn.BatchNorm2d(2 * channels),
        )
        self.shortcut = nn.Conv2d(channels, 2 * channels, 1, stride)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.body(x) + self.shortcut(x))


class ResNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding="same", padding_mode="circular")
        self.blocks = nn.ModuleList([ResidualBlock(8, 2), ResidualBlock(16, 2)])
        self.head = nn.Linear(32, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for block in self.blocks:
            x = block(x)
        return self.head(x.mean(dim=(2, 3)))


class UNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.down = nn.ModuleDict(
            {f"level{i}": nn.Conv2d(3 if i == 0 else 8 * i, 8 * (i + 1), 3, 2, 1) for i in range(3)}
        )
        self.up = nn.ModuleList([nn.ConvTranspose2d(24, 16, 2, 2), nn.ConvTranspose2d(32, 8, 2, 2)])
        self.head = nn.ConvTranspose2d(16, 4, 4, 2, 1, output_padding=0)
        self.norm = nn.GroupNorm(4, 24)

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        kept = []
        x = image
        for layer in self.down.values():
            x = F.gelu(layer(x))
            kept.append(x)
        x = self.norm(x)
        for layer, skip in zip(self.up, reversed(kept[:-1]), strict=True):
            x = torch.cat([layer(x), skip], dim=1)
        return {"masks": self.head(x), "bottleneck": kept[-1]}


class SqueezeExcite(nn.Module):
    """Depthwise separable convolutions with a gate, as in MobileNetV3."""

    def __init__(self) -> None:
        super().__init__()
        self.expand = nn.Conv2d(3, 16, 1)
        self.depthwise = nn.Conv2d(16, 16, 5, 2, 2, groups=16, bias=False)
        self.squeeze, self.excite = nn.Linear(16, 4), nn.Linear(4, 16)
        self.project = nn.Conv2d(16, 6, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = F.hardswish(self.depthwise(F.hardswish(self.expand(x))))
        gate = torch.sigmoid(self.excite(F.relu(self.squeeze(x.mean((2, 3))))))
        return self.project(x * gate[:, :, None, None])


class StandardisedConv2d(nn.Conv2d):
    """Weight standardisation (Qiao 2019)."""

    def forward(self, x: Tensor) -> Tensor:
        weight = self.weight - self.weight.mean(dim=(1, 2, 3), keepdim=True)
        weight = weight / (weight.std(dim=(1, 2, 3), keepdim=True) + 1e-5)
        return F.conv2d(x, weight, self.bias, self.stride, self.padding, self.dilation, self.groups)


class SpatialTransformer(nn.Module):
    """A network that resamples its own input (Jaderberg 2015)."""

    def __init__(self) -> None:
        super().__init__()
        self.locate = nn.Sequential(nn.Conv2d(3, 6, 5, 2), nn.ReLU(), nn.Flatten(), nn.Linear(6 * 14 * 14, 6))
        self.classify = nn.Sequential(StandardisedConv2d(3, 8, 3, 2), nn.ReLU(), nn.Flatten(), nn.LazyLinear(4))
        self.classify(torch.zeros(1, 3, 32, 32))

    def forward(self, x: Tensor) -> Tensor:
        theta = self.locate(x).view(-1, 2, 3)
        grid = F.affine_grid(theta, list(x.shape), align_corners=False)
        return self.classify(F.grid_sample(x, grid, align_corners=False))


class Discriminator(nn.Module):
    """Spectral norm in its new form, legacy weight norm in its old one."""

    def __init__(self) -> None:
        super().__init__()
        self.first = parametrizations.spectral_norm(nn.Conv2d(3, 8, 4, 2, 1))
        self.second = weight_norm(nn.Conv2d(8, 16, 4, 2, 1))
        self.score = parametrizations.orthogonal(nn.Linear(16 * 8 * 8, 3))

    def forward(self, x: Tensor) -> Tensor:
        x = F.leaky_relu(self.second(F.leaky_relu(self.first(x), 0.2)), 0.2)
        return self.score(x.flatten(1))


class Autoencoder(nn.Module):
    """Variational autoencoder; samples its latent code in training."""

    def __init__(self) -> None:
        super().__init__()
        self.encode = nn.Sequential(nn.Flatten(), nn.Linear(48, 24), nn.Tanh())
        self.mean, self.log_variance = nn.Linear(24, 4), nn.Linear(24, 4)
        self.decode = nn.Sequential(nn.Linear(4, 24), nn.Tanh(), nn.Linear(24, 48), nn.Sigmoid())

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        hidden = self.encode(x)
        mean, log_variance = self.mean(hidden), self.log_variance(hidden)
        code = mean + torch.randn_like(mean) * (log_variance / 2).exp() if self.training else mean
        return self.decode(code).view_as(x), mean, log_variance


class PointNet(nn.Module):
    """Shared Conv1d over points, a learned alignment, a maximum."""

    def __init__(self) -> None:
        super().__init__()
        self.align = nn.Sequential(
            nn.Conv1d(3, 8, 1), nn.ReLU(), nn.AdaptiveMaxPool1d(1), nn.Flatten(), nn.Linear(8, 9)
        )
        self.features = nn.Sequential(nn.Conv1d(3, 16, 1), nn.BatchNorm1d(16), nn.ReLU(), nn.Conv1d(16, 32, 1))
        self.head = nn.Linear(32, 4)

    def forward(self, points: Tensor) -> Tensor:
        aligned = torch.bmm(self.align(points).view(-1, 3, 3) + torch.eye(3), points)
        return self.head(self.features(aligned).amax(dim=2))


class Siren(nn.Module):
    """A field over coordinates, with sines (Sitzmann 2020) and a skip as in NeRF."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.third = nn.Linear(2, 16), nn.Linear(18, 16), nn.Linear(16, 3)

    def forward(self, xy: Tensor) -> Tensor:
        hidden = torch.sin(30 * self.first(xy))
        return self.third(torch.sin(self.second(torch.cat([hidden, xy], dim=-1))))


class Volume(nn.Module):
    """Three-dimensional convolutions, up and down."""

    def __init__(self) -> None:
        super().__init__()
        self.down = nn.Conv3d(1, 4, 3, 2, 1)
        self.norm = nn.InstanceNorm3d(4, affine=True)
        self.up = nn.ConvTranspose3d(4, 2, 2, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.up(F.prelu(self.norm(self.down(x)), torch.tensor([0.1])))


class Siamese(nn.Module):
    """One encoder called on two inputs, compared by a Bilinear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Flatten(), nn.Linear(48, 16), nn.ReLU(), nn.Linear(16, 8))
        self.compare = nn.Bilinear(8, 8, 2)

    def forward(self, left: Tensor, right: Tensor) -> Tensor:
        return self.compare(self.encoder(left), self.encoder(right))


class SuperResolution(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 12, 3, padding=1, padding_mode="reflect"), nn.PReLU(12))
        self.tail = nn.Sequential(nn.Conv2d(12, 12, 3, padding=1), nn.PixelShuffle(2))

    def forward(self, x: Tensor) -> Tensor:
        return self.tail(self.body(x))
