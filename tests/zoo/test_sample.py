"""A sample of the zoo for every test run: all hand-written networks, and some of torchvision, timm and transformers."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from .checks import check_entry
from .entries import Entry, entries
from .result import Result
from .sample import SAMPLE

HERE = Path(__file__).parent
#: Where `make test` installs torchvision and timm, and transformers; no other zoo test has them on its path.
INSTALLED = [Path(sys.prefix) / "zoo", Path(sys.prefix) / "trainers"]


@pytest.mark.parametrize("entry", entries("torch"), ids=lambda entry: entry.name)
@pytest.mark.slow
def test_hand_written(entry: Entry) -> None:
    result = Result(entry.key, entry.family)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        check_entry(entry, result, budget=5.0)
    finally:
        torch.set_num_threads(threads)
    assert result.ok, result.failed


@pytest.mark.parametrize("library", SAMPLE)
@pytest.mark.slow
@pytest.mark.libraries
def test_library(library: str) -> None:
    if not all(folder.is_dir() for folder in INSTALLED):
        pytest.skip(f"{' or '.join(map(str, INSTALLED))} does not exist; `make test` makes both")
    path = os.pathsep.join(map(str, [HERE.parents[1], *INSTALLED]))
    command = [sys.executable, "-m", "tests.zoo", "--sample", "--library", library, "--jobs", "1", "--budget", "1"]
    environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, cwd=HERE.parents[1], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    for name in SAMPLE[library]:
        assert f"ok   {library}/{name} " in done.stdout


def test_the_sample_has_the_versions_of_the_zoo() -> None:
    small, whole = (
        {line for line in (HERE / name).read_text().splitlines() if line and not line.startswith("#")}
        for name in ("sample-requirements.txt", "requirements.txt")
    )
    assert small < whole
