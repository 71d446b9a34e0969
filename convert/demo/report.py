"""The page of the demo: its words, its pictures, in the order of the story."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import nn

from bensemble import FitReport, named_posteriors
from convert import ConversionPlan, sparsity

from . import pictures
from .contest import Contestant, entropy, side_by_side
from .data import Images
from .page import chapter, code, page, picture, table, text, written_whole

__all__ = ["SAMPLES", "THRESHOLD", "write_report"]

#: Weight samples in a prediction, and in the Bayesian ONNX file.
SAMPLES = 16
#: Signal-to-noise ratio up to which a weight goes (Graves 2011).
THRESHOLD = 0.83


def write_report(
    output: Path,
    images: Images,
    plan: ConversionPlan,
    fit: FitReport,
    sparse: nn.Module,
    pruned: nn.Module,
    contestants: Sequence[Contestant],
    curves: pictures.Curves,
) -> Path:
    """Write ``index.html``, one self-contained file, and ``overview.png``; the path of the page.

    ``sparse`` is the Bayesian network with the ard prior, of which ``pruned`` is left. The contestants are the
    deterministic, the Bayesian and the pruned network.
    """
    digits, zeros, bayesian = images.test[1], sparsity(pruned), contestants[1]
    probs = {c.name: (c.probs, c.unfamiliar) for c in contestants}
    chosen = (zeros.sparsity, contestants[2].scores.accuracy)
    few, many = _rows(images, bayesian, 4), _rows(images, bayesian, 10)
    overview = pictures.overview(few, probs["Bayesian"], curves, chosen)
    with written_whole(output / "overview.png") as temporary:
        overview.savefig(temporary)
    gallery, entropies, accuracies = (pictures.new_figure(*size) for size in ((10.5, 4.5), (7.8, 2.6), (5.2, 3.4)))
    pictures.gallery(gallery, many, 10)
    pictures.entropies(entropies, probs)[0].set_ylabel("share of images")
    pictures.accuracy_against_sparsity(accuracies, curves, chosen)
    reliability = pictures.reliability({c.name: c.probs for c in contestants}, digits)
    ratios = {name: p.snr().detach() for name, p in named_posteriors(sparse) if p.mu.ndim > 1}  # biases left out
    chapters = [
        chapter("Side by side", table(*side_by_side(contestants)), text(_TABLE)),
        chapter("What became Bayesian", text(_PLAN), code(str(plan))),
        chapter(
            "What it does not know",
            text(_UNCERTAINTY),
            code(str(fit)),
            picture(gallery, _GALLERY),
            picture(entropies, "Entropy on digits and on photographs."),
            picture(reliability, _RELIABILITY),
        ),
        chapter(
            "What it does not need",
            text(_PRUNING),
            code(str(zeros)),
            picture(pictures.snr_histograms(ratios, THRESHOLD), _RATIOS),
            picture(accuracies, _CURVES),
        ),
        chapter("Out of the house", text(_FILES), code("\n\n".join(str(c.file) for c in contestants))),
    ]
    lead = text(_LEAD.format(count=len(digits), images=images)) + picture(overview, _OVERVIEW)
    target = output / "index.html"
    with written_whole(target) as temporary:
        temporary.write_text(page("A network that knows what it does not know", lead, chapters), encoding="utf-8")
    return target


_LEAD = (
    "A network that was trained in the ordinary way became Bayesian: each of its weights is now a mean with a standard "
    "deviation. So it can say how sure it is, and which of its weights it does not need. Everything below was measured "
    "on {count:,} images it had not seen ({images!r})."
)
_OVERVIEW = (
    "Left: what the network sees and its entropy in nats. Middle: its entropy on digits and on photographs. Right: "
    "accuracy when weights are removed."
)
_TABLE = (
    "NLL, ECE and Brier judge the probabilities: lower is better. AUROC is the probability that a photograph gets a "
    f"higher entropy than a digit. The Bayesian network is the average of {SAMPLES} weight samples; its file holds all "
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
    f"ratio of weights that the data does not need to nothing. `to_deterministic(bnn, threshold={THRESHOLD})` leaves "
    "them out and gives back an ordinary network."
)
_FILES = (
    "`export_onnx` runs each file in ONNX Runtime and compares it with the network before it puts it in place. The "
    "Bayesian network itself, to load and train on, is in `bayesian.safetensors`, which `bensemble.save` wrote."
)
_GALLERY = (
    "The digits it is most and least sure of, and photographs, with the digit it sees and its entropy in nats (2.30 is "
    "a pure guess)."
)
_RELIABILITY = "Confidence against the share that is right, and how many images had that confidence."
_RATIOS = f"Signal-to-noise ratio |mu| / sigma of the weights of each layer; what lies left of {THRESHOLD} goes."
_CURVES = "Accuracy against the share of weights removed. The circle is the pruned network of the table."


def _rows(images: Images, bayesian: Contestant, count: int) -> pictures.Rows:
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
