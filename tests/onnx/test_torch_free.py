"""An uncertainty file in an environment of its own that has numpy and ONNX Runtime, and the folder of the runtime."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from onnx_models import mlp
from torch import nn
from wheel_smoke import link

import convert.runtime
from convert import bayesify
from convert.onnx import export_onnx

USE = """
import importlib.util, json, sys
import numpy as np
import runtime

assert importlib.util.find_spec("torch") is None
session = runtime.UncertaintySession(sys.argv[1])
answer = session(np.load(sys.argv[2]))
print(json.dumps({name: array.tolist() for name, array in answer.items()}))
"""


@pytest.mark.slow
def test_the_runtime_works_where_there_is_no_torch(tmp_path):
    x = torch.randn(5, 4)
    options = {"outputs": "uncertainty", "num_samples": 4, "likelihood": "categorical"}
    export_onnx(bayesify(nn.Sequential(mlp()), init_sigma=0.3), tmp_path / "sure.onnx", x, **options)
    np.save(tmp_path / "x.npy", x.numpy())
    shutil.copytree(Path(convert.runtime.__file__).parent, tmp_path / "runtime")
    (tmp_path / "use.py").write_text(USE)
    python = str(tmp_path / "venv" / "bin" / "python")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(tmp_path / "venv")], check=True)
    link(tmp_path / "venv", "numpy", "onnxruntime")
    command = [python, "use.py", "sure.onnx", "x.npy"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    found = json.loads(done.stdout)
    here = convert.runtime.UncertaintySession(tmp_path / "sure.onnx")(x.numpy())
    assert set(found) == set(here) == {"probs", "entropy", "mutual_information"}
    for name, array in here.items():
        np.testing.assert_allclose(found[name], array, rtol=1e-6)
