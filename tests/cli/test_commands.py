from __future__ import annotations

import json
import sys
import types
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from torch import nn

from convert import bayesify
from convert.cli.printing import show

from .running import assert_one_line, run


def test_plan_prints_the_plan(nets: Path) -> None:
    result = run("plan", "nets:Net(width=7)", "--input", "2x4")
    assert (result.exit_code, result.stderr) == (0, "")
    assert "Net: 59 of 59 parameters" in result.stdout
    assert "forward on the example inputs" in result.stdout


def test_plan_as_json_with_selection(nets: Path) -> None:
    result = run("plan", "nets:Net", "--json", "--include", "body", "--include", "head", "--exclude", "*.bias")
    tiers = {row["name"]: row["tier"] for row in json.loads(result.stdout)["rows"]}
    assert tiers == {
        "body.weight": "local",
        "body.bias": "deterministic",
        "head.weight": "local",
        "head.bias": "deterministic",
    }


@pytest.mark.slow
def test_weights_are_loaded_and_choices_told_on_stderr(nets: Path) -> None:
    model = nn.ModuleDict({"body": nn.Linear(4, 5), "head": nn.Linear(5, 3)})
    torch.save({"ema": {f"module.{name}": value for name, value in model.state_dict().items()}}, "best.pth")
    result = run("export", "nets:Net", "-w", "best.pth", "--key", "ema", "-i", "1x4", "-o", "net.onnx", "--json")
    assert result.exit_code == 0, result.output
    assert result.stderr == "weights: removed the prefix 'module.' from every name.\n"
    x = torch.randn(3, 4)
    (found,) = onnxruntime.InferenceSession("net.onnx").run(None, {"x": x.numpy()})
    expected = model["head"](torch.relu(model["body"](x))).detach()
    torch.testing.assert_close(torch.from_numpy(found), expected)
    assert json.loads(result.stdout)["relative_error"] <= 1e-5


@pytest.mark.slow
def test_export_and_inspect_print_tables_and_json(nets: Path) -> None:
    exported = run("export", "nets:Net", "--input", "x=2x4", "--output", "net.onnx")
    assert exported.exit_code == 0, exported.output
    for part in ("net.onnx", "x: float32[batch, 4]", "43, 0.0% zeros", "allowed 1e-05", "at batch 16"):
        assert part in exported.stdout
    inspected = run("inspect", "net.onnx")
    assert (inspected.exit_code, inspected.stderr) == (0, "")
    for part in ("x: float32[batch, 4]", "43, 0.0% zeros", "bensemble.schema = ", "Gemm"):
        assert part in inspected.stdout
    assert "verified" not in inspected.stdout
    held = json.loads(run("inspect", "net.onnx", "--json").stdout)
    assert held["size"] == Path("net.onnx").stat().st_size
    assert (held["parameters"], held["sparsity"]) == (43, 0.0)
    assert held["inputs"] == [{"name": "x", "dtype": "float32", "shape": ["batch", 4]}]


def test_text_from_a_file_sends_nothing_to_the_terminal_but_text(capsys: pytest.CaptureFixture[str]) -> None:
    show("size  3 kB\n  note \x1b[2J\r", {}, json=False)
    assert capsys.readouterr().out == "size  3 kB\n  note \\x1b[2J\\r\n"


@pytest.mark.slow
def test_export_without_verification_says_so(nets: Path) -> None:
    result = run("export", "nets:Net", "-i", "2x4", "-o", "net.onnx", "--no-verify", "--opset", "18")
    assert result.exit_code == 0, result.output
    assert [line.split() for line in result.stdout.splitlines() if line.strip().startswith("verified")] == [
        ["verified", "no"]
    ]
    assert "opset 18\n" in result.stdout


@pytest.mark.slow
def test_bayesian_weights_are_pruned_and_exported(nets: Path) -> None:

    source = nn.ModuleDict({"body": nn.Linear(4, 5), "head": nn.Linear(5, 3)})
    torch.save(bayesify(source).state_dict(), "bayesian.pt")
    result = run("export", "nets:Net", "-w", "bayesian.pt", "-i", "1x4", "-o", "n.onnx", "--sparsity", "0.6", "--json")
    assert result.exit_code == 0, result.output
    assert "made 4 parameters of the model Bayesian" in result.stderr
    weights = [source["body"].weight, source["head"].weight]
    assert json.loads(result.stdout)["zeros"] == round(0.6 * sum(weight.numel() for weight in weights))


@pytest.mark.slow
def test_a_file_that_does_not_reproduce_the_model_is_code_3_and_nothing_is_written(nets: Path) -> None:
    Path("net.onnx").write_text("from before")
    assert_one_line(run("export", "nets:Drifting", "-i", "2x4", "-o", "net.onnx"), 3, "export: output")
    assert Path("net.onnx").read_text() == "from before"
    assert sorted(path.name for path in Path().iterdir() if path.is_file()) == ["net.onnx", "nets.py"]


@pytest.mark.parametrize(
    ("words", "part"),
    [
        (["plan", "nets:Nat"], "has no 'Nat'; did you mean 'Net'?"),
        (["plan", "nets:Net", "--include", "hed"], "include 'hed' matches nothing in the model; nearest names: head"),
        (["plan", "nets:Net", "--input", "2x5"], "rejects --input"),
        (["plan", "nets:Net", "--weights", "none.pth"], "'none.pth' cannot be read (No such file or directory); give"),
        (
            ["plan", "torch.nn:ReLU", "--input", "none.npz"],
            "'none.npz' is not a file of numeric arrays (FileNotFoundError: ",
        ),
        (["plan", "nets:Net", "--input", "y=2x4"], "rejects --input (InvalidTypeError: "),
        (["plan", "nets:Net", "--input", "y=2x4"], "Net takes the arguments (x), got the keys 'y'"),
        (["export", "nets:Net", "-i", "2x4", "-o", "no/net.onnx"], "does not exist; create it first"),
        (
            ["export", "nets:Net", "-i", "2x4", "-o", "n.onnx", "--sparsity", "0.5"],
            "the model has no posterior to prune by; give",
        ),
        (["inspect", "none.onnx"], "'none.onnx' cannot be read"),
        (["inspect", "nets.py"], "'nets.py' is not an ONNX file"),
    ],
)
def test_refusals_are_one_line_and_code_1(words: list[str], part: str, nets: Path) -> None:
    assert_one_line(run(*words), 1, part)


@pytest.mark.parametrize(
    ("words", "part"),
    [
        (["plan"], "Missing argument 'MODEL'. Try 'bensemble plan --help'."),
        (["plann"], "No such command 'plann'. Did you mean 'plan'? Try 'bensemble --help'."),
        (["plan", "nets:Net", "--jsn"], "No such option: --jsn"),
        (["plan", "nets"], "does not say where the model comes from; write"),
        (["plan", "nets:Net(width=w)"], "allowed are text in quotes, numbers"),
        (["plan", "nets:Net", "--input", "2,4"], "'2,4' is not a shape"),
        (["plan", "nets:Net", "--key", "ema"], "add --weights FILE"),
        (["export", "nets:Net", "-i", "2x4"], "Missing option '--output'"),
        (["export", "nets:Net", "-o", "n.onnx"], "Missing option '--input'"),
        (["export", "nets:Net", "-i", "2x4", "-o", "n.onnx", "--opset", "new"], "--opset"),
        (["inspect"], "Missing argument 'FILE.onnx'"),
    ],
)
def test_wrong_usage_is_one_line_and_code_2(words: list[str], part: str, nets: Path) -> None:
    assert_one_line(run(*words), 2, part)


@pytest.mark.parametrize("command", ["demo", "plan", "export", "inspect"])
def test_every_command_has_help_with_examples(command: str) -> None:
    result = run(command, "--help")
    assert result.exit_code == 0
    assert "For example" in result.stdout
    assert f"bensemble {command} " in result.stdout


def test_without_a_command_the_help_is_shown() -> None:
    result = run()
    assert result.exit_code == 0
    assert all(command in result.stdout for command in ("demo", "plan", "export", "inspect", "Exit codes: 0 done"))
    assert run("--version").stdout.startswith("bensemble 1.")


def test_debug_shows_where_an_error_comes_from(nets: Path) -> None:
    for words in (["plan", "nets:Net(9, 9)", "--debug"], ["--debug", "plan", "nets:Net(9, 9)"]):
        result = run(*words)
        assert result.exit_code == 1
        assert "Traceback" in result.stderr
        assert result.stderr.splitlines()[-1].startswith("Error: model: 'nets:Net(9, 9)' raised TypeError: ")
        assert "takes from 1 to 2 positional arguments but 3 were given" in result.stderr.splitlines()[-1]


def test_a_defect_of_ours_is_one_line_too(nets: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object, **__: object) -> None:
        raise KeyError("a defect")

    monkeypatch.setattr("convert.planning.conversion.plan", broken)
    assert_one_line(run("plan", "nets:Net"), 1, "KeyError: 'a defect'; run again with --debug to see where.")


def test_a_missing_package_is_named(nets: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "convert.onnx", raising=False)
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    assert_one_line(run("inspect", "net.onnx"), 1, "onnxscript")


def test_stopping_from_the_keyboard(nets: Path) -> None:
    result = run("plan", "nets:stopped")
    assert (result.exit_code, result.stdout, result.stderr) == (130, "", "Stopped.\n")


@pytest.mark.filterwarnings("always::RuntimeWarning")
def test_warnings_are_one_line(nets: Path) -> None:
    result = run("plan", "nets:warns")
    assert (result.exit_code, result.stderr) == (0, "Warning: a warning of the builder\n")


def test_demo_hands_over_where_to_read_and_write(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    calls: list[dict[str, object]] = []
    stub = types.SimpleNamespace(run_demo=lambda **arguments: calls.append(arguments))
    monkeypatch.setitem(sys.modules, "convert.demo", stub)  # type: ignore[arg-type]
    assert run("demo").exit_code == 0
    assert run("demo", "--data", "mnist.npz", "-o", str(tmp_path)).exit_code == 0
    assert [(call["output"], call["data"]) for call in calls] == [
        (Path("demo-output"), None),
        (tmp_path, Path("mnist.npz")),
    ]


def test_named_inputs_from_a_file(nets: Path) -> None:
    np.savez("batch.npz", x=np.zeros((2, 4)))
    assert run("plan", "nets:Net", "--input", "batch.npz").exit_code == 0
