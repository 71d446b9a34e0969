"""Architectures from papers, each small, with the one line that makes it unlike a stack of layers."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .table import pattern


class SpectralConv(nn.Module):
    """Complex weights stored as pairs of real numbers (Fourier neural operator)."""

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.skip = nn.Parameter(torch.randn(3, 3, 4, 2)), nn.Conv1d(3, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        modes = torch.fft.rfft(x)[..., :4]
        mixed = torch.einsum("bim,iom->bom", modes, torch.view_as_complex(self.weight))
        return torch.fft.irfft(mixed, n=x.shape[-1]) + self.skip(x)


@pattern("a real Parameter that is viewed as complex and multiplies a spectrum")
def fourier_operator():
    return SpectralConv(), (torch.randn(2, 3, 10),)


class SplineLayer(nn.Module):
    """A Kolmogorov-Arnold layer: coefficients of basis functions on every edge."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.base_weight = nn.Parameter(torch.randn(outputs, inputs))
        self.spline_weight, self.scaler = (
            nn.Parameter(torch.randn(outputs, inputs, 5)),
            nn.Parameter(torch.ones(outputs, inputs)),
        )
        self.register_buffer("grid", torch.linspace(-2, 2, 5))

    def forward(self, x: Tensor) -> Tensor:
        basis = torch.exp(-((x[..., None] - self.grid) ** 2))
        spline = self.spline_weight * self.scaler[..., None]
        return F.linear(F.silu(x), self.base_weight) + F.linear(basis.flatten(1), spline.flatten(1))


@pattern("Kolmogorov-Arnold layers: two weights multiplied, flattened, and used through F.linear")
def kolmogorov_arnold():
    return nn.Sequential(SplineLayer(4, 5), SplineLayer(5, 2)), (torch.randn(3, 4),)


class Coupling(nn.Module):
    """An invertible flow: masked couplings, and a matrix whose log determinant is an output."""

    def __init__(self) -> None:
        super().__init__()
        self.matrix = nn.Parameter(torch.eye(4) + 0.1 * torch.randn(4, 4))
        self.net = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 8))
        self.register_buffer("mask", torch.tensor([1.0, 0.0, 1.0, 0.0]))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        shift, scale = self.net(x * self.mask).chunk(2, -1)
        x = x * self.mask + (1 - self.mask) * (x * torch.exp(torch.tanh(scale)) + shift)
        return x @ self.matrix, torch.slogdet(self.matrix)[1] + (torch.tanh(scale) * (1 - self.mask)).sum(-1)


@pattern("a normalising flow: the matrix also reaches the output through its log determinant")
def normalising_flow():
    return Coupling(), (torch.randn(3, 4),)


class GraphAttention(nn.Module):
    """Messages along edges, gathered by index_add, weighted by a learned vector of attention."""

    def __init__(self) -> None:
        super().__init__()
        self.project, self.att = nn.Linear(4, 6, bias=False), nn.Parameter(torch.randn(1, 2, 3))
        self.edge_mlp = nn.Linear(2, 2)

    def forward(self, x: Tensor, edges: Tensor, attributes: Tensor) -> Tensor:
        h = self.project(x).view(-1, 2, 3)
        scores = ((h[edges[0]] + h[edges[1]]) * self.att).sum(-1) + self.edge_mlp(attributes)
        weights = torch.exp(F.leaky_relu(scores))
        total = torch.zeros(len(x), 2).index_add(0, edges[1], weights)
        out = torch.zeros_like(h).index_add(0, edges[1], h[edges[0]] * weights[..., None])
        return (out / total.clamp_min(1e-6)[..., None]).flatten(1)


@pattern("graph attention: scatter by index, and a vector of attention in the shape of a tensor", stays_blind=("att",))
def graph_attention():
    edges = torch.tensor([[0, 1, 2, 3, 0], [1, 2, 3, 0, 2]])
    return GraphAttention(), (torch.randn(4, 4), edges, torch.randn(5, 2))


class SharedTrunk(nn.Module):
    """Actor and critic on one trunk; the policy is a distribution object."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk, self.policy, self.value = nn.Linear(4, 6), nn.Linear(6, 2), nn.Linear(6, 1)
        self.log_std = nn.Parameter(torch.zeros(1, 2))

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        h = torch.tanh(self.trunk(x))
        policy = torch.distributions.Normal(self.policy(h), self.log_std.exp().expand(len(x), 2))
        return {"mean": policy.mean, "entropy": policy.entropy(), "value": self.value(h).squeeze(-1)}


@pattern("actor and critic on one trunk, with a distribution between them and the outputs")
def actor_critic():
    return SharedTrunk(), (torch.randn(3, 4),)


class Adversaries(nn.Module):
    """Generator and discriminator in one module, called alternately, the latter on two inputs."""

    def __init__(self) -> None:
        super().__init__()
        self.generator = nn.Sequential(nn.ConvTranspose1d(2, 3, 4), nn.ReLU(), nn.Conv1d(3, 1, 1))
        self.discriminator = nn.Sequential(nn.Conv1d(1, 3, 3), nn.LeakyReLU(), nn.Flatten(), nn.Linear(12, 1))

    def forward(self, real: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
        fake = self.generator(z)
        return self.discriminator(real), self.discriminator(fake)


@pattern("a generator and a discriminator that is called twice in a forward")
def adversaries():
    return Adversaries(), (torch.randn(2, 1, 6), torch.randn(2, 2, 3))


class TripletNetwork(nn.Module):
    """One trunk on three inputs, compared by distance."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk, self.head = nn.GRU(3, 4, batch_first=True), nn.Linear(4, 3)

    def embed(self, x: Tensor) -> Tensor:
        return F.normalize(self.head(self.trunk(x)[0][:, -1]), dim=-1)

    def forward(self, anchor: Tensor, positive: Tensor, negative: Tensor) -> Tensor:
        a = self.embed(anchor)
        return torch.cdist(a, self.embed(positive)) - torch.cdist(a, self.embed(negative))


@pattern("a recurrent trunk called three times, compared by distance")
def triplets():
    return TripletNetwork(), tuple(torch.randn(2, 4, 3) for _ in range(3))


class Solver(nn.Module):
    """A neural ODE: the field is a function handed to a solver, which calls it many times."""

    def __init__(self) -> None:
        super().__init__()
        self.field = nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 3))
        self.drift = nn.Parameter(0.1 * torch.randn(3, 3))

    def forward(self, x: Tensor) -> Tensor:
        def slope(time: float, state: Tensor) -> Tensor:
            return self.field(state) + time * state @ self.drift

        for step in range(4):
            half = x + 0.05 * slope(0.1 * step, x)
            x = x + 0.1 * slope(0.1 * step + 0.05, half)
        return x


@pattern("a neural ODE: a closure over the module, called eight times by a solver")
def neural_ode():
    return Solver(), (torch.randn(2, 3),)


class FixedPoint(nn.Module):
    """A deep equilibrium: solved without gradients, then one more step with them."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.inject = nn.Linear(4, 4), nn.Linear(3, 4)

    def forward(self, x: Tensor) -> Tensor:
        u = self.inject(x)
        z = torch.zeros_like(u)
        with torch.no_grad():
            for _ in range(5):
                z = torch.tanh(0.3 * self.inner(z) + u)
        return torch.tanh(0.3 * self.inner(z) + u)


@pattern("a deep equilibrium: most calls run without gradients")
def equilibrium():
    return FixedPoint(), (torch.randn(2, 3),)


class DynamicConv(nn.Module):
    """The kernel is a mixture of kernels, chosen by the input."""

    def __init__(self) -> None:
        super().__init__()
        self.kernels, self.router = nn.Parameter(torch.randn(3, 4, 2, 3)), nn.Linear(2, 3)

    def forward(self, x: Tensor) -> Tensor:
        chosen = self.router(x.mean(-1)).softmax(-1) @ self.kernels.flatten(1)
        kernel = chosen.view(-1, 2, 3)
        return F.conv1d(x.reshape(1, -1, x.shape[-1]), kernel, groups=len(x)).view(len(x), 4, -1)


@pattern("kernels mixed by the data before a grouped convolution")
def dynamic_conv():
    return DynamicConv(), (torch.randn(2, 2, 7),)


class TensorTrain(nn.Module):
    """A matrix held as a chain of three-dimensional cores."""

    def __init__(self) -> None:
        super().__init__()
        self.cores = nn.ParameterList([nn.Parameter(torch.randn(1, 4, 3)), nn.Parameter(torch.randn(3, 4, 1))])
        self.left, self.right = nn.Parameter(torch.randn(3, 2)), nn.Parameter(torch.randn(2, 2))

    def forward(self, x: Tensor) -> Tensor:
        whole = torch.einsum("aib,bjc->ijac", *self.cores).reshape(4, 4)
        return (x @ whole).unflatten(-1, (2, 2)).flatten(1) @ torch.kron(self.left, self.right).t().reshape(4, 6)


@pattern("a matrix as a chain of cores, another as a Kronecker product")
def tensor_train():
    return TensorTrain(), (torch.randn(3, 4),)


class SliceableLinear(nn.Linear):
    """Uses as much of its weight as it is told (once-for-all, slimmable and Matryoshka networks)."""

    width = 3

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight[: self.width, : x.shape[-1]], self.bias[: self.width])


@pattern("a slice of the weight is used, as wide as the input and a setting say")
def sliced_linear():
    return nn.Sequential(SliceableLinear(6, 5), SliceableLinear(4, 3)), (torch.randn(2, 4),)


class Generator(nn.Module):
    """A hypernetwork: one network writes the weights of another for each example."""

    def __init__(self) -> None:
        super().__init__()
        self.writer, self.embeddings = nn.Linear(3, 4 * 2 + 2), nn.Embedding(5, 3)

    def forward(self, x: Tensor, task: Tensor) -> Tensor:
        written = self.writer(self.embeddings(task))
        weight, bias = written[:, :8].view(-1, 2, 4), written[:, 8:]
        return torch.baddbmm(bias[:, None], x[:, None], weight.transpose(1, 2))[:, 0]


@pattern("a hypernetwork: the weights of an operation are the output of a layer", stays=("embeddings.weight",))
def hypernetwork_of_tasks():
    return Generator(), (torch.randn(3, 4), torch.tensor([0, 4, 2]))


class Codebook(nn.Module):
    """A vector-quantised bottleneck with a straight-through estimator."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.decoder, self.codes = nn.Linear(4, 3), nn.Linear(3, 4), nn.Embedding(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        z = self.encoder(x)
        nearest = self.codes(torch.cdist(z, self.codes.weight).argmin(-1))
        return self.decoder(z + (nearest - z).detach()) + z.mean(-1, keepdim=True)


@pattern("a codebook: nearest neighbours and straight-through gradients", stays=("codes.weight",))
def codebook():
    return Codebook(), (torch.randn(3, 4),)


class Capsules(nn.Module):
    """Routing by agreement: a loop over softmaxes of products with a four-dimensional weight."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(5, 2, 3, 4) / math.sqrt(4))

    def forward(self, u: Tensor) -> Tensor:
        votes = torch.einsum("iodk,bik->biod", self.weight, u)
        logits = torch.zeros(votes.shape[:3])
        for _ in range(3):
            out = (logits.softmax(2)[..., None] * votes).sum(1)
            logits = logits + (votes * out[:, None]).sum(-1)
        return out


@pattern("capsules: four-dimensional weights and a loop that routes")
def capsules():
    return Capsules(), (torch.randn(2, 5, 4),)


class ConvRecurrent(nn.Module):
    """A recurrent cell made of convolutions, whose output is split into gates."""

    def __init__(self) -> None:
        super().__init__()
        self.gates, self.peephole = nn.Conv2d(3, 8, 3, padding=1), nn.Parameter(torch.randn(2, 4, 4))

    def forward(self, frames: Tensor) -> Tensor:
        h = c = frames.new_zeros(len(frames), 2, 4, 4)
        for frame in frames.unbind(1):
            i, f, g, o = self.gates(torch.cat([frame, h], 1)).chunk(4, 1)
            c = torch.sigmoid(f + self.peephole * c) * c + torch.sigmoid(i) * torch.tanh(g)
            h = torch.sigmoid(o) * torch.tanh(c)
        return h


@pattern("a convolutional LSTM with peepholes, an elementwise weight in three dimensions")
def conv_lstm():
    return ConvRecurrent(), (torch.randn(2, 3, 1, 4, 4),)


class DeepAndWide(nn.Module):
    """Tables for categories, their pairwise products, and a linear part beside a deep one."""

    def __init__(self) -> None:
        super().__init__()
        self.tables = nn.ModuleList([nn.EmbeddingBag(4, 3, mode="sum") for _ in range(2)])
        self.bottom, self.top, self.wide = nn.Linear(5, 3), nn.Linear(6, 1), nn.Linear(5, 1, bias=False)

    def forward(self, x: Tensor, categories: Tensor) -> Tensor:
        parts = [self.bottom(x), *(table(c[:, None]) for table, c in zip(self.tables, categories.t(), strict=True))]
        stacked = torch.stack(parts, 1)
        first, second = torch.triu_indices(3, 3, 1)
        pairs = (stacked @ stacked.transpose(1, 2))[:, first, second]
        return torch.sigmoid(self.top(torch.cat([parts[0], pairs], 1)) + self.wide(x))


@pattern("a recommender: tables, pairwise products, wide and deep", stays=("tables.0.weight", "tables.1.weight"))
def recommender():
    return DeepAndWide(), (torch.randn(3, 5), torch.randint(0, 4, (3, 2)))
