"""Kinds of networks, each run by ONNX Runtime at batch sizes and lengths that no example had."""

import pytest
import torch
from onnx_models import Residual, assert_same, run_file
from torch import nn

from convert import bayesify
from convert.onnx import export_onnx

pytestmark = pytest.mark.slow


def resnet():
    return nn.Sequential(
        nn.Conv2d(3, 8, 7, 2, 3),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.MaxPool2d(3, 2, 1),
        Residual(8, 8, 1),
        Residual(8, 16, 2),
        nn.AdaptiveAvgPool2d((2, 3)),
        nn.Flatten(),
        nn.Linear(96, 5),
    )


def encoder(**options):
    layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True, **options)
    return nn.TransformerEncoder(layer, 2, enable_nested_tensor=not options)  # it warns where it cannot


def one_orthogonal_weight_twice():
    """What it is computed from takes an operation that ONNX does not have, and is shared."""
    one, other = nn.Linear(6, 6), nn.Linear(6, 6, bias=False)
    other.weight = one.weight
    return nn.Sequential(*map(nn.utils.parametrizations.orthogonal, (one, other)))


KINDS = {
    "resnet": (resnet, (3, 33, 35)),
    "conv1d": (lambda: nn.Sequential(nn.Conv1d(3, 6, 3, padding="same", dilation=2), nn.GELU()), (3, 11)),
    "circular conv1d": (lambda: nn.Conv1d(3, 6, 3, padding=1, padding_mode="circular", groups=3), (3, 11)),
    "conv3d": (lambda: nn.Sequential(nn.Conv3d(2, 4, 3), nn.SiLU(), nn.ConvTranspose3d(4, 3, 2, 2)), (2, 5, 6, 7)),
    "transposed": (
        lambda: nn.Sequential(nn.ConvTranspose2d(3, 4, 3, 2, output_padding=1), nn.ConvTranspose2d(4, 2, 4, padding=1)),
        (3, 7, 7),
    ),
    "transposed 1d": (lambda: nn.ConvTranspose1d(4, 6, 4, stride=2, padding=1, groups=2), (4, 9)),
    "encoder": (encoder, (5, 16)),
    "encoder, norm first": (lambda: encoder(norm_first=True, activation="gelu"), (5, 16)),
    "lstm": (lambda: nn.LSTM(4, 8, num_layers=2, batch_first=True, bidirectional=True), (5, 4)),
    "weight norm": (lambda: nn.utils.parametrizations.weight_norm(nn.Conv2d(3, 4, 3)), (3, 7, 7)),
    "orthogonal": (one_orthogonal_weight_twice, (6,)),
    "vector": (lambda: nn.Linear(4, 1), (4,)),
}


def first(output):
    return output[0] if isinstance(output, tuple) else output


@pytest.mark.parametrize("kind", KINDS)
def test_kind(tmp_path, kind):
    torch.manual_seed(0)
    make, shape = KINDS[kind]
    model, path = make().eval(), tmp_path / "m.onnx"
    report = export_onnx(model, path, torch.randn(1, *shape))
    assert report.verified
    for batch in (1, 2, 5):
        x = torch.randn(batch, *shape)
        found = run_file(path, **{report.inputs[0].name: x})
        assert_same(found[report.outputs[0].name], first(model(x)))


@pytest.mark.parametrize("kind", ["resnet", "encoder", "transposed"])
def test_kind_made_bayesian(tmp_path, kind):
    make, shape = KINDS[kind]
    bnn, path = bayesify(make()), tmp_path / "m.onnx"
    report = export_onnx(bnn, path, torch.randn(1, *shape))
    x = torch.randn(4, *shape)
    assert_same(run_file(path, **{report.inputs[0].name: x})["output"], bnn.eval()(x))


def test_padding_mask_of_an_encoder(tmp_path):
    model, path = encoder().eval(), tmp_path / "m.onnx"
    mask = torch.zeros(1, 5, dtype=torch.bool)
    inputs = {"src": torch.randn(1, 5, 16), "src_key_padding_mask": mask}
    report = export_onnx(model, path, inputs)
    assert report.inputs[1].dtype == "bool"
    x, mask = torch.randn(3, 5, 16), torch.arange(5) >= torch.tensor([[5], [3], [1]])
    found = run_file(path, src=x, src_key_padding_mask=mask)["output"]
    kept = ~mask
    assert_same(found[kept.numpy()], model(x, src_key_padding_mask=mask)[kept])


@pytest.mark.parametrize(("dtype", "bound"), [(torch.float64, 1e-10), (torch.float16, 2e-2)])
def test_other_precisions(tmp_path, dtype, bound):
    model = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 4)).to(dtype).eval()
    report = export_onnx(model, tmp_path / "m.onnx", torch.randn(1, 16, dtype=dtype))
    assert report.tolerance == bound
    assert report.inputs[0].dtype == report.outputs[0].dtype == str(dtype).removeprefix("torch.")
    x = torch.randn(5, 16, dtype=dtype)
    assert_same(run_file(tmp_path / "m.onnx", input=x)["output"], model(x), bound)


def test_the_lowest_precision_sets_the_bound(tmp_path):
    class Mixed(nn.Linear):
        def forward(self, x):
            return super().forward(x.half()).float()

    report = export_onnx(Mixed(16, 4).half(), tmp_path / "m.onnx", torch.randn(1, 16))
    assert (report.outputs[0].dtype, report.tolerance) == ("float32", 2e-2)


def test_float16_convolutions_run(tmp_path):
    model = resnet().half().eval()
    assert export_onnx(model, tmp_path / "m.onnx", torch.randn(1, 3, 33, 35).half()).verified


def test_integer_and_boolean_outputs_are_equal(tmp_path):
    class Labels(nn.Linear):
        def forward(self, x):
            y = super().forward(x)
            return {"label": y.argmax(-1), "sure": y > 1}

    model, path, x = Labels(4, 3), tmp_path / "m.onnx", torch.randn(6, 4)
    report = export_onnx(model, path, torch.randn(1, 4))
    assert [entry.dtype for entry in report.outputs] == ["int64", "bool"]
    found, expected = run_file(path, x=x), model(x)
    assert (found["label"] == expected["label"].numpy()).all()
    assert (found["sure"] == expected["sure"].numpy()).all()
