"""The commands and their help. What they do lies in the modules beside this one.

Imports of torch and onnx stand inside the commands, so that `bensemble --help` answers at once.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from .calibration_file import read_calibration
from .deployment import compress, report
from .example_inputs import make_inputs
from .failures import OneLineErrors, WrongUsage
from .model_name import parse_model_name
from .options import InputsOption, JsonOption, KeyOption, LikelihoodOption, ModelArgument, WeightsOption
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
        from ..planning import plan as make_plan

        network = load_network(name, weights, key, stage)
        stage("Following the weights")
        found = make_plan(
            network, include=include or None, exclude=exclude or None, example_inputs=make_inputs(texts, network)
        )
    typer.echo(found.to_json() if json else str(found))


@app.command()
def export(
    model: ModelArgument,
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="FILE", help="The .onnx file to write.", show_default=False)
    ],
    weights: WeightsOption = None,
    key: KeyOption = None,
    inputs: InputsOption = None,
    threshold: Annotated[
        float | None,
        typer.Option(metavar="SNR", help="Bayesian weights only: prune where |mu| / sigma is at most this, as 0.83."),
    ] = None,
    sparsity: Annotated[
        float | None, typer.Option(metavar="SHARE", help="Bayesian weights only: prune this share, as 0.9.")
    ] = None,
    outputs: Annotated[
        str, typer.Option(metavar="WHAT", help="[b]mean[/b], the model's own outputs, or [b]uncertainty[/b].")
    ] = "mean",
    likelihood: LikelihoodOption = None,
    method: Annotated[str, typer.Option(metavar="HOW", help="How uncertainty is computed: samples.")] = "samples",
    samples: Annotated[int, typer.Option(metavar="K", help="Weight draws in the file.")] = 16,
    calibration: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="What Calibration.to_json wrote: its thresholds go into the file."),
    ] = None,
    classes: Annotated[str | None, typer.Option(metavar="NAMES", help="Names of the classes, as cat,dog.")] = None,
    opset: Annotated[int | None, typer.Option(metavar="N", help="ONNX opset; the exporter's own by default.")] = None,
    verify: Annotated[bool, typer.Option(help="Compare with the model in ONNX Runtime before writing.")] = True,
    json: JsonOption = False,
) -> None:
    """Write a model as one ONNX file, confirmed by ONNX Runtime at another batch size.

    The weights may be those of the model, or those of its Bayesian version (names in _mu and _rho): then the network at
    the posterior mean is written, or with --outputs uncertainty how sure it is as well.

    [b]For example[/b]

    bensemble export mymodel:build -w best.pth -i 1x3x224x224 -o mymodel.onnx

    bensemble export mymodel:build -w bayesian.pt -i 1x1x28x28 --threshold 0.83 -o small.onnx

    bensemble export mymodel:build -w bayesian.pt -i 1x28x28 --outputs uncertainty --likelihood categorical -o s.onnx

    bensemble export nlp:encoder -i input_ids=2x128:int64 -i attention_mask=2x128:int64 -o encoder.onnx
    """
    name, texts = parse_model_name(model), parse_inputs(inputs)
    if not texts:
        raise WrongUsage("export: no example input is given; add its shape, for example --input 1x3x224x224.")
    with working("Importing torch") as stage:
        from ..onnx import export_onnx

        network = load_network(name, weights, key, stage)
        if threshold is not None or sparsity is not None:
            network = _prune(network, threshold, sparsity, keep_posterior=outputs == "uncertainty")
        stage(f"Writing {output}")
        report = export_onnx(
            network,
            output,
            make_inputs(texts, network),
            outputs=outputs,
            likelihood=likelihood,
            method=method,
            num_samples=samples,
            calibration=None if calibration is None else read_calibration(calibration),
            metadata=None if classes is None else {"classes": classes},
            opset=opset,
            verify=verify,
        )
    show(report, json)


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


def _prune(network: Any, threshold: float | None, sparsity: float | None, keep_posterior: bool) -> Any:
    """A Bayesian network without the weights that its posterior is unsure of, by default plain torch.nn again."""
    from bensemble.errors import ConversionError
    from bensemble.posterior import named_posteriors
    from bensemble.pruning import prune

    from ..surgery import to_deterministic

    if not any(True for _ in named_posteriors(network)):
        raise ConversionError(
            "export: --threshold and --sparsity prune by the posterior, and the model has none; leave them out, or "
            "give the weights of its Bayesian version with --weights."
        )
    if keep_posterior:
        prune(network, threshold=threshold, sparsity=sparsity)
        return network
    return to_deterministic(network, threshold=threshold, sparsity=sparsity, inplace=True)


app.command()(compress)
app.command()(report)
