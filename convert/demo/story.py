"""The story of the demo from the first image to the last file: ``run_demo``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from rich.console import Console
from torch import Tensor, nn

from bensemble import fit_posterior, predict, save
from bensemble.errors import InvalidValueError

from ..graph import compact
from ..onnx import ExportReport, export_onnx
from ..planning.conversion import plan
from ..reports.zeros import sparsity
from ..surgery.converting import bayesify
from .contest import Contestant, side_by_side
from .curves import by_size, by_snr
from .data import Images, load_digits, load_mnist
from .files import Draws, agreement
from .narrator import Narrator
from .network import DigitNet
from .report import Findings, write_report
from .training import learn_to_prune, learn_uncertainty, prune_and_settle, train

__all__ = ["run_demo"]

#: Weight samples in a prediction, and in the Bayesian ONNX file.
SAMPLES = 16
#: Signal-to-noise ratio up to which a weight goes (Graves 2011).
THRESHOLD = 0.83


@dataclass(frozen=True)
class Pace:
    """How long to train: images in a batch, epochs of each training, and the weight of the KL when pruning."""

    batch: int
    train: int
    uncertainty: int
    pruning: int
    beta: float


def run_demo(output: Path, data: Path | None = None, console: Console | None = None) -> None:
    """Train a network, make it Bayesian, prune it, export it, and show all of that on one page.

    Args:
        output: Folder for ``index.html``, the pictures, the ONNX files and the Bayesian checkpoint; made when it
            is not there.
        data: MNIST as an ``.npz`` file; None for the digits of scikit-learn.
        console: Where to tell the story; default standard output.

    Raises:
        InvalidValueError: ``output`` cannot be a folder, or ``data`` is not MNIST.
    """
    try:
        output.mkdir(parents=True, exist_ok=True)
    except OSError as err:
        raise InvalidValueError(f"demo: output '{output}' must be a folder, got {err}; choose another.") from err
    images = load_digits() if data is None else load_mnist(data)
    pace = Pace(64, 40, 30, 60, beta=0.1) if data is None else Pace(128, 2, 1, 2, beta=1.0)
    threads = torch.get_num_threads()
    if data is None:
        torch.set_num_threads(1)  # on images of 8x8 pixels a second thread costs more than it brings
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            _tell(output, images, pace, Narrator(console or Console()))
    finally:
        torch.set_num_threads(threads)


def _tell(output: Path, images: Images, pace: Pace, narrator: Narrator) -> None:
    """The chapters, one after the other."""
    narrator.chapter("An ordinary network")
    narrator.say(images)
    network = DigitNet(images.side)
    loader = images.loader(images.train, pace.batch, shuffle=True)
    train(network, loader, pace.train, narrator)

    narrator.chapter("What becomes Bayesian")
    conversion = plan(network)
    narrator.say(conversion)

    narrator.chapter("What it does not know")
    bnn = bayesify(network, plan=conversion)
    with narrator.counting("Fitting sigma") as progress:
        val_loader = images.loader(images.val, 500)
        fit = fit_posterior(bnn, loader, likelihood="categorical", val_loader=val_loader, progress=progress)
    narrator.say(fit)
    learn_uncertainty(bnn, loader, pace.uncertainty, fit.beta, narrator)

    narrator.chapter("What it does not need")
    sparse = bayesify(network, prior="ard", estimator="weights")
    learn_to_prune(sparse, loader, pace.pruning, pace.beta, narrator)
    pruned = prune_and_settle(sparse, loader, THRESHOLD)
    zeros = sparsity(pruned)
    narrator.say(zeros)
    small = compact(pruned, images.test[0][:2])
    sizes = (sum(parameter.numel() for parameter in model.parameters()) for model in (pruned, small))
    narrator.say("Whole channels are gone; without them the network has {1:,} parameters, not {0:,}.".format(*sizes))

    narrator.chapter("Out of the house")
    checkpoint = output / "bayesian.safetensors"
    save(bnn, checkpoint)
    narrator.say(f"{checkpoint}: the Bayesian network itself, {checkpoint.stat().st_size / 1000:,.1f} kB")
    draws = Draws(bnn, SAMPLES, torch.Generator().manual_seed(0))
    files = {
        name: _export(network_, output / f"{name.lower()}.onnx", images, narrator)
        for name, network_ in (("deterministic", network), ("Bayesian", draws), ("pruned", small))
    }

    narrator.chapter("Side by side")
    weights = sparsity(network).total
    contestants = [
        _measure("deterministic", network, images, weights, files, narrator),
        _measure("Bayesian", bnn, images, 2 * weights, files, narrator),
        _measure("pruned", pruned, images, zeros.nonzero, files, narrator),
    ]
    header, rows = side_by_side(contestants, images.test[1])
    narrator.table(header, rows)
    curves = {
        "by signal to noise": by_snr(sparse, *images.test),
        "by size, untrained for it": by_size(network, *images.test),
    }
    findings = Findings(images, conversion, fit, sparse, zeros, contestants, (header, rows), curves, THRESHOLD, SAMPLES)
    narrator.say(f"All of this on one page: {write_report(findings, output)}")


def _export(network: nn.Module, path: Path, images: Images, narrator: Narrator) -> ExportReport:
    """Write one network, and have ONNX Runtime confirm it on every test image."""
    report = export_onnx(network, path, images.test[0][:1])
    same, total = agreement(path, network, images.test[0]), len(images.test[0])
    narrator.say(report)
    narrator.say(f"  agrees      on the digit of {same:,} of {total:,} test images")
    return report


def _measure(
    name: str, network: nn.Module, images: Images, weights: int, files: dict[str, ExportReport], narrator: Narrator
) -> Contestant:
    """Predict the digits of the test images, and those that the network sees in photographs."""

    def probs(inputs: Tensor) -> Tensor:
        with narrator.counting(f"{name}, {len(inputs):,} images") as progress:
            generator = torch.Generator().manual_seed(0)
            p = predict(
                network,
                inputs,
                SAMPLES,
                likelihood="categorical",
                keep_samples=False,
                chunk_size=1000,
                generator=generator,
                progress=progress,
            )
        return p.mean

    return Contestant(name, probs(images.test[0]), probs(images.unfamiliar), weights, files[name])
