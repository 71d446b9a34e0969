"""The workers of this folder under torchrun, on two processes of this machine."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[2]

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not torch.distributed.is_available(), reason="torch was built without torch.distributed"),
]


@pytest.mark.parametrize("worker", ["data_parallel", "sharded", "equality"])
def test_every_check_of_a_worker_passes(worker, tmp_path):
    module = ["-m", f"tests.engines.{worker}", str(tmp_path)]
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", *module],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr[-8000:]
    source = (Path(__file__).parent / f"{worker}.py").read_text()
    assert f"{len(re.findall('^def check_', source, re.MULTILINE))} checks passed" in done.stdout
