"""Steps that several commands take: read the inputs, build and load the model, show what was found."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import typer

from .example_inputs import InputText, parse_input
from .failures import WrongUsage, say
from .model_name import ModelName
from .reports import report_json, show_report

__all__ = ["load_network", "parse_inputs", "show"]


def parse_inputs(inputs: list[str] | None) -> list[InputText]:
    """Every ``--input``, read."""
    return [parse_input(text) for text in inputs or []]


def load_network(name: ModelName, weights: Path | None, key: str | None, stage: Callable[[str], None]) -> Any:
    """Build the named model and put the weights in."""
    if key is not None and weights is None:
        raise WrongUsage("--key: says where in a weights file to look, and there is none; add --weights FILE.")
    from .model_building import build_model

    stage(f"Building {name.module}:{name.attribute}")
    network = build_model(name)
    if weights is not None:
        from .weights import load_weights

        stage(f"Loading {weights}")
        network, notes = load_weights(network, weights, key)
        for note in notes:
            say(f"weights: {note}.")
    return network


def show(report: Any, json: bool) -> None:
    """Print what the ONNX modules report."""
    if json:
        typer.echo(report_json(report))
    else:
        show_report(report)
