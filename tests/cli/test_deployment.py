"""`bensemble compress` and `bensemble report` on a small network, its Bayesian weights and data in files."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch

import bensemble
from convert import OnnxModel, bayesify, export_onnx

from .running import NETS, Write, assert_one_line, run

SCORES = """
def closeness(model):
    import torch
    x = torch.ones(4, 4)
    return -float(model(x).square().mean())

number = 7
"""


@pytest.fixture
def files(write: Write) -> Path:
    """A folder with nets.py, scores.py, bayesian.safetensors and val.npz, whose labels are the network's own."""
    folder = write("nets.py", NETS).parent
    write("scores.py", SCORES)
    space: dict[str, type] = {}
    exec(NETS, space)
    torch.manual_seed(0)
    model = bayesify(space["Net"](), init_sigma=lambda name, weight: weight.abs() + 0.01).eval()
    bensemble.save(model, folder / "bayesian.safetensors")
    torch.save(space["Net"]().state_dict(), folder / "plain.pt")
    inputs = torch.randn(40, 4)
    np.savez(folder / "val.npz", images=inputs.numpy(), labels=model(inputs).argmax(1).numpy())
    np.savez(folder / "unlabelled.npz", images=inputs.numpy())
    return folder


COMPRESS = ("compress", "nets:Net", "-w", "bayesian.safetensors", "-o", "small.onnx")


@pytest.mark.long
def test_compress_writes_the_smallest_file_within_the_drop(files: Path) -> None:
    result = run(*COMPRESS, "--data", "val.npz", "--max-drop", "0.1", "--plot", "front.png", "--json")
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    chosen = next(point for point in found["points"] if point["name"] == found["chosen"])
    assert chosen["drop"] <= 0.1
    assert found["points"][0]["metric"] == 1.0  # the labels are those of the network at the posterior mean
    assert chosen["size"] == (files / "small.onnx").stat().st_size
    assert (files / "front.png").read_bytes()[1:4] == b"PNG"
    with np.load(files / "val.npz") as data:
        right = OnnxModel(files / "small.onnx")(torch.from_numpy(data["images"])).argmax(1).numpy() == data["labels"]
    assert right.mean() == chosen["metric"]


@pytest.mark.long
def test_compress_takes_a_function_of_the_user(files: Path) -> None:
    result = run(*COMPRESS, "--evaluate", "scores:closeness", "-i", "8x4", "--max-size", "100000")
    assert result.exit_code == 0, result.output
    assert result.stdout.startswith("small.onnx: ")
    assert (files / "small.onnx").exists()


EXPORT = ("export", "nets:Net(width=64)", "-i", "2x4", "-o", "net.onnx")


@pytest.fixture
def wide(files: Path) -> torch.nn.Module:
    """A wider network, whose Bayesian weights are in wide.safetensors."""
    space: dict[str, type] = {}
    exec(NETS, space)
    model = bayesify(space["Net"](64)).eval()
    bensemble.save(model, files / "wide.safetensors")
    return model


def test_export_rounds_to_eight_bits(files: Path, wide: torch.nn.Module) -> None:
    result = run(*EXPORT, "-w", "wide.safetensors", "--int8", "val.npz", "--json")
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout)
    assert report["quantization"] == "int8 static, per channel"
    x = torch.randn(5, 4)
    with torch.no_grad():
        torch.testing.assert_close(OnnxModel("net.onnx")(x), wide(x), rtol=0, atol=0.1 * float(wide(x).abs().max()))


@pytest.mark.slow
def test_export_stores_zeros_sparsely(files: Path, wide: torch.nn.Module) -> None:
    sizes = {}
    for name, words in (("dense", ()), ("sparse", ("--sparse",))):
        result = run(*EXPORT, "-w", "wide.safetensors", "--sparsity", "0.9", *words, "--json")
        assert result.exit_code == 0, result.output
        sizes[name] = json.loads(result.stdout)["sparse_tensors"], Path("net.onnx").stat().st_size
    assert (sizes["dense"][0], sizes["sparse"][0]) == (0, 2)
    assert sizes["sparse"][1] < sizes["dense"][1]


@pytest.mark.slow
@pytest.mark.parametrize("words", [("--threshold", "1e6"), ("--sparsity", "0.5")])
def test_export_prunes_channels_and_cuts_them_out(files: Path, wide: torch.nn.Module, words: tuple[str, str]) -> None:
    result = run(*EXPORT, "-w", "wide.safetensors", *words, "--granularity", "channel", "--compact", "--json")
    assert result.exit_code == 0, result.output
    alive = 1 if words[0] == "--threshold" else round((256 - 0.5 * 448) / 4)  # of 64 neurons with 4 weights each
    assert json.loads(result.stdout)["parameters"] == alive * (4 + 1 + 3) + 3


def test_export_compacts_a_plain_network(files: Path) -> None:
    space: dict[str, type] = {}
    exec(NETS, space)
    model = space["Net"](64)
    model.head.weight.data[:, :40] = 0
    torch.save(model.state_dict(), "plain.pth")
    result = run(*EXPORT, "-w", "plain.pth", "--compact", "--json")
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["parameters"] == 24 * (4 + 1 + 3) + 3


@pytest.mark.parametrize(
    ("words", "code", "part"),
    [
        (["--granularity", "head", "--sparsity", "0.5"], 1, "export: --granularity must be 'weight', 'channel' or the"),
        (["--granularity", "channel"], 2, "not how much; add --threshold or --sparsity"),
        (["--compact", "--outputs", "uncertainty"], 2, "--compact takes the network at the posterior mean"),
        (
            ["--int8", "val.npz", "--outputs", "uncertainty"],
            1,
            "--int8 needs --outputs mean or a last layer in closed form, got --outputs uncertainty by samples",
        ),
        (["--int8", "missing.npz"], 1, "'missing.npz' is not a file of numeric arrays (FileNotFoundError: "),
        (["--int8", "other.npz"], 1, "--int8 must be like --input, a tensor of shape (2, 4)"),
        (["--sparsity", "1.5"], 1, "sparsity must be finite and at least 0 and below 1, got 1.5"),
    ],
)
def test_export_refuses(files: Path, wide: torch.nn.Module, words: list[str], code: int, part: str) -> None:
    np.savez("other.npz", x=np.zeros((8, 5), np.float32))
    result = run(*EXPORT, "-w", "wide.safetensors", *words)
    *notes, error = result.stderr.splitlines()
    assert (result.exit_code, result.stdout) == (code, ""), result.output
    assert error.startswith("Error: ")
    assert part in error
    assert notes in ([], ["weights: made the model Bayesian as the header of the checkpoint says."])
    assert not (files / "net.onnx").exists()


@pytest.mark.parametrize(
    ("words", "code", "part"),
    [
        (["--max-drop", "0.1"], 2, "add --data val.npz, or --evaluate module:function and --input"),
        (
            ["--evaluate", "scores:closeness", "--max-drop", "0.1"],
            2,
            "add --data val.npz, or --evaluate module:function and",
        ),
        (["--data", "unlabelled.npz", "--max-drop", "0.1"], 2, "must hold inputs and labels, got 40 in images; write"),
        (
            ["--data", "missing.npz", "--max-drop", "0.1"],
            1,
            "'missing.npz' is not a file of numeric arrays (FileNotFoundError: ",
        ),
        (["--data", "val.npz"], 1, "one of --max-drop, --max-latency-ms and --max-size must be given"),
        (
            ["--evaluate", "scores:number", "-i", "8x4", "--max-drop", "0.1"],
            1,
            "--evaluate must be callable as (model), got 7",
        ),
        (["--evaluate", "scores:closeness(2)", "-i", "8x4", "--max-drop", "0.1"], 2, "function without arguments, got"),
        (
            ["--data", "val.npz", "-w", "plain.pt", "--max-size", "900"],
            1,
            "no posterior to prune by; give its Bayesian --w",
        ),
        (["--evaluate", "scores:closenes", "-i", "8x4", "--max-drop", "0.1"], 1, "did you mean 'closeness'?"),
    ],
)
def test_compress_refuses(files: Path, words: list[str], code: int, part: str) -> None:
    result = run(*COMPRESS, *words)
    assert result.exit_code == code
    assert part in result.stderr
    assert not (files / "small.onnx").exists()


@pytest.mark.parametrize(
    ("arrays", "part"),
    [
        ({"labels": np.zeros(4, np.int64)}, "must hold inputs and labels, got 4 in labels"),
        ({"x": np.zeros((4, 4)), "labels": np.zeros(3, np.int64)}, "got 4 in x, 3 in labels"),
        ({"x": np.zeros((4, 4)), "labels": np.zeros((4, 3), np.float32)}, "labels of .* must be class numbers"),
    ],
)
def test_data_that_does_not_fit_is_refused(files: Path, arrays: dict[str, np.ndarray], part: str) -> None:
    np.savez(files / "bad.npz", **arrays)
    result = run(*COMPRESS, "--data", "bad.npz", "--max-drop", "0.1")
    assert result.exit_code == 2
    assert re.search(part, " ".join(result.stderr.split())), result.stderr


def test_labels_that_the_outputs_cannot_have_are_refused(files: Path) -> None:
    data = np.load(files / "val.npz")
    np.savez(files / "bad.npz", images=data["images"], labels=data["labels"] + 1)
    result = run(*COMPRESS, "--data", "bad.npz", "--max-drop", "0.1")
    assert result.exit_code == 1
    assert "data: labels must lie in 0..2 for the model's 3 outputs, got 1..3; number the classes" in result.stderr
    assert not (files / "small.onnx").exists()


@pytest.fixture
def exported(files: Path) -> Path:
    space: dict[str, type] = {}
    exec(NETS, space)
    for name, width in (("wide.onnx", 50), ("narrow.onnx", 5)):
        export_onnx(space["Net"](width), files / name, torch.randn(2, 4))
    return files


@pytest.mark.slow
@pytest.mark.parametrize("words", [["--data", "val.npz"], ["-i", "16x4"]])
def test_report_puts_files_side_by_side(exported: Path, words: list[str]) -> None:
    result = run("report", "wide.onnx", "narrow.onnx", *words, "--json")
    assert result.exit_code == 0, result.output
    wide, narrow = json.loads(result.stdout)
    assert (wide["name"], narrow["name"]) == ("wide.onnx", "narrow.onnx")
    assert narrow["size"] < wide["size"] == (exported / "wide.onnx").stat().st_size
    assert all(0 <= row["metric"] <= 1 if "--data" in words else row["metric"] is None for row in (wide, narrow))


def test_report_refuses(exported: Path) -> None:
    assert_one_line(run("report", "wide.onnx"), 2, "report: add --data val.npz, or --input")
    assert_one_line(run("report", "nets.py", "-i", "2x4"), 1, "nets.py")
    assert_one_line(run("report", "wide.onnx", "-i", "2x5"), 1, "rejects the inputs")


@pytest.mark.slow
def test_report_reads_the_classes_of_an_uncertainty_file(exported: Path, wide: torch.nn.Module) -> None:
    x = torch.randn(2, 4)
    export_onnx(wide, exported / "sure.onnx", x, outputs="uncertainty", likelihood="categorical", num_samples=4)
    result = run("report", "wide.onnx", "sure.onnx", "--data", "val.npz", "--json")
    assert result.exit_code == 0, result.output
    assert 0 <= json.loads(result.stdout)[1]["metric"] <= 1
    export_onnx(wide, exported / "raw.onnx", x, outputs="uncertainty", num_samples=4)
    words = "accuracy needs one output of scores, logits or probs, got mean, std; name a function of your own"
    assert_one_line(run("report", "raw.onnx", "--data", "val.npz"), 1, words)
