"""What ``repair`` computes, for layers of all kinds."""

import copy

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from convert import compact, repair, repair_report

from .pruned import IMAGES, MIXING, ROWS, error, network, without


def zeros_stay(before, after):
    pairs = zip(before.parameters(), after.parameters(), strict=True)
    return all(bool((b[a == 0] == 0).all()) for a, b in pairs if a.ndim > 1)


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


class _Padding(nn.Conv2d):
    """As TensorFlow's "same" does, more at the end."""

    def forward(self, x):
        return super().forward(nn.functional.pad(x, (0, 1, 0, 1)))


LAYERS = {
    "1d": (lambda: nn.Conv1d(4, 6, 3, stride=2, padding=1), torch.randn(8, 4, 11)),
    "2d": (lambda: nn.Conv2d(4, 6, (3, 2), stride=(2, 1), padding=(1, 0), dilation=(1, 2)), IMAGES[0]),
    "3d": (lambda: nn.Conv3d(4, 6, 2, bias=False), torch.randn(3, 4, 4, 5, 6)),
    "grouped": (lambda: nn.Conv2d(4, 8, 3, groups=2), IMAGES[0]),
    "depthwise": (lambda: nn.Conv2d(4, 4, 3, groups=4, padding="same"), IMAGES[0]),
    "same, even kernel": (lambda: nn.Conv2d(4, 6, (2, 4), padding="same", dilation=(2, 1)), IMAGES[0]),
    "padded by its own forward": (lambda: _Padding(4, 6, 3, stride=2), IMAGES[0][..., :8, :8]),
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


@pytest.mark.slow
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
