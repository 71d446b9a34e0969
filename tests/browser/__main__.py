"""``python -m tests.browser``: the picture of the docs, a digit and a photograph on a narrow page, side by side."""

from __future__ import annotations

import io
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image
from sklearn.datasets import load_sample_images

from .drawings import DIGITS, smooth
from .person import SITE, Person, browser, served

TARGET = Path(__file__).parents[2] / "docs" / "images" / "browser.png"


def main() -> None:
    """Draw, drop, and put both pictures into one file of at most 150 kB."""
    shots = []
    with tempfile.TemporaryDirectory() as folder, served(SITE) as address, browser() as chromium:
        photograph = Path(folder) / "photograph.png"
        Image.fromarray(load_sample_images().images[0]).save(photograph)
        for step in (lambda p: p.draw(smooth(DIGITS[3])), lambda p: p.drop(photograph)):
            page = chromium.new_page(viewport={"width": 390, "height": 900})
            page.goto(address)
            step(Person(page))
            shots.append(np.asarray(Image.open(io.BytesIO(page.screenshot(full_page=True))).convert("RGB")))
    both = Image.fromarray(np.concatenate(shots, axis=1))
    both.quantize(128).save(TARGET, optimize=True)
    print(f"{TARGET}: {TARGET.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
