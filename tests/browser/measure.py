"""``python -m tests.browser.measure``: how many drawings of many hands the file of the page gets right, and refuses."""

from __future__ import annotations

import base64
import io

import numpy as np
from PIL import Image
from sklearn.datasets import load_sample_images

from convert.runtime import UncertaintySession

from .drawings import DIGITS, SCRIBBLES, by_another_hand
from .person import SITE, browser, served

STROKES = """async ([all, frame]) => {
  const { pixelsOfStrokes } = await import("./pixels.js");
  return all.map((strokes) => Array.from(pixelsOfStrokes(strokes, frame)));
}"""
PICTURE = """async ([address, frame]) => {
  const { pixelsOfPicture } = await import("./pixels.js");
  const image = Object.assign(new Image(), { src: address });
  await image.decode();
  return Array.from(pixelsOfPicture(image, frame) ?? []);
}"""


def main() -> None:
    """Print shares, by kind."""
    session, rng = UncertaintySession(SITE / "digits.onnx"), np.random.default_rng(0)
    side = session.inputs["input"][1][-1]
    frame = {"side": side} | {key: float(session.metadata[f"frame.{key}"]) for key in ("box", "pen")}
    drawn = [(digit, by_another_hand(strokes, rng)) for _ in range(30) for digit, strokes in DIGITS.items()]
    scribbled = [by_another_hand(strokes, rng) for _ in range(10) for strokes in SCRIBBLES]
    with served(SITE) as address, browser() as chromium:
        page = chromium.new_page()
        page.goto(address)

        def answers(pixels: list[list[float]]):
            return session(np.array([p for p in pixels if p], np.float32).reshape(-1, 1, side, side))

        def of_strokes(all_strokes):
            return answers(page.evaluate(STROKES, [[[s.tolist() for s in one] for one in all_strokes], frame]))

        digits = of_strokes([strokes for _, strokes in drawn])
        right = digits.probs.argmax(1) == [digit for digit, _ in drawn]
        by_digit = ", ".join(f"{k}: {right[k :: len(DIGITS)].mean():.0%}" for k in DIGITS)
        print(
            f"drawn digits: {right.mean():.1%} right, {digits.reject().mean():.1%} refused; right by digit {by_digit}"
        )
        print(f"classes in the sets of drawn digits: {digits.prediction_set.sum(1).mean():.2f}")
        print(f"scribbles: {of_strokes(scribbled).reject().mean():.1%} refused")
        photographs = answers([page.evaluate(PICTURE, [crop, frame]) for crop in crops(rng)])
        print(f"photographs: {photographs.reject().mean():.1%} of {len(photographs.probs)} refused")


def crops(rng: np.random.Generator) -> list[str]:
    """The two photographs of scikit-learn, and 29 squares of each, as addresses of PNG files."""
    found = []
    for photograph in load_sample_images().images:
        height, width, _ = photograph.shape
        pieces = [photograph]
        for size in rng.integers(60, 400, 29):
            y, x = rng.integers(0, height - size), rng.integers(0, width - size)
            pieces.append(photograph[y : y + size, x : x + size])
        for piece in pieces:
            file = io.BytesIO()
            Image.fromarray(piece).save(file, "PNG")
            found.append("data:image/png;base64," + base64.b64encode(file.getvalue()).decode())
    return found


if __name__ == "__main__":
    main()
