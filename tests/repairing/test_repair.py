"""Repair: zeros stay, the rest computes what the network computed before."""

import copy

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, prune
from torch.testing import assert_close

from bensemble.errors import ConversionError, InvalidTypeError, InvalidValueError
from convert import bayesify, compact, repair, repair_report, to_deterministic

# Features that depend on each other, as those of real data do: nothing else can be repaired.
MIXING = torch.randn(8, 8, generator=torch.Generator().manual_seed(1)) / torch.arange(1.0, 9.0)[:, None]
ROWS = [torch.randn(64, 8) @ MIXING for _ in range(10)]
IMAGES = [torch.randn(8, 4, 9, 9) for _ in range(10)]


def network():
    return nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 24), nn.ReLU(), nn.Linear(24, 3)).eval()


def without(model, share, seed=0):
    """A copy with a share of each weight removed, the smallest first."""
    model = copy.deepcopy(model)
    for weight in (p for p in model.parameters() if p.ndim > 1):
        smallest = weight.detach().abs().flatten().kthvalue(max(1, int(share * weight.numel()))).values
        weight.data[weight.abs() <= smallest] = 0
    return model


@torch.no_grad()
def error(model, other, batches):
    squared = [((model(x) - other(x)).square().sum(), other(x).square().sum()) for x in batches]
    return float(sum(off for off, _ in squared) / sum(size for _, size in squared))


def zeros_stay(before, after):
    pairs = zip(before.parameters(), after.parameters(), strict=True)
    return all(bool((b[a == 0] == 0).all()) for a, b in pairs if a.ndim > 1)


# -- what it computes


def test_what_is_left_computes_more_of_what_the_network_computed():
    model = network()
    pruned = without(model, 0.6)
    before = copy.deepcopy(pruned.state_dict())
    repaired = repair(pruned, model, ROWS)
    fresh = [torch.randn(64, 8) @ MIXING for _ in range(5)]
    assert error(repaired, model, fresh) < 0.6 * error(pruned, model, fresh)
    assert zeros_stay(pruned, repaired)
    assert all(torch.equal(before[name], tensor) for name, tensor in pruned.state_dict().items())


def test_each_output_has_the_least_squares_of_what_is_left():
    model = nn.Sequential(nn.Linear(8, 5)).double()
    pruned = without(model, 0.5)
    pruned[0].weight.data[2] = 0
    batches = [x.double() for x in ROWS]
    repaired, x = repair(pruned, model, batches[:1], damping=0.0), batches[0]
    for row in range(5):
        kept = torch.where(pruned[0].weight[row] != 0)[0]
        if len(kept) == 0:
            assert repaired[0].bias[row] == model[0].bias[row]  # a dead output keeps its bias
            continue
        design = torch.cat([x[:, kept], torch.ones(len(x), 1, dtype=x.dtype)], 1)
        best = torch.linalg.lstsq(design, model(x)[:, row]).solution
        assert_close(torch.cat([repaired[0].weight[row, kept], repaired[0].bias[row, None]]), best)


@pytest.mark.parametrize("kind", ["linear", "convolution"])
def test_channels_that_others_combine_lose_nothing(kind):
    if kind == "linear":
        model, batches = nn.Sequential(nn.Linear(8, 6), nn.Tanh(), nn.Linear(6, 4), nn.Linear(4, 3)), ROWS
    else:
        model, batches = (
            nn.Sequential(nn.Conv2d(4, 6, 3), nn.ReLU(), nn.Conv2d(6, 4, 1), nn.Conv2d(4, 3, 3, padding=1)),
            IMAGES,
        )
    with torch.no_grad():
        for tensor in model[2].parameters():
            tensor[3] = tensor[0] - 2 * tensor[1]
    pruned = copy.deepcopy(model)
    pruned[2].weight.data[3], pruned[3].weight.data[:, 3] = 0, 0
    repaired = repair(pruned, model, batches, damping=0.0)
    assert error(pruned, model, batches) > 1e-3
    assert error(repaired, model, batches) < 1e-10
    small = compact(repaired, batches[0])
    assert len(small[2].weight) == 3
    assert error(small, model, batches) < 1e-10


def test_nothing_removed_changes_nothing():
    model = network()
    same = repair(model, model, ROWS)
    assert all(torch.equal(a, b) for a, b in zip(same.parameters(), model.parameters(), strict=True))
    pruned = copy.deepcopy(model)
    pruned[4].weight.data[0, :9] = 0
    report = repair_report(pruned, model, ROWS)
    assert [row.note for row in report.rows] == ["nothing removed here or before"] * 2 + [""]
    assert torch.equal(repair(pruned, model, ROWS)[0].weight, model[0].weight)


# -- layers of all kinds

LAYERS = {
    "1d": (lambda: nn.Conv1d(4, 6, 3, stride=2, padding=1), torch.randn(8, 4, 11)),
    "2d": (lambda: nn.Conv2d(4, 6, (3, 2), stride=(2, 1), padding=(1, 0), dilation=(1, 2)), IMAGES[0]),
    "3d": (lambda: nn.Conv3d(4, 6, 2, bias=False), torch.randn(3, 4, 4, 5, 6)),
    "grouped": (lambda: nn.Conv2d(4, 8, 3, groups=2), IMAGES[0]),
    "depthwise": (lambda: nn.Conv2d(4, 4, 3, groups=4, padding="same"), IMAGES[0]),
    "same, even kernel": (lambda: nn.Conv2d(4, 6, (2, 4), padding="same", dilation=(2, 1)), IMAGES[0]),
    "valid": (lambda: nn.Conv2d(4, 6, 3, padding="valid"), IMAGES[0]),
    "reflected": (lambda: nn.Conv2d(4, 6, 3, padding=2, padding_mode="reflect"), IMAGES[0]),
    "circular": (lambda: nn.Conv1d(4, 6, 3, padding=1, padding_mode="circular"), torch.randn(8, 4, 11)),
    "transposed": (lambda: nn.ConvTranspose2d(4, 6, 3, stride=2, padding=1, output_padding=1), IMAGES[0]),
    "transposed, grouped": (lambda: nn.ConvTranspose1d(4, 6, 4, 3, groups=2, dilation=2), torch.randn(8, 4, 11)),
    "transposed, cut": (lambda: nn.ConvTranspose2d(4, 6, 2, stride=2, padding=2), IMAGES[0]),
    "one image": (lambda: nn.Conv2d(4, 6, 3), IMAGES[0][0]),
    "tokens": (lambda: nn.Linear(9, 5), IMAGES[0]),
    "no bias": (lambda: nn.Linear(9, 5, bias=False), IMAGES[0]),
}


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")
@pytest.mark.parametrize("case", LAYERS)
def test_a_layer_finds_itself_again(case):
    """From moved weights, the least squares of the outputs are the weights."""
    make, x = LAYERS[case]
    model = nn.Sequential(make()).double()
    moved = copy.deepcopy(model)
    for parameter in moved.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    moved[0].weight.data.view(-1)[0] = 0
    model[0].weight.data.view(-1)[0] = 0
    batches = [torch.randn_like(x, dtype=torch.float64) for _ in range(12)]
    repaired = repair(moved, model, batches, damping=0.0)
    for found, wanted in zip(repaired.parameters(), model.parameters(), strict=True):
        assert_close(found, wanted, rtol=1e-6, atol=1e-8)


class Attending(nn.Module):
    def __init__(self, **options):
        super().__init__()
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True, **options)
        self.head = nn.Linear(8, 3)

    def forward(self, x):
        return self.head(x + self.attention(x, x.flip(1), value=x)[0])


@pytest.mark.parametrize("options", [{}, {"bias": False}, {"add_bias_kv": True}])
def test_projections_of_attention_are_repaired(options):
    model, batches = Attending(**options).eval(), [torch.randn(16, 5, 8) @ MIXING for _ in range(20)]
    pruned = without(model, 0.5)
    report = repair_report(pruned, model, batches)
    names = [f"attention.in_proj_weight of {role}" for role in ("query", "key", "value")]
    assert [row.name for row in report.rows][:3] == names or set(names) < {row.name for row in report.rows}
    assert {"attention.out_proj.weight", "head.weight"} < {row.name for row in report.rows}
    repaired = repair(pruned, model, batches)
    assert error(repaired, model, batches) < 0.8 * error(pruned, model, batches)
    assert zeros_stay(pruned, repaired)


def test_an_encoder_is_repaired_although_torch_has_a_fast_path():
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    model = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False).eval()
    batches = [torch.randn(16, 5, 8) @ MIXING for _ in range(20)]
    pruned = without(model, 0.5)
    report = repair_report(pruned, model, batches)
    assert len(report.rows) == 2 * 6
    assert not any("not reached" in row.note for row in report.rows)
    assert error(repair(pruned, model, batches), model, batches) < error(pruned, model, batches)
    assert torch.backends.mha.get_fastpath_enabled()


# -- networks as people have them


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


# -- what cannot work


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
        ((network(), network(), []), InvalidValueError, "loader must give batches in every pass, got none"),
    ],
)  # fmt: skip
def test_refusals(arguments, kind, message):
    with pytest.raises(kind, match=message):
        repair(*arguments)


def test_damping_is_a_number():
    with pytest.raises(InvalidValueError, match="repair: damping must be finite and at least 0, got -1"):
        repair(network(), network(), ROWS, damping=-1)
