"""The commands and their help. What they do lies in the modules beside this one.

Imports of torch and onnx stand inside the commands, so that `bensemble --help` answers at once.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .deployment import compress, report
from .example_inputs import make_inputs
from .exporting import export
from .failures import OneLineErrors
from .model_name import parse_model_name
from .options import InputsOption, JsonOption, KeyOption, ModelArgument, WeightsOption
from .progress import working
from .steps import load_network, parse_inputs, show

__all__ = ["app"]

app = typer.Typer(
    cls=OneLineErrors,
    add_completion=False,
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
        from importlib.metadata import version as installed

        typer.echo(f"bensemble {installed('bensemble')}")
    elif context.invoked_subcommand is None:
        typer.echo(context.get_help())


@app.command()
def demo(
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="FOLDER", help="Where to write the page and the files.")
    ] = Path("demo-output"),
    data: Annotated[
        Path | None, typer.Option("--data", metavar="FILE", help="MNIST as an .npz file, not the built-in digits.")
    ] = None,
) -> None:
    """See the whole story on real digits, in under three minutes: train, convert, fit, prune, export.

    [b]For example[/b]

    bensemble demo

    bensemble demo --data mnist.npz --output mnist-demo
    """
    from rich.console import Console

    from ..demo import run_demo

    run_demo(output=output, data=data, console=Console())


@app.command()
def plan(
    model: ModelArgument,
    weights: WeightsOption = None,
    key: KeyOption = None,
    inputs: InputsOption = None,
    include: Annotated[
        list[str] | None,
        typer.Option("--include", metavar="NAME", help="Convert only this: a dotted name or a glob. Once for each."),
    ] = None,
    exclude: Annotated[
        list[str] | None,
        typer.Option("--exclude", metavar="NAME", help="Leave this as it is; wins over --include. Once for each."),
    ] = None,
    json: JsonOption = False,
) -> None:
    """Show what of a model would become Bayesian, and why the rest would not.

    [b]For example[/b]

    bensemble plan "torchvision.models:resnet18(weights=None)"

    bensemble plan "timm:create_model('resnet18', num_classes=7)" -w best.pth

    bensemble plan mymodel:build --exclude head --input 1x3x224x224 --json
    """
    name, texts = parse_model_name(model), parse_inputs(inputs)
    with working("Importing torch") as stage:
        from ..planning.conversion import plan as make_plan

        network = load_network(name, weights, key, stage)
        stage("Following the weights")
        found = make_plan(
            network, include=include or None, exclude=exclude or None, example_inputs=make_inputs(texts, network)
        )
    typer.echo(found.to_json() if json else str(found))


@app.command()
def inspect(
    file: Annotated[Path, typer.Argument(metavar="FILE.onnx", help="Any ONNX file.", show_default=False)],
    json: JsonOption = False,
) -> None:
    """Show what an ONNX file holds: inputs, outputs, metadata, size, sparsity.

    [b]For example[/b]

    bensemble inspect small.onnx

    bensemble inspect small.onnx --json
    """
    with working(f"Reading {file}"):
        from ..onnx import inspect_onnx

        summary = inspect_onnx(file)
    show(summary, json)


app.command()(export)
app.command()(compress)
app.command()(report)
