"""The story of the demo from the first image to the last file: ``run_demo``."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table

from bensemble import InvalidValueError, calibrate, predict, save
from convert import Comparison, compare_onnx, export_onnx

from .contest import LEVEL, contest
from .data import Images, load_digits, load_mnist
from .network import Family, raise_family
from .pruning import slim
from .report import contest_rows, verdicts, write_report

__all__ = ["Pace", "run_demo"]


class Pace(NamedTuple):
    """How much to train: families of networks, networks in each, and epochs of each network."""

    families: int = 5
    members: int = 5
    epochs: int = 20


def run_demo(output: Path, data: Path | None = None, console: Console | None = None, pace: Pace | None = None) -> None:
    """Train networks, let them say what they do not know, export and prune them, and show all of that on one page.

    Args:
        output: Folder for ``index.html``, the ONNX files, the checkpoint and the novelty; made if need be.
        data: MNIST as an ``.npz`` file; None for the digits of scikit-learn.
        console: Where to tell the story; default standard output.
        pace: How much to train; default what the page is written for.

    Raises:
        InvalidValueError: ``output`` cannot be a folder, or ``data`` is not MNIST.
    """
    try:
        output.mkdir(parents=True, exist_ok=True)
    except OSError as err:
        raise InvalidValueError(f"demo: output '{output}' must be a folder, got {err}; choose another.") from err
    images = load_digits() if data is None else load_mnist(data)
    threads = torch.get_num_threads()
    if data is None:
        torch.set_num_threads(1)  # on images of 8x8 pixels a second thread costs more than it brings
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            _tell(output, images, pace or Pace(epochs=20 if data is None else 3), console or Console())
    finally:
        torch.set_num_threads(threads)


def _tell(output: Path, images: Images, pace: Pace, console: Console) -> None:
    """The chapters, one after the other."""

    def say(text: object) -> None:
        console.print(str(text), markup=False, highlight=False, soft_wrap=True)

    say(images)
    figures: dict[str, dict[str, list[float]]] = {}
    for number in track(range(pace.families), f"Training {pace.members} networks at a time", console=console):
        raised = raise_family(images, pace.members, pace.epochs)
        found, answers = contest(raised, images)
        for way, measured in found.items():
            for row, value in measured.items():
                figures.setdefault(way, {}).setdefault(row, []).append(value)
        if number == 0:
            family, told = raised, answers
    say(family.fit)
    say(family.novelty)
    save(family.bayesian, output / "last-layer.safetensors")
    family.novelty.save(output / "novelty.safetensors")

    with console.status("Writing ONNX files"):
        files = _files(output, images, family, say)
    header, rows = ["", *figures], contest_rows(figures, files)
    table = Table(*header, header_style="bold")
    for name, cells in rows:
        table.add_row(name, *(number for number, *_ in cells))
    console.print(table)
    for sentence in verdicts(figures, files):
        say(sentence)

    with console.status("Pruning"):
        slimming = slim(family.networks[0], output / "one.onnx", images)
    say(slimming.files)
    page = write_report(output, images, figures, told, family.fit, files, slimming)
    say(f"All of this on one page: {page}")


def _files(output: Path, images: Images, family: Family, say: Any) -> Comparison:
    """Write a file for each way but the temperature; ONNX Runtime has confirmed each, and measures them together."""
    inputs, digits = images.cal
    bnn, novelty = family.bayesian, family.novelty
    held_out = predict(bnn, inputs, likelihood="categorical")
    answers: dict[str, Any] = {
        "novelty": novelty,
        "calibration": calibrate(held_out, digits, alpha=0.02, temperature=1.0),
        "reject": {"novelty_pvalue": LEVEL},
        "metadata": {"classes": ",".join("0123456789")},
    }
    uncertain = {"outputs": "uncertainty", "likelihood": "categorical"}
    models: dict[str, tuple[Any, dict[str, Any]]] = {
        "one": (family.networks[0], {}),
        "last-layer": (bnn, uncertain),
        "sure": (bnn, uncertain | answers),
        "ensemble": (family.networks, uncertain),
    }
    for name, (model, options) in models.items():
        report = export_onnx(model, output / f"{name}.onnx", inputs[:1], **options)
        if name == "sure":
            say(report)
    paths = {name: output / f"{name}.onnx" for name in models}
    return compare_onnx(paths, inputs[:64], batch_sizes=(1, 64))
