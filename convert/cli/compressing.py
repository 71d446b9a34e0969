"""``bensemble compress``: the search for the smallest ONNX file that is good enough."""

from __future__ import annotations

from . import options
from .example_inputs import make_inputs
from .failures import WrongUsage
from .labelled_data import first_examples, read_data, score
from .printing import show, working

__all__ = ["compress"]

#: Examples that one call takes in a search where no input is given.
EXAMPLES = 16


def compress(
    model: options.Model,
    weights: options.BayesianWeights,
    output: options.Output,
    key: options.Key = None,
    data: options.Data = None,
    evaluate: options.Evaluate = None,
    inputs: options.Inputs = None,
    max_drop: options.MaxDrop = None,
    max_latency_ms: options.MaxLatency = None,
    max_size: options.MaxSize = None,
    int8: options.Int8 = None,
    plot: options.Plot = None,
    json: options.Json = False,
) -> None:
    """Find the smallest ONNX file that is good enough: pruned by the posterior, compacted, measured.

    [b]For example[/b]

    bensemble compress mymodel:build -w bayesian.safetensors --data val.npz --max-drop 0.005 -o small.onnx

    bensemble compress mymodel:build -w bayesian.pt --evaluate scores:f1 -i 1x64 --max-size 200000 -o small.onnx
    """
    if data is None and (evaluate is None or not inputs):
        raise WrongUsage("compress: add --data val.npz, or --evaluate module:function and --input 1x3x224x224.")
    with working("Importing torch") as stage:
        from bensemble.checkpoint.writing import checked_target, replacing
        from bensemble.errors import ConversionError
        from bensemble.posteriors import is_bayesian

        from ..compression import compress as search
        from .model_building import load_network

        picture = None if plot is None else checked_target(plot, "--plot")
        network = load_network(model, weights, key, stage)
        if not is_bayesian(network):
            raise ConversionError(
                "compress: the model has no posterior to prune by; give its Bayesian --weights. Plain ones get smaller "
                "and often faster by bensemble export --int8."
            )
        held_out, labels = read_data(data, network, need_labels=evaluate is None) if data else (None, None)
        found = search(
            network,
            score(evaluate, held_out, labels),
            make_inputs(inputs, network) if inputs else first_examples(held_out, EXAMPLES),
            output,
            max_drop=max_drop,
            max_latency_ms=max_latency_ms,
            max_size=max_size,
            calibration_data=None if int8 is None else first_examples(read_data(int8, network)[0]),
            progress=lambda point: stage(f"{point.name}: score {point.metric:.4g}, {point.size / 1e3:,.0f} kB"),
        )
        if picture is not None:
            with replacing(picture) as temporary:
                found.plot().figure.savefig(temporary, dpi=150)
    facts = {"path": str(found.path), "chosen": found.chosen.name, "points": found.rows(), "notes": found.notes}
    show(found, facts, json)
