"""The workers of this folder under torchrun, on two processes of this machine."""

import re
from pathlib import Path

import pytest
import torch

from .launching import output_of, torchrun

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not torch.distributed.is_available(), reason="torch was built without torch.distributed"),
]


@pytest.mark.parametrize("worker", ["data_parallel", "sharded", "equality"])
def test_every_check_of_a_worker_passes(worker, tmp_path):
    output = output_of([*torchrun(2), "-m", f"tests.engines.{worker}", str(tmp_path)])
    source = (Path(__file__).parent / f"{worker}.py").read_text()
    assert f"{len(re.findall('^def check_', source, re.MULTILINE))} checks passed" in output
