"""The commands and their help. `export` and `compress` have a file each, `exporting.py` and `compressing.py`.

Imports of torch and onnx stand inside the commands, so that `bensemble --help` answers at once.
"""

from __future__ import annotations

from functools import partial
from importlib.metadata import version as installed
from pathlib import Path
from typing import Annotated, Any

import typer

from . import options
from .compressing import compress
from .example_inputs import make_inputs
from .exporting import export
from .failures import OneLineErrors, WrongUsage
from .labelled_data import BATCH, read_arrays, score
from .printing import show, show_summary, working

__all__ = ["app"]

app = typer.Typer(
    cls=OneLineErrors,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.callback(invoke_without_command=True)
def bensemble(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error. Works in any place.")] = False,
) -> None:
    """Turn trained PyTorch networks Bayesian, prune them by their own posterior, and export them to ONNX.

    Exit codes: 0 done, 1 refused, 2 wrong usage, 3 the exported file does not reproduce the model.
    """
    if version:
        typer.echo(f"bensemble {installed('bensemble')}")
    elif context.invoked_subcommand is None:
        typer.echo(context.get_help())


@app.command()
def demo(output: options.Folder = Path("demo-output"), data: options.Mnist = None) -> None:
    """See on real digits what a network does not know, beside a temperature and an ensemble, and what it can lose.

    [b]For example[/b]

    bensemble demo --data mnist.npz --output mnist-demo
    """
    from ..demo import run_demo

    run_demo(output=output, data=data)


@app.command()
def plan(
    model: options.Model,
    weights: options.Weights = None,
    key: options.Key = None,
    inputs: options.Inputs = None,
    include: options.Include = None,
    exclude: options.Exclude = None,
    json: options.Json = False,
) -> None:
    """Show what of a model would become Bayesian, and why the rest would not.

    [b]For example[/b]

    bensemble plan "timm:create_model('resnet18', num_classes=7)" -w best.pth

    bensemble plan mymodel:build --exclude head --input 1x3x224x224 --json
    """
    with working("Importing torch") as stage:
        from ..planning.conversion import plan as make_plan
        from .model_building import load_network

        network = load_network(model, weights, key, stage)
        stage("Following the weights")
        example = make_inputs(inputs, network)
        found = make_plan(network, include=include or None, exclude=exclude or None, example_inputs=example)
    typer.echo(found.to_json() if json else str(found))


@app.command()
def inspect(file: options.OnnxFile, json: options.Json = False) -> None:
    """Show what an ONNX file holds: inputs, outputs, metadata, size, sparsity.

    [b]For example[/b]

    bensemble inspect small.onnx --json
    """
    with working(f"Reading {file}"):
        from ..onnx import inspect_onnx

        summary = inspect_onnx(file)
    show_summary(summary, json)


app.command()(export)
app.command()(compress)


@app.command()
def report(
    files: options.OnnxFiles,
    data: options.Data = None,
    evaluate: options.Evaluate = None,
    inputs: options.Inputs = None,
    json: options.Json = False,
) -> None:
    """Compare ONNX files of one network in one run: size, latency, sparsity and accuracy.

    [b]For example[/b]

    bensemble report dense.onnx small.onnx int8.onnx --data val.npz
    """
    if data is None and not inputs:
        raise WrongUsage("report: add --data val.npz, or --input 16x3x224x224.")
    with working("Measuring"):
        from ..onnx.files.variants import side_by_side
        from .file_inputs import accuracy, random_arrays

        arrays, labels = read_arrays(data) if data else (random_arrays(inputs or []), None)
        arrays = {name: x.astype("float32") if x.dtype == "float64" else x for name, x in arrays.items()}
        judge: Any = None if labels is None else partial(accuracy, arrays=arrays, labels=labels)
        if evaluate is not None:
            from ..onnx import OnnxModel

            function = score(evaluate, None, None)
            judge = lambda file: function(OnnxModel(file.path))  # noqa: E731
        first = {name: array[:BATCH] if data else array for name, array in arrays.items()}
        found = side_by_side({str(path): path for path in files}, first, evaluate=judge)
    show(found, found.rows(), json)


@app.command()
def doctor(json: options.Json = False) -> None:
    """Show versions, what the processor can do, and which packages are missing for what; nothing is sent anywhere."""
    from .doctor import diagnose

    found = diagnose()
    show(found, found._asdict() | {"missing": found.missing}, json)
