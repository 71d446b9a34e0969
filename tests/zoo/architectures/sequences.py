"""Networks for sequences: recurrent, attention, convolutional."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations
from torch.utils.checkpoint import checkpoint


class Tagger(nn.Module):
    """Embedding, a bidirectional LSTM of two layers with projections, a Linear head."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(40, 12, padding_idx=0)
        self.rnn = nn.LSTM(12, 10, 2, batch_first=True, bidirectional=True, dropout=0.1, proj_size=6)
        self.head = nn.Linear(12, 5)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(self.rnn(self.embedding(tokens))[0])


class PackedClassifier(nn.Module):
    """A GRU over packed sequences of different lengths."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn = nn.GRU(6, 8, 2)
        self.head = nn.Linear(8, 3)

    def forward(self, sequence: Tensor, lengths: Tensor) -> Tensor:
        packed = nn.utils.rnn.pack_padded_sequence(sequence, lengths, enforce_sorted=False)
        return self.head(self.rnn(packed)[1][-1])


class Elman(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.rnn = nn.RNN(4, 8, nonlinearity="relu", bias=False)
        self.head = nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.rnn(x)[0][-1])


class CellDecoder(nn.Module):
    """LSTMCell, GRUCell and RNNCell stepped by hand, with attention over the inputs."""

    def __init__(self) -> None:
        super().__init__()
        self.cells = nn.ModuleList([nn.LSTMCell(8, 8), nn.GRUCell(8, 8), nn.RNNCell(8, 8)])
        self.score = nn.Parameter(torch.randn(8, 8) / 3)
        self.head = nn.Linear(16, 6)

    def forward(self, memory: Tensor) -> Tensor:
        state = memory.new_zeros(memory.shape[0], 8)
        cell, outputs = state, []
        for step in range(memory.shape[1]):
            state, cell = self.cells[0](memory[:, step], (state, cell))
            state = self.cells[2](memory[:, step], self.cells[1](memory[:, step], state))
            weights = torch.softmax(torch.einsum("bh,hk,btk->bt", state, self.score, memory), dim=1)
            outputs.append(self.head(torch.cat([state, (weights[:, :, None] * memory).sum(1)], dim=1)))
        return torch.stack(outputs, dim=1)


class Encoder(nn.Module):
    """nn.TransformerEncoder: fused in eval without gradients."""

    def __init__(self, norm_first: bool = False) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(16, 4, 32, 0.1, "gelu", batch_first=True, norm_first=norm_first)
        self.encoder = nn.TransformerEncoder(layer, 2, nn.LayerNorm(16), enable_nested_tensor=False)
        self.head = nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.encoder(x).mean(1))


class Seq2Seq(nn.Module):
    """nn.Transformer with a causal mask."""

    def __init__(self) -> None:
        super().__init__()
        self.source, self.target = nn.Embedding(30, 16), nn.Embedding(30, 16)
        self.transformer = nn.Transformer(16, 2, 1, 1, 32, batch_first=True)
        self.head = nn.Linear(16, 30)

    def forward(self, source: Tensor, target: Tensor) -> Tensor:
        mask = nn.Transformer.generate_square_subsequent_mask(target.shape[1])
        return self.head(self.transformer(self.source(source), self.target(target), tgt_mask=mask, tgt_is_causal=True))


class CrossAttention(nn.Module):
    """nn.MultiheadAttention with separate projections, extra biases and returned weights."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(12, 3, kdim=6, vdim=10, add_bias_kv=True, batch_first=True)
        self.queries = nn.Parameter(torch.randn(4, 12))
        self.head = nn.Linear(12, 2)

    def forward(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        queries = self.queries.expand(keys.shape[0], -1, -1)
        mixed, weights = self.attention(queries, keys, values)
        return self.head(mixed), weights


class LanguageModel(nn.Module):
    """A small GPT: tied head, position table, causal attention by hand, checkpointed blocks."""

    def __init__(self, use_reentrant: bool = False) -> None:
        super().__init__()
        self.tokens, self.positions = nn.Embedding(50, 16), nn.Parameter(torch.zeros(1, 32, 16))
        self.blocks = nn.ModuleList([Block(16, 2) for _ in range(2)])
        self.norm = nn.LayerNorm(16)
        self.head = nn.Linear(16, 50, bias=False)
        self.head.weight = self.tokens.weight
        self.use_reentrant = use_reentrant

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.tokens(tokens) + self.positions[:, : tokens.shape[1]]
        for block in self.blocks:
            x = checkpoint(block, x, use_reentrant=self.use_reentrant) if self.training else block(x)
        return self.head(self.norm(x))


class Block(nn.Module):
    def __init__(self, size: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.mix, self.project = nn.Linear(size, 3 * size), nn.Linear(size, size)
        self.one, self.two = nn.LayerNorm(size), nn.RMSNorm(size)
        self.gate, self.up, self.down = (nn.Linear(size, 24), nn.Linear(size, 24), nn.Linear(24, size))

    def forward(self, x: Tensor) -> Tensor:
        batch, length, size = x.shape
        q, k, v = self.mix(self.one(x)).view(batch, length, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.project(mixed.transpose(1, 2).reshape(batch, length, size))
        hidden = self.two(x)
        return x + self.down(F.silu(self.gate(hidden)) * self.up(hidden))


class WaveNet(nn.Module):
    """Dilated causal convolutions with gates, weight norm as a parametrization."""

    def __init__(self) -> None:
        super().__init__()
        wrap = parametrizations.weight_norm
        self.start = nn.Conv1d(1, 8, 1)
        self.layers = nn.ModuleList([wrap(nn.Conv1d(8, 16, 2, dilation=2**i)) for i in range(3)])
        self.up = nn.ConvTranspose1d(8, 4, 4, 2, 1)

    def forward(self, wave: Tensor) -> Tensor:
        x = self.start(wave)
        for layer in self.layers:
            filtered, gate = layer(F.pad(x, (layer.dilation[0], 0))).chunk(2, dim=1)
            x = x + torch.tanh(filtered) * torch.sigmoid(gate)
        return self.up(x)


class StateSpace(nn.Module):
    """A selective state space layer, scanned by hand (Gu & Dao 2023)."""

    def __init__(self) -> None:
        super().__init__()
        self.A_log = nn.Parameter(torch.log(torch.arange(1, 5).float()).repeat(8, 1))
        self.D = nn.Parameter(torch.ones(8))
        self.inward, self.select, self.step = nn.Linear(8, 16), nn.Linear(8, 9, bias=False), nn.Linear(1, 8)
        self.outward = nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        inner, gate = self.inward(x).chunk(2, dim=-1)
        delta, b, c = self.select(inner).split([1, 4, 4], dim=-1)
        delta, a = F.softplus(self.step(delta)), -self.A_log.exp()
        state, outputs = x.new_zeros(x.shape[0], 8, 4), []
        for t in range(x.shape[1]):
            state = state * torch.exp(delta[:, t, :, None] * a) + (delta * inner)[:, t, :, None] * b[:, t, None]
            outputs.append((state * c[:, t, None]).sum(-1) + self.D * inner[:, t])
        return self.outward(torch.stack(outputs, 1) * F.silu(gate))


class Sinusoids(nn.Module):
    """Attention with a T5-like table of relative positions, read by index."""

    def __init__(self) -> None:
        super().__init__()
        self.relative_bias = nn.Parameter(torch.randn(2, 15))
        self.query, self.key, self.value = nn.Linear(8, 8, bias=False), nn.Linear(8, 8), nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        length = x.shape[1]
        q, k, v = (f(x).view(*x.shape[:2], 2, 4).transpose(1, 2) for f in (self.query, self.key, self.value))
        offsets = torch.arange(length)[:, None] - torch.arange(length)[None] + 7
        scores = q @ k.mT / math.sqrt(4) + self.relative_bias[:, offsets]
        return (scores.softmax(-1) @ v).transpose(1, 2).flatten(2)
