"""``bensemble compress`` and ``bensemble report``: the search for a small file, and files side by side."""

from __future__ import annotations

import json as json_text
from pathlib import Path
from typing import Annotated, Any

import typer

from .example_inputs import make_inputs
from .failures import WrongUsage
from .labelled_data import LabelledData, read_data
from .model_name import parse_model_name
from .options import InputsOption, JsonOption, KeyOption, ModelArgument
from .progress import working
from .steps import load_network, parse_inputs

__all__ = ["compress", "report"]

#: Examples that one call takes where no input is given, and that int8 is calibrated with.
EXAMPLES, CALIBRATION = 16, 256

DataOption = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE.npz", help="Held-out data: inputs, and class numbers under [b]labels[/b] for the accuracy."
    ),
]
EvaluateOption = Annotated[
    str | None,
    typer.Option(metavar="MODULE:FUNCTION", help="A function that takes a model and returns a score, not accuracy."),
]


def compress(
    model: ModelArgument,
    weights: Annotated[
        Path,
        typer.Option("--weights", "-w", metavar="FILE", help="Bayesian weights of the model.", show_default=False),
    ],
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="FILE", help="The .onnx file to write.", show_default=False)
    ],
    key: KeyOption = None,
    data: DataOption = None,
    evaluate: EvaluateOption = None,
    inputs: InputsOption = None,
    max_drop: Annotated[float | None, typer.Option(metavar="SCORE", help="Most that the score may fall.")] = None,
    max_latency_ms: Annotated[
        float | None, typer.Option(metavar="MS", help="Most milliseconds of one run, one thread.")
    ] = None,
    max_size: Annotated[int | None, typer.Option(metavar="BYTES", help="Most bytes of the file.")] = None,
    int8: Annotated[
        Path | None, typer.Option(metavar="FILE.npz", help="Try eight-bit integers too, calibrated with these inputs.")
    ] = None,
    plot: Annotated[Path | None, typer.Option(metavar="FILE.png", help="Draw the trade-off into this file.")] = None,
    json: JsonOption = False,
) -> None:
    """Find the smallest ONNX file that is good enough: pruned by the posterior, compacted, measured.

    [b]For example[/b]

    bensemble compress mymodel:build -w bayesian.safetensors --data val.npz --max-drop 0.005 -o small.onnx

    bensemble compress mymodel:build -w bayesian.pt --evaluate scores:f1 -i 1x64 --max-size 200000 -o small.onnx
    """
    name, texts = parse_model_name(model), parse_inputs(inputs)
    _check_evaluate(evaluate, data, texts)
    with working("Importing torch") as stage:
        from ..compression import Point
        from ..compression import compress as search

        network = load_network(name, weights, key, stage)
        held_out = None if data is None else read_data(data, network, need_labels=evaluate is None)
        ranges = None if int8 is None else read_data(int8, network)
        score = _score(evaluate, held_out)

        def measured(point: Point) -> None:
            stage(f"{point.name}: score {point.metric:.4g}, {point.size / 1e3:,.0f} kB")

        found = search(
            network,
            score,
            make_inputs(texts, network) if texts or held_out is None else held_out.batch(0, EXAMPLES),
            output,
            max_drop=max_drop,
            max_latency_ms=max_latency_ms,
            max_size=max_size,
            calibration_data=None if ranges is None else ranges.batch(0, CALIBRATION),
            progress=measured,
        )
        if plot is not None:
            found.plot().figure.savefig(plot, dpi=150)
    facts = {"path": str(found.path), "chosen": found.chosen.name, "points": found.rows(), "notes": found.notes}
    typer.echo(json_text.dumps(facts, indent=2) if json else str(found))


def report(
    files: Annotated[
        list[Path], typer.Argument(metavar="FILE.onnx...", help="ONNX files of one network.", show_default=False)
    ],
    data: DataOption = None,
    evaluate: EvaluateOption = None,
    inputs: InputsOption = None,
    json: JsonOption = False,
) -> None:
    """Compare ONNX files of one network in one run: size, latency, sparsity and accuracy.

    [b]For example[/b]

    bensemble report dense.onnx small.onnx int8.onnx --data val.npz
    """
    texts = parse_inputs(inputs)
    if data is None and not texts:
        raise WrongUsage("report: nothing says what the files take; add --data val.npz, or --input 16x3x224x224.")
    with working("Measuring"):
        from ..onnx import OnnxModel, compare_onnx, inspect_onnx

        inspect_onnx(files[0])  # says what is wrong with a file that is none
        held_out = None if data is None else read_data(data)
        labelled = held_out is not None and held_out.labels is not None
        distinct = len({path.name for path in files}) == len(files)
        found = compare_onnx(
            {path.name if distinct else str(path): path for path in files},
            make_inputs(texts, OnnxModel(files[0])) if held_out is None else held_out.batch(0, CALIBRATION),
            evaluate=_score(evaluate, held_out) if evaluate or labelled else None,
        )
    typer.echo(json_text.dumps(found.rows(), indent=2) if json else str(found))


def _check_evaluate(evaluate: str | None, data: Path | None, texts: Any) -> None:
    if evaluate is None and data is None:
        raise WrongUsage("compress: nothing says what is good; add --data val.npz, or --evaluate module:function.")
    if data is None and not texts:
        raise WrongUsage("compress: no example input is given; add its shape, for example --input 1x3x224x224.")


def _score(evaluate: str | None, data: LabelledData | None) -> Any:
    """What is maximised: the user's function, or the accuracy on the data."""
    if evaluate is None:
        assert data is not None
        return data.accuracy()
    from .model_building import find_function

    return find_function(parse_model_name(evaluate))
