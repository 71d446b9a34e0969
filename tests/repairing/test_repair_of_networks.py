"""``repair`` of networks as people have them, and what it refuses."""

import copy

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, prune

from bensemble.errors import ConversionError, InvalidTypeError, InvalidValueError
from convert import bayesify, repair, repair_report, to_deterministic

from .pruned import IMAGES, ROWS, error, network, without


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding, self.body, self.head = nn.Embedding(11, 8), nn.Linear(8, 8), nn.Linear(8, 11, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, tokens):
        return self.head(self.body(self.body(self.embedding(tokens)).relu()))


def test_shared_layers_are_solved_once_and_tied_ones_left():
    model = Tied()
    batches = [torch.randint(0, 11, (16, 6)) for _ in range(10)]
    report = repair_report(without(model, 0.5), model, batches)
    assert {row.name: row.note for row in report.rows} == {
        "body.weight": "",
        "head.weight": "shared with 'embedding.weight'",
    }


def test_masks_of_torch_stay():
    model = network()
    pruned = copy.deepcopy(model)
    for layer in (pruned[0], pruned[2], pruned[4]):
        prune.l1_unstructured(layer, "weight", 0.5)
    repaired = repair(pruned, model, ROWS)
    assert error(repaired, model, ROWS) < 0.8 * error(pruned, model, ROWS)
    for before, after in zip(pruned[::2], repaired[::2], strict=True):
        assert torch.equal(before.weight_mask, after.weight_mask)
        assert torch.equal(before.weight_orig[before.weight_mask == 0], after.weight_orig[before.weight_mask == 0])


def test_computed_and_unreached_weights_are_left_and_named():
    class Branches(nn.Module):
        def __init__(self):
            super().__init__()
            self.used, self.spare = nn.Linear(8, 4), nn.Linear(8, 4)
            self.normed = parametrizations.weight_norm(nn.Linear(4, 4))

        def forward(self, x):
            return self.normed(self.used(x))

    model = Branches()
    pruned = copy.deepcopy(model)
    pruned.used.weight.data[:, :4] = 0
    notes = {row.name: row.note for row in repair_report(pruned, model, ROWS).rows}
    assert notes == {
        "used.weight": "", "spare.weight": "not reached by these inputs", "normed.weight": "computed in every forward"
    }  # fmt: skip


def test_a_layer_of_another_forward_is_left():
    class Scaled(nn.Linear):
        def forward(self, x):
            return super().forward(x) * x.abs().mean()

    model = nn.Sequential(Scaled(8, 4), nn.Linear(4, 2))
    rows = repair_report(without(model, 0.5), model, ROWS).rows
    assert [row.note for row in rows] == ["its outputs are not its inputs times its weight", ""]


class Routed(nn.Module):
    """An expert sees the rows that a gate sends to it."""

    def __init__(self):
        super().__init__()
        self.gate, self.expert, self.head = nn.Linear(8, 1), nn.Linear(8, 8), nn.Linear(8, 3)

    def forward(self, x):
        chosen = self.gate(x).squeeze(1) > 0
        x = x.clone()
        x[chosen] = self.expert(x[chosen]).relu()
        return self.head(x)


def test_an_expert_that_sees_other_examples_is_left():
    model = Routed()
    pruned = without(model, 0.7)
    batches = [torch.randn(64, 8) for _ in range(10)]
    rows = {row.name: row.note for row in repair_report(pruned, model, batches).rows}
    assert rows["expert.weight"] == "it sees other examples than in the original"
    assert rows["head.weight"] == ""
    assert torch.equal(repair(pruned, model, batches).expert.weight, pruned.expert.weight)


def test_inputs_of_a_mapping_frozen_layers_and_other_dtypes():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = nn.Linear(8, 16), nn.Linear(16, 3).to(torch.bfloat16)

        def forward(self, image, scale):
            return self.second((self.first(image) * scale).relu().bfloat16()).float()

    model = Net()
    model.first.requires_grad_(False)
    batches = [{"image": x, "scale": torch.ones(64, 1), "label": torch.zeros(64)} for x in ROWS]
    pruned = without(model, 0.5)
    repaired = repair(pruned, model, batches)
    assert repaired.second.weight.dtype == torch.bfloat16
    assert [p.requires_grad for p in repaired.parameters()] == [False, False, True, True]

    def off(network):
        return sum((network(b["image"], b["scale"]) - model(b["image"], b["scale"])).square().sum() for b in batches)

    assert off(repaired) < 0.8 * off(pruned)


def test_operations_in_place_do_not_change_what_was_seen():
    plain = nn.Sequential(nn.Conv2d(4, 6, 3), nn.ReLU(), nn.Conv2d(6, 3, 3))
    inplace = copy.deepcopy(plain)
    inplace[1] = nn.ReLU(inplace=True)
    one = repair(without(plain, 0.5), plain, IMAGES)
    other = repair(without(inplace, 0.5), inplace, IMAGES)
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))


def test_the_whole_chain():
    model = network()
    pruned = to_deterministic(bayesify(model, init_sigma=0.05), threshold=1.5)
    repaired = repair(pruned, model, torch.utils.data.DataLoader(torch.cat(ROWS), 50, shuffle=True))
    assert error(repaired, model, ROWS) < error(pruned, model, ROWS)
    assert "weights repaired in" in str(repair_report(pruned, model, ROWS))


def test_flags_random_state_and_progress():
    model, steps = network().train(), []
    pruned = without(model, 0.5)
    pruned[0].eval()
    state = torch.get_rng_state()
    repaired = repair(pruned, model, ROWS, progress=lambda done, total: steps.append((done, total)))
    assert torch.equal(torch.get_rng_state(), state)
    assert steps == [(1, 3), (2, 3), (3, 3)]
    assert [m.training for m in repaired.modules()] == [m.training for m in pruned.modules()]
    assert model.training


@pytest.mark.parametrize(
    ("arguments", "kind", "message"),
    [
        ((bayesify(network()), network(), ROWS), ConversionError, "pruned must be a plain network, got a Bayesian Seq"),
        ((network(), bayesify(network()), ROWS), ConversionError, "first to_deterministic, then repair, then compact"),
        ((network(), network()[:3], ROWS), InvalidValueError, r"'4.weight' must have the shape .* got \(3, 24\) inst"),
        ((network()[:3], nn.Sequential(nn.Linear(8, 30), nn.ReLU(), nn.Linear(30, 24)), ROWS), InvalidValueError,
         r"'0.weight' must have the shape that it has in the original, got \(32, 8\) instead of \(30, 8\)"),
        ((network(), network(), ROWS[0]), InvalidTypeError, "loader must give batches, got Tensor; wrap the inputs"),
        ((network(), network(), iter(ROWS)), InvalidTypeError, "read once for each layer, got list_iterator"),
        ((network(), without(network(), 0.5), ROWS), InvalidValueError, "comes first, .*more zeros in the second"),
        ((network(), network(), [*ROWS, ROWS[0] * torch.nan]), InvalidValueError, "inputs must be finite, got nan"),
        ((network(), network(), []), InvalidValueError, "loader must give batches in every pass, got none"),
    ],
)  # fmt: skip
def test_refusals(arguments, kind, message):
    with pytest.raises(kind, match=message):
        repair(*arguments)


def test_damping_is_a_number():
    with pytest.raises(InvalidValueError, match="repair: damping must be finite and at least 0, got -1"):
        repair(network(), network(), ROWS, damping=-1)
