"""Every argument and option of every command, with its help. A command says which of them it takes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from typer import Argument, Option

from .example_inputs import InputText, parse_input
from .failures import WrongUsage
from .model_name import ModelName, parse_model_name


def _ending(option: str, what: str, *endings: str) -> Callable[[Path | None], Path | None]:
    """A check that the name of a file to write says what it will hold, before anything is computed."""

    def check(path: Path | None) -> Path | None:
        if path is not None and path.suffix.lower() not in endings:
            raise WrongUsage(f"{option}: {what} must end in {' or '.join(endings)}, got '{path}'.")
        return path

    return check


@dataclass(frozen=True)
class Rejection:
    """One ``--reject``: an output of the file, and its threshold."""

    name: str
    threshold: float


def parse_threshold(text: str) -> Rejection:
    """Read one ``--reject``."""
    name, equals, number = text.partition("=")
    try:
        if not name or not equals:
            raise ValueError
        return Rejection(name.strip(), float(number))
    except ValueError:
        raise WrongUsage(f"reject: {text!r} is not a name and a number; write novelty_pvalue=0.01.") from None


# The network, its weights and what one call of it takes.
Model = Annotated[
    ModelName,
    Argument(
        metavar="MODEL",
        parser=parse_model_name,
        help='Where the model comes from: [b]"module:function(arguments)"[/b], a class, or a network that a module '
        "holds. Arguments are literal. Modules of the current folder can be named.",
    ),
]
Weights = Annotated[
    Path | None,
    Option("--weights", "-w", metavar="FILE", help="Trained weights: a .safetensors file, or a torch file of tensors."),
]
BayesianWeights = Annotated[Path, Option("--weights", "-w", metavar="FILE", help="Bayesian weights of the model.")]
Key = Annotated[str | None, Option(metavar="NAME", help="Where in the weights file the state dict is, such as ema.")]
Inputs = Annotated[
    list[InputText] | None,
    Option(
        "--input",
        "-i",
        parser=parse_input,
        metavar="SHAPE|FILE",
        help="What one call of the model takes: [b]1x3x224x224[/b], [b]input_ids=2x128:int64[/b] by the name of the "
        "argument, or an .npz file. Once for each argument.",
    ),
]

# What to convert.
Include = Annotated[list[str] | None, Option(metavar="NAME", help="Only this: a dotted name or glob. Once for each.")]
Exclude = Annotated[list[str] | None, Option(metavar="NAME", help="Not this; wins over --include. Once for each.")]

# How small the network becomes.
Threshold = Annotated[
    float | None,
    Option(metavar="SNR", help="Bayesian weights only: prune where |mu| / sigma is at most this, as 0.83."),
]
Sparsity = Annotated[float | None, Option(metavar="SHARE", help="Bayesian weights only: prune this share, as 0.9.")]
Granularity = Annotated[
    str,
    Option(metavar="UNIT", help="Prune each [b]weight[/b] by itself, or a [b]channel[/b], head or neuron as a whole."),
]
Compact = Annotated[bool, Option("--compact", help="Cut out channels, heads and neurons that are zero as a whole.")]
Int8 = Annotated[
    Path | None,
    Option(
        metavar="FILE.npz",
        help="Round to eight-bit integers, calibrated with these inputs; with --novelty its held-out ones.",
    ),
]
Sparse = Annotated[bool, Option("--sparse", help="Store weights by their nonzero entries where that is smaller.")]

# What the exported file answers.
Outputs = Annotated[str, Option(metavar="WHAT", help="[b]mean[/b], the model's own outputs, or [b]uncertainty[/b].")]
Likelihood = Annotated[
    str | None, Option(metavar="NAME", help="categorical (logits of classes), bernoulli, gaussian_head; default: none.")
]
Samples = Annotated[int | None, Option(metavar="K", help="Weight draws in the file; default as calibrated, else 16.")]
CalibrationFile = Annotated[Path | None, Option(metavar="FILE", help="A calibration, by Calibration.to_json.")]
NoveltyFile = Annotated[
    Path | None,
    Option(metavar="FILE", help="What tells inputs the network does not know, by Novelty.save; adds its p-value."),
]
Reject = Annotated[
    list[Rejection] | None,
    Option(
        parser=parse_threshold,
        metavar="NAME=NUMBER",
        help="A threshold that the file carries: [b]novelty_pvalue=0.01[/b], [b]entropy=0.5[/b]. Once for each.",
    ),
]
Classes = Annotated[str | None, Option(metavar="NAMES", help="Names of the classes, as cat,dog.")]
Opset = Annotated[int | None, Option(metavar="N", help="ONNX opset; the exporter's own by default.")]
Verify = Annotated[bool, Option(help="Compare with the model in ONNX Runtime before writing.")]

# What is good enough.
Data = Annotated[
    Path | None, Option(metavar="FILE.npz", help="Held-out inputs, and class numbers under [b]labels[/b] for accuracy.")
]
Evaluate = Annotated[
    ModelName | None,
    Option(
        metavar="MODULE:FUNCTION",
        parser=parse_model_name,
        help="A function of a model that returns a score, for accuracy.",
    ),
]
MaxDrop = Annotated[float | None, Option(metavar="SCORE", help="Most that the score may fall.")]
MaxLatency = Annotated[float | None, Option(metavar="MS", help="Most milliseconds of one run, one thread.")]
MaxSize = Annotated[int | None, Option(metavar="BYTES", help="Most bytes of the file.")]

# What is read and written.
OnnxFile = Annotated[Path, Argument(metavar="FILE.onnx", help="Any ONNX file.")]
OnnxFiles = Annotated[list[Path], Argument(metavar="FILE.onnx...", help="ONNX files of one network.")]
Output = Annotated[
    Path,
    Option(
        "--output",
        "-o",
        metavar="FILE",
        callback=_ending("--output", "an ONNX file", ".onnx"),
        help="The .onnx file to write.",
    ),
]
Folder = Annotated[Path, Option("--output", "-o", metavar="FOLDER", help="Where to write the page and the files.")]
Mnist = Annotated[Path | None, Option("--data", metavar="FILE", help="MNIST as an .npz file, not the built-in digits.")]
Plot = Annotated[
    Path | None,
    Option(
        metavar="FILE.png",
        callback=_ending("--plot", "a picture", ".png", ".pdf", ".svg", ".jpg"),
        help="Draw the trade-off into this file.",
    ),
]
Json = Annotated[bool, Option("--json", help="Print JSON, for programs.")]
