"""What every export promises: the same numbers at any batch size, names, bytes, and nothing touched."""

import copy
import hashlib
import os
import random
import subprocess
import sys

import numpy as np
import onnx
import pytest
import torch
from onnx_models import assert_same, cnn, mlp, run_file
from torch import nn

import bensemble
from convert import bayesify
from convert.onnx import ExportReport, export_onnx, inspect_onnx

pytestmark = pytest.mark.xdist_group("exported file")  # its fixtures are made once


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("onnx") / "cnn.onnx"
    model, stages = cnn().eval(), []
    metadata = {"classes": "a,b,c"}
    report = export_onnx(model, path, torch.randn(1, 1, 8, 8), metadata=metadata, progress=stages.append)
    path.with_suffix(".stages").write_text("\n".join(stages))
    return model, path, report


def test_the_stages_are_told_as_they_begin(exported):
    expected = ["trying other inputs", "tracing", "optimising the graph", "verifying in ONNX Runtime"]
    assert exported[1].with_suffix(".stages").read_text().splitlines() == [*expected, "measuring the latency"]


def test_progress_that_takes_nothing_is_refused_before_anything_runs(tmp_path):
    with pytest.raises(bensemble.InvalidTypeError, match=r"export_onnx: progress must be callable as \(stage\)"):
        export_onnx(mlp(), tmp_path / "m.onnx", torch.randn(2, 4), progress=lambda: None)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("batch", [1, 2, 7])
def test_a_batch_of_one_exports_a_file_for_every_batch(exported, batch):
    model, path, _ = exported
    x = torch.randn(batch, 1, 8, 8)
    assert_same(run_file(path, input=x)["output"], model(x))


def test_report_says_what_is_in_the_file(exported):
    model, path, report = exported
    assert isinstance(report, ExportReport)
    assert report.path == path
    assert report.size == path.stat().st_size
    assert 0 < report.gzip_size < report.size + 100
    assert [str(entry) for entry in report.inputs] == ["input: float32[batch, 1, 8, 8]"]
    assert [str(entry) for entry in report.outputs] == ["output: float32[batch, 3]"]
    folded = sum(p.numel() for name, p in model.named_parameters() if not name.startswith("1."))
    assert report.parameters == folded  # BatchNorm is folded into the convolution
    assert report.sparsity == 0.0
    assert report.operators["Conv"] == 1
    assert report.opset == onnx.load(path).opset_import[0].version
    assert report.verified
    assert report.relative_error <= report.tolerance == 1e-5
    assert list(report.latency_ms)[:2] == [1, 16]
    assert all(value > 0 for value in report.latency_ms.values())


def test_report_prints_well_and_is_frozen(exported):
    _, path, report = exported
    text = str(report)
    for shown in (str(path), "gzipped", "zeros", "float32[batch, 3]", "classes = a,b,c", "max error", "ms at batch 16"):
        assert shown in text
    assert max(len(line) for line in text.splitlines() if str(path) not in line) <= 120
    with pytest.raises(AttributeError):
        report.size = 1


def test_metadata_holds_the_toolkits_and_the_users_strings(exported):
    _, path, report = exported
    stored = {entry.key: entry.value for entry in onnx.load(path).metadata_props}
    assert stored.pop("bensemble.sha256") == hashlib.sha256(path.read_bytes()[86:]).hexdigest()
    assert stored == dict(report.metadata)
    assert stored == {
        "bensemble.schema": "1",
        "bensemble.version": bensemble.__version__,
        "bensemble.outputs": "mean",
        "bensemble.model": "Sequential",
        "classes": "a,b,c",
    }


def test_inspection_agrees_with_the_report(exported):
    _, path, report = exported
    summary = inspect_onnx(path)
    for name in ("size", "gzip_size", "inputs", "outputs", "parameters", "sparsity", "opset", "operators", "metadata"):
        assert getattr(summary, name) == getattr(report, name)


def test_zeros_are_counted(tmp_path):
    model = mlp()
    with torch.no_grad():
        model[0].weight[:5].zero_()
    report = export_onnx(model, tmp_path / "m.onnx", torch.randn(2, 4), verify=False)
    assert report.parameters == 4 * 8 + 8 + 8 * 3 + 3
    assert report.zeros == 20
    assert report.sparsity == 20 / report.parameters
    assert not report.verified
    assert report.latency_ms == {}
    assert "verified    no" in str(report)


@pytest.mark.slow
def test_a_bayesian_model_is_exported_at_its_mean(tmp_path):
    source = cnn()
    bnn = bayesify(source)
    x = torch.randn(1, 1, 8, 8)
    export_onnx(source, tmp_path / "source.onnx", x)
    with bensemble.sampling(bnn):
        export_onnx(bnn, tmp_path / "mean.onnx", x)
    assert (tmp_path / "mean.onnx").read_bytes() == (tmp_path / "source.onnx").read_bytes()
    assert bnn.training
    assert type(bnn[0]) is bensemble.layers.conv.BayesianConv2d
    more = torch.randn(5, 1, 8, 8)
    assert_same(run_file(tmp_path / "mean.onnx", input=more)["output"], bnn.eval()(more))


def test_masks_of_a_bayesian_model_are_zeros_in_the_file(tmp_path):
    bnn = bayesify(mlp())
    bnn[0].apply_pruning(threshold=30.0)
    pruned = int((bnn[0].get_pruning_masks(30.0)["w_mu"] == 0).sum())
    report = export_onnx(bnn, tmp_path / "m.onnx", torch.randn(2, 4))
    assert report.zeros == pruned > 0  # the bias, all zeros here, is left out by the exporter


class Drawing(nn.Module):
    def forward(self, x):
        return x + torch.randn_like(x)


@pytest.mark.parametrize("training", [True, False])
def test_the_model_and_the_random_state_stay(tmp_path, training):
    model = cnn().train(training)
    model[1].eval()
    before, flags = copy.deepcopy(model.state_dict()), [module.training for module in model.modules()]
    x = torch.randn(2, 1, 8, 8)
    states = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].copy()
    export_onnx(model, tmp_path / "m.onnx", x)
    export_onnx(Drawing(), tmp_path / "d.onnx", x, verify=False)
    assert torch.equal(torch.get_rng_state(), states[0])
    assert random.getstate() == states[1]
    assert np.array_equal(np.random.get_state()[1], states[2])
    assert [module.training for module in model.modules()] == flags
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name])


def test_the_example_and_the_gradients_stay(tmp_path):
    class Writing(nn.Linear):
        def forward(self, x):
            return super().forward(x.mul_(2))

    model, x = Writing(4, 3), torch.ones(2, 4)
    export_onnx(model, tmp_path / "m.onnx", x)
    assert torch.equal(x, torch.ones(2, 4))
    assert all(parameter.grad is None and parameter.requires_grad for parameter in model.parameters())


@pytest.mark.slow
def test_a_fresh_process_prints_nothing(tmp_path):
    code = "import torch, convert.onnx as o; o.export_onnx(torch.nn.Linear(4, 3), 'm.onnx', torch.ones(2, 4))"
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("", "")
    assert os.listdir(tmp_path) == ["m.onnx"]


def test_nothing_is_printed_or_warned_and_everything_is_logged(tmp_path, capfd, caplog, forget_operators):
    forget_operators()

    class Chatty(nn.Linear):
        def forward(self, x):
            print("called")
            return super().forward(x)

    with caplog.at_level("DEBUG", "bensemble.onnx"):
        export_onnx(Chatty(4, 3), tmp_path / "m.onnx", torch.randn(2, 4))  # warnings are errors here
    assert capfd.readouterr() == ("", "")
    assert "called" in caplog.text


@pytest.mark.slow
def test_verbose_lets_the_exporter_talk(tmp_path, capfd, recwarn):
    export_onnx(nn.Linear(4, 3), tmp_path / "m.onnx", torch.randn(2, 4), verbose=True)
    assert "torch.onnx" in capfd.readouterr().out
    assert not [warning for warning in recwarn if "training mode" in str(warning.message)]


@pytest.mark.slow
def test_the_same_model_gives_the_same_bytes_without_traces_of_the_machine(tmp_path):
    model, x = cnn(), torch.randn(2, 1, 8, 8)
    for name in ("first", "second"):
        export_onnx(model, tmp_path / name, x, metadata={"b": "2", "a": "1"})
    data = (tmp_path / "first").read_bytes()
    assert data == (tmp_path / "second").read_bytes()
    for trace in (__file__, "site-packages", "stack_trace", str(tmp_path)):
        assert trace.encode() not in data


@pytest.mark.slow
@pytest.mark.parametrize("opset", [18, 21])
def test_opset_is_the_one_asked_for(tmp_path, opset):
    model, x = mlp().eval(), torch.randn(3, 4)
    assert export_onnx(model, tmp_path / "m.onnx", torch.randn(2, 4), opset=opset).opset == opset
    assert_same(run_file(tmp_path / "m.onnx", input=x)["output"], model(x))


def test_initializers_keep_the_models_names(tmp_path):
    export_onnx(mlp(), tmp_path / "m.onnx", torch.randn(2, 4))
    names = {tensor.name for tensor in onnx.load(tmp_path / "m.onnx").graph.initializer}
    assert names == {"0.weight", "0.bias", "3.weight", "3.bias"}


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch.compile imports what torch itself deprecates
def test_a_compiled_model_is_exported_as_the_model_inside(tmp_path):
    model, x = mlp().eval(), torch.randn(3, 4)
    export_onnx(torch.compile(model), tmp_path / "m.onnx", torch.randn(2, 4))
    assert_same(run_file(tmp_path / "m.onnx", input=x)["output"], model(x))


@pytest.mark.slow
def test_autocast_and_inference_mode_around_it_leave_no_trace(tmp_path):
    model, x = mlp(), torch.randn(2, 4)
    export_onnx(model, tmp_path / "plain.onnx", x)
    with torch.autocast("cpu", torch.bfloat16), torch.inference_mode():
        export_onnx(model, tmp_path / "inside.onnx", x)
    assert (tmp_path / "plain.onnx").read_bytes() == (tmp_path / "inside.onnx").read_bytes()
