"""What the command line says: options where Python has arguments, in every message that can reach a user."""

from __future__ import annotations

import ast
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from torch import nn

import convert
from convert import export_onnx
from convert.cli.wording import in_options

from .running import assert_one_line, run
from .test_deployment import COMPRESS, files  # noqa: F401  # a fixture

ROOT = Path(convert.__file__).parent

#: Spellings of Python for which the command line has an option.
PYTHON = re.compile(
    r"verify=|quantize\b|calibration_data|outputs=|likelihood=|\boutput=|example_inputs|max_drop|max_size|max_latency_ms"
    r"|num_samples|granularity=|threshold=|sparsity=|include=|exclude=|reject=|reject\[|novelty=|fit_novelty|check_noise|metadata\["
)


def messages(path: Path) -> list[str]:
    """The templates of the errors that a file raises, with 'x' for what is filled in."""
    found = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Raise) and node.exc is not None:
            for part in ast.walk(node.exc):
                if isinstance(part, ast.JoinedStr):
                    found.append("".join(v.value if isinstance(v, ast.Constant) else "x" for v in part.values))
    return found


def reachable() -> list[str]:
    """Of the rooms behind `export`, `compress` and `plan`, without arguments that the command line does not have."""
    paths = [path for room in ("onnx", "compression") for path in sorted((ROOT / room).rglob("*.py"))]
    texts = [text for path in paths for text in messages(path)]
    unreachable = (
        "method=",
        "an ensemble",
        "output_names",
        "quantize must be",
        "is for quantize",
        "must come with",
    )
    return [text for text in texts if not any(part in text for part in unreachable)]


def test_no_message_names_a_python_argument_that_has_an_option() -> None:
    texts = reachable()
    assert sum(bool(PYTHON.search(text)) for text in texts) > 12
    assert [text for text in texts if PYTHON.search(in_options(text, "export"))] == []


@pytest.mark.parametrize(
    ("message", "words"),
    [
        (
            "export_onnx: quantize='int8' with novelty needs the val_loader of fit_novelty as calibration_data, whose "
            "scores p-values are counted among, got 9 terms with other scores than its 8; pass that loader with its "
            "targets, and let it give the same inputs each time.",
            "export: --int8 with --novelty needs the held-out inputs of the novelty, whose scores p-values are counted "
            "among, got 9 terms with other scores than its 8; give the held-out inputs of the novelty in an .npz file.",
        ),
        (
            "export_onnx: x. verify=False writes it without this check.",
            "export: x. --no-verify writes it without this check.",
        ),
        (
            "export_onnx: outputs='uncertainty' needs a Bayesian model, got Net without a posterior; bayesify it and "
            "fit_posterior, pass novelty=fit_novelty(...), or export outputs='mean'.",
            "export: --outputs uncertainty needs a Bayesian model, got Net without a posterior; give the weights of "
            "its Bayesian version with --weights, or --novelty, or leave out --outputs.",
        ),
        (
            "export_onnx: reject must name uncertainties of the file (entropy), got 'std'; novelty needs "
            "novelty=fit_novelty(...).",
            "export: --reject must name uncertainties of the file (entropy), got 'std'; novelty needs --novelty.",
        ),
        (
            "export_onnx: so reject={'novelty_pvalue': 0.01} rejects nothing",
            "export: so --reject novelty_pvalue=0.01 rejects nothing",
        ),
        (
            "export_onnx: reject['entropy'] must be at least 0, got -1.",
            "export: --reject entropy must be at least 0, got -1.",
        ),
        ("prune: sparsity must be finite, got 2.", "export: --sparsity must be finite, got 2."),
        (
            "compress: one of max_drop and max_size must be given.",
            "compress: one of --max-drop and --max-size must be given.",
        ),
        ("compress: no file meets max_drop=0.1, got 9.", "compress: no file meets --max-drop 0.1, got 9."),
        ("a sparsity of 0.5 and a threshold", "a sparsity of 0.5 and a threshold"),
    ],
)
def test_arguments_become_options(message: str, words: str) -> None:
    assert in_options(message, words.partition(":")[0] if ":" in words else "export") == words


@pytest.mark.parametrize("command", ["export", "compress"])
@pytest.mark.parametrize(("option", "name"), [("-o", "net.pt"), ("-o", "net"), ("--plot", "tradeoff.txt")])
def test_a_file_says_by_its_ending_what_it_holds(nets: Path, command: str, option: str, name: str) -> None:
    if option == "--plot" and command == "export":
        return
    words = [command, "nets:Net", "-i", "2x4", "-w", "x.pt", "-o", "net.onnx", option, name]
    assert_one_line(run(*words), 2, f"must end in .{'onnx' if option == '-o' else 'png'}", f"got '{name}'")
    assert not (nets / name).exists()


#: Runs command lines one after the other, and prints the exit code and what each wrote to either stream.
WITHOUT_TORCH = """
import io, json, sys
from contextlib import redirect_stderr, redirect_stdout
sys.modules["torch"] = None
from convert.cli import main
found = []
for words in json.loads(sys.argv[1]):
    sys.argv = ["bensemble", *words]
    with redirect_stdout(io.StringIO()) as out, redirect_stderr(io.StringIO()) as err:
        try:
            code = main()
        except SystemExit as end:
            code = end.code
    found.append([code, out.getvalue(), err.getvalue()])
print(json.dumps(found))
"""


@pytest.mark.slow
def test_files_are_inspected_and_compared_without_torch(nets: Path) -> None:
    x = np.random.randn(300, 4).astype("float32")
    np.savez("inputs.npz", inputs=x)
    np.savez("val.npz", inputs=x, labels=np.arange(300) % 3)
    export_onnx(nn.Linear(4, 3), "net.onnx", torch.randn(2, 4))
    lines = [
        ["inspect", "net.onnx"],
        ["inspect", "net.onnx", "--json"],
        ["report", "net.onnx", "-i", "8x4"],
        ["report", "net.onnx", "-i", "inputs.npz"],
        ["report", "net.onnx", "--data", "val.npz", "--json"],
    ]
    command = [sys.executable, "-c", WITHOUT_TORCH, json.dumps(lines)]
    done = subprocess.run(command, env={**os.environ, "PYTHONPATH": str(ROOT.parent)}, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    for words, (code, out, err) in zip(lines, json.loads(done.stdout), strict=True):
        assert (code or 0, err) == (0, ""), words
        assert "net.onnx" in out, words
        assert words[0] == "report" or "Gemm" in out, words
        assert "--data" not in words or 0 <= json.loads(out)[0]["metric"] <= 1


@pytest.mark.slow
def test_a_picture_that_is_interrupted_is_not_left_half_written(files: Path, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
    def stop(figure: Figure, path: Path, **options: object) -> None:
        Path(path).write_bytes(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(Figure, "savefig", stop)
    before = sorted(path.name for path in files.iterdir())
    result = run(*COMPRESS, "--data", "val.npz", "--max-drop", "0", "--plot", "tradeoff.png")
    assert result.exit_code == 130
    assert sorted(path.name for path in files.iterdir()) == sorted([*before, "small.onnx"])
