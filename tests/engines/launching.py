"""Runs the workers of this folder as a user runs scripts, alone or under torchrun."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
#: Libraries that stay out of the tests' environment, by `pip install --target`; see the Makefile.
TRAINERS = Path(sys.prefix) / "trainers"


def environment():
    """One thread for each process, and the libraries beside the environment."""
    paths = [str(TRAINERS) if TRAINERS.exists() else "", os.environ.get("PYTHONPATH")]
    return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(filter(None, paths))}


def torchrun(processes, *options):
    """The command before ``-m module`` or a script."""
    run = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    return [*run, *map(str, options)]


def output_of(command):
    """What a command printed, or a failure that shows it."""
    done = subprocess.run(command, cwd=ROOT, env=environment(), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-8000:]
    return done.stdout


def skip_without(package):
    """Skip a test where a trainer is not installed."""
    if importlib.util.find_spec(package) is None and not (TRAINERS / package).exists():
        pytest.skip(f"{package} is not here: pip install --no-deps -r tests/trainers/requirements.txt")
