"""Eight-bit files give the same sums on processors that add products in pairs in 16 bits, x86 without VNNI."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import numpy_helper
from onnxruntime import quantization
from torch import nn

from convert import export_onnx
from convert.onnx.shrinking.quantization import Quantization

pytestmark = pytest.mark.xdist_group("int8 files")  # its fixtures are made once

FITS = np.iinfo(np.int16)


def convolutions():
    model = nn.Sequential(nn.Conv2d(4, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 2, groups=2), nn.Flatten(), nn.Linear(72, 4))
    images = torch.rand(64, 4, 6, 6).sqrt()
    return model, images, images


def products():
    return nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 4)), torch.rand(16, 16), None


def transformer():
    x = torch.randn(16, 5, 32)
    return nn.TransformerEncoderLayer(32, 4, 64, batch_first=True, dropout=0.0).eval(), x, x


@pytest.fixture(scope="module", params=[convolutions, products, transformer], ids=lambda make: make.__name__)
def network(request, tmp_path_factory):
    """A float file, inputs and calibration data; weights of one sign make the most of pairs."""
    torch.manual_seed(0)
    model, x, data = request.param()
    with torch.no_grad():
        for p in model.parameters():
            if p.dim() > 1:
                p.abs_()
    path = tmp_path_factory.mktemp("float") / "float.onnx"
    export_onnx(model, path, x)
    return path, x, data


@pytest.mark.parametrize("bits", [7, 8])
@pytest.mark.slow
def test_no_pair_of_products_leaves_16_bits(network, bits, monkeypatch):
    if bits == 8:  # with the whole range the saturation has to be seen
        for name in ("quantize_static", "quantize_dynamic"):
            whole = getattr(quantization, name)
            monkeypatch.setattr(
                quantization, name, lambda *a, _run=whole, **k: _run(*a, **{**k, "reduce_range": False})
            )
    path, x, data = network
    proto = Quantization(data).apply(onnx.load(path), [(x,)])
    found = [saturated(*operands) for operands in operands_of(proto, x.numpy())]
    assert len(found) >= 2
    if bits == 7:
        assert not any(found)
        assert worst_pair(proto) <= FITS.max
    else:
        assert any(found)
        assert worst_pair(proto) > FITS.max


def saturated(rows: np.ndarray, columns: np.ndarray) -> int:
    """How many sums of two adjacent products of uint8 rows (N, K) and int8 columns (K, M) leave 16 bits."""
    products = rows.astype(np.int32)[:, :, None] * columns.astype(np.int32)[None]
    if products.shape[1] % 2:
        products = np.pad(products, ((0, 0), (0, 1), (0, 0)))
    pairs = products[:, 0::2] + products[:, 1::2]
    return int(((pairs < FITS.min) | (pairs > FITS.max)).sum())


def worst_pair(proto: onnx.ModelProto) -> int:
    """The largest sum of two products that weights of the file could give, whatever the activations are."""
    sizes = [int(np.abs(array.astype(np.int32)).max()) for array in weights_of(proto).values()]
    return 2 * 255 * max(sizes)


def weights_of(proto: onnx.ModelProto) -> dict[str, np.ndarray]:
    """The int8 matrices and kernels of a file."""
    found = {t.name: t for t in proto.graph.initializer if t.data_type == onnx.TensorProto.INT8 and len(t.dims) > 1}
    return {name: numpy_helper.to_array(tensor) for name, tensor in found.items()}


def operands_of(proto: onnx.ModelProto, x: np.ndarray):
    """The uint8 rows and int8 columns of every product and convolution with a weight, as the file has them on x."""
    weights, made_by = weights_of(proto), {name: node for node in proto.graph.node for name in node.output}

    def integers(name: str) -> str:
        """What a DequantizeLinear reads, or the name itself."""
        maker = made_by.get(name)
        return maker.input[0] if maker is not None and maker.op_type == "DequantizeLinear" else name

    reads = [
        (node, integers(node.input[0]), integers(node.input[1])) for node in proto.graph.node if len(node.input) > 1
    ]
    reads = [(node, left, right) for node, left, right in reads if right in weights]
    assert {right for _, _, right in reads} == set(weights)
    values = computed(proto, x, [left for _, left, _ in reads])
    for node, left, right in reads:
        options = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
        rows, weight = values[left], weights[right]
        assert rows.dtype == np.uint8
        if node.op_type == "Conv":
            yield from patches(rows, weight, options.get("group", 1))
        else:
            assert node.op_type in ("MatMul", "MatMulInteger", "Gemm")
            yield rows.reshape(-1, rows.shape[-1]), weight.T if options.get("transB") else weight


def patches(images: np.ndarray, kernels: np.ndarray, groups: int):
    """The matrix product of a convolution without padding, channels last as ONNX Runtime has it, group by group."""
    windows = np.lib.stride_tricks.sliding_window_view(images, kernels.shape[2:], axis=(2, 3))  # N C H W h w
    for rows, columns in zip(np.split(windows, groups, axis=1), np.split(kernels, groups), strict=True):
        size = columns[0].size
        yield rows.transpose(0, 2, 3, 4, 5, 1).reshape(-1, size), columns.transpose(2, 3, 1, 0).reshape(size, -1)


def computed(proto: onnx.ModelProto, x: np.ndarray, names: list[str]) -> dict[str, np.ndarray]:
    """Values inside of the file, in a session that rewrites nothing."""
    with_outputs = onnx.ModelProto.FromString(proto.SerializeToString())
    given = {value.name for value in with_outputs.graph.output}
    with_outputs.graph.output.extend(
        onnx.helper.make_tensor_value_info(name, onnx.TensorProto.UINT8, None) for name in {*names} - given
    )
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(with_outputs.SerializeToString(), options, ["CPUExecutionProvider"])
    wanted = list(dict.fromkeys(names))
    return dict(zip(wanted, session.run(wanted, {session.get_inputs()[0].name: x}), strict=True))
