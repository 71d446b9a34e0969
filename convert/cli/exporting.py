"""``bensemble export``: a model as one ONNX file."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import options
from .example_inputs import make_inputs
from .failures import WrongUsage
from .labelled_data import BATCH, first_examples, read_data
from .printing import show_summary, working

if TYPE_CHECKING:
    from bensemble import Calibration

__all__ = ["export", "read_calibration"]

#: Most bytes of a calibration file; a usual one has about five thousand.
LONGEST = 2**20


def export(
    model: options.Model,
    output: options.Output,
    inputs: options.Inputs,
    weights: options.Weights = None,
    key: options.Key = None,
    threshold: options.Threshold = None,
    sparsity: options.Sparsity = None,
    granularity: options.Granularity = "weight",
    compact: options.Compact = False,
    int8: options.Int8 = None,
    sparse: options.Sparse = False,
    outputs: options.Outputs = "mean",
    likelihood: options.Likelihood = None,
    samples: options.Samples = None,
    calibration: options.CalibrationFile = None,
    novelty: options.NoveltyFile = None,
    reject: options.Reject = None,
    classes: options.Classes = None,
    opset: options.Opset = None,
    verify: options.Verify = True,
    json: options.Json = False,
) -> None:
    """Write a model as one ONNX file, compared with the model in ONNX Runtime at another batch size.

    The weights may also be those of its Bayesian version: then the network at the posterior mean is written, or with
    --outputs uncertainty the uncertainty as well.

    [b]For example[/b]

    bensemble export mymodel:build -w bayesian.pt -i 1x1x28x28 --threshold 0.83 --sparse -o small.onnx

    bensemble export mymodel:build -w bayesian.pt -i 1x1x28x28 --sparsity 0.5 --granularity channel --compact -o f.onnx

    bensemble export mymodel:build -w best.pth -i 1x3x224x224 --int8 typical.npz -o int8.onnx

    bensemble export mymodel:build -w bayesian.pt -i 1x28x28 --outputs uncertainty --likelihood categorical -o s.onnx

    bensemble export mymodel:build -w bayesian.pt -i 1x28x28 --outputs uncertainty --likelihood categorical
    --novelty novelty.safetensors --reject novelty_pvalue=0.01 -o sure.onnx

    bensemble export nlp:encoder -i input_ids=2x128:int64 -i attention_mask=2x128:int64 -o encoder.onnx
    """
    prunes = threshold is not None or sparsity is not None
    if granularity != "weight" and not prunes:
        raise WrongUsage("export: --granularity says what to prune, not how much; add --threshold or --sparsity.")
    if compact and outputs == "uncertainty":
        raise WrongUsage("export: --compact takes the network at the posterior mean; leave out --outputs uncertainty.")
    if outputs != "uncertainty" and (novelty or reject):
        raise WrongUsage("export: --novelty and --reject are for a file with uncertainty; add --outputs uncertainty.")
    thresholds = {one.name: one.threshold for one in reject or ()}
    if len(thresholds) < len(reject or ()):
        raise WrongUsage("export: --reject gives two thresholds for one name; give each name once.")
    with working("Importing torch") as stage:
        from bensemble.models.batches import split_inputs
        from bensemble.novelty import Novelty

        from ..onnx import export_onnx
        from .model_building import load_network

        network = load_network(model, weights, key, stage)
        example = make_inputs(inputs, network)
        ranges = None if int8 is None else read_data(int8, network)[0]
        if ranges is not None:  # p-values are counted among all of them, and a tuple alone would have targets
            whole = novelty is not None
            ranges = [(part, None) for part in split_inputs(ranges, BATCH)] if whole else first_examples(ranges)
        if prunes or compact:
            stage("Pruning")
            network = _smaller(network, example, threshold, sparsity, granularity, compact)
        known = None if novelty is None else Novelty.load(novelty, network)
        stage(f"Writing {output}")
        report = export_onnx(
            network,
            output,
            example,
            outputs=outputs,
            likelihood=likelihood,
            num_samples=samples,
            calibration=None if calibration is None else read_calibration(calibration),
            novelty=known,
            reject=thresholds or None,
            quantize=None if ranges is None else "int8",
            calibration_data=ranges,
            sparse=sparse,
            metadata=None if classes is None else {"classes": classes},
            opset=opset,
            verify=verify,
            progress=lambda name: stage(f"Writing {output}: {name}"),
        )
    show_summary(report, json)


def read_calibration(path: Path) -> Calibration:
    """The calibration that ``Calibration.to_json`` wrote to a file."""
    from bensemble import Calibration
    from bensemble.errors import InvalidValueError

    if not path.is_file() or path.stat().st_size > LONGEST:
        raise InvalidValueError(f"calibration: '{path}' is not a file of at most {LONGEST} bytes; check the path.")
    return Calibration.from_json(path.read_bytes().decode(errors="replace"))


def _smaller(
    network: Any, example: Any, threshold: float | None, sparsity: float | None, granularity: str, compact: bool
) -> Any:
    """The network, pruned by its posterior where a criterion is given, and compacted where asked."""
    from bensemble.errors import ConversionError
    from bensemble.posteriors import is_bayesian
    from bensemble.pruning.masks import prune

    from ..graph.compaction import channel_groups
    from ..graph.compaction import compact as cut_out
    from ..surgery.collapsing import to_deterministic

    bayesian = is_bayesian(network)
    if threshold is not None or sparsity is not None:
        if not bayesian:
            raise ConversionError("export: the model has no posterior to prune by; give its Bayesian --weights.")
        unit = channel_groups(network, example) if granularity == "channel" else granularity
        prune(network, threshold=threshold, sparsity=sparsity, granularity=unit)
    if not compact:
        return network
    return cut_out(to_deterministic(network) if bayesian else network, example)
