"""``bensemble export``: a model as one ONNX file, on the way pruned, compacted, rounded or stored sparsely."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from .calibration_file import read_calibration
from .deployment import CALIBRATION
from .example_inputs import make_inputs
from .failures import WrongUsage
from .labelled_data import read_data
from .model_name import parse_model_name
from .options import InputsOption, JsonOption, KeyOption, LikelihoodOption, ModelArgument, WeightsOption
from .progress import working
from .steps import load_network, parse_inputs, show

__all__ = ["export"]


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
    granularity: Annotated[
        str,
        typer.Option(
            metavar="UNIT",
            help="What is pruned: each [b]weight[/b] by itself, or a [b]channel[/b], head or neuron as a whole.",
        ),
    ] = "weight",
    compact: Annotated[
        bool, typer.Option("--compact", help="Cut out channels, heads and neurons that are zero as a whole.")
    ] = False,
    int8: Annotated[
        Path | None,
        typer.Option(metavar="FILE.npz", help="Round to eight-bit integers, calibrated with these typical inputs."),
    ] = None,
    sparse: Annotated[
        bool,
        typer.Option("--sparse", help="Store mostly-zero weights by their nonzero entries where that is smaller."),
    ] = False,
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

    bensemble export mymodel:build -w bayesian.pt -i 1x1x28x28 --threshold 0.83 --sparse -o small.onnx

    bensemble export mymodel:build -w bayesian.pt -i 1x1x28x28 --sparsity 0.5 --granularity channel --compact -o f.onnx

    bensemble export mymodel:build -w best.pth -i 1x3x224x224 --int8 typical.npz -o int8.onnx

    bensemble export mymodel:build -w bayesian.pt -i 1x28x28 --outputs uncertainty --likelihood categorical -o s.onnx

    bensemble export nlp:encoder -i input_ids=2x128:int64 -i attention_mask=2x128:int64 -o encoder.onnx
    """
    name, texts = parse_model_name(model), parse_inputs(inputs)
    if not texts:
        raise WrongUsage("export: no example input is given; add its shape, for example --input 1x3x224x224.")
    if granularity not in ("weight", "channel"):
        raise WrongUsage(f"export: --granularity must be weight or channel, got {granularity!r}.")
    if granularity == "channel" and threshold is None and sparsity is None:
        raise WrongUsage("export: --granularity says what to prune, not how much; add --threshold or --sparsity.")
    if compact and outputs == "uncertainty":
        raise WrongUsage("export: --compact takes the network at the posterior mean; leave out --outputs uncertainty.")
    with working("Importing torch") as stage:
        from ..onnx import export_onnx

        network = load_network(name, weights, key, stage)
        inputs_of_one_call = make_inputs(texts, network)
        ranges = None if int8 is None else read_data(int8, network).batch(0, CALIBRATION)
        if threshold is not None or sparsity is not None:
            stage("Pruning")
            network = _prune(network, threshold, sparsity, granularity, inputs_of_one_call, outputs == "uncertainty")
        if compact:
            network = _compacted(network, inputs_of_one_call)
        stage(f"Writing {output}")
        report = export_onnx(
            network,
            output,
            inputs_of_one_call,
            outputs=outputs,
            likelihood=likelihood,
            method=method,
            num_samples=samples,
            calibration=None if calibration is None else read_calibration(calibration),
            quantize=None if ranges is None else "int8",
            calibration_data=ranges,
            sparse=sparse,
            metadata=None if classes is None else {"classes": classes},
            opset=opset,
            verify=verify,
        )
    show(report, json)


def _prune(
    network: Any, threshold: float | None, sparsity: float | None, unit: str, inputs: Any, keep_posterior: bool
) -> Any:
    """A Bayesian network without the weights that its posterior is unsure of, by default plain torch.nn again."""
    from bensemble.errors import ConversionError
    from bensemble.pruning.masks import prune

    from ..graph import channel_groups
    from ..surgery.converting import to_deterministic

    if not _is_bayesian(network):
        raise ConversionError(
            "export: --threshold and --sparsity prune by the posterior, and the model has none; leave them out, or "
            "give the weights of its Bayesian version with --weights."
        )
    granularity = channel_groups(network, inputs) if unit == "channel" else unit
    if keep_posterior:
        prune(network, threshold=threshold, sparsity=sparsity, granularity=granularity)
        return network
    return to_deterministic(network, threshold=threshold, sparsity=sparsity, granularity=granularity, inplace=True)


def _compacted(network: Any, inputs: Any) -> Any:
    """The network at the posterior mean without what is zero as a whole."""
    from ..graph import compact
    from ..surgery.converting import to_deterministic

    return compact(to_deterministic(network) if _is_bayesian(network) else network, inputs)


def _is_bayesian(network: Any) -> bool:
    from bensemble.posterior import named_posteriors

    return any(True for _ in named_posteriors(network))
