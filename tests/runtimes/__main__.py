"""``python -m tests.runtimes``: build the files, run them in every client, print the table that the docs show.

Each client has an environment of its own in ``.venv-runtimes``, made on first use. A client that cannot be installed
here is left out, and the table says so by its absence.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from .files import HELD_OUT, decoded, write

ROOT = Path(__file__).parents[2]
HOME = ROOT / ".venv-runtimes"
#: Programs of a Chromium; Debian's package is called `chromium`.
BROWSERS = ("chromium", "google-chrome", "chromium-browser")
HERE = Path(__file__).parent
DIST = HOME / "node" / "node_modules" / "onnxruntime-web" / "dist"


@dataclass(frozen=True)
class Client:
    """A client.

    Attributes:
        heading: In the table.
        package: What its script takes: a module, a package, or a folder.
        install: What pip or npm installs; nothing for ours.
        script: What runs the files, beside this one.
    """

    heading: str
    package: str
    install: tuple[str, ...] = ()
    script: str = "client.py"

    @property
    def node(self) -> bool:
        """Whether it runs under node."""
        return self.script.endswith(".cjs")


CLIENTS = (
    Client("ONNX Runtime", "onnxruntime"),
    Client("ONNX Runtime 1.16", "onnxruntime", ("onnxruntime==1.16.3", "numpy<2")),
    Client("OpenVINO", "openvino", ("openvino", "numpy")),
    Client("tract", "tract", ("tract", "numpy")),
    Client("node", "onnxruntime-node", ("onnxruntime-node",), "client.cjs"),
    Client("web (wasm)", "onnxruntime-web", ("onnxruntime-web",), "client.cjs"),
    Client("Chromium", str(DIST), ("playwright==1.65.2",), "chromium.py"),  # after onnxruntime-web, which it shows
)


def main() -> int:
    """Run everything; the exit code is 1 if a client is wrong anywhere."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        entries = write(folder)
        columns = {}
        for client in CLIENTS:
            found = answers(client, folder)
            if found is None:
                print(f"{client.heading}: cannot be installed here", flush=True)
                continue
            columns[client.heading] = [judged(entry, found.get(entry["file"]), client.heading) for entry in entries]
            for entry, cell in zip(entries, columns[client.heading], strict=True):
                error = found.get(entry["file"], {}).get("error")
                if error:
                    print(f"{client.heading}: {entry['label']}: {cell}: {error[:300]}", flush=True)
    print(f"\n| file | {' | '.join(columns)} |\n|{'---|' * (len(columns) + 1)}")
    for row, entry in enumerate(entries):
        print(f"| {entry['label']} | {' | '.join(cells[row] for cells in columns.values())} |")
    return int(any(cell.startswith("wrong") for cells in columns.values() for cell in cells))


def answers(client: Client, folder: Path) -> dict[str, Any] | None:
    """What a client says for each file; None where it cannot be installed."""
    command = environment(client)
    if command is None:
        return None
    out = folder / f"{client.heading}.jsonl"
    where, script = HOME / "node" if client.node else folder, str(HERE / client.script)
    subprocess.run([*command, script, client.package, str(folder), str(out)], cwd=where, check=False, timeout=600)
    lines = out.read_text().splitlines() if out.exists() else []
    return {line["file"]: line for line in map(json.loads, lines)}


def environment(client: Client) -> list[str] | None:
    """The command that runs a script with the client, after its installation."""
    if not client.install:
        return [sys.executable]
    if client.node:
        if shutil.which("npm") is None:
            return None
        folder = HOME / "node"
        if not (folder / "node_modules" / client.package).exists():
            folder.mkdir(parents=True, exist_ok=True)
            install = ["npm", "install", "--silent", "--ignore-scripts", "--prefix", str(folder), *client.install]
            if subprocess.run(install, check=False).returncode:
                return None
        return ["node"]
    if client.script == "chromium.py" and not (DIST.exists() and any(map(shutil.which, BROWSERS))):
        return None
    folder = HOME / client.heading.replace(" ", "-")
    python = folder / "bin" / "python"
    if not (folder / ".ready").exists():
        subprocess.run([sys.executable, "-m", "venv", "--clear", str(folder)], check=True)
        install = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *client.install]
        if subprocess.run(install, check=False).returncode:
            return None
        (folder / ".ready").touch()
    return [str(python)]


def judged(entry: Mapping[str, Any], line: Mapping[str, Any] | None, heading: str) -> str:
    """One cell: "right", "refused" with the reason from the file's own report, or what is wrong."""
    if line is None:
        return "wrong: it crashed"
    label = entry["runtimes"].get(heading, "")
    if "error" in line:
        if not label.startswith("no, "):
            return f"wrong: refused, without a label (its report says {label or 'nothing'!r})"
        return f"refused: {label.removeprefix('no, ').partition(';')[0]}"
    errors = []
    for expected in entry["outputs"]:
        want, value = decoded(expected).astype(float), line["outputs"].get(expected["name"])
        if value is None or list(value["shape"]) != expected["shape"]:
            return f"wrong: shape of {expected['name']}"
        difference = np.abs(decoded(value).astype(float) - want)
        if expected["name"] == "novelty_pvalue":  # steps of 1 / (n + 1), where a score is as good as a held-out one
            difference = np.maximum(difference - 1.01 / (HELD_OUT + 1), 0)
        if entry["rounding"]:  # int8: root mean square over that of the outputs
            error = float(np.sqrt(np.mean(difference**2) / np.mean(want**2)))
        else:
            error = float(difference.max() / max(np.abs(want).max(), 1.0))
        errors.append(error)
    worst = float(np.max(errors))  # NaN stays NaN, and is wrong
    shown = f" ({worst:.1e})" if entry["tolerance"] > 1e-5 else ""
    return f"right{shown}" if worst <= entry["tolerance"] else f"wrong ({worst:.1e})"


if __name__ == "__main__":
    sys.exit(main())
