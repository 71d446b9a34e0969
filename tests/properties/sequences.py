"""The layers of random networks that mix positions: attention and recurrence."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .recipes import CELLS, Layout

__all__ = ["make_sequence_layer"]


def make_sequence_layer(kind: str, layout: Layout, width: int, bias: bool) -> nn.Module:
    """A layer of any kind in ATTENTION, RECURRENT or CELLS, or a table of positions."""
    if kind == "positions":
        return Positions(layout.size, width)
    if kind == "encoder":
        return nn.TransformerEncoderLayer(
            width, 2, 2 * width, dropout=0.1, batch_first=True, norm_first=width == 4, bias=bias
        )
    if kind in CELLS:
        return (Loop if layout.kind == "sequence" else Step)(kind, layout.width, width, bias)
    made = {"attention": SelfAttention, "handmade_attention": HandmadeAttention, "pooled_attention": PooledAttention}
    return made[kind](width, bias) if kind in made else Recurrent(kind, layout.width, width, bias)


class Positions(nn.Module):
    """A learnt table of positions that is added."""

    def __init__(self, size: int, width: int) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.randn(1, size, width))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.table


class SelfAttention(nn.Module):
    """torch's own multi-head attention."""

    def __init__(self, width: int, bias: bool) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(width, 2, bias=bias, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.attention(x, x, x, need_weights=False)[0]


class HandmadeAttention(nn.Module):
    """Attention as people write it: one raw in-projection through ``F.linear``, heads, an out-projection."""

    def __init__(self, width: int, bias: bool) -> None:
        super().__init__()
        self.qkv = nn.Parameter(torch.randn(3 * width, width) / width**0.5)
        self.qkv_bias = nn.Parameter(torch.randn(3 * width)) if bias else None
        self.out = nn.Linear(width, width, bias)

    def forward(self, x: Tensor) -> Tensor:
        batch, size, width = x.shape
        heads = F.linear(x, self.qkv, self.qkv_bias).reshape(batch, size, 3, 2, width // 2)
        query, key, value = heads.permute(2, 0, 3, 1, 4).unbind(0)
        mixed = F.scaled_dot_product_attention(query, key, value)
        return self.out(mixed.transpose(1, 2).reshape(batch, size, width))


class PooledAttention(nn.Module):
    """Two learnt queries read the sequence; what they find is added to every position."""

    def __init__(self, width: int, bias: bool) -> None:
        super().__init__()
        self.queries = nn.Parameter(torch.randn(1, 2, width))
        self.attention = nn.MultiheadAttention(width, 2, bias=bias, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        found, _ = self.attention(self.queries.expand(x.shape[0], -1, -1), x, x)
        return x + found.mean(1, keepdim=True)


class Recurrent(nn.Module):
    """LSTM, GRU or RNN, also of two layers in two directions, and with a projection."""

    def __init__(self, kind: str, given: int, width: int, bias: bool) -> None:
        super().__init__()
        if kind == "bidirectional":
            self.net = nn.GRU(given, width // 2, num_layers=2, bias=bias, batch_first=True, bidirectional=True)
        elif kind == "projected_lstm":
            self.net = nn.LSTM(given, 2 * width, bias=bias, batch_first=True, proj_size=width)
        else:
            make = {"lstm": nn.LSTM, "gru": nn.GRU, "rnn": nn.RNN}[kind]
            self.net = make(given, width, bias=bias, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)[0]


class Step(nn.Module):
    """One step of a cell."""

    def __init__(self, kind: str, given: int, width: int, bias: bool) -> None:
        super().__init__()
        self.cell = {"lstm_cell": nn.LSTMCell, "gru_cell": nn.GRUCell, "rnn_cell": nn.RNNCell}[kind](given, width, bias)
        self.is_lstm = kind == "lstm_cell"

    def forward(self, x: Tensor) -> Tensor:
        return self.cell(x)[0] if self.is_lstm else self.cell(x)


class Loop(Step):
    """A cell in a Python loop over time, which torch.fx does not follow."""

    def forward(self, x: Tensor) -> Tensor:
        state, found = None, []
        for step in x.unbind(1):
            state = self.cell(step, state)
            found.append(state[0] if self.is_lstm else state)
        return torch.stack(found, 1)
