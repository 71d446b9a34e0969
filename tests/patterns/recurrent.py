"""Recurrent networks: weights in a list beside the parameters, and cells called in a loop."""

from __future__ import annotations

import warnings

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from .table import pattern


@pattern("all layers, both directions, projections: sixteen weights in a list that forward reads")
def lstm():
    return nn.LSTM(6, 4, 2, bidirectional=True, proj_size=3, batch_first=True), (torch.randn(2, 5, 6),)


@pattern("no biases")
def gru():
    return nn.GRU(6, 4, 2, bias=False), (torch.randn(5, 2, 6),)


@pattern("the kernel depends on the nonlinearity")
def rnn():
    return nn.RNN(6, 4, nonlinearity="relu", batch_first=True), (torch.randn(2, 5, 6),)


class Packed(nn.Module):
    """An LSTM over sequences of different lengths."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(6, 4, batch_first=True)
        self.head = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        packed = pack_padded_sequence(x, torch.tensor([5, 3]), batch_first=True)
        output, _ = pad_packed_sequence(self.lstm(packed)[0], batch_first=True)
        return self.head(output)


@pattern("packed sequences reach the kernel by another way")
def lstm_packed():
    return Packed(), (torch.randn(2, 5, 6),)


class CellLoop(nn.Module):
    """Three kinds of cells, each called once for every step."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm, self.gru, self.rnn = nn.LSTMCell(4, 4), nn.GRUCell(4, 4), nn.RNNCell(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        state = (x.new_zeros(x.shape[0], 4), x.new_zeros(x.shape[0], 4))
        hidden = other = x.new_zeros(x.shape[0], 4)
        for step in x.unbind(1):
            state = self.lstm(step, state)
            hidden = self.gru(state[0], hidden)
            other = self.rnn(hidden, other)
        return other


@pattern("cells called in a Python loop")
def cells():
    return CellLoop(), (torch.randn(2, 3, 4),)


class InitialState(nn.Module):
    """A GRU with a learned state to start from."""

    def __init__(self) -> None:
        super().__init__()
        self.h0 = nn.Parameter(torch.randn(2, 1, 4))
        self.gru = nn.GRU(6, 4, num_layers=2, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.gru(x, self.h0.expand(-1, x.shape[0], -1).contiguous())[0]


@pattern("a learned initial state reaches the same kernel as the weights do", stays=("h0",))
def learned_state():
    return InitialState(), (torch.randn(2, 5, 6),)


class OwnLSTM(nn.LSTM):
    """A subclass that reads its weights by name."""

    def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
        return super().forward(x)[0] + x @ self.weight_ih_l0.t()[:, : self.hidden_size]


@pattern("a subclass of LSTM that also reads a weight itself")
def lstm_subclass():
    return OwnLSTM(6, 4, batch_first=True), (torch.randn(2, 5, 6),)


class DroppedHidden(nn.Module):
    """The hidden weights of an LSTM recomputed before each call (AWD-LSTM)."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(6, 4, batch_first=True)
        raw = self.lstm.weight_hh_l0
        del self.lstm._parameters["weight_hh_l0"]
        self.lstm.weight_hh_l0 = raw.data.clone()
        self.weight_hh_l0_raw = nn.Parameter(raw.data)

    def forward(self, x: Tensor) -> Tensor:
        self.lstm.weight_hh_l0 = self.weight_hh_l0_raw * 0.9
        self.lstm._flat_weights = [getattr(self.lstm, name) for name in self.lstm._flat_weights_names]
        return self.lstm(x)[0]


@pattern("a weight that the owner writes into the module, and into its list, before every call")
def weight_drop():
    return DroppedHidden(), (torch.randn(2, 5, 6),)


@pattern("legacy weight_norm writes into the list of weights from a hook")
def lstm_weight_norm():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return nn.utils.weight_norm(nn.LSTM(6, 4, batch_first=True), "weight_hh_l0"), (torch.randn(2, 5, 6),)


class Bidirectional(nn.Module):
    """Two directions by hand: one module twice, on flipped inputs."""

    def __init__(self) -> None:
        super().__init__()
        self.cell = nn.GRU(6, 4, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.cell(x)[0], self.cell(x.flip(1))[0].flip(1)], -1)


@pattern("one recurrent module called twice in a forward")
def gru_called_twice():
    return Bidirectional(), (torch.randn(2, 5, 6),)
