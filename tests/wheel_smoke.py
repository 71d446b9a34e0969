"""Build the wheel, install it into an empty environment with torch alone, and use it there.

Run by `make wheel`, and by `make test` through test_wheel.py: with ``--linked`` torch and what it needs are links to
the packages of this environment, in place of a download.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement

ROOT = Path(__file__).parents[1]

SMOKE = """
import sys
import torch
import bensemble
import convert

layers = [torch.nn.Conv2d(1, 4, 3), torch.nn.ReLU(), torch.nn.Flatten(), torch.nn.Linear(144, 3)]
model = torch.nn.Sequential(*layers).eval()
x = torch.randn(2, 1, 8, 8)
bnn = convert.bayesify(model)
assert torch.equal(bnn(x), model(x))
with bensemble.sampling(bnn):
    assert not torch.equal(bnn(x), model(x))
bensemble.elbo_loss(bnn.train()(x).square().mean(), bensemble.kl_divergence(bnn), num_data=2).backward()
back = convert.to_deterministic(bnn).eval()
assert torch.equal(back(x), model(x))
assert "site-packages" in bensemble.__file__, bensemble.__file__
assert not {"onnx", "safetensors", "typer", "rich"} & set(sys.modules)
print("bensemble", bensemble.__version__, "works with torch", torch.__version__)
"""


def main() -> None:
    """Build, install, try."""
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        run(sys.executable, "-m", "build", "--outdir", str(work / "dist"), str(ROOT))
        (wheel,) = (work / "dist").glob("bensemble-*.whl")
        run(sys.executable, "-m", "venv", str(work / "venv"))
        python = str(work / "venv" / "bin" / "python")
        install = [python, "-m", "pip", "install", "--quiet", "--constraint", str(ROOT / "constraints.txt")]
        if "--linked" in sys.argv:
            link(work / "venv", "torch")
            install.append("--no-deps")
        run(*install, str(wheel))
        run(python, "-m", "pip", "check")
        # A folder without a source tree, so that only what was installed can be imported.
        run(python, "-I", "-W", "ignore", "-c", SMOKE, cwd=work)


def link(environment: Path, *packages: str) -> None:
    """Put links to installed packages, and to all that they require, into a virtual environment."""
    (site,) = environment.glob("lib/python*/site-packages")
    todo, linked = list(packages), set[str]()
    while todo:
        name = todo.pop()
        if name in linked:
            continue
        linked.add(name)
        found = metadata.distribution(name)
        required = map(Requirement, found.requires or [])
        todo += [r.name for r in required if r.marker is None or r.marker.evaluate({"extra": ""})]
        for top in {file.parts[0] for file in found.files or []} - {"..", "__pycache__"}:
            if not (site / top).exists():
                (site / top).symlink_to(found.locate_file(top))


def run(*command: str, cwd: Path | None = None) -> None:
    """Run a command, or stop with what it said."""
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False)
    print(done.stdout.strip().splitlines()[-1] if done.stdout.strip() else "", flush=True)
    if done.returncode:
        raise SystemExit(f"{' '.join(command[:4])} failed:\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}")


if __name__ == "__main__":
    main()
