"""``bensemble export``: a model as one ONNX file, on the way pruned, compacted, rounded or stored sparsely."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import options
from .example_inputs import make_inputs, parse_inputs
from .failures import WrongUsage
from .labelled_data import first_examples, read_data
from .model_name import parse_model_name
from .printing import show_summary, working

if TYPE_CHECKING:
    from bensemble import Calibration

__all__ = ["export", "read_calibration"]

#: Most bytes of a calibration file; one has about five thousand.
LONGEST = 2**20


def export(
    model: options.Model,
    output: options.Output,
    weights: options.Weights = None,
    key: options.Key = None,
    inputs: options.Inputs = None,
    threshold: options.Threshold = None,
    sparsity: options.Sparsity = None,
    granularity: options.Granularity = "weight",
    compact: options.Compact = False,
    int8: options.Int8 = None,
    sparse: options.Sparse = False,
    outputs: options.Outputs = "mean",
    likelihood: options.Likelihood = None,
    samples: options.Samples = 16,
    calibration: options.CalibrationFile = None,
    classes: options.Classes = None,
    opset: options.Opset = None,
    verify: options.Verify = True,
    json: options.Json = False,
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
    prunes = threshold is not None or sparsity is not None
    if not texts:
        raise WrongUsage("export: no example input is given; add its shape, for example --input 1x3x224x224.")
    if granularity not in ("weight", "channel"):
        raise WrongUsage(f"export: --granularity must be weight or channel, got {granularity!r}.")
    if granularity == "channel" and not prunes:
        raise WrongUsage("export: --granularity says what to prune, not how much; add --threshold or --sparsity.")
    if compact and outputs == "uncertainty":
        raise WrongUsage("export: --compact takes the network at the posterior mean; leave out --outputs uncertainty.")
    with working("Importing torch") as stage:
        from ..onnx import export_onnx
        from .model_building import load_network

        network = load_network(name, weights, key, stage)
        example = make_inputs(texts, network)
        ranges = None if int8 is None else first_examples(read_data(int8, network)[0])
        if prunes or compact:
            stage("Pruning")
            network = _smaller(network, example, threshold, sparsity, granularity, compact)
        stage(f"Writing {output}")
        report = export_onnx(
            network,
            output,
            example,
            outputs=outputs,
            likelihood=likelihood,
            num_samples=samples,
            calibration=None if calibration is None else read_calibration(calibration),
            quantize=None if ranges is None else "int8",
            calibration_data=ranges,
            sparse=sparse,
            metadata=None if classes is None else {"classes": classes},
            opset=opset,
            verify=verify,
        )
    show_summary(report, json)


def read_calibration(path: Path) -> Calibration:
    """The calibration that ``Calibration.to_json`` wrote to a file."""
    from bensemble import Calibration
    from bensemble.errors import InvalidValueError, shown

    try:
        if path.exists() and not path.is_file():
            raise ValueError("no file")
        with path.open("rb") as file:
            text = file.read(LONGEST + 1)
        if len(text) > LONGEST:
            raise ValueError(f"more than {LONGEST} bytes")
        return Calibration.from_json(text.decode())
    except (OSError, ValueError) as err:
        raise InvalidValueError(
            f"calibration: '{path}' must hold what Calibration.to_json wrote, got {shown(err, 300)}"
        ) from err


def _smaller(
    network: Any, example: Any, threshold: float | None, sparsity: float | None, granularity: str, compact: bool
) -> Any:
    """The network without what its posterior is unsure of; compact, without channels that are zero as a whole."""
    from bensemble.errors import ConversionError
    from bensemble.posteriors import named_posteriors
    from bensemble.pruning.masks import prune

    from ..graph.compaction import channel_groups
    from ..graph.compaction import compact as cut_out
    from ..surgery.collapsing import to_deterministic

    bayesian = any(True for _ in named_posteriors(network))
    if threshold is not None or sparsity is not None:
        if not bayesian:
            raise ConversionError(
                "export: --threshold and --sparsity prune by the posterior, and the model has none; leave them out, or "
                "give the weights of its Bayesian version with --weights."
            )
        unit = channel_groups(network, example) if granularity == "channel" else granularity
        prune(network, threshold=threshold, sparsity=sparsity, granularity=unit)
    if not compact:
        return network
    return cut_out(to_deterministic(network) if bayesian else network, example)
