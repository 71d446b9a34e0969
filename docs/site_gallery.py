"""The gallery: runs every example and writes its page, its figure and its notebook; `make gallery` calls it.

The pages are committed, so the site needs no torch. A name as an argument runs that example only.
"""

from __future__ import annotations

import json
import re
import resource
import shutil
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
GALLERY = ROOT / "docs" / "gallery"
#: What sets matplotlib so that the same plot gives the same, small file.
STYLE = "svg.fonttype: none\nsvg.hashsalt: gallery\n"
#: Example: title, and the page to read next. The order is that of the index.
EXAMPLES = {
    "strangers": ("A stranger is refused", "uncertainty.md"),
    "smaller_cnn": ("A smaller and faster CNN", "tasks-smaller.md"),
    "small_and_sure": ("Small and sure", "choosing.md"),
    "conformal_sets": ("Sets that hold the answer", "uncertainty.md"),
    "selective_diagnosis": ("Leave the doubtful to an expert", "uncertainty.md"),
    "drifting_stream": ("A stream that drifts", "tasks-serving.md"),
    "active_learning": ("What to label next", "uncertainty.md"),
    "honest_intervals": ("Intervals that hold", "tasks-regression.md"),
    "ensemble_file": ("Five networks in one file", "uncertainty.md"),
    "snr_layers": ("Which layers can lose weights", "recipes.md"),
    "bayesian_head": ("Only the head is Bayesian", "tasks-classifier.md"),
    "uncertainty_file": ("A file for a service", "tasks-serving.md"),
    "regression": ("A band around a curve", "tasks-regression.md"),
    "unet": ("A map of the uncertainty", "tasks-tokens.md"),
    "token_uncertainty": ("The uncertainty of each token", "tasks-tokens.md"),
    "lora_classifier": ("LoRA with uncertainty", "tasks-language.md"),
    "hf_trainer": ("Hugging Face's Trainer", "tasks-language.md"),
    "lightning_module": ("Lightning", "recipes.md"),
    "elastic_digits": ("Training that survives a kill", "tasks-distributed.md"),
}
#: Arguments of examples that draw only when asked.
ARGUMENTS = {"regression": ["--picture", "regression.png"]}


def source(name: str) -> str:
    """The code of an example."""
    return (ROOT / "examples" / f"{name}.py").read_text()


def purpose(name: str) -> str:
    """The first line of its docstring."""
    return source(name).splitlines()[0].strip('"').split(": python ")[0].rstrip(".") + "."


def figure(name: str) -> str | None:
    """The file of its figure, if it draws one."""
    return next((f"{name}{end}" for end in (".svg", ".png") if (GALLERY / f"{name}{end}").exists()), None)


def page(name: str, output: str, seconds: float) -> str:
    """The page of an example: what it is for, what it shows and prints, and its code."""
    title, way = EXAMPLES[name]
    picture = f"![The figure that this example draws]({found})\n\n" if (found := figure(name)) else ""
    notebook = f"The same as a [notebook]({name}.ipynb). " if "# %%" in source(name) else ""
    return (
        f"# {title}\n\n{purpose(name)}\n\n{picture}## What it prints\n\n```text\n{output.rstrip()}\n```\n\n"
        f"It took {seconds:.0f} seconds of one core.\n\n## The code\n\n"
        f"{notebook}The script is `examples/{name}.py`.\n\n```py\n{source(name)}```\n\n"
        f"## Where to go next\n\n[{heading(way)}](../{way}), or back to the [gallery](index.md).\n"
    )


def heading(way: str) -> str:
    """The title of a page."""
    return (ROOT / "docs" / way).read_text().splitlines()[0].removeprefix("# ")


def index() -> str:
    """The page with all of them; an example without a figure shows the last lines that it prints."""
    cards = []
    for name, (title, _) in EXAMPLES.items():
        last = "\n    ".join(changed(name))
        parts = [f"**[{title}]({name}.md)**", purpose(name)]
        found = figure(name)
        shown = f"[![{title}]({found})]({name}.md)" if found else f"```text\n    {last}\n    ```"
        parts.insert(0 if found else 1, shown)
        cards.append("-   " + "\n\n    ".join(parts) + "\n")
    return (
        "# Gallery\n\nWhat it is for: examples that run as they are, on data that comes with their libraries or that "
        'they make. Each ends with what changed.\n\n<div class="gallery" markdown>\n\n'
        + "\n".join(cards)
        + "\n</div>\n\n"
        "`make gallery` runs them all and writes these pages.\n\n## Where to go next\n\n"
        "Your own data: [an image classifier](../tasks-classifier.md) or [a regression](../tasks-regression.md).\n"
    )


def changed(name: str) -> list[str]:
    """What it printed of before and after."""
    lines = printed(name).splitlines()
    return lines[next(n for n, line in enumerate(lines) if line.startswith("before")) :]


def printed(name: str) -> str:
    """What an example printed when its page was written."""
    return re.findall(r"```text\n(.*?)\n```", (GALLERY / f"{name}.md").read_text(), re.DOTALL)[0]


def notebook(name: str) -> str:
    """A notebook of the cells that ``# %%`` begins; a figure is shown below the cell that saves it."""
    first, *cells = re.split(r"^# %% (.*)\n", source(name), flags=re.MULTILINE)
    _, text, imports = first.split('"""', 2)
    parts = [("markdown", f"# {EXAMPLES[name][0]}\n\n{text.splitlines()[0]}"), ("code", imports.strip())]
    for title, code in zip(cells[::2], cells[1::2], strict=True):
        parts += [("markdown", f"## {title}"), ("code", code.strip())]
        if saved := re.search(r'savefig\("(\w+\.svg)"\)', code):
            parts.append(("code", f'from IPython.display import SVG\n\nSVG("{saved[1]}")'))
    empty = {"execution_count": None, "outputs": []}
    made = [
        {"cell_type": kind, "id": f"cell-{number}", "metadata": {}, "source": text.splitlines(True)}
        | (empty if kind == "code" else {})
        for number, (kind, text) in enumerate(parts)
    ]
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    book = {"cells": made, "metadata": {"kernelspec": kernel}, "nbformat": 4, "nbformat_minor": 5}
    return json.dumps(book, indent=1, ensure_ascii=False) + "\n"


def make(name: str) -> None:
    """Run an example in an empty folder and write what belongs to it."""
    from tests.test_examples import run

    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "matplotlibrc").write_text(STYLE)
        start = worked()
        output = run(ROOT / "examples" / f"{name}.py", *ARGUMENTS.get(name, ()), folder=folder)
        seconds = worked() - start
        for picture in Path(folder).glob(f"{name}.[sp][vn]g"):
            shutil.copy(picture, GALLERY)
    (GALLERY / f"{name}.md").write_text(page(name, output, seconds))
    print(f"{name:20} {seconds:5.0f} s  {output.strip().splitlines()[-1]}", flush=True)


def worked() -> float:
    """Seconds that the processors worked for the examples so far; others on the machine do not count."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


if __name__ == "__main__":
    GALLERY.mkdir(exist_ok=True)
    for chosen in sys.argv[1:] or EXAMPLES:
        make(chosen)
        if "# %%" in source(chosen):
            (GALLERY / f"{chosen}.ipynb").write_text(notebook(chosen))
    (GALLERY / "index.md").write_text(index())
