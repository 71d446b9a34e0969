"""Files on inputs at the edge: where a small constant or an empty mask is all that keeps torch from NaN."""

import math
from contextlib import nullcontext

import onnx
import pytest
import torch
import torch.nn.functional as F
from onnx_models import assert_same, run_file
from torch import nn
from torch.export import Dim

import convert.onnx.tracing as tracing
from bensemble.errors import ExportError, VerificationError
from convert.onnx import export_onnx
from convert.onnx.edge_cases import check_edges
from convert.onnx.inputs.arguments import FlatModel, read_arguments
from convert.onnx.inputs.trials import run_trials


class Call(nn.Module):
    """A layer without a bias, then a function."""

    def __init__(self, function):
        super().__init__()
        self.layer, self.function = nn.Linear(4, 4, bias=False), function

    def forward(self, x):
        return self.function(self.layer(x))


SMALL = {
    "add": lambda h: h.relu() / (h.relu().sum(-1, keepdim=True) + 1e-10),
    "add in front": lambda h: h / (1e-12 + h.abs()),
    "subtract": lambda h: h / (h.abs().sum(-1, keepdim=True) - -1e-9),
    "square root": lambda h: h / torch.sqrt(h.square().sum(-1, keepdim=True) + 1e-16),
    "clamp": lambda h: F.normalize(h, dim=-1, eps=1e-12),
    "logarithm": lambda h: torch.log(h.relu() + 1e-9),
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", SMALL)
def test_a_small_constant_stays(tmp_path, kind):
    torch.manual_seed(0)
    model, path = Call(SMALL[kind]).eval(), tmp_path / "m.onnx"
    export_onnx(model, path, torch.rand(2, 4))
    for x in (torch.zeros(2, 4), torch.rand(2, 4) * 1e-9):
        assert_same(run_file(path, x=x)["output"], model(x))


def test_factors_near_one_stay(tmp_path):
    model, path = Call(lambda h: (h * 1.000003 - h) / 3e-6 + h / 0.999996).eval(), tmp_path / "m.onnx"
    export_onnx(model, path, torch.rand(2, 4))
    assert [node.op_type for node in onnx.load(path).graph.node] == ["Gemm", "Mul", "Sub", "Div", "Div", "Add"]


def test_what_does_nothing_goes(tmp_path):
    export_onnx(Call(lambda h: (h * 1 + 0) / 1 - 0).eval(), tmp_path / "m.onnx", torch.rand(2, 4))
    assert [node.op_type for node in onnx.load(tmp_path / "m.onnx").graph.node] == ["Gemm"]


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["add", "add in front"])
def test_a_file_with_nan_where_the_model_has_none_is_refused(tmp_path, kind, monkeypatch):
    monkeypatch.setattr(tracing, "exact_constants", nullcontext)
    with pytest.raises(VerificationError, match=r"differs from the model by inf.* with zeros for all numbers; no file"):
        export_onnx(Call(SMALL[kind]).eval(), tmp_path / "m.onnx", torch.rand(2, 4))
    assert not (tmp_path / "m.onnx").exists()


@pytest.mark.slow
def test_constants_in_bytes_stay_in_bytes(tmp_path, monkeypatch):
    """Weights that the model itself keeps in int8, and makes floats of in its forward."""
    stored, scale = torch.randint(-127, 128, (64, 48), dtype=torch.int8), torch.rand(48)

    def stored_as(path):
        report = export_onnx(Call(lambda h: h.repeat(1, 16) @ (stored.float() * scale)).eval(), path, torch.rand(2, 4))
        kinds = {tuple(t.dims): t.data_type for t in onnx.load(path).graph.initializer}
        return report.verified, kinds[64, 48] == onnx.TensorProto.INT8

    assert stored_as(tmp_path / "m.onnx") == (True, True)
    monkeypatch.setattr(tracing, "bytes_kept", lambda graph: nullcontext())
    assert stored_as(tmp_path / "floats.onnx") == (True, False)


EDGES = {
    "nan at zeros": lambda h: h / h.sum(-1, keepdim=True),
    "infinite at large numbers": torch.exp,
    "ties": lambda h: h * F.one_hot(h.argmax(-1), 4) + torch.arange(4.0) * F.one_hot(h.argmax(-1), 4),
    "rounding": lambda h: torch.sin(h * 1e3),
    "norm of constants": lambda h: F.layer_norm(h * 0 + h.mean(), (4,)),
}


@pytest.mark.parametrize("kind", EDGES)
def test_the_models_own_edges_are_no_fault_of_the_file(tmp_path, kind):
    assert export_onnx(Call(EDGES[kind]).eval(), tmp_path / "m.onnx", torch.rand(2, 4)).verified


class Masked(nn.Module):
    """Attention with a mask of Booleans or of floats, from a mask of what may be attended to."""

    def __init__(self, floats):
        super().__init__()
        self.qkv, self.floats = nn.Linear(8, 24), floats

    def forward(self, x, keep):
        q, k, v = self.qkv(x)[:, None].chunk(3, -1)
        mask = (keep[:, :, None] & keep[:, None])[:, None]
        if self.floats:
            mask = torch.zeros_like(mask, dtype=x.dtype).masked_fill(~mask, -torch.inf)
        return F.scaled_dot_product_attention(q, k, v, mask)


class Heads(nn.MultiheadAttention):
    def forward(self, x, keep):
        return super().forward(x, x, x, key_padding_mask=~keep, need_weights=False)[0]


@pytest.mark.slow
@pytest.mark.parametrize(
    "model",
    [Masked(False), Masked(True), Heads(8, 2, batch_first=True)],
    ids=["Booleans", "floats", "multi-head attention"],
)
def test_attention_to_nothing_is_zero_in_the_file_too(tmp_path, model):
    keep = torch.tensor([[1, 1, 1, 0], [1, 1, 1, 1], [0, 0, 0, 0]]).bool()
    x, path = torch.randn(3, 4, 8), tmp_path / "m.onnx"
    export_onnx(model.eval(), path, (x[:2], keep[1:2].repeat(2, 1)), dynamic_shapes={"keep": {0: "batch"}})
    assert_same(run_file(path, x=x, keep=keep)["output"], model(x, keep))


@pytest.mark.slow
def test_verification_tries_a_mask_without_entries(tmp_path, monkeypatch):
    monkeypatch.setattr(tracing, "TRANSLATIONS", {})
    inputs = torch.randn(2, 4, 8), torch.ones(2, 4).bool()
    with pytest.raises(VerificationError, match=r"with False in the first row of masks.*or a mask without entries"):
        export_onnx(Masked(False).eval(), tmp_path / "m.onnx", inputs, dynamic_shapes={"keep": {0: "batch"}})


class Reading(nn.Module):
    """Reads or writes through ``.data``, as layers with a largest norm do (braindecode/braindecode#680)."""

    def __init__(self, how):
        super().__init__()
        self.layer, self.how = nn.Linear(4, 3), how
        self.register_buffer("shift", torch.randn(3))

    def forward(self, x):
        return HOWS[self.how](self, x)


def renormed(m, x):
    m.layer.weight.data = torch.renorm(m.layer.weight.data, 2, 0, 1.0)
    return m.layer(x)


def clamped(m, x):
    y = m.layer(x)
    y.data.clamp_(0)
    return y


HOWS = {
    "weight": lambda m, x: F.linear(x, m.layer.weight.data) * m.layer.weight.data.norm(),
    "buffer and activation": lambda m, x: m.layer(x) / (1 + m.layer(x).data.abs()) + m.shift.data,
    "renormed": renormed,
    "clamped": clamped,
}


@pytest.mark.slow
@pytest.mark.parametrize("how", ["weight", "buffer and activation"])
def test_what_is_read_through_data_is_in_the_file(tmp_path, how):
    """Of these forwards torch's exporter alone makes no graph, or crashes with the process."""
    model, path, x = Reading(how).eval(), tmp_path / "m.onnx", torch.randn(3, 4)
    export_onnx(model, path, x[:1])
    assert_same(run_file(path, x=x)["output"], model(x))


@pytest.mark.parametrize("how", ["renormed", "clamped"])
def test_what_writes_through_data_is_refused_with_its_line(tmp_path, how):
    """torch's exporter ends in a crash of the process."""
    with pytest.raises(
        ExportError, match=r"^export_onnx: Reading writes through .data at test_export_edges.py:\d+ `[ym]"
    ):
        export_onnx(Reading(how).eval(), tmp_path / "m.onnx", torch.randn(2, 4))


class Padded(nn.Module):
    """An encoder whose padding is token 0, averaged over all positions."""

    def __init__(self, **options):
        super().__init__()
        layer = nn.TransformerEncoderLayer(8, 2, 8, batch_first=True)
        self.tokens, self.encoder = nn.Embedding(9, 8), nn.TransformerEncoder(layer, 1, **options)

    def forward(self, ids):
        return self.encoder(self.tokens(ids), src_key_padding_mask=ids == 0).mean(1)


@pytest.mark.slow
def test_verification_tries_padding_and_the_error_says_what_torch_does_with_it(tmp_path):
    """In eval mode torch's encoder gives 0 at padding, the exporter's graph does not (pytorch/pytorch#110557)."""
    path, ids = tmp_path / "m.onnx", torch.tensor([[1, 2, 3, 4]])
    with pytest.raises(
        VerificationError, match=r"zeros at the end of each row of integers.*enable_nested_tensor=False"
    ):
        export_onnx(Padded().eval(), path, ids)
    model = Padded(enable_nested_tensor=False).eval()
    export_onnx(model, path, ids)
    ids = torch.tensor([[3, 2, 0, 0], [1, 2, 3, 4]])
    with torch.no_grad():
        assert_same(run_file(path, ids=ids)["output"], model(ids))


class Windows(nn.Module):
    """Swin's arithmetic: the batch size comes from the number of windows, through a float."""

    def forward(self, x):
        windows = x.view(-1, 4)
        return windows.view(int(windows.shape[0] / (8 * 8 / 4 / 4)), 4, 4).sum(1)


@pytest.mark.slow
@pytest.mark.parametrize("dim", ["batch", Dim("batch", min=1, max=64)], ids=str)
def test_a_size_that_passes_through_a_float_varies(tmp_path, dim):
    model, path = nn.Sequential(nn.Linear(16, 16), Windows()).eval(), tmp_path / "m.onnx"
    export_onnx(model, path, torch.randn(2, 16), dynamic_shapes={"input": {0: dim}})
    x = torch.randn(5, 16)
    assert_same(run_file(path, input=x)["output"], model(x))


@pytest.mark.slow
@pytest.mark.parametrize(("opset", "ir"), [(None, 8), (15, 8), (17, 8), (18, 8), (19, 9), (20, 9)])
def test_old_runtimes_can_load_an_old_operator_set(tmp_path, opset, ir):
    export_onnx(nn.Linear(4, 3).eval(), tmp_path / "m.onnx", torch.randn(2, 4), opset=opset)
    proto = onnx.load(tmp_path / "m.onnx")
    assert proto.ir_version == ir
    assert not proto.graph.value_info


class Bags(nn.Module):
    """Texts one after the other, and where each begins."""

    def __init__(self, **options):
        super().__init__()
        self.words, self.head = nn.EmbeddingBag(20, 6, **options), nn.Linear(6, 3)

    def forward(self, text, offsets):
        return self.head(self.words(text, offsets))


@pytest.mark.parametrize(
    ("options", "offsets", "more"),
    [
        ({"mode": "mean"}, [0, 2, 3], [0, 2, 2, 6]),
        ({"mode": "sum"}, [0, 2], [0, 1, 8]),
        ({"mode": "sum"}, [0], [0, 3]),
        ({"mode": "mean", "include_last_offset": True}, [0, 2, 7], [0, 2, 5, 9]),
    ],
)
def test_bags_vary_in_number_and_length(tmp_path, options, offsets, more):
    model, path, text = Bags(**options).eval(), tmp_path / "m.onnx", torch.tensor([1, 5, 2, 7, 7, 3, 9])
    axes = {"text": {0: "tokens"}, "offsets": {0: "batch"}}
    export_onnx(model, path, (text, torch.tensor(offsets)), dynamic_shapes=axes)
    inputs = {"text": torch.arange(9), "offsets": torch.tensor(more)}
    assert_same(run_file(path, **inputs)["output"], model(**inputs))


class Chunks(nn.Linear):
    """As many pieces as the batch has fours."""

    def forward(self, x):
        return torch.cat([piece * 2 for piece in super().forward(x).chunk(math.ceil(len(x) / 4))])


@pytest.mark.slow
def test_an_operation_that_holds_for_some_sizes_only_is_named_with_its_line(tmp_path):
    with pytest.raises(
        VerificationError, match=r"running SequenceAt node.*comes from test_export_edges.py:\d+ `return"
    ):
        export_onnx(Chunks(6, 8).eval(), tmp_path / "m.onnx", torch.randn(6, 6))
    export_onnx(Chunks(6, 8).eval(), tmp_path / "m.onnx", torch.randn(6, 6), dynamic_shapes={"x": {}})


@pytest.mark.parametrize(("slack", "verdict"), [(0.02, nullcontext()), (0.0, pytest.raises(VerificationError))])
def test_a_step_of_an_output_is_allowed_on_degenerate_inputs_too(slack, verdict):
    network = nn.Sigmoid()
    model = FlatModel(network, read_arguments(network, torch.rand(2, 3)))
    (name,) = model.named(model.arguments.tensors)
    model.slack = {name: slack}
    trials = run_trials(model, ())
    with verdict:
        check_edges(lambda trial: [trial.outputs[name].numpy() + 0.015], trials, [name], lambda trial: {})
