"""``python -m tests.browser.screens [--demo FOLDER]``: the documentation site as people see it, wide and narrow.

For each page one picture, light above and dark below, 1400 and 390 pixels wide. The exit code is 1 if a page is wider
than its window, so that a person would have to scroll sideways. `make docs` builds the site, `make demo` the demo page.
"""

from __future__ import annotations

import argparse
import io
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from PIL import Image

from .person import browser, served

ROOT = Path(__file__).parents[2]
WINDOWS = ((1400, 900), (390, 900))
PAGES = {
    "home": "index.html",
    "task": "tasks-classifier.html",
    "gallery": "gallery/small_and_sure.html",
    "reference": "reference/predict.html",
    "search": "index.html",
}
SOUGHT = "novelty p-value"


def main() -> int:
    """Look at every page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--site", type=Path, default=ROOT / "build" / "site")
    parser.add_argument("--demo", type=Path, help="folder of the demo page")
    parser.add_argument("--output", type=Path, default=ROOT / "docs" / "images" / "screens")
    options = parser.parse_args()
    options.output.mkdir(parents=True, exist_ok=True)
    sites = [(options.site, PAGES)] + ([] if options.demo is None else [(options.demo, {"demo": "index.html"})])
    too_wide: list[str] = []
    with browser() as chromium:
        for folder, pages in sites:
            with served(folder) as address:
                for name, path in pages.items():
                    shots = list(_shots(chromium, address.replace("index.html", path), name, too_wide))
                    _write(shots, options.output / f"{name}.png")
    print("\n".join(too_wide) or "No page is wider than its window.")
    return bool(too_wide)


def _shots(chromium: Any, address: str, name: str, too_wide: list[str]) -> Iterator[tuple[int, int, Image.Image]]:
    """Row, column and picture of each theme and width; pages that are too wide are added to the list."""
    for row, theme in enumerate(("light", "dark")):
        for column, (width, height) in enumerate(WINDOWS):
            page = chromium.new_page(viewport={"width": width, "height": height}, color_scheme=theme)
            page.goto(address)
            page.wait_for_load_state("networkidle")
            if name == "search":
                _search(page, narrow=width < 1000)
            over = page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")
            if over > 0:
                too_wide.append(f"{name}, {width} px, {theme}: {over} px too wide")
            yield row, column, Image.open(io.BytesIO(page.screenshot())).convert("RGB")
            page.close()


def _search(page: Any, narrow: bool) -> None:
    """Type into the search of the site, and wait for its results."""
    if narrow:
        page.locator("label[for=__search]").first.click()
    page.locator("input.md-search__input").click()
    page.keyboard.type(SOUGHT)
    page.wait_for_selector(".md-search-result__item")
    page.wait_for_timeout(2000)  # until the results are those of the last letter


def _write(shots: list[tuple[int, int, Image.Image]], path: Path) -> None:
    """All shots of a page side by side, at half of their size and in few colours."""
    gap, (wide, narrow) = 12, WINDOWS
    sheet = Image.new("RGB", (wide[0] + gap + narrow[0], 2 * wide[1] + gap), "gray")
    for row, column, shot in shots:
        sheet.paste(shot, (column * (wide[0] + gap), row * (wide[1] + gap)))
    half = sheet.resize((sheet.width // 2, sheet.height // 2), Image.Resampling.LANCZOS)
    half.quantize(64).save(path, optimize=True)
    print(f"{path}: {path.stat().st_size:,} bytes")


if __name__ == "__main__":
    sys.exit(main())
