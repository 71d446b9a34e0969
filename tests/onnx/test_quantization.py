"""Eight-bit files: what they hold, how far they are from the model, and what is refused."""

from __future__ import annotations

import logging

import onnx
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from bensemble import prune
from bensemble.errors import ExportError, InvalidTypeError, InvalidValueError
from convert import OnnxModel, bayesify, export_onnx, inspect_onnx
from convert.cli.printing import show_summary
from convert.onnx.shrinking.quantization import Quantization


def convolutional() -> nn.Module:
    return nn.Sequential(
        *(nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 64, 3, groups=2), nn.SiLU()),
        *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10)),
    ).eval()


@pytest.mark.slow
def test_static_per_channel(tmp_path, caplog, capsys):
    model, x = convolutional(), torch.randn(40, 1, 12, 12)
    path = tmp_path / "int8.onnx"
    loader = DataLoader(TensorDataset(x, torch.zeros(40)), batch_size=16)
    with caplog.at_level(logging.WARNING):
        report = export_onnx(model, path, x[:2], quantize="int8", calibration_data=loader, metadata={"classes": "a,b"})
    assert not caplog.records
    proto = onnx.load(path)
    weights = [t for t in proto.graph.initializer if t.data_type == onnx.TensorProto.INT8 and len(t.dims) == 4]
    assert sorted(tuple(t.dims) for t in weights) == [(8, 1, 3, 3), (64, 4, 3, 3)]
    scales = {len(t.float_data) or len(t.raw_data) // 4 for t in proto.graph.initializer if t.name.endswith("_scale")}
    assert {8, 64, 10} <= scales  # one for each output channel
    assert report.parameters == 8 * 9 + 64 * 4 * 9 + 64 * 10  # neither scales nor zero points
    assert {"QuantizeLinear", "DequantizeLinear"} <= set(report.operators)
    assert report.quantization == "int8 static, per channel"
    assert report.metadata["bensemble.quantization"] == report.quantization
    assert report.metadata["classes"] == "a,b"
    with torch.no_grad():
        difference = (OnnxModel(path)(x) - model(x)).abs().max()
        largest = model(x).abs().max()
    assert report.max_error == pytest.approx(float(difference), rel=1e-3)
    assert report.relative_error == pytest.approx(float(difference / largest), rel=1e-3)
    assert 1e-4 < report.relative_error < 0.05
    assert report.agreement > 0.9
    assert report.tolerance is None
    assert "quantised   int8 static, per channel" in str(report)
    assert "same largest output for" in str(report)
    show_summary(report, json=False)
    assert "error" in (shown := capsys.readouterr().out)
    assert "int8 static, per channel" in shown
    assert OnnxModel(path)(x[:7]).shape == (7, 10)


@pytest.mark.slow
def test_transposed_convolutions_in_groups_stay_in_float32(tmp_path):
    """ONNX Runtime's quantizer refuses them by channel (microsoft/onnxruntime#19694)."""
    model, path = (
        nn.Sequential(nn.ConvTranspose2d(3, 8, 3), nn.ConvTranspose2d(8, 4, 3, groups=2)).eval(),
        tmp_path / "m",
    )
    x = torch.randn(40, 3, 6, 6)
    report = export_onnx(model, path, x[:2], quantize="int8", calibration_data=x)
    kinds = {tuple(t.dims): t.data_type for t in onnx.load(path).graph.initializer}
    assert (kinds[3, 8, 3, 3], kinds[8, 2, 3, 3]) == (onnx.TensorProto.INT8, onnx.TensorProto.FLOAT)
    assert 1e-4 < report.relative_error < 0.05


@pytest.mark.slow
def test_all_forms_of_calibration_data_give_the_same_file(tmp_path):
    model, x = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 3)), torch.randn(8, 8)
    found = []
    for data in (x, (x,), {"input": x}, [x[:3], x[3:]], [(x, torch.zeros(8))], iter([x])):
        export_onnx(model, tmp_path / "a.onnx", x[:2], quantize="int8", calibration_data=data)
        found.append((tmp_path / "a.onnx").read_bytes())
    assert all(data == found[0] for data in found)


@pytest.mark.slow
def test_products_alone_need_no_data(tmp_path):
    model, x = nn.Sequential(nn.Linear(8, 64), nn.ReLU(), nn.Linear(64, 3)), torch.randn(4, 8)
    report = export_onnx(model, tmp_path / "a.onnx", x, quantize="int8")
    assert report.quantization == "int8 dynamic, per channel"
    assert report.operators["MatMulInteger"] == 2
    assert 1e-4 < report.relative_error < 0.05
    static = export_onnx(model, tmp_path / "a.onnx", x, quantize="int8", calibration_data=x)
    assert static.quantization == "int8 static, per channel"
    assert export_onnx(model, tmp_path / "a.onnx", x, quantize="int8", verify=False).max_error is None


@pytest.mark.slow
def test_transformers_round_their_products_only(tmp_path):
    layer = nn.TransformerEncoderLayer(32, 4, 64, batch_first=True, dropout=0.0).eval()
    x = torch.randn(16, 5, 32)
    report = export_onnx(layer, tmp_path / "a.onnx", x[:2], quantize="int8", calibration_data=x)
    assert report.rms_error < 0.03
    nodes = onnx.load(tmp_path / "a.onnx").graph.node
    rounded = {node.output[0] for node in nodes if node.op_type == "DequantizeLinear"}
    readers = {node.op_type for node in nodes if rounded & set(node.input)}
    assert "MatMul" in readers
    assert not readers & {"LayerNormalization", "Softmax"}
    made_by = {node.output[0]: node.op_type for node in nodes}
    read = {made_by.get(node.input[0]) for node in nodes if node.op_type == "QuantizeLinear"}
    assert "Softmax" in read
    assert not read & {"MatMul", "Gemm"}  # what a product gives out stays float


@pytest.mark.slow
def test_no_softmax_reads_rounded_numbers(tmp_path):
    """Between two roundings, tract 0.23 takes it for a function of single numbers: it answers one everywhere."""
    layers = (nn.Conv2d(1, 4, 3), nn.Softmax(1), nn.Conv2d(4, 4, 3), Transposed(), nn.LogSoftmax(3), nn.Conv2d(8, 2, 3))
    x = torch.randn(16, 1, 12, 12)
    report = export_onnx(nn.Sequential(*layers).eval(), tmp_path / "a.onnx", x, quantize="int8", calibration_data=x)
    assert report.rms_error < 0.03
    made_by = {node.output[0]: node for node in onnx.load(tmp_path / "a.onnx").graph.node}
    found = [node for node in made_by.values() if node.op_type in ("Softmax", "LogSoftmax")]
    assert len(found) == 2
    for node in found:
        while node.op_type in ("Softmax", "LogSoftmax", "Transpose"):
            node = made_by[node.input[0]]
        assert node.op_type == "Conv"


@pytest.mark.slow
def test_nor_through_operators_of_single_numbers_or_shapes(tmp_path):
    layers = (nn.Conv2d(1, 4, 3), nn.SiLU(), nn.MaxPool2d(2), nn.Flatten(2), nn.Softmax(1), nn.Unflatten(2, (5, 5)))
    x = torch.randn(16, 1, 12, 12)
    model = nn.Sequential(*layers, nn.Conv2d(4, 2, 3)).eval()
    export_onnx(model, tmp_path / "a.onnx", x, quantize="int8", calibration_data=x)
    made_by = {node.output[0]: node for node in onnx.load(tmp_path / "a.onnx").graph.node}
    waiting, found = [node for node in made_by.values() if node.op_type == "Softmax"], set()
    while waiting:
        makers = [made_by[name] for name in waiting.pop().input if name in made_by]
        found |= {maker.op_type for maker in makers}
        waiting += [maker for maker in makers if maker.op_type != "Conv"]
    assert found == {"Reshape", "MaxPool", "Mul", "Sigmoid", "Conv"}


class Transposed(nn.Module):
    def forward(self, x):
        return x.transpose(1, 3)


class Sum(nn.Module):
    def forward(self, a, b):
        return a + b


CONV, LINEAR, DOUBLE = convolutional(), nn.Linear(4, 4), nn.Linear(4, 4).double()
IMAGE, ROW = torch.randn(2, 1, 12, 12), torch.randn(2, 4)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("model", "example", "options", "kind", "message"),
    [
        (LINEAR, ROW, {"quantize": "int4"}, InvalidValueError, "quantize must be 'int8' or None, got 'int4'"),
        (
            LINEAR,
            ROW,
            {"calibration_data": ROW},
            InvalidValueError,
            r"calibration_data is for quantize='int8', got a t",
        ),
        (CONV, IMAGE, {"quantize": "int8"}, InvalidValueError, r"needs calibration_data for a model with convolutions"),
        (LINEAR, ROW, {"quantize": "int8", "calibration_data": 3}, InvalidTypeError, "inputs of the model .* got int"),
        (LINEAR, ROW, {"quantize": "int8", "calibration_data": []}, InvalidValueError, "at least one batch, got none"),
        (
            *(CONV, IMAGE, {"quantize": "int8", "calibration_data": [IMAGE, torch.randn(2, 3, 12, 12)]}),
            *(
                InvalidValueError,
                r"calibration_data \(batch 1\) must be like example_inputs, .*\(2, 1, 12, 12\).*'input'",
            ),
        ),
        (
            *(CONV, IMAGE, {"quantize": "int8", "calibration_data": IMAGE.byte()}),
            *(InvalidValueError, r"dtype float32 for 'input', got a tensor of shape \(2, 1, 12, 12\) and dtype uint8"),
        ),
        (
            *(CONV, IMAGE, {"quantize": "int8", "calibration_data": IMAGE[0]}),
            *(InvalidValueError, r"calibration_data must be like example_inputs"),
        ),
        (
            *(CONV, IMAGE, {"quantize": "int8", "calibration_data": IMAGE / 0}),
            *(InvalidValueError, "calibration_data must be finite, got NaN or infinity in 'input'"),
        ),
        (
            *(CONV, IMAGE, {"quantize": "int8", "calibration_data": (IMAGE, IMAGE)}),
            *(InvalidValueError, r"must hold 1 tensors \(input\) as example_inputs does, got a tuple of 2"),
        ),
        (Sum(), (ROW, ROW), {"quantize": "int8"}, ExportError, "must find weights .*, got 1 Add"),
        (
            nn.Linear(4, 4).double(),
            ROW.double(),
            {"quantize": "int8"},
            ExportError,
            "needs float32 weights, got double",
        ),
        (
            *(bayesify(nn.Linear(4, 4)), ROW, {"quantize": "int8", "outputs": "uncertainty"}),
            *(
                InvalidValueError,
                "quantize='int8' needs outputs='mean' or a last layer in closed form, got outputs='unc",
            ),
        ),
    ],
)
def test_refusals(model, example, options, kind, message, tmp_path):
    with pytest.raises(kind, match=message):
        export_onnx(model, tmp_path / "a.onnx", example, **options)
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_a_quantised_graph_is_refused(tmp_path):
    export_onnx(CONV, tmp_path / "a.onnx", IMAGE, quantize="int8", calibration_data=IMAGE)
    with pytest.raises(ExportError, match="needs a float model, got QuantizeLinear, DequantizeLinear in its graph"):
        Quantization(IMAGE).apply(onnx.load(tmp_path / "a.onnx"), [])


@pytest.mark.slow
def test_sparse_weights_give_the_same_outputs(tmp_path):
    torch.manual_seed(1)
    model = nn.Sequential(nn.Conv2d(1, 16, 3), nn.ReLU(), nn.Flatten(), nn.Linear(1600, 10))
    with torch.no_grad():
        for layer, share in ((model[0], 0.3), (model[3], 0.9)):
            layer.weight *= torch.rand_like(layer.weight) >= share
    x = torch.randn(3, 1, 12, 12)
    dense = export_onnx(model, tmp_path / "dense.onnx", x)
    sparse = export_onnx(model, tmp_path / "sparse.onnx", x, sparse=True)
    assert dense.sparse_tensors == 0
    assert sparse.sparse_tensors == 1  # the convolution has too few zeros
    assert sparse.size < 0.35 * dense.size
    assert (sparse.parameters, sparse.zeros) == (dense.parameters, dense.zeros)
    assert inspect_onnx(tmp_path / "sparse.onnx").zeros == dense.zeros
    assert torch.equal(OnnxModel(tmp_path / "sparse.onnx")(x), OnnxModel(tmp_path / "dense.onnx")(x))
    assert "1 weights stored by their nonzero entries" in str(sparse)
    both = export_onnx(model, tmp_path / "both.onnx", x, quantize="int8", calibration_data=x, sparse=True)
    assert both.sparse_tensors == 1
    alone = export_onnx(model, tmp_path / "int8.onnx", x, quantize="int8", calibration_data=x)
    assert torch.equal(OnnxModel(tmp_path / "both.onnx")(x), OnnxModel(tmp_path / "int8.onnx")(x))
    assert both.size < alone.size


@pytest.mark.slow
def test_uncertainty_files_may_be_sparse(tmp_path):
    bnn = bayesify(nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 3)))
    x = torch.randn(4, 64)
    prune(bnn, sparsity=0.9)
    options = {"outputs": "uncertainty", "likelihood": "categorical", "num_samples": 3}
    dense = export_onnx(bnn, tmp_path / "dense.onnx", x, **options)
    sparse = export_onnx(bnn, tmp_path / "sparse.onnx", x, sparse=True, **options)
    assert sparse.sparse_tensors
    assert sparse.size < 0.6 * dense.size
    found, expected = (OnnxModel(tmp_path / f"{name}.onnx")(x) for name in ("sparse", "dense"))
    assert all(torch.equal(found[name], expected[name]) for name in expected)
