"""Channels that cannot be found or cut: what is refused, said, or kept right."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import bensemble
from bensemble.errors import ConversionError, InvalidValueError
from convert import bayesify, channel_groups, compact, compaction_report, to_deterministic

from .networks import Classifier, Residual
from .uncertain import IMAGES, assert_same, parameters, uncertain


def test_groups_of_another_model_are_refused():
    groups = channel_groups(uncertain(Classifier(nn.Sequential(Residual())), IMAGES), IMAGES)
    other = bayesify(nn.Sequential(nn.Linear(3, 3)))
    with pytest.raises(InvalidValueError, match=r"granularity names 'stem\.0\.weight', which has no posterior"):
        bensemble.prune(other, sparsity=0.5, granularity=groups)
    wider = Classifier(nn.Sequential(Residual()))
    wider.stem[0] = nn.Conv2d(3, 32, 3)
    with pytest.raises(
        InvalidValueError,
        match=r"'stem\.0\.weight' have shape \(16, 1, 1, 1\), got a weight of shape \(32, 3, 3, 3\)",
    ):
        bensemble.prune(bayesify(wider), sparsity=0.5, granularity=groups)


class Branching(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(3, 4), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.one(x)
        return self.two(hidden if hidden.sum() > 0 else -hidden)


def test_what_cannot_be_found_is_said():
    x = torch.randn(2, 3)
    with pytest.raises(ConversionError, match=r"Branching cannot be traced, got torch\.fx .*torch\.export"):
        channel_groups(bayesify(Branching(), example_inputs=x), x)
    with pytest.raises(InvalidValueError, match="channel_groups: Linear has no posteriors"):
        channel_groups(nn.Linear(3, 2), x)
    with pytest.raises(InvalidValueError, match="channel_groups: the model rejects example_inputs"):
        channel_groups(bayesify(nn.Sequential(nn.Linear(3, 2))), torch.randn(2, 4))


def halving(module, args, output):
    return output * 0.5


def adding(module, args):
    return (args[0] + 1,)


@pytest.mark.parametrize(
    ("register", "name"),
    [
        (lambda model: model[0].register_forward_hook(halving), "'0'"),
        (lambda model: model[1].register_forward_hook(halving), "'1'"),
        (lambda model: model[2].register_forward_pre_hook(adding), "'2'"),
        (lambda model: model.register_forward_hook(halving), "the model itself"),
    ],
    ids=["layer", "container", "before", "root"],
)
def test_hooks_that_change_outputs_are_named(register, name):
    model = nn.Sequential(nn.Linear(5, 10), nn.Sequential(nn.Linear(10, 10), nn.ReLU()), nn.Linear(10, 3)).eval()
    register(model)
    x, message = torch.randn(4, 5), f"without the hooks of {name}; put what they do into a forward"
    with pytest.raises(ConversionError, match=message):
        channel_groups(bayesify(model), x)
    assert message in compaction_report(model, x).notes[0]


class Positions(nn.Module):
    """Tables of positions, cut to the size of the input, as DETR's demo has them."""

    def __init__(self, cut):
        super().__init__()
        self.read, self.write, self.cut = nn.Linear(4, 8), nn.Linear(8, 2), cut
        self.table = nn.Parameter(torch.rand(20, 8))

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.read(x)
        return self.write(torch.relu(hidden + self.cut(self.table, hidden.shape[1])).mean(1))


CUTS = {
    "index": lambda table, size: table[:size],
    "transposed": lambda table, size: table.T[:, :size].T,
    "last": lambda table, size: table[-size:],
    "narrow": lambda table, size: table.narrow(0, 0, size),
    "in steps": lambda table, size: table[: 2 * size : 2],
}


@pytest.mark.parametrize("kind", CUTS)
def test_a_table_cut_to_the_size_of_the_input_is_followed(kind):
    model, x = Positions(CUTS[kind]).eval(), torch.randn(2, 7, 4)
    bnn = uncertain(model, x, include=["read", "table", "write"])
    groups = channel_groups(bnn, x)
    assert not groups.notes
    pruned = to_deterministic(bnn, sparsity=0.5, granularity=groups)
    small = compact(pruned, x)
    assert parameters(small) < parameters(pruned)
    for length in (7, 5, 9):
        assert_same(small, pruned, torch.randn(3, length, 4))


class Cut(nn.Module):
    """Channels taken by an index of a computed size."""

    def __init__(self, cut):
        super().__init__()
        self.read, self.write, self.cut = nn.Linear(5, 12), nn.Linear(6, 2), cut

    def forward(self, x: Tensor) -> Tensor:
        return self.write(self.cut(torch.relu(self.read(x))))


@pytest.mark.parametrize(
    "cut", [lambda h: h[:, : h.shape[1] // 2] * h[:, h.shape[1] // 2 :], lambda h: h[:, :: h.shape[1] // 6]]
)
def test_channels_cut_to_a_computed_size_stay_right(cut):
    model, x = Cut(cut).eval(), torch.randn(3, 5)
    with torch.no_grad():
        model.read.weight[:4], model.read.bias[:4] = 0, 0
    assert_same(compact(model, x), model, torch.randn(7, 5))
    channel_groups(bayesify(model), x)


class TiedAutoencoder(nn.Module):
    """Encodes with a weight, and decodes with its transpose."""

    def __init__(self, convolutional: bool) -> None:
        super().__init__()
        make = (lambda i, o: nn.Conv2d(i, o, 3)) if convolutional else nn.Linear
        self.first, self.encode, self.last = make(3, 8), make(8, 5), make(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x).relu()
        code, weight = self.encode(x).relu(), self.encode.weight
        if weight.ndim == 4:
            return self.last(nn.functional.conv_transpose2d(code, weight).relu())
        return self.last(nn.functional.linear(code, weight.t()).relu())


@pytest.mark.parametrize("convolutional", [True, False])
def test_a_weight_that_is_also_used_transposed_stays_whole(convolutional):
    model, x = TiedAutoencoder(convolutional).eval(), torch.randn(4, 3, *([7, 7] if convolutional else []))
    groups = channel_groups(bayesify(model), x)
    with torch.no_grad():
        model.first.weight[:3], model.encode.weight[:2] = 0, 0
    assert_same(compact(model, x), model, x)
    assert str(groups).startswith("0 groups")


class Deciding(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 3)

    def forward(self, x):
        x = self.layer(x)
        if x.sum() > 0:
            return x
        return -x


def test_where_no_graph_can_be_made_the_line_is_named():
    notes = compaction_report(Deciding(), torch.randn(2, 4)).notes
    for source, note in zip(("fx", "export"), notes, strict=True):
        assert note.startswith(f"torch.{source} cannot trace it at test_channels_kept.py:"), note
        assert "`if x.sum() > 0:`" in note
