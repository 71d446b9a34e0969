"""Two fresh processes with one seed: the same bytes in the checkpoint and in the ONNX files, the same predictions."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.long

ROOT = Path(__file__).parents[2]

STORY = """
import sys, warnings
from pathlib import Path
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
import bensemble
from convert import bayesify, compact, export_onnx, to_deterministic
from tests.remembering import remember_operators

remember_operators()
warnings.simplefilter("ignore")
torch.set_num_threads(1)

def story(folder, seed):
    torch.manual_seed(seed)
    x = torch.randn(256, 1, 6, 6)
    y = (x.mean((1, 2, 3)) * 9).long().clamp(-1, 1) + 1
    loader = DataLoader(TensorDataset(x, y), 32, shuffle=True)
    bnn = bayesify(nn.Sequential(nn.Conv2d(1, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(128, 3)), prior="ard").train()
    optimizer = torch.optim.Adam(bensemble.param_groups(bnn, lr=1e-2, rho_lr=1e-1))
    for _ in range(3):
        for inputs, targets in loader:
            nll = nn.functional.cross_entropy(bnn(inputs), targets)
            optimizer.zero_grad()
            bensemble.elbo_loss(nll, bensemble.kl_divergence(bnn), num_data=len(x)).backward()
            optimizer.step()
    bnn.eval()
    bensemble.fit_posterior(bnn, loader, likelihood="categorical")
    bensemble.prune(bnn, threshold=0.5)
    bensemble.save(bnn, folder / "trained")
    p = bensemble.predict(bnn, x, 8, likelihood="categorical")
    torch.save(p.probs, folder / "probs")
    calibration = bensemble.calibrate(p, y)
    (folder / "calibration").write_text(calibration.to_json())
    options = {"likelihood": "categorical", "num_samples": 4, "calibration": calibration}
    export_onnx(bnn, folder / "sure.onnx", x[:1], outputs="uncertainty", **options)
    export_onnx(compact(to_deterministic(bnn, threshold=0.83), x[:2]), folder / "small.onnx", x[:1])
    export_onnx(bnn, folder / "int8.onnx", x[:1], quantize="int8", calibration_data=x[:32])

for seed, folder in enumerate(sys.argv[1:]):
    story(Path(folder), seed)
"""


def hashes(folder):
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.iterdir())}


def run(*command):
    # strings hash otherwise in each process: what depends on the order of a set would show
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONHASHSEED": "random"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_training_prediction_pruning_and_export_are_the_same_bytes(tmp_path):
    """The third folder is of another seed, in the same process as the second."""
    one, two, three = (tmp_path / name for name in ("one", "two", "three"))
    for folder in (one, two, three):
        folder.mkdir()
    run(sys.executable, "-c", STORY, str(one))
    run(sys.executable, "-c", STORY, str(two), str(three))
    found = hashes(tmp_path / "one")
    assert set(found) == {"trained", "probs", "calibration", "sure.onnx", "sure.onnx.json", "small.onnx", "int8.onnx"}
    assert hashes(tmp_path / "two") == found
    assert not set(hashes(tmp_path / "three").values()) & set(found.values()), "the seed does not decide"


@pytest.mark.skipif("BENSEMBLE_KILLS" not in os.environ, reason="two demos; part of `make hostile`")
def test_the_demo_writes_the_same_files_twice(tmp_path):
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        run(str(Path(sys.executable).with_name("bensemble")), "demo", "--output", str(tmp_path / name))
    endings = (".onnx", ".safetensors")
    found = {name: digest for name, digest in hashes(tmp_path / "one").items() if name.endswith(endings)}
    assert set(found) == {
        *(f"{name}.onnx" for name in ("one", "last-layer", "sure", "ensemble", "sparse", "compact")),
        "last-layer.safetensors",
        "novelty.safetensors",
    }
    assert found.items() <= hashes(tmp_path / "two").items()
