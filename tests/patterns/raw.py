"""Parameters of a user's own module that reach an operation without any layer."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .table import pattern


class FunctionalConv(nn.Module):
    """Kernel and matrix through the functional forms."""

    def __init__(self) -> None:
        super().__init__()
        self.kernel = nn.Parameter(torch.randn(4, 3, 3, 3))
        self.matrix = nn.Parameter(torch.randn(5, 4))
        self.shift = nn.Parameter(torch.randn(5))

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(F.relu(F.conv2d(x, self.kernel)).mean((2, 3)), self.matrix, self.shift)


@pattern("F.conv2d and F.linear on Parameters")
def functional_layers():
    return FunctionalConv(), (torch.randn(2, 3, 6, 6),)


class Products(nn.Module):
    """Every way to write a product."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c, self.d, self.e = (nn.Parameter(torch.randn(4, 4) / 2) for _ in range(5))
        self.f = nn.Parameter(torch.randn(4, 4) / 2)

    def forward(self, x: Tensor) -> Tensor:
        x = x @ self.a
        x = torch.einsum("bi,ij->bj", x, self.b)
        x = torch.addmm(x, x, self.c)
        x = torch.tensordot(x, self.d, dims=1)
        x = (self.e @ x.t()).t()
        return torch.mm(x, self.f.t())


@pattern("@, einsum, addmm, tensordot, mm, from both sides")
def products():
    return Products(), (torch.randn(3, 4),)


class Experts(nn.Module):
    """A mixture of experts with stacked weights, routed by the token."""

    def __init__(self) -> None:
        super().__init__()
        self.router = nn.Linear(4, 3)
        self.gate_up = nn.Parameter(torch.randn(3, 4, 6) / 2)
        self.down = nn.Parameter(torch.randn(3, 6, 4) / 2)

    def forward(self, x: Tensor) -> Tensor:
        weights = self.router(x).softmax(-1)
        hidden = torch.bmm(x.expand(3, -1, -1), self.gate_up).relu()
        return torch.einsum("ebd,be->bd", torch.bmm(hidden, self.down), weights)


@pattern("three-dimensional expert weights through bmm")
def experts_batched():
    return Experts(), (torch.randn(5, 4),)


class LoopedExperts(Experts):
    """Only the experts that some token asks for run."""

    def forward(self, x: Tensor) -> Tensor:
        weights, chosen = self.router(x).softmax(-1).topk(2, -1)
        out = torch.zeros_like(x)
        for expert in range(3):
            rows, slot = torch.where(chosen == expert)
            if rows.numel():
                hidden = (x[rows] @ self.gate_up[expert]).relu() @ self.down[expert]
                out.index_add_(0, rows, hidden * weights[rows, slot, None])
        return out


@pattern("expert weights are indexed in a loop over those that the data asks for")
def experts_looped():
    return LoopedExperts(), (torch.randn(6, 4),)


class GatheredExperts(nn.Module):
    """One expert for each row, its weights gathered."""

    def __init__(self) -> None:
        super().__init__()
        self.experts = nn.Parameter(torch.randn(3, 4, 5))

    def forward(self, x: Tensor, expert: Tensor) -> Tensor:
        return torch.bmm(x[:, None], self.experts[expert])[:, 0]


@pattern("expert weights are gathered by a tensor of indices before the product")
def experts_gathered():
    return GatheredExperts(), (torch.randn(6, 4), torch.tensor([0, 1, 2, 2, 1, 0]))


class Lists(nn.Module):
    """Parameters in torch's own containers."""

    def __init__(self) -> None:
        super().__init__()
        self.steps = nn.ParameterList([nn.Parameter(torch.randn(4, 4) / 2) for _ in range(3)])
        self.heads = nn.ParameterDict(
            {"mean": nn.Parameter(torch.randn(4, 2)), "scale": nn.Parameter(torch.randn(4, 2))}
        )

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        for step in self.steps:
            x = torch.tanh(x @ step)
        return x @ self.heads["mean"], x @ self.heads["scale"]


@pattern("ParameterList and ParameterDict: nobody calls their forward")
def parameter_containers():
    return Lists(), (torch.randn(3, 4),)


class VisionTokens(nn.Module):
    """A vision transformer's stem: patch matrix, class token, position table."""

    def __init__(self) -> None:
        super().__init__()
        self.patch = nn.Parameter(torch.randn(8, 12))
        self.cls_token = nn.Parameter(torch.randn(1, 1, 8))
        self.pos_embed = nn.Parameter(torch.randn(1, 5, 8))
        self.registers = nn.Parameter(torch.randn(2, 8))
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        patches = F.unfold(x, 2, stride=2).transpose(1, 2) @ self.patch.t()
        tokens = torch.cat([self.cls_token.expand(len(x), -1, -1), patches], 1) + self.pos_embed
        tokens = torch.cat([self.registers.expand(len(x), -1, -1), tokens], 1)
        return self.head(tokens.mean(1))


@pattern(
    "tables and tokens stay, the matrix between them becomes Bayesian",
    stays=("pos_embed", "registers"),
    stays_blind=("pos_embed",),
)
def tokens_and_tables():
    return VisionTokens(), (torch.randn(2, 3, 4, 4),)


class RelativeBias(nn.Module):
    """Attention with a table of relative positions (Swin)."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv = nn.Parameter(torch.randn(12, 4))
        self.relative_position_bias_table = nn.Parameter(torch.randn(7, 2))
        self.register_buffer("index", (torch.arange(4)[:, None] - torch.arange(4)[None]) + 3)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = F.linear(x, self.qkv).unflatten(-1, (3, 2, 2)).unbind(2)
        bias = self.relative_position_bias_table[self.index].permute(2, 0, 1)
        scores = torch.einsum("bihd,bjhd->bhij", q, k) + bias
        return torch.einsum("bhij,bjhd->bihd", scores.softmax(-1), v).flatten(2)


@pattern("a table that is added to the scores", stays=("relative_position_bias_table",))
def relative_bias():
    return RelativeBias(), (torch.randn(2, 4, 4),)


class LowRank(nn.Module):
    """A weight that is the product of two Parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Parameter(torch.randn(6, 2)), nn.Parameter(torch.randn(2, 5))

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, (self.a @ self.b).t())


@pattern("the weight is computed from Parameters alone before it meets the data")
def low_rank():
    return LowRank(), (torch.randn(3, 6),)


class Stacked(nn.Module):
    """Parameters stacked, softmaxed, written into."""

    def __init__(self) -> None:
        super().__init__()
        self.parts = nn.ParameterList([nn.Parameter(torch.randn(4, 4)) for _ in range(2)])
        self.mixing = nn.Parameter(torch.randn(4, 4))

    def forward(self, x: Tensor) -> Tensor:
        first, second = torch.stack(list(self.parts)).unbind()
        mixing = self.mixing.clone()
        mixing[0] = 0.0
        mixing.add_(0.1)
        return x @ first.softmax(0) @ second.exp() @ mixing


@pattern("stack, softmax, exp, and writes into a clone of a weight")
def computed_weights():
    return Stacked(), (torch.randn(3, 4),)


class Prototypes(nn.Module):
    """Distances to prototypes, and a codebook lookup."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Linear(4, 3)
        self.prototypes = nn.Parameter(torch.randn(5, 3))
        self.codebook = nn.Parameter(torch.randn(6, 3))

    def forward(self, x: Tensor, index: Tensor) -> Tensor:
        x = self.encoder(x) + F.embedding(index, self.codebook)
        return torch.cdist(x, self.prototypes)


@pattern(
    "raw Parameters behind a lookup and a distance: no linear operation",
    stays=("prototypes", "codebook"),
)
def prototypes():
    return Prototypes(), (torch.randn(2, 4), torch.tensor([1, 4]))


class PatchLookup(nn.Module):
    """A table read by indexing and by gather."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.randn(7, 4))
        self.head = nn.Linear(4, 2)

    def forward(self, index: Tensor) -> Tensor:
        return self.head(self.table[index] + self.table.index_select(0, index))


@pattern("a lookup by indexing a Parameter, then a Linear", stays=("table",))
def indexed_table():
    return PatchLookup(), (torch.tensor([1, 5, 2]),)


class LayerScale(nn.Module):
    """Gains per channel, in the shapes that broadcast."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 1)
        self.gamma = nn.Parameter(torch.randn(1, 4, 1, 1))
        self.scale = nn.Parameter(torch.randn(4))

    def forward(self, x: Tensor) -> Tensor:
        return (self.conv(x) * self.gamma).mean((2, 3)) * self.scale


@pattern("gains are vectors, also in the disguise of four dimensions")
def layer_scale():
    return LayerScale(), (torch.randn(2, 3, 4, 4),)


class StateSpace(nn.Module):
    """The recurrence of Mamba: a log matrix, a depthwise kernel by hand."""

    def __init__(self) -> None:
        super().__init__()
        self.A_log = nn.Parameter(torch.rand(4, 3).log())
        self.D = nn.Parameter(torch.randn(4))
        self.B = nn.Linear(4, 3, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        decay, state, outputs = -self.A_log.exp(), x.new_zeros(x.shape[0], 4, 3), []
        for step in x.unbind(1):
            state = state * decay.exp() + step[..., None] * self.B(step)[:, None]
            outputs.append(state.sum(-1) + step * self.D)
        return torch.stack(outputs, 1)


@pattern("a matrix that reaches the data through exp and an elementwise product")
def state_space():
    return StateSpace(), (torch.randn(2, 3, 4),)


class Hyper(nn.Module):
    """One network computes the weights of another."""

    def __init__(self) -> None:
        super().__init__()
        self.hyper = nn.Linear(3, 20)
        self.base = nn.Parameter(torch.randn(4, 5))

    def forward(self, x: Tensor, z: Tensor) -> Tensor:
        return torch.einsum("bi,bio->bo", x, self.hyper(z).unflatten(-1, (4, 5)) + self.base)


@pattern("a Parameter is added to a computed weight before the product", stays=("base",))
def hypernetwork():
    return Hyper(), (torch.randn(3, 4), torch.randn(3, 3))


class DeepPrompt(nn.Module):
    """Learned queries that attend to the input (Perceiver, DETR)."""

    def __init__(self) -> None:
        super().__init__()
        self.latents = nn.Parameter(torch.randn(3, 8))
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        latents = self.latents.expand(len(x), -1, -1)
        return latents + self.attention(latents, x, x, need_weights=False)[0]


@pattern("learned queries are inputs of the attention, not weights", stays=("latents",), stays_blind=())
def learned_queries():
    return DeepPrompt(), (torch.randn(2, 5, 8),)


class BiasedAttention(nn.Module):
    """A table of relative positions as the mask of a fused kernel, and a memory of keys and values."""

    def __init__(self) -> None:
        super().__init__()
        self.query = nn.Linear(4, 4)
        self.keys, self.values = nn.Parameter(torch.randn(6, 4)), nn.Parameter(torch.randn(6, 4))
        self.table = nn.Parameter(torch.randn(5, 6))

    def forward(self, x: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(self.query(x), self.keys, self.values, attn_mask=self.table)


@pattern("a position table as attn_mask, beside keys and values that are weights", stays=("table",))
def biased_attention():
    return BiasedAttention(), (torch.randn(2, 5, 4),)
