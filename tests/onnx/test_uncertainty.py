"""Uncertainty files: the numbers of ``predict`` for their draws, at any batch size, the same every time."""

import json

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
import torch.nn.functional as F
from drawn_networks import drawn_networks, for_anyone, stored_draws
from onnx_models import Recurrent, Residual, TinyText, cnn, mlp, run_file
from torch import Tensor, nn

import bensemble
from bensemble.likelihoods import Categorical, Gaussian, GaussianHead
from convert import bayesify
from convert.onnx import export_onnx

DRAWS = 5


def seeded(seed: int = 3) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def bayesian(model: nn.Module, share: float = 0.2, **options) -> nn.Module:
    """A Bayesian model whose sigma is felt, and which predict does not warn about."""
    bnn = bayesify(
        model.eval(), init_sigma=lambda name, weight: share * weight.square().mean().sqrt() + 1e-3, **options
    )
    with torch.no_grad():
        for _, posterior in bensemble.named_posteriors(bnn):
            posterior.rho.add_(0.3 * torch.rand_like(posterior.rho))
    return bnn


def lenet5() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(1, 6, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(6, 16, 5), nn.ReLU(), nn.MaxPool2d(2),
        nn.Flatten(), nn.Linear(400, 120), nn.ReLU(), nn.Linear(120, 84), nn.ReLU(), nn.Linear(84, 10),
    )  # fmt: skip


class Encoder(nn.Module):
    """Patches through a TransformerEncoder; its fused projections are raw Parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(6, 16)
        layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True, dropout=0.1)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Linear(16, 4)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(self.encoder(self.embed(tokens)).mean(1))


class SmallResNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1, bias=False), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2))
        self.blocks = nn.Sequential(Residual(8, 8, 1), Residual(8, 16, 2))
        self.head = nn.Linear(16, 5)
        self(torch.randn(16, 3, 32, 32) * 2 + 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.adaptive_avg_pool2d(self.blocks(self.stem(x)), 1).flatten(1))


CASES = {
    "mlp": (mlp, lambda b: torch.randn(b, 4)),
    "lenet5": (lenet5, lambda b: torch.randn(b, 1, 28, 28)),
    "cnn with batch norm": (cnn, lambda b: torch.randn(b, 1, 8, 8)),
    "resnet": (SmallResNet, lambda b: torch.randn(b, 3, 32, 32)),
    "transformer encoder": (Encoder, lambda b: torch.randn(b, 7, 6)),
}


SLOW = {*CASES} - {"mlp"}


@pytest.mark.slow
@pytest.mark.parametrize("name", [pytest.param(n, marks=[pytest.mark.slow] if n in SLOW else []) for n in CASES])
def test_classes_agree_with_predict_for_the_draws_of_the_file_at_any_batch_size(name, tmp_path):
    torch.manual_seed(0)
    make, inputs = CASES[name]
    bnn = bayesian(make())
    path = tmp_path / "sure.onnx"
    report = export_onnx(
        bnn, path, inputs(1), outputs="uncertainty", num_samples=DRAWS, likelihood="categorical", generator=seeded()
    )
    assert [str(entry) for entry in report.outputs][1:] == [
        "entropy: float32[batch]",
        "mutual_information: float32[batch]",
    ]
    assert report.relative_error <= 1e-5
    for batch in (1, 6):
        x = inputs(batch)
        found = run_file(path, **{report.inputs[0].name: x})
        expected = bensemble.predict(drawn_networks(bnn, path), x, likelihood="categorical")
        for output in ("probs", "entropy", "mutual_information"):
            assert np.abs(found[output] - getattr(expected, output).numpy()).max() <= 1e-6
        assert found["mutual_information"].max() > 1e-4


@pytest.mark.slow
@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU])
def test_recurrent_networks_have_one_set_of_weights_for_each_draw(kind, tmp_path):
    torch.manual_seed(0)
    bnn = bayesian(Recurrent(kind))
    ids = torch.randint(0, 20, (2, 6))
    options = {"outputs": "uncertainty", "num_samples": 3, "likelihood": Categorical(dim=-1), "generator": seeded()}
    export_onnx(bnn, tmp_path / "m.onnx", ids, **options)
    more = torch.randint(0, 20, (5, 6))
    found = run_file(tmp_path / "m.onnx", ids=more)
    networks = drawn_networks(bnn, tmp_path / "m.onnx")
    expected = bensemble.predict(networks, more, likelihood=Categorical(dim=-1))
    np.testing.assert_allclose(found["probs"], expected.probs, atol=1e-6)
    np.testing.assert_allclose(found["mutual_information"], expected.mutual_information, atol=1e-6)


@pytest.mark.slow
def test_a_mapping_in_and_an_entry_of_a_mapping_out(tmp_path):
    torch.manual_seed(0)
    bnn = bayesian(TinyText())
    batch = {"input_ids": torch.randint(0, 20, (2, 6)), "attention_mask": torch.ones(2, 6, dtype=torch.long)}
    options = {"outputs": "uncertainty", "num_samples": 3, "likelihood": "categorical", "output": "logits"}
    report = export_onnx(bnn, tmp_path / "m.onnx", batch, generator=seeded(), **options)
    assert [entry.name for entry in report.inputs] == ["input_ids", "attention_mask"]
    more = {"input_ids": torch.randint(0, 20, (5, 9)), "attention_mask": torch.ones(5, 9, dtype=torch.long)}
    more["attention_mask"][2, 4:] = 0
    found = run_file(tmp_path / "m.onnx", **more)
    networks = drawn_networks(bnn, tmp_path / "m.onnx")
    expected = bensemble.predict(networks, more, likelihood="categorical", output="logits")
    np.testing.assert_allclose(found["probs"], expected.probs, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("likelihood", [None, Gaussian(0.3), GaussianHead(), "bernoulli"])
def test_the_outputs_follow_from_the_likelihood(likelihood, tmp_path):
    torch.manual_seed(0)
    bnn = bayesian(nn.Sequential(nn.Linear(3, 16), nn.Tanh(), nn.Linear(16, 4)))
    x = torch.randn(9, 3)
    options = {"outputs": "uncertainty", "num_samples": DRAWS, "likelihood": likelihood}
    export_onnx(bnn, tmp_path / "m.onnx", x[:1], generator=seeded(), **options)
    found = run_file(tmp_path / "m.onnx", input=x)
    expected = bensemble.predict(drawn_networks(bnn, tmp_path / "m.onnx"), x, likelihood=likelihood)
    names = {None: ["mean", "std"], "bernoulli": ["probs", "entropy", "mutual_information"]}
    assert list(found) == names.get(likelihood, ["mean", "std", "noise_std"])
    for name, value in found.items():
        assert value.dtype == np.float32
        freedom = ((DRAWS - 1) / DRAWS) ** 0.5 if name == "std" else 1.0  # the mean of pairs needs no degree of freedom
        np.testing.assert_allclose(value, freedom * getattr(expected, name), atol=1e-6)


@pytest.mark.slow
def test_files_answer_bit_for_bit_the_same_and_the_same_seed_gives_the_same_file(tmp_path):
    torch.manual_seed(0)
    bnn, x = bayesian(cnn()), torch.randn(4, 1, 8, 8)
    options = {"outputs": "uncertainty", "num_samples": 3, "likelihood": "categorical"}
    before = torch.get_rng_state()
    for name, seed in (("a", 3), ("b", 3), ("other", 4)):
        export_onnx(bnn, tmp_path / name, x, generator=seeded(seed), **options)
    export_onnx(bnn, tmp_path / "default", x, **options)
    export_onnx(bnn, tmp_path / "zero", x, generator=seeded(0), **options)
    assert torch.equal(torch.get_rng_state(), before)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    assert (tmp_path / "a").read_bytes() != (tmp_path / "other").read_bytes()
    assert (tmp_path / "default").read_bytes() == (tmp_path / "zero").read_bytes()
    sessions = [onnxruntime.InferenceSession(str(tmp_path / "a"), providers=["CPUExecutionProvider"]) for _ in "12"]
    answers = [session.run(None, {"input": x.numpy()}) for session in (*sessions, sessions[0])]
    for other in answers[1:]:
        assert all(np.array_equal(one, two) for one, two in zip(answers[0], other, strict=True))


@pytest.mark.slow
def test_pruned_weights_are_zero_in_every_draw(tmp_path):
    bnn = bayesian(mlp())
    bensemble.prune(bnn, threshold=6.0)
    pruned = sum(int((p.mask == 0).sum()) for name, p in bensemble.named_posteriors(bnn) if p.mask is not None)
    assert pruned > 0
    report = export_onnx(bnn, tmp_path / "m.onnx", torch.randn(2, 4), outputs="uncertainty", num_samples=3)
    assert report.zeros >= 2 * pruned  # in the mean and the deviation
    draws, masks = stored_draws(tmp_path / "m.onnx"), {name: p.mask for name, p in bensemble.named_posteriors(bnn)}
    for name, value in draws.items():
        mask = masks[name.rpartition(".")[0]]
        assert (value[mask == 0] == 0).all()
        assert (value[mask == 1] != 0).all()
    assert len(draws) == 3 * len(masks)


@pytest.mark.slow
def test_what_no_posterior_reaches_is_computed_once(tmp_path):
    bnn = bayesian(lenet5(), include="11")
    report = export_onnx(bnn, tmp_path / "m.onnx", torch.randn(2, 1, 28, 28), outputs="uncertainty", num_samples=7)
    assert report.operators["Conv"] == report.operators["MaxPool"] == 2
    assert report.operators["Gemm"] == 3  # the seven heads are one product
    assert report.operators["Relu"] == 4


@pytest.mark.slow
def test_the_first_drawn_convolution_is_one_operation(tmp_path):
    report = export_onnx(bayesian(lenet5()), tmp_path / "m.onnx", torch.randn(2, 1, 28, 28), outputs="uncertainty")
    assert report.operators["Conv"] == report.operators["MaxPool"] == 1 + 16
    assert report.operators["Split"] == 1 + 2 * 10  # its output, and the pairs of draws of each of ten weights


@pytest.mark.slow
def test_calibration_is_in_the_graph_and_in_the_metadata(tmp_path):
    torch.manual_seed(0)
    model, x = mlp(), torch.randn(200, 4)
    with torch.no_grad():
        model[3].weight.mul_(20)
    bnn = bayesian(model)
    held_out = bensemble.predict(bnn, x, DRAWS, likelihood="categorical", generator=seeded())
    targets = torch.distributions.Categorical(probs=(0.3 * held_out.probs.log()).softmax(-1)).sample()
    calibration = bensemble.calibrate(held_out, targets, alpha=0.2)
    assert calibration.temperature > 1.2
    options = {"outputs": "uncertainty", "num_samples": DRAWS, "likelihood": "categorical", "calibration": calibration}
    report = export_onnx(bnn, tmp_path / "m.onnx", x[:1], generator=seeded(), **options)
    found = run_file(tmp_path / "m.onnx", input=x)
    drawn = bensemble.predict(drawn_networks(bnn, tmp_path / "m.onnx"), x, likelihood="categorical")
    tempered = for_anyone(calibration).apply(drawn)
    np.testing.assert_allclose(found["probs"], tempered.probs, atol=1e-6)
    np.testing.assert_allclose(found["entropy"], tempered.entropy, atol=1e-6)
    np.testing.assert_allclose(found["mutual_information"], tempered.mutual_information, atol=1e-6)
    assert found["prediction_set"].dtype == bool
    assert np.array_equal(found["prediction_set"], for_anyone(calibration).prediction_set(drawn))
    assert 0 < found["prediction_set"].mean() < 1
    stored = report.metadata
    assert bensemble.Calibration.from_json(stored["bensemble.calibration"]) == calibration
    reference = {"entropy": calibration.reference["entropy"], "class": calibration.predicted}
    assert json.loads(stored["bensemble.reference"]) == {k: list(v) for k, v in reference.items()}
    assert (stored["bensemble.method"], stored["bensemble.num_samples"]) == ("samples", str(DRAWS))
    assert stored["bensemble.likelihood"].startswith("Categorical(")


@pytest.mark.slow
def test_a_calibrated_regression_scales_both_deviations(tmp_path):
    torch.manual_seed(0)
    bnn, x = bayesian(nn.Sequential(nn.Linear(3, 16), nn.Tanh(), nn.Linear(16, 1))), torch.randn(50, 3)
    held_out = bensemble.predict(bnn, x, DRAWS, likelihood=Gaussian(0.3), generator=seeded())
    calibration = bensemble.calibrate(held_out, held_out.mean + torch.randn(50, 1))
    options = {"outputs": "uncertainty", "num_samples": DRAWS, "likelihood": Gaussian(0.3), "calibration": calibration}
    report = export_onnx(bnn, tmp_path / "m.onnx", x[:1], generator=seeded(), **options)
    drawn = bensemble.predict(drawn_networks(bnn, tmp_path / "m.onnx"), x, likelihood=Gaussian(0.3))
    found, tempered = run_file(tmp_path / "m.onnx", input=x), for_anyone(calibration).apply(drawn)
    assert list(found) == ["mean", "std", "noise_std", "lower", "upper"]
    np.testing.assert_allclose(found["std"], tempered.std * ((DRAWS - 1) / DRAWS) ** 0.5, rtol=1e-5)
    np.testing.assert_allclose(found["noise_std"], tempered.noise_std, rtol=1e-5)
    assert set(json.loads(report.metadata["bensemble.reference"])) == {"total_std", "std"}


@pytest.mark.slow
def test_the_file_needs_no_other_domain_and_no_random_numbers(tmp_path):
    export_onnx(bayesian(cnn()), tmp_path / "m.onnx", torch.randn(2, 1, 8, 8), outputs="uncertainty", num_samples=3)
    proto = onnx.load(tmp_path / "m.onnx")
    assert {entry.domain for entry in proto.opset_import} == {""}
    assert not {node.op_type for node in proto.graph.node} & {"RandomNormal", "RandomNormalLike", "RandomUniformLike"}


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["plain", "bayesian", "of two architectures"])
def test_ensembles_are_one_file(kind, tmp_path):
    torch.manual_seed(0)
    models: list[nn.Module] = [mlp().eval(), mlp().eval(), mlp().eval()]
    if kind == "bayesian":
        models = [bayesian(model) for model in models[:2]]
    if kind == "of two architectures":
        models[1] = nn.Linear(4, 3)
    x = torch.randn(6, 4)
    options = {"outputs": "uncertainty", "num_samples": 3, "likelihood": "categorical", "generator": seeded()}
    report = export_onnx(models, tmp_path / "m.onnx", x[:1], **options)
    assert report.metadata["bensemble.num_samples"] == ("6" if kind == "bayesian" else "3")
    assert report.operators["Gemm"] == {"plain": 4, "bayesian": 7, "of two architectures": 4}[kind]
    found = run_file(tmp_path / "m.onnx", input=x)
    if kind == "bayesian":
        path = tmp_path / "m.onnx"
        models = [network for m in (0, 1) for network in drawn_networks(models[m], path, f"{m}.")]
    expected = bensemble.predict(models, x, likelihood="categorical")
    for name, value in found.items():
        np.testing.assert_allclose(value, getattr(expected, name), atol=1e-6)
