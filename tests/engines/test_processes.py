"""The workers of this folder under torchrun, on two processes of this machine."""

import re
from pathlib import Path

import pytest
import torch

from .launching import output_of, torchrun

pytestmark = [
    pytest.mark.long,
    pytest.mark.skipif(not torch.distributed.is_available(), reason="torch was built without torch.distributed"),
]


def test_every_check_of_the_workers_passes(tmp_path):
    output = output_of([*torchrun(2), "-m", "tests.engines.workers", str(tmp_path)])
    sources = [
        (Path(__file__).parent / f"{worker}.py").read_text() for worker in ("data_parallel", "sharded", "equality")
    ]
    count = sum(len(re.findall("^def check_", source, re.MULTILINE)) for source in sources)
    assert f"{count} checks passed" in output
