"""Networks that use Parameters directly, share modules, or decide at run time."""

from __future__ import annotations

from types import SimpleNamespace

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Experts(nn.Module):
    """Mixture of experts with stacked weights and a routed batch."""

    def __init__(self) -> None:
        super().__init__()
        self.router = nn.Linear(8, 4, bias=False)
        self.up, self.down = nn.Parameter(torch.randn(4, 8, 16) / 3), nn.Parameter(torch.randn(4, 16, 8) / 4)

    def forward(self, x: Tensor) -> Tensor:
        weights, chosen = self.router(x).softmax(-1).topk(2, dim=-1)
        every = torch.einsum("beh,eho->beo", F.gelu(torch.einsum("bi,eih->beh", x, self.up)), self.down)
        picked = every.gather(1, chosen[:, :, None].expand(-1, -1, 8))
        return (picked * weights[:, :, None]).sum(1)


class LoopedExperts(nn.Module):
    """Mixture of experts in a ModuleList; an expert without tokens is not called."""

    def __init__(self) -> None:
        super().__init__()
        self.router = nn.Linear(8, 3)
        self.experts = nn.ModuleList([nn.Sequential(nn.Linear(8, 12), nn.SiLU(), nn.Linear(12, 8)) for _ in range(3)])

    def forward(self, x: Tensor) -> Tensor:
        gates = self.router(x).softmax(-1)
        best = gates.argmax(-1)
        result = torch.zeros_like(x)
        for index, expert in enumerate(self.experts):
            rows = (best == index).nonzero().flatten()
            if rows.numel():
                result = result.index_add(0, rows, gates[rows, index, None] * expert(x[rows]))
        return result


class RawMLP(nn.Module):
    """F.linear, ``@``, einsum and a ParameterList."""

    def __init__(self) -> None:
        super().__init__()
        self.weights = nn.ParameterList([nn.Parameter(torch.randn(12, 6) / 2), nn.Parameter(torch.randn(12, 12) / 3)])
        self.bias = nn.ParameterDict({"hidden": nn.Parameter(torch.zeros(12))})
        self.out = nn.Parameter(torch.randn(12, 3) / 3)
        self.mixer = nn.Parameter(torch.randn(3, 3))

    def forward(self, x: Tensor) -> Tensor:
        x = torch.tanh(F.linear(x, self.weights[0], self.bias["hidden"]))
        x = torch.tanh(F.linear(x, self.weights[1])) @ self.out
        return torch.einsum("bi,ij->bj", x, self.mixer)


class LowRankAdapter(nn.Module):
    """A frozen layer with a trainable update of low rank (Hu 2021)."""

    def __init__(self) -> None:
        super().__init__()
        self.base = nn.Linear(10, 6).requires_grad_(False)
        self.A, self.B = nn.Parameter(torch.randn(2, 10) / 3), nn.Parameter(torch.zeros(6, 2))

    def forward(self, x: Tensor) -> Tensor:
        return self.base(x) + F.linear(F.linear(x, self.A), self.B)


class HyperNetwork(nn.Module):
    """One network makes the weights of another."""

    def __init__(self) -> None:
        super().__init__()
        self.maker = nn.Linear(3, 4 * 5 + 4)
        self.head = nn.Linear(4, 2)

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        made = self.maker(context)
        hidden = torch.einsum("bi,boi->bo", x, made[:, :20].view(-1, 4, 5)) + made[:, 20:]
        return self.head(torch.relu(hidden))


class MaskedLinear(nn.Linear):
    """Autoregressive connectivity (Germain 2015)."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(inputs, outputs)
        self.register_buffer("mask", torch.tril(torch.ones(outputs, inputs)))

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight * self.mask, self.bias)


class Made(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(MaskedLinear(6, 6), nn.ReLU(), MaskedLinear(6, 6))

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)


class Flow(nn.Module):
    """Affine coupling layers with a learned rotation; returns a log determinant (Dinh 2017, Kingma 2018)."""

    def __init__(self) -> None:
        super().__init__()
        self.rotation = nn.Parameter(torch.linalg.qr(torch.randn(4, 4))[0])
        self.couplings = nn.ModuleList([nn.Sequential(nn.Linear(2, 8), nn.Tanh(), nn.Linear(8, 4)) for _ in range(2)])

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        total = torch.slogdet(self.rotation)[1].expand(x.shape[0])
        x = x @ self.rotation
        for coupling in self.couplings:
            left, right = x.chunk(2, dim=1)
            scale, shift = coupling(left).chunk(2, dim=1)
            x = torch.cat([right * torch.tanh(scale).exp() + shift, left], dim=1)
            total = total + torch.tanh(scale).sum(1)
        return x, total


class GraphConvolution(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(5, 8) / 2)
        self.second = nn.Linear(8, 3, bias=False)

    def forward(self, nodes: Tensor, adjacency: Tensor) -> Tensor:
        hidden = torch.relu(adjacency @ nodes @ self.weight)
        return adjacency.to_sparse() @ self.second(hidden)


class Recommender(nn.Module):
    """Embedding bags, a dense tower, dot products (Naumov 2019)."""

    def __init__(self) -> None:
        super().__init__()
        self.items = nn.EmbeddingBag(20, 8, mode="mean")
        self.users = nn.Embedding(10, 8)
        self.dense = nn.Sequential(nn.Linear(4, 8), nn.ReLU())
        self.top = nn.Linear(11, 1)

    def forward(self, batch: dict[str, Tensor]) -> SimpleNamespace | dict[str, Tensor]:
        vectors = torch.stack([self.items(batch["items"]), self.users(batch["user"]), self.dense(batch["dense"])], 1)
        products = (vectors @ vectors.mT).flatten(1)[:, [1, 2, 5]]
        return {"score": self.top(torch.cat([vectors[:, 2], products], dim=1))}


class EarlyExit(nn.Module):
    """Control flow that depends on the data; layers held in a Python list as well."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(6, 6) for _ in range(3)])
        self.exits = nn.ModuleList([nn.Linear(6, 2) for _ in range(3)])
        self.pairs = list(zip(self.layers, self.exits, strict=True))

    def forward(self, x: Tensor) -> Tensor:
        total = x.new_zeros(x.shape[0], 2)
        for layer, leave in self.pairs:
            x = torch.relu(layer(x)) + x
            total = total + leave(x)
            if float(total.abs().amin()) > 100:
                break
        return total


class RecursiveSharing(nn.Module):
    """One block applied four times under two names (ALBERT, deep equilibrium models)."""

    def __init__(self) -> None:
        super().__init__()
        self.block = nn.Sequential(nn.Linear(6, 6), nn.Tanh())
        self.alias = self.block
        self.decoder = nn.Linear(6, 6)
        self.decoder.weight = self.block[0].weight

    def forward(self, x: Tensor) -> Tensor:
        for _ in range(2):
            x = self.alias(self.block(x))
        return self.decoder(x)


class MixedPrecision(nn.Module):
    """A trunk in bfloat16 with a head in float32."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk = nn.Linear(8, 8, dtype=torch.bfloat16)
        self.head = nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.silu(self.trunk(x.to(self.trunk.weight.dtype))).float())
