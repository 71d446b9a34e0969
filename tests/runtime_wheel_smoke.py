"""Build the wheel without torch from its source distribution, install it into an empty environment, and use it there.

Run by `make wheel`: pip installs what it needs, and the sizes are printed. ``--linked``, for the tests, links numpy and
ONNX Runtime to the packages of this environment in place of a download.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from wheel_smoke import ROOT, link, run

SMOKE = """
import time
before = time.perf_counter()
import importlib.util
from importlib import metadata, resources
import numpy as np
from bensemble_runtime import Monitor, UncertaintySession
assert not any(importlib.util.find_spec(name) for name in ("torch", "onnx", "convert", "bensemble"))
assert resources.files("bensemble_runtime").joinpath("py.typed").is_file()
assert any(file.name == "LICENSE" for file in metadata.files("bensemble-runtime"))
session = UncertaintySession("sure.onnx")
data = np.load("data.npz")
first = session(data["input"][:1])
seconds = time.perf_counter() - before
answer = session(data["input"])
monitor = Monitor(session)
monitor.update(answer)
again = Monitor.from_json(monitor.to_json())
assert again.merge(monitor).verdict() == monitor.verdict()
assert np.allclose(answer.probs, data["probs"], atol=1e-6)
print(f"session and monitor work; {seconds:.2f} s from an empty process to the first answer")
"""


def main() -> None:
    """Build, install, try."""
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        write_example(work)
        run(sys.executable, "-m", "build", "--outdir", str(work / "dist"), str(ROOT / "runtime"))
        (wheel,) = (work / "dist").glob("bensemble_runtime-*.whl")
        print(f"{wheel.name}: {wheel.stat().st_size:,} bytes")
        run(sys.executable, "-m", "venv", str(work / "venv"))
        programs = work / "venv" / "bin"
        install = [str(programs / "python"), "-m", "pip", "install", "--quiet"]
        if "--linked" in sys.argv:
            link(work / "venv", "numpy", "onnxruntime")
            install.append("--no-deps")
        before, there = time.perf_counter(), size_of(work / "venv")
        run(*install, str(wheel))
        if "--linked" not in sys.argv:
            seconds, size = time.perf_counter() - before, (size_of(work / "venv") - there) / 1e6
            print(f"installed in {seconds:.0f} s, {size:.0f} MB with what it needs:")
            print(subprocess.check_output([*install[:3], "list", "--format", "freeze"], text=True))
        run(str(programs / "python"), "-I", "-c", SMOKE, cwd=work)
        run(str(programs / "bensemble-runtime"), "inspect", "sure.onnx", "--json", cwd=work)
        run(str(programs / "bensemble-runtime"), "report", "sure.onnx", "--data", "labelled.npz", cwd=work)


def write_example(folder: Path) -> None:
    """A calibrated classifier with thresholds as a file, and what it should say about data."""
    import torch

    import bensemble
    from convert import bayesify, export_onnx, last_layer
    from convert.runtime import UncertaintySession

    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 3)).eval()
    x, y = torch.randn(500, 4), torch.randint(0, 3, (500,))
    bnn = bayesify(model, include=last_layer(model, x[:2]), init_sigma=0.1, example_inputs=x[:2])
    novelty = bensemble.fit_novelty(bnn, [(x[:250], y[:250])], [(x[250:], y[250:])])
    calibration = bensemble.calibrate(bensemble.predict(bnn, x, likelihood="categorical"), y)
    options = {"likelihood": "categorical", "novelty": novelty, "calibration": calibration}
    options |= {"reject": {"novelty_pvalue": 0.01}, "metadata": {"classes": "cat,dog,eel"}}
    export_onnx(bnn, folder / "sure.onnx", x[:1], outputs="uncertainty", **options)
    probs = UncertaintySession(folder / "sure.onnx")(x.numpy()).probs
    np.savez(folder / "data.npz", input=x.numpy(), probs=probs)
    np.savez(folder / "labelled.npz", input=x.numpy(), y=y.numpy())


def size_of(folder: Path) -> int:
    """Bytes of all files below a folder."""
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file() and not file.is_symlink())


if __name__ == "__main__":
    main()
