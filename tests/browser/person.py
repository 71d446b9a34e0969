"""A person at the page: draws with the mouse, drops files, and reads what is said. All events are Chromium's own."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np

from .drawings import Strokes

__all__ = ["CHROMIUM", "SITE", "Person", "browser", "served"]

SITE = Path(__file__).parents[2] / "build" / "browser"
CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome") or shutil.which("chromium-browser")


class Person:
    """Someone who uses the page in one tab."""

    def __init__(self, page: Any) -> None:
        self.page = page
        page.wait_for_selector("#answer[aria-busy=false]")

    def draw(self, strokes: Strokes) -> None:
        """Draw on an empty sheet; the strokes lie in a square of 100 x 100."""
        self.page.click("#clear")
        box = self.page.locator("#sheet").bounding_box()
        for stroke in strokes:
            points = stroke / 100 * [box["width"], box["height"]] + [box["x"], box["y"]]
            self.page.mouse.move(*points[0])
            self.page.mouse.down()
            for point in points[1:]:
                self.page.mouse.move(*point)
            self.page.mouse.up()
        self.wait()

    def drop(self, path: Path) -> None:
        """Drop a file from a folder on the sheet."""
        chrome = self.page.context.new_cdp_session(self.page)
        box = self.page.locator("#sheet").bounding_box()
        dragged = {"items": [], "files": [str(path)], "dragOperationsMask": 1}
        for kind in ("dragEnter", "dragOver", "drop"):
            where = {"x": box["x"] + box["width"] / 2, "y": box["y"] + box["height"] / 2}
            chrome.send("Input.dispatchDragEvent", {"type": kind, "data": dragged, **where})
        chrome.detach()
        self.wait()

    def wait(self) -> None:
        """Until the page has answered."""
        self.page.wait_for_selector("#answer[aria-busy=false]")

    @property
    def words(self) -> str:
        """What the page says."""
        return str(self.page.inner_text("#words"))

    @property
    def numbers(self) -> dict[str, np.ndarray]:
        """The numbers that the page shows, with all their digits."""
        read = "all => all.map(one => Number(one.value))"
        places = {"probs": "#bars data", "entropy": "#entropy data", "novelty_pvalue": "#pvalue data"}
        return {name: np.array(self.page.eval_on_selector_all(place, read)) for name, place in places.items()}

    @property
    def pixels(self) -> np.ndarray:
        """What the page says that the network sees, from 0 to 1, shape (1, 1, side, side)."""
        read = "c => Array.from(c.getContext('2d').getImageData(0, 0, c.width, c.height).data)"
        gray = np.array(self.page.eval_on_selector("#pixels", read), np.float32)[::4] / np.float32(255)
        side = int(len(gray) ** 0.5)
        return gray.reshape(1, 1, side, side)


@contextmanager
def served(folder: Path) -> Iterator[str]:
    """The address under which a folder is served."""
    handler = type("Quiet", (SimpleHTTPRequestHandler,), {"log_message": lambda *_: None})
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(handler, directory=str(folder)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/index.html"
    finally:
        server.shutdown()
        server.server_close()


@contextmanager
def browser() -> Iterator[Any]:
    """A headless Chromium."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as driver:
        chromium = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield chromium
        chromium.close()
