"""The story of the demo from the first image to the last file: ``run_demo``."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import torch
from rich.console import Console
from torch import Tensor, nn
from torch.optim.swa_utils import update_bn
from torch.utils.data import DataLoader, TensorDataset

from bensemble import InvalidValueError, fit_posterior, predict, recipes, save
from convert import ExportReport, bayesify, compact, export_onnx, plan, sparsity, to_deterministic

from .contest import Contestant, agreement, by_size, by_snr, score, side_by_side
from .data import Images, load_digits, load_mnist
from .narrator import Narrator
from .network import DigitNet, Draws, train
from .report import SAMPLES, THRESHOLD, write_report

__all__ = ["run_demo"]


class Pace(NamedTuple):
    """How long to train: images in a batch, epochs of each training, and the weight of the KL when pruning."""

    batch: int
    train: int
    uncertainty: int
    pruning: int
    beta: float


def run_demo(output: Path, data: Path | None = None, console: Console | None = None) -> None:
    """Train a network, make it Bayesian, prune it, export it, and show all of that on one page.

    Args:
        output: Folder for ``index.html``, ``overview.png``, the ONNX files and the checkpoint; made if need be.
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
    loader = DataLoader(TensorDataset(*images.train), pace.batch, shuffle=True)
    with narrator.counting("Training") as progress:
        train(network, loader, pace.train, progress)

    narrator.chapter("What becomes Bayesian")
    conversion = plan(network)
    narrator.say(conversion)

    narrator.chapter("What it does not know")
    bnn = bayesify(network, plan=conversion)
    val_loader = DataLoader(TensorDataset(*images.val), 500)
    with narrator.counting("Fitting sigma") as progress:
        fit = fit_posterior(bnn, loader, likelihood="categorical", val_loader=val_loader, progress=progress)
    narrator.say(fit)
    with narrator.counting("Learning uncertainty") as progress:
        recipes.fine_tune(
            bnn, loader, likelihood="categorical", epochs=pace.uncertainty, beta=fit.beta,
            after_epoch=lambda epoch: progress(epoch.number, pace.uncertainty),
        )  # fmt: skip
    update_bn(loader, bnn)

    narrator.chapter("What it does not need")
    sparse = bayesify(network, prior="ard", estimator="weights")
    with narrator.counting("Learning what can go") as progress:
        recipes.learn_to_prune(
            sparse, loader, likelihood="categorical", epochs=pace.pruning, beta=pace.beta,
            after_epoch=lambda epoch: progress(epoch.number, pace.pruning),
        )  # fmt: skip
    pruned = to_deterministic(sparse, threshold=THRESHOLD)
    update_bn(loader, pruned)
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
    files = [
        _export(model, output / f"{name}.onnx", images.test[0], narrator)
        for name, model in (("deterministic", network), ("bayesian", draws), ("pruned", small))
    ]

    narrator.chapter("Side by side")
    weights = sparsity(network).total
    contestants = [
        _measure("deterministic", network, images, weights, files[0], narrator),
        _measure("Bayesian", bnn, images, 2 * weights, files[1], narrator),
        _measure("pruned", pruned, images, zeros.nonzero, files[2], narrator),
    ]
    narrator.table(*side_by_side(contestants))
    curves = {
        "by signal to noise": by_snr(sparse, *images.test),
        "by size, untrained for it": by_size(network, *images.test),
    }
    page = write_report(output, images, conversion, fit, sparse, pruned, contestants, curves)
    narrator.say(f"All of this on one page: {page}")


def _export(network: nn.Module, path: Path, images: Tensor, narrator: Narrator) -> ExportReport:
    """Write one network, and have ONNX Runtime confirm it on every test image."""
    report = export_onnx(network, path, images[:1])
    narrator.say(report)
    same = agreement(path, network, images)
    narrator.say(f"  agrees      on the digit of {same:,} of {len(images):,} test images")
    return report


def _measure(
    name: str, network: nn.Module, images: Images, weights: int, file: ExportReport, narrator: Narrator
) -> Contestant:
    """Predict the digits of the test images, and those that the network sees in photographs."""

    def probs(inputs: Tensor) -> Tensor:
        with narrator.counting(f"{name}, {len(inputs):,} images") as progress:
            return predict(
                network, inputs, SAMPLES, likelihood="categorical", keep_samples=False, chunk_size=1000,
                generator=torch.Generator().manual_seed(0), progress=progress,
            ).mean  # fmt: skip

    inputs, digits = images.test
    known, unfamiliar = probs(inputs), probs(images.unfamiliar)
    return Contestant(name, known, unfamiliar, score(known, digits, unfamiliar), weights, file)
