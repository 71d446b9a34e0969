"""The page of the demo: its words, its pictures, in the order of the story."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from bensemble import named_posteriors
from bensemble.fitting import FitReport

from ..planning.conversion import ConversionPlan
from ..reports.zeros import SparsityReport
from . import page, pictures
from .contest import Contestant
from .data import Images
from .metrics import entropy

__all__ = ["Findings", "write_report"]

Rows = Mapping[str, tuple[Tensor, Tensor]]


@dataclass(frozen=True, repr=False)
class Findings:
    """Everything the page shows.

    Attributes:
        images: The data.
        plan: What became Bayesian.
        fit: What the fit found.
        sparse: The Bayesian network with the ard prior, before pruning.
        zeros: What is left of it.
        contestants: The networks, deterministic, Bayesian and pruned.
        table: Header and rows that compare them.
        curves: (sparsity, accuracy) by the way of choosing weights.
        threshold: Signal-to-noise ratio up to which weights went.
        num_samples: Weight samples of a Bayesian prediction.
    """

    images: Images
    plan: ConversionPlan
    fit: FitReport
    sparse: nn.Module
    zeros: SparsityReport
    contestants: Sequence[Contestant]
    table: tuple[Sequence[str], Sequence[Sequence[str]]]
    curves: Mapping[str, Sequence[tuple[float, float]]]
    threshold: float
    num_samples: int


def write_report(found: Findings, output: Path) -> Path:
    """Write ``index.html``, one self-contained file, and ``overview.png``; the path of the page."""
    digits = found.images.test[1]
    _, bayesian, pruned = found.contestants
    chosen = (found.zeros.sparsity, pruned.scores(digits).accuracy)
    familiar = {c.name: c.probs for c in found.contestants}
    unfamiliar = {c.name: c.unfamiliar for c in found.contestants}
    overview = pictures.overview(
        _rows(found.images, bayesian, 4), bayesian.probs, bayesian.unfamiliar, found.curves, chosen
    )
    overview.savefig(output / "overview.png")
    lead = page.text(
        "A network that was trained in the ordinary way became Bayesian: each of its weights is now a mean with a "
        "standard deviation. So it can say how sure it is, and which of its weights it does not need. Everything "
        f"below was measured on {len(digits):,} images it had not seen ({found.images!r})."
    ) + page.picture(
        overview,
        "Left: what the network sees and its entropy in nats. Middle: its entropy on digits and "
        "on photographs. Right: accuracy when weights are removed.",
    )
    chapters = [
        page.chapter("Side by side", page.table(*found.table), page.text(_TABLE.format(samples=found.num_samples))),
        page.chapter("What became Bayesian", page.text(_PLAN), page.code(str(found.plan))),
        page.chapter(
            "What it does not know",
            page.text(_UNCERTAINTY),
            page.code(str(found.fit)),
            page.picture(
                pictures.gallery(_rows(found.images, bayesian, 10)),
                "The digits it is most and least sure of, and "
                "photographs, with the digit it sees and its entropy in nats (2.30 is a pure guess).",
            ),
            page.picture(pictures.entropies(familiar, unfamiliar), "Entropy on digits and on photographs."),
            page.picture(
                pictures.reliability(familiar, digits),
                "Confidence against the share that is right, and how many images had that confidence.",
            ),
        ),
        page.chapter(
            "What it does not need",
            page.text(_PRUNING.format(threshold=found.threshold)),
            page.code(str(found.zeros)),
            page.picture(
                pictures.snr_histograms(_ratios(found.sparse), found.threshold),
                "Signal-to-noise ratio "
                f"|mu| / sigma of the weights of each layer; what lies left of {found.threshold} goes.",
            ),
            page.picture(
                pictures.accuracy_against_sparsity(found.curves, chosen),
                "Accuracy against the share of weights removed. The circle is the pruned network of the table.",
            ),
        ),
        page.chapter(
            "Out of the house", page.text(_FILES), page.code("\n\n".join(str(c.file) for c in found.contestants))
        ),
    ]
    target = output / "index.html"
    target.write_text(page.page("A network that knows what it does not know", lead, chapters), encoding="utf-8")
    return target


_TABLE = (
    "NLL, ECE and Brier judge the probabilities: lower is better. AUROC is the probability that a photograph gets a "
    "higher entropy than a digit. The Bayesian network is the average of {samples} weight samples; its file holds all "
    "of them and no random numbers, so it is that much larger and slower. Of the pruned network `compact` has cut out "
    "the channels that are gone as a whole; other zeros make no file smaller, but pack well: see the gzipped size. "
    "Latency is the median of ONNX Runtime on one thread."
)
_PLAN = "`plan(network)` says what `bayesify(network)` will do, before anything is done."
_UNCERTAINTY = (
    "`fit_posterior` reads the training images once and sets every sigma by the curvature of the loss; held-out images "
    "choose `beta`, the weight of the KL. Then the network is fine-tuned with `elbo_loss` at that `beta`."
)
_PRUNING = (
    'A second Bayesian network starts from the same weights, with `prior="ard"`, which drives the signal-to-noise '
    "ratio of weights that the data does not need to nothing. `to_deterministic(bnn, threshold={threshold})` leaves "
    "them out and gives back an ordinary network."
)
_FILES = (
    "`export_onnx` runs each file in ONNX Runtime and compares it with the network before it puts it in place. The "
    "Bayesian network itself, to load and train on, is in `bayesian.safetensors`, which `bensemble.save` wrote."
)


def _rows(images: Images, bayesian: Contestant, count: int) -> Rows:
    """The surest images of each digit, the least sure ones, and photographs from the least to the most certain."""
    probs, inputs = bayesian.probs, images.test[0]
    order = entropy(probs).argsort(stable=True)
    guesses = probs.argmax(-1)
    surest = torch.stack([order[guesses[order] == digit][0] for digit in guesses.unique()])[:count]
    least = order.flip(0)[:count]
    by_entropy = entropy(bayesian.unfamiliar).argsort(descending=True, stable=True)
    spread = by_entropy[torch.linspace(0, len(by_entropy) - 1, count).long()]
    return {
        "surest of each digit": (inputs[surest], probs[surest]),
        "least sure": (inputs[least], probs[least]),
        "photographs, from the least to the most sure": (images.unfamiliar[spread], bayesian.unfamiliar[spread]),
    }


def _ratios(bnn: nn.Module) -> dict[str, Tensor]:
    """Signal-to-noise ratios of every weight tensor, biases left out."""
    with torch.no_grad():
        return {name: posterior.snr() for name, posterior in named_posteriors(bnn) if posterior.mu.ndim > 1}
