"""Compaction of small networks: exact, smaller, and an ordinary model afterwards."""

from __future__ import annotations

import copy
import io

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import prune

from convert import compact, compaction_report, export_onnx
from convert.graph.capture import outputs_agree

from .masking import kill_attention_and_neurons, shift_norms, zero_channels
from .networks import NETWORKS, Encoder, SelfAttention


def parameters(model: nn.Module, under: str = "") -> int:
    return sum(p.numel() for name, p in model.named_parameters() if under in name)


@torch.no_grad()
def assert_same(small: nn.Module, model: nn.Module, inputs: Tensor) -> None:
    """Within 1e-5 of the largest output."""
    expected = model(inputs)
    assert float((small(inputs) - expected).abs().max()) <= 1e-5 * float(expected.abs().max())


@pytest.mark.parametrize("share", [None, 0.3, 0.5, 0.8])
@pytest.mark.parametrize("name", NETWORKS)
def test_other_sizes_give_the_same(name, share):
    model = NETWORKS[name]().eval()
    shift_norms(model, torch.Generator().manual_seed(1))
    zero_channels(model, share or 0.5, torch.Generator().manual_seed(2) if share else None)
    small = compact(model, torch.randn(2, 3, 12, 12))
    assert_same(small, model, torch.randn(3, 3, 17, 15))
    assert parameters(small) < (0.7 if share is None else 1.0) * parameters(model)


@pytest.mark.parametrize("shape", [(4, 30), (3, 5, 30), (30,)])
def test_unread_inputs_are_left_out_again(shape):
    """A choice among the inputs shrinks when a compacted network loses more of them."""
    model = nn.Sequential(nn.Linear(30, 8), nn.ReLU(), nn.Linear(8, 2)).eval()
    with torch.no_grad():
        model[0].weight[:, ::3] = 0
    x = torch.randn(shape)
    small = compact(model, x)
    assert_same(small, model, x)
    with torch.no_grad():
        small.get_submodule("0").weight[:, 5:] = 0
    smaller = compact(small, x)
    assert_same(smaller, small, x)
    assert parameters(small) == 8 * 20 + 8 + 18
    assert parameters(smaller) == 8 * 5 + 8 + 18


def transformers() -> dict[str, tuple[nn.Module, list[tuple[Tensor, int]], list[Tensor]]]:
    """Encoders, with what reads their heads and what makes their neurons."""
    layer = nn.TransformerEncoderLayer(16, 4, 64, batch_first=True, dropout=0.0)
    torchs = Encoder(nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)).eval()
    own = Encoder(nn.Sequential(SelfAttention(), SelfAttention())).eval()
    return {
        "torch": (
            torchs,
            [(layer.self_attn.out_proj.weight, 4) for layer in torchs.blocks.layers],
            [layer.linear1.weight for layer in torchs.blocks.layers],
        ),
        "own": (own, [(block.proj.weight, 4) for block in own.blocks], [block.up.weight for block in own.blocks]),
    }


@pytest.fixture(scope="module", params=["torch", "own"])
def shrunk(request):
    """A transformer with half of its heads and neurons dead, and what is left of it."""
    torch.manual_seed(0)
    model, heads, neurons = transformers()[request.param]
    kill_attention_and_neurons(heads, neurons)
    return model, compact(model, torch.randint(50, (2, 7)))


@pytest.mark.slow
def test_transformers_lose_heads_and_neurons(shrunk):
    model, small = shrunk
    assert parameters(small, "blocks") < 0.6 * parameters(model, "blocks")
    assert parameters(small, "tokens") == parameters(model, "tokens")
    assert_same(small, model, torch.randint(50, (5, 11)))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*LeafSpec.*deprecated:FutureWarning")  # torch pickles its own graphs that way
def test_what_is_left_is_an_ordinary_model(shrunk, tmp_path):
    model, small = shrunk
    tokens = torch.randint(50, (3, 9))
    buffer = io.BytesIO()
    torch.save(small, buffer)
    buffer.seek(0)
    twins = [copy.deepcopy(small), torch.load(buffer, weights_only=False), copy.deepcopy(small)]
    for parameter in twins[2].parameters():
        nn.init.zeros_(parameter)
    twins[2].load_state_dict(small.state_dict())
    for twin in twins:
        assert torch.equal(twin.eval()(tokens), small.eval()(tokens))
    twins[0].train()
    optimizer = torch.optim.SGD(twins[0].parameters(), lr=0.1)
    losses = []
    for _ in range(5):
        loss = nn.functional.cross_entropy(twins[0](tokens), torch.tensor([0, 1, 2]))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < losses[0]
    assert all(parameter.grad is not None for parameter in twins[0].parameters())
    report = export_onnx(small, tmp_path / "small.onnx", tokens)
    assert report.relative_error < 1e-5
    assert report.inputs[0].shape == ("batch", "sequence")
    assert_same(small, model, tokens)


def test_the_report_says_what_went():
    model = NETWORKS["residual"]().eval()
    zero_channels(model, 0.5)
    report = compaction_report(model, torch.randn(2, 3, 12, 12))
    assert report.form == "class"
    assert report.parameters[0] == parameters(model)
    assert report.kept < 0.5
    assert "stem.0.weight" in str(report)


POOLS = {
    "average": nn.AvgPool2d(3, 2, 1),
    "average, then positive": nn.Sequential(nn.AvgPool2d(3, 2, 1), nn.ReLU()),
    "other divisor": nn.AvgPool2d(2, 2, divisor_override=3),
    "border of zeros": nn.ZeroPad2d(1),
}


@pytest.mark.parametrize("kind", POOLS)
@pytest.mark.parametrize("flat", [nn.Flatten(), nn.Sequential(nn.Flatten(2), nn.Flatten(1)), nn.Identity()])
def test_constants_that_differ_at_the_borders_are_right_or_stay(kind, flat):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), POOLS[kind], flat).eval()
    with torch.no_grad():
        model[0].weight[:4] = 0
        model[0].bias[:2], model[0].bias[2:4] = 1, -1  # constants of one and of zero
    x = torch.randn(4, 1, 8, 8)
    size = model(x).shape[1]
    model.append(nn.Linear(size, 3) if model(x).dim() == 2 else nn.Conv2d(size, 3, 2))
    report = compaction_report(model, x)
    assert_same(compact(model, x), model, torch.randn(3, 1, 8, 8))
    assert report.parameters[1] < report.parameters[0]
    kept = parameters(compact(model, x), "0.weight") // 9
    assert kept <= 5 or "constants differ at the borders" in str(report)  # one may carry the constants of others


class Tasks(nn.Module):
    """A head for each task, and other ways in."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.wide = nn.Conv2d(1, 6, 3, padding=1), nn.Linear(6, 15)
        self.heads = nn.ModuleDict({"a": nn.Linear(15, 3), "flat": nn.Linear(6 * 16, 2), "mean": nn.GRU(6, 4)})

    def encode(self, x: Tensor) -> Tensor:
        return torch.relu(self.body(x))

    def other(self, x: Tensor) -> Tensor:
        return self.heads["flat"](self.encode(x).flatten(1))

    def forward(self, x: Tensor, task: str = "a") -> Tensor:
        if task == "a":
            return self.heads["a"](torch.relu(self.wide(self.encode(x).mean((2, 3)))))
        return self.heads["mean"](self.encode(x).mean(3).transpose(1, 2))[0]


@torch.no_grad()
def test_what_the_example_does_not_reach_still_works():
    model, x = Tasks().eval(), torch.randn(2, 1, 4, 4)
    for layer in (model.body, model.wide):
        layer.weight[:4], layer.bias[:4] = 0, 0
    small, report = compact(model, (x, "a")), compaction_report(model, (x, "a"))
    assert small.body.weight.shape == model.body.weight.shape
    assert small.wide.weight.shape[0] == 11
    assert "'heads.flat.weight', 'heads.flat.bias', 'heads.mean.weight_ih_l0' and more not reached by these" in str(
        report
    )
    for run in (lambda m: m(x), lambda m: m(x, "mean"), lambda m: m.other(x)):
        torch.testing.assert_close(run(small), run(model))


def test_a_token_that_no_example_reaches_costs_nothing():
    model = nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 3)).eval()
    model[0].token = nn.Parameter(torch.zeros(1, 1, 8))
    with torch.no_grad():
        model[0].weight[:4] = 0
    report = compaction_report(model, torch.randn(2, 5))
    assert report.layers[0].outputs == (8, 4)
    assert "'0.token' not reached by these example inputs" in report.notes[0]


class HalfInside(nn.Module):
    """bfloat16 between an input and an output in float32."""

    def __init__(self):
        super().__init__()
        self.inside = nn.Sequential(nn.Linear(8, 16), nn.GELU(), nn.Linear(16, 3)).to(torch.bfloat16)

    def forward(self, x: Tensor) -> Tensor:
        return self.inside(x.bfloat16()).float()


@torch.no_grad()
def test_rounding_is_that_of_the_coarsest_weights_inside():
    torch.manual_seed(0)
    model = HalfInside().eval()
    model.inside[0].weight.data[::2] = 0
    small = compact(model, torch.randn(2, 8))
    assert parameters(small) < 0.6 * parameters(model)
    x = torch.randn(50, 8)
    torch.testing.assert_close(small(x), model(x), rtol=0, atol=2**-6 * float(model(x).abs().max()))


@pytest.mark.parametrize(("dtype", "most"), [(torch.float32, 1e-4), (torch.float16, 1 / 64), (torch.bfloat16, 1 / 8)])
def test_what_is_off_by_more_than_rounding_is_another_output(dtype, most):
    expected = torch.ones(4)
    assert outputs_agree(expected + 0.9 * most, expected, dtype)
    assert not outputs_agree(expected + 1.5 * most, expected, dtype)
    assert not outputs_agree((expected + 1.5 * most).to(dtype), expected.to(dtype))


def test_masks_of_torch_keep_what_they_hide():
    model = nn.Sequential(nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 2)).eval()
    prune.ln_structured(model[0], "weight", 0.5, n=2, dim=0)
    with pytest.warns(
        UserWarning, match=r"stays as large as it is; call torch.nn.utils.prune.remove\(layer, 'weight'\)"
    ):
        assert compact(model, torch.randn(4, 8))[0].weight_orig.shape == (6, 8)
    prune.remove(model[0], "weight")
    assert compact(model, torch.randn(4, 8))[0].weight.shape == (3, 8)
