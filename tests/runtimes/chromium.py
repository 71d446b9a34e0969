"""onnxruntime-web in a headless Chromium: ``chromium.py DIST FOLDER OUT``; a line of JSON for each file.

It runs in an environment that has nothing but playwright. DIST holds the package's scripts for the browser.
"""

import json
import shutil
import sys
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from playwright.sync_api import sync_playwright

PAGE = "<!doctype html><title>files</title><script src=ort.wasm.min.js></script><script src=answer.js></script>"
ANSWER = """async entry => {
    const bytes = new Uint8Array(await (await fetch(entry.file)).arrayBuffer());
    return JSON.stringify(await answer(ort, entry, bytes));
}"""


def main(dist, folder, out):
    for script in dist.glob("ort*wasm*"):
        shutil.copy(script, folder)
    shutil.copy(Path(__file__).with_name("answer.js"), folder)
    (folder / "index.html").write_text(PAGE)
    handler = type("Quiet", (SimpleHTTPRequestHandler,), {"log_message": lambda *_: None})
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(handler, directory=str(folder)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    chromium = shutil.which("chromium") or shutil.which("google-chrome") or shutil.which("chromium-browser")
    with sync_playwright() as driver, open(out, "w") as lines:
        page = driver.chromium.launch(executable_path=chromium, args=["--no-sandbox"]).new_page()
        page.goto(f"http://127.0.0.1:{server.server_port}/index.html")
        for entry in json.loads((folder / "files.json").read_text()):
            lines.write(page.evaluate(ANSWER, entry) + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3])
