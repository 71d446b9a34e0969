"""The words of the command line that several commands share, with their help."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

__all__ = ["InputsOption", "JsonOption", "KeyOption", "LikelihoodOption", "ModelArgument", "WeightsOption"]

ModelArgument = Annotated[
    str,
    typer.Argument(
        metavar="MODEL",
        help='Where the model comes from: [b]"module:function(arguments)"[/b], a class, or a network that a module '
        "holds. Arguments are literal: text in quotes, numbers, True, False, None, tuples, lists, dicts. "
        "Modules of the current folder can be named.",
        show_default=False,
    ),
]
WeightsOption = Annotated[
    Path | None,
    typer.Option(
        "--weights", "-w", metavar="FILE", help="Trained weights: a .safetensors file, or a torch file of tensors."
    ),
]
KeyOption = Annotated[
    str | None,
    typer.Option("--key", metavar="NAME", help="Where in the weights file the state dict is, such as ema."),
]
InputsOption = Annotated[
    list[str] | None,
    typer.Option(
        "--input",
        "-i",
        metavar="SHAPE|FILE",
        help="What one call of the model takes: [b]1x3x224x224[/b], [b]input_ids=2x128:int64[/b] by the name of the "
        "argument, or an .npz file. Once for each argument.",
        show_default=False,
    ),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON, for programs.")]
LikelihoodOption = Annotated[
    str | None,
    typer.Option(
        metavar="NAME",
        help="What the outputs mean: categorical (logits of classes), bernoulli, gaussian_head; default raw numbers.",
    ),
]
