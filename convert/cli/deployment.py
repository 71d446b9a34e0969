"""``bensemble compress`` and ``bensemble report``: the search for a small file, and files side by side."""

from __future__ import annotations

from typing import Any

from . import options
from .example_inputs import make_inputs, parse_inputs
from .failures import WrongUsage
from .labelled_data import accuracy, first_examples, read_data
from .model_name import parse_model_name
from .printing import show, working

__all__ = ["compress", "report"]

#: Examples that one call takes where no input is given.
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
    name, texts = parse_model_name(model), parse_inputs(inputs)
    if data is None and (evaluate is None or not texts):
        raise WrongUsage("compress: add --data val.npz, or --evaluate module:function and --input 1x3x224x224.")
    with working("Importing torch") as stage:
        from ..compression import compress as search
        from .model_building import load_network

        network = load_network(name, weights, key, stage)
        held_out, labels = read_data(data, network, need_labels=evaluate is None) if data else (None, None)
        found = search(
            network,
            _score(evaluate, held_out, labels),
            make_inputs(texts, network) if texts else first_examples(held_out, EXAMPLES),
            output,
            max_drop=max_drop,
            max_latency_ms=max_latency_ms,
            max_size=max_size,
            calibration_data=None if int8 is None else first_examples(read_data(int8, network)[0]),
            progress=lambda point: stage(f"{point.name}: score {point.metric:.4g}, {point.size / 1e3:,.0f} kB"),
        )
        if plot is not None:
            found.plot().figure.savefig(plot, dpi=150)
    facts = {"path": str(found.path), "chosen": found.chosen.name, "points": found.rows(), "notes": found.notes}
    show(found, facts, json)


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
    texts = parse_inputs(inputs)
    if data is None and not texts:
        raise WrongUsage("report: add --data val.npz, or --input 16x3x224x224.")
    with working("Measuring"):
        from ..onnx import OnnxModel, compare_onnx

        held_out, labels = read_data(data) if data else (None, None)
        found = compare_onnx(
            {str(path): path for path in files},
            make_inputs(texts, OnnxModel(files[0])) if held_out is None else first_examples(held_out),
            evaluate=_score(evaluate, held_out, labels),
        )
    show(found, found.rows(), json)


def _score(evaluate: str | None, inputs: Any, labels: Any) -> Any:
    """The user's function, or the accuracy on the data; None where there are no labels."""
    if evaluate is not None:
        from .model_building import look_up

        name = parse_model_name(evaluate)
        if name.called:
            raise WrongUsage(f"--evaluate: names a function without arguments, got {evaluate!r}.")
        return look_up(name)
    return None if labels is None else accuracy(inputs, labels)
