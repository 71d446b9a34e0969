"""The page of the demo: its words, its tables, its pictures, in the order of the story. Words follow the numbers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from bensemble import FitReport
from convert import Comparison

from . import page
from .answers import answered
from .contest import LEVEL, Figures, Told, as_good_as_best, difference, mean_and_error
from .data import Images
from .pictures import curves, diagram, histograms
from .pruning import Slimming

__all__ = ["contest_rows", "verdicts", "write_report"]

TITLE = "A network that says: I have never seen such a thing"
VERDICT = {1: "better than", 0: "as good as", -1: "worse than"}

_LEAD = (
    "A network that was trained to read digits names one for every image, and is often sure of it. Here it also says "
    "whether it knows this kind of image at all, and which digits it hesitates between. Both come after the training, "
    "in one pass over the data, and run from one ONNX file. All numbers were measured as this page was written."
)
_STRANGER = (
    "A tile of a photograph. Asked for a digit, the same network says {label}, with {share:.1%}. But only {p:.1%} of "
    "familiar digits are as strange as this, and it refuses what is at or below {level:.0%}."
)
_HARD = (
    "A {truth}, by a hand it has not seen. Its novelty is ordinary: {p:.0%} of familiar digits are as strange. So it "
    "names the digits that it cannot tell apart; its entropy is {entropy:.2f} nats."
)
_STRANGERS = (
    "Entropy says how torn a network is between the digits, not whether one of them fits. `fit_novelty` compares "
    "what the layers compute with what they compute for familiar digits. Both thresholds, dashed, are such that "
    "{level:.0%} of held-out digits lie to their right; no stranger was used to choose anything. The answers below are "
    "those of the file `sure.onnx`, mistakes included."
)
_ENTROPY = "Entropy: photographs left of the line pass for digits."
_NOVELTY = "Novelty, of the same network."
_TABLE = (
    "Means over {count} families of networks with the same training, with standard errors ({images!r}). Marked is what "
    "is as good as the best, within two standard errors of the difference. The temperature and the noise of the last "
    "layer are chosen on one part of the held-out digits, the thresholds on another. NLL, ECE and Brier judge the "
    "probabilities: lower is better. AUROC is the probability that a stranger gets a higher value than a digit: by "
    "novelty where it is named, else by entropy, or by mutual information where that is better. Refused is what is "
    "above a threshold for {level:.0%} of held-out digits. Some digits are digits upside down as well, so nothing can "
    "be perfect there."
)
_PRUNING = (
    "Weights can go without training and without labels: `prune_scores` says what each is worth, and after each part "
    "that goes `repair` solves the others for what the whole network computed. Whole channels can go as well "
    "(`prune_and_repair`), and `compact` cuts them out. This is one network of the table."
)
_CURVES = "Accuracy against the share of weights removed, on the test digits."
_FILES = (
    "Single zeros make a file smaller, not faster. Without channels it takes {size:.0%} of the bytes and {time:.0%} of "
    "the time for 64 images. ONNX Runtime computes blocks of 8 or 16 channels, and other numbers cost it time."
)

Rows = list[tuple[str, list[page.Cell]]]


def write_report(
    output: Path, images: Images, figures: Figures, told: Mapping[str, Told], fit: FitReport, files: Comparison,
    slimming: Slimming,
) -> Path:  # fmt: skip
    """Write ``index.html``, one self-contained file; the path of the page.

    ``told`` are the predictions of the first family, whose file ``sure.onnx`` gives the answers on the page.
    """
    stranger, hard, rows = answered(output / "sure.onnx", images)
    whole, _, cut = slim = slimming.files.variants
    accuracies = ("accuracy", [(f"{v.metric:.1%}", "", False) for v in slim])
    count = len(figures["one network"]["accuracy"])
    asked, torn = (
        {"label": answer.labels(), "share": float(answer.scores()), "p": float(answer.novelty_pvalue),
         "entropy": float(answer.entropy)}
        for answer in (stranger.answer, hard.answer)
    )  # fmt: skip
    parts = (
        page.text(_LEAD, kind="lead"),
        page.side_by_side(
            page.card(stranger, _STRANGER.format(level=LEVEL, **asked)),
            page.card(hard, _HARD.format(truth=hard.truth, **torn)),
        ),
        page.chapter(
            "Strangers",
            page.text(_STRANGERS.format(level=LEVEL)),
            page.side_by_side(
                page.figure(_histograms(told["one network"], "entropy", "entropy, nats"), _ENTROPY),
                page.figure(_histograms(told["last layer, novelty"], "novelty", "novelty"), _NOVELTY),
            ),
            *(page.gallery(title, row) for title, row in rows.items()),
        ),
        page.chapter(
            "Side by side",
            page.text(_TABLE.format(level=LEVEL, count=count, images=images)),
            page.table(["", *figures], contest_rows(figures, files)),
            page.text(*verdicts(figures, files)),
            page.details("What the fit of the last layer says of itself", str(fit)),
        ),
        page.chapter(
            "Without most of its weights",
            page.text(_PRUNING),
            page.side_by_side(
                page.figure(diagram(curves(slimming.curves, "weights removed, %", "accuracy, %")), _CURVES),
                page.table(["", *(v.name for v in slim)], [accuracies, *_costs(slim)]),
            ),
            page.text(_FILES.format(size=cut.size / whole.size, time=cut.latency[64].ratio)),
        ),
    )
    target, beside = output / "index.html", output / ".new-index.html"
    beside.write_text(page.page(TITLE, *parts), encoding="utf-8")
    beside.replace(target)
    return target


def contest_rows(figures: Figures, files: Comparison) -> Rows:
    """The table of the ways: mean and standard error of each figure, and what the files cost."""
    rows: Rows = []
    for row in figures["one network"]:
        percent = row == "accuracy" or row.endswith("refused")
        best = set() if row == "digits refused" else as_good_as_best(figures, row)
        rows.append((row, [(*_number(mean_and_error(figures[way][row]), percent), way in best) for way in figures]))
    one, *others = files.variants
    return rows + _costs([one, one, *others])  # a temperature is one division more


def verdicts(figures: Figures, files: Comparison) -> Iterator[str]:
    """What the table says, in sentences; as good as means within two paired standard errors."""
    one, warm, last, sure, many = figures
    for way, other in ((last, warm), (many, last)):
        better, mean, error = difference(figures, "NLL, nats", way, other)
        yield f"NLL: '{way}' is {VERDICT[better]} '{other}' ({mean:+.4f} ± {error:.4f} nats)."
    strangers = [row for row in figures[sure] if row.startswith("AUROC")]
    for better, words in VERDICT.items():
        kinds = [row[7:] for row in strangers if difference(figures, row, sure, many)[0] == better]
        if kinds:
            yield f"AUROC: novelty of one network is {words} the entropies of {many} on {', '.join(kinds)}."
    shares = {way: mean_and_error(figures[way]["photographs refused"])[0] for way in (one, many, sure)}
    yield (
        f"At one threshold for {LEVEL:.0%} of held-out digits, the entropy of one network refuses {shares[one]:.0%} of "
        f"the photographs, that of {many} {shares[many]:.0%}, novelty {shares[sure]:.1%}."
    )
    whole, _, small, big = files.variants
    yield (
        f"The file with novelty has {small.size / whole.size:.1f} times the size of the plain one and takes "
        f"{small.latency[64].ratio:.1f} times as long for 64 images; that of {many} "
        f"{big.size / whole.size:.1f} and {big.latency[64].ratio:.1f} times."
    )


def _histograms(told: Told, by: str, unit: str) -> str:
    values = {"digits": getattr(told["test"], by), "photographs": getattr(told["photographs"], by)}
    return diagram(histograms(values, float(getattr(told["cal"], by).quantile(1 - LEVEL)), unit))


def _costs(variants: Sequence[Any]) -> Rows:
    cells = {
        "file, kB": [f"{v.size / 1e3:,.0f}" for v in variants],
        "ms for 1 image": [f"{v.latency[1].ms:.3f}" for v in variants],
        "ms for 64 images": [f"{v.latency[64].ms:.3f}" for v in variants],
    }
    return [(name, [(cell, "", False) for cell in row]) for name, row in cells.items()]


def _number(figure: tuple[float, float], percent: bool) -> tuple[str, str]:
    mean, error = figure
    return (f"{mean:.1%}", f"{100 * error:.1f}") if percent else (f"{mean:.4f}", f"{error:.4f}")
