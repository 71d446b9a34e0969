"""Everything that is refused, with its message; the model and the file at the path stay as they were."""

import copy
import importlib.util
import os

import pytest
import torch
from onnx_models import OnShape, Structured, TwoInputs, mlp
from torch import nn
from torch.export import Dim

import convert.onnx.assembly as assembly_module
import convert.onnx.export as export_module
import convert.onnx.options as options_module
import convert.onnx.verification as verification
from bensemble.errors import ExportError, InvalidTypeError, InvalidValueError, VerificationError
from convert.onnx import export_onnx

X = torch.zeros(2, 4)
OLD = b"the file that was there before"


@pytest.fixture
def path(tmp_path):
    file = tmp_path / "m.onnx"
    file.write_bytes(OLD)
    yield file
    assert file.read_bytes() == OLD
    assert os.listdir(tmp_path) == ["m.onnx"]


class Rejecting(nn.Linear):
    def forward(self, x):
        return super().forward(x.view(2, 4))


class Branching(nn.Linear):
    def forward(self, x):
        return super().forward(x * 2 if x.sum() > 0 else x)


class Drawing(nn.Linear):
    def forward(self, x):
        return super().forward(x + torch.randn_like(x))


REFUSED = {
    "no module": (lambda x: x, X, {}, InvalidTypeError, "model must be a torch.nn.Module, got function"),
    "script": (torch.nn.Module, X, {}, InvalidTypeError, "got a ScriptModule; give the module it came from"),
    "outputs": (
        mlp(),
        X,
        {"outputs": "median"},
        InvalidValueError,
        "outputs: must be 'mean' or 'uncertainty', got 'median'",
    ),
    "opset type": (mlp(), X, {"opset": "20"}, InvalidValueError, "opset: must be a positive integer, got '20'"),
    "opset": (mlp(), X, {"opset": 9}, ExportError, "opset must be one that torch's exporter can write, got 9"),
    "metadata": (mlp(), X, {"metadata": ["a"]}, InvalidTypeError, "metadata must be a mapping of strings, got list"),
    "metadata value": (mlp(), X, {"metadata": {"a": 1}}, InvalidValueError, "strings to strings, got 'a': 1"),
    "metadata key": (mlp(), X, {"metadata": {"bensemble.x": "1"}}, InvalidValueError, "'bensemble.x' is reserved"),
    "inputs": (mlp(), [X], {}, InvalidTypeError, "example_inputs must be a tensor, a tuple .* got a list of 1"),
    "no tensor": (mlp(), (1,), {}, InvalidValueError, "example_inputs hold no tensor, got a tuple of 1"),
    "shape": (
        mlp(),
        torch.zeros(2, 5),
        {},
        ExportError,
        r"rejects example_inputs, got RuntimeError.*'input' \(2, 5\) f",
    ),
    "arguments": (TwoInputs(), (X,), {}, ExportError, "the model rejects example_inputs, got TypeError"),
    "empty": (mlp(), X[:0], {}, InvalidValueError, "axis 0 of 'input' is empty"),
    "no batch": (
        nn.Linear(4, 3),
        X[0],
        {},
        ExportError,
        r"axis 0 of 'input' \(batch\) must vary, .* accepts 4 and not 5",
    ),
    "fixed batch": (Rejecting(4, 3), X, {}, ExportError, r"accepts 2 and not 3, .*dynamic_shapes=\{'x': \{\}\}"),
    "names type": (mlp(), X, {"input_names": [1]}, InvalidTypeError, r"input_names must be strings .* got \[1\]"),
    "names count": (mlp(), X, {"input_names": ["a", "b"]}, InvalidValueError, "must have 1 entries, got 2; .*'input'"),
    "names twice": (
        Structured(lambda x, y: (y, y)),
        X,
        {"output_names": ["a", "a"]},
        InvalidValueError,
        r"output_names must differ from each other, got \['a', 'a'\]",
    ),
    "names shared": (mlp(), X, {"output_names": ["input"]}, InvalidValueError, "output_names .* got 'input' in both"),
    "axes type": (
        mlp(),
        X,
        {"dynamic_shapes": [1]},
        InvalidTypeError,
        "dynamic_shapes must map input names .* got list",
    ),
    "axes name": (mlp(), X, {"dynamic_shapes": {"y": {}}}, InvalidValueError, r"no input is called 'y'; .*\['input'\]"),
    "axes form": (
        mlp(),
        X,
        {"dynamic_shapes": {"input": [0]}},
        InvalidValueError,
        r"must map axes to names, got \[0\]",
    ),
    "axes range": (mlp(), X, {"dynamic_shapes": {"input": {2: "a"}}}, InvalidValueError, "has 2 axes, got axis 2"),
    "axes label": (mlp(), X, {"dynamic_shapes": {"input": {0: 3}}}, InvalidValueError, "must be a name or a .* got 3"),
    "axes derived": (
        mlp(),
        X,
        {"dynamic_shapes": {"input": {0: 2 * Dim("a")}}},
        InvalidValueError,
        "must be a name or",
    ),
    "axes sizes": (
        TwoInputs(),
        (torch.zeros(2, 4), torch.zeros(2, 2)),
        {"dynamic_shapes": {"image": {1: "n"}, "table": {1: "n"}}},
        InvalidValueError,
        "'n' is axis 1 of 'table' with size 2 and another axis with size 4",
    ),
    "no output": (Structured(lambda x, y: None), X, {}, ExportError, "the model returns no tensor, got NoneType"),
    "no such output": (Structured(lambda x, y: {"a": y}), X, {"output": "b"}, InvalidValueError, "'b' is not in"),
    "control flow": (
        Branching(4, 3),
        X,
        {},
        ExportError,
        r"cannot follow Branching at test_export_refusals.py:\d+ `ret",
    ),
    "one branch": (OnShape(lambda n: n > 8), X, {}, ExportError, r"sizes 1 to 8 only.*Dim\('batch', max=8\)"),
    "other branch": (OnShape(lambda n: n % 2 == 0), X + 1, {}, VerificationError, "'output' .* differs .* at batch 3"),
    "single branch": (OnShape(lambda n: n == 1), X + 1, {}, VerificationError, "'output' .* differs .* at batch 1"),
    "random": (Drawing(4, 3), X, {}, ExportError, "draw random numbers in eval mode, got RandomNormalLike"),
    "bfloat16": (mlp().bfloat16(), X.bfloat16(), {}, VerificationError, "cannot load the file, got NotImplemented"),
    "time first": (nn.LSTM(4, 3), torch.zeros(3, 2, 4), {}, VerificationError, "cannot run the file at batch 4, got"),
}


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*torch.jit")
@pytest.mark.parametrize("case", REFUSED)
def test_refused(case, path):
    model, inputs, options, error, message = REFUSED[case]
    if case == "script":
        model = torch.jit.script(mlp())
    before = copy.deepcopy(model.state_dict()) if isinstance(model, nn.Module) else {}
    with pytest.raises(error, match=f"(?s){message}") as caught:
        export_onnx(model, path, inputs, **options)
    assert str(caught.value).count("\n") == 0
    for name, value in before.items():
        assert torch.equal(model.state_dict()[name], value)


@pytest.mark.slow
def test_a_time_axis_that_the_exporter_fixes_is_refused_without_verification(path):
    model = nn.RNN(4, 3, batch_first=True)
    with pytest.raises(ExportError, match=r"axis 1 of 'input' \(time\) must vary, but torch's exporter fixed it to 3"):
        export_onnx(model, path, torch.zeros(2, 3, 4), dynamic_shapes={"input": {0: "batch", 1: "time"}}, verify=False)


class Packed(nn.LSTM):
    def forward(self, x, lengths):
        packed = nn.utils.rnn.pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False)
        return nn.utils.rnn.pad_packed_sequence(super().forward(packed)[0], batch_first=True)[0]


def test_the_line_that_torch_cannot_follow_is_named(path):
    """As for packed sequences (pytorch/pytorch#48460)."""
    inputs = torch.randn(2, 5, 4), torch.tensor([5, 3])
    with pytest.raises(
        ExportError, match=r"cannot follow Packed at test_export_refusals.py:\d+ `(return|packed =) .*pack"
    ):
        export_onnx(Packed(4, 3, batch_first=True).eval(), path, inputs)


def test_an_output_that_is_nan_cannot_be_verified(path):
    model = mlp()
    torch.nn.init.constant_(model[3].bias, float("nan"))
    with pytest.raises(VerificationError, match="output 'output' of the model must not be NaN"):
        export_onnx(model, path, X)


def test_a_file_that_differs_is_not_kept(path, monkeypatch):
    def perturbed(*args):
        proto = finished(*args)
        bias = next(tensor for tensor in proto.graph.initializer if tensor.name == "3.bias")
        bias.raw_data = (torch.frombuffer(bytearray(bias.raw_data), dtype=torch.float32) * 1.001).numpy().tobytes()
        return proto

    finished = assembly_module.finished
    monkeypatch.setattr(assembly_module, "finished", perturbed)
    with pytest.raises(VerificationError, match=r"output 'output' of the file differs from the model by \d\.\d+e-"):
        export_onnx(mlp(), path, X)


def test_an_interrupt_leaves_the_old_file(path, monkeypatch):
    def interrupted(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(verification, "compare", interrupted)
    with pytest.raises(KeyboardInterrupt):
        export_onnx(mlp(), path, X)


def test_a_full_disk_leaves_the_old_file(path, monkeypatch):
    def full(self, data):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("pathlib.Path.write_bytes", full)
    with pytest.raises(ExportError, match=r"cannot be written, got OSError.*No space left"):
        export_onnx(mlp(), path, X)


@pytest.mark.parametrize(
    ("name", "message"), [("none/m.onnx", "does not exist; create it"), (".", "is a folder; give the file")]
)
def test_a_path_that_cannot_be_written_is_refused_before_the_model_runs(tmp_path, name, message):
    class Counting(nn.Linear):
        calls = 0

        def forward(self, x):
            Counting.calls += 1
            return super().forward(x)

    with pytest.raises(InvalidValueError, match=message):
        export_onnx(Counting(4, 3), tmp_path / name, X)
    assert Counting.calls == 0


def test_weights_beyond_one_file_are_refused(path, monkeypatch):
    monkeypatch.setattr(export_module, "MOST_BYTES", 100)
    with pytest.raises(ExportError, match=r"the weights of Sequential must fit into one file of 2 GiB, got 0.00 GiB"):
        export_onnx(mlp(), path, X)


def test_a_model_that_cannot_be_copied_is_refused(path):
    class Single(nn.Linear):
        def __deepcopy__(self, memo):
            raise TypeError("there is only one")

    with pytest.raises(ExportError, match="Single cannot be copied, got TypeError: there is only one"):
        export_onnx(Single(4, 3), path, X)


def test_a_model_without_storage_is_refused(path):
    with pytest.raises(ExportError, match="Linear cannot be moved to the CPU, got NotImplementedError"):
        export_onnx(nn.Linear(4, 3, device="meta"), path, X)


def test_verification_needs_onnxruntime(path, monkeypatch):
    monkeypatch.setattr(options_module, "find_spec", lambda name: None if name == "onnxruntime" else importlib.util)
    with pytest.raises(ExportError, match="verify=True needs onnxruntime, which is not installed"):
        export_onnx(mlp(), path, X)


def test_without_verification_a_random_graph_is_written(tmp_path):
    report = export_onnx(Drawing(4, 3), tmp_path / "m.onnx", X, verify=False)
    assert report.operators["RandomNormalLike"] == 1


class TimeFirst(nn.Module):
    """A recurrent network whose axis 1 counts the examples."""

    def __init__(self):
        super().__init__()
        self.rnn, self.head = nn.GRU(6, 8), nn.Linear(8, 3)

    def forward(self, x):
        return self.head(self.rnn(x)[0][-1])


@pytest.mark.slow
def test_time_first_is_told_how_to_name_its_batch(path, tmp_path):
    model, x = TimeFirst().eval(), torch.randn(5, 4, 6)
    with pytest.raises(VerificationError, match=r"such as dynamic_shapes=\{'x': \{1: 'batch'\}\} where axis 1 counts"):
        export_onnx(model, path, x)
