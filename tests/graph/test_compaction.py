"""Compaction of small networks: exact, smaller, and an ordinary model afterwards."""

from __future__ import annotations

import copy
import io

import pytest
import torch
from torch import Tensor, nn

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
