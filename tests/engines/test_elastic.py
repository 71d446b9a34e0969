"""A process of an elastic run is killed, and the run ends where an undisturbed one ends."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from torch import nn

import bensemble

from .launching import ROOT, environment, torchrun

pytestmark = pytest.mark.long
PATIENCE = 600  # seconds; an idle machine needs 30


def start(name, *launcher):
    """The example in the hands of a launcher; without one it starts torchrun itself."""
    script = [str(ROOT / "examples" / "elastic_digits.py"), str(name)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    own_store = {"TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}  # see the example
    return subprocess.Popen([*(launcher or [sys.executable]), *script], env={**environment(), **own_store}, **pipes)


def workers(run):
    """The processes that torchrun has started."""
    return [int(pid) for pid in Path(f"/proc/{run.pid}/task/{run.pid}/children").read_text().split()]


def wait_for(epoch, path, run):
    """Until a checkpoint is of this epoch; it is read when it is another file than before, since reading takes time."""
    deadline, seen = time.monotonic() + PATIENCE, None
    while True:
        if path.exists() and (written := path.stat().st_mtime_ns) != seen:
            seen = written
            if torch.load(path, weights_only=True)["epoch"] >= epoch:
                return
        assert time.monotonic() < deadline
        assert run.poll() is None, run.stdout.read()
        time.sleep(0.02)


def final(name):
    network = nn.Sequential(nn.Linear(64, 100), nn.ReLU(), nn.Linear(100, 10))
    return bensemble.load(f"{name}.safetensors", network).state_dict()


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="finds the processes in /proc")
def test_killed_processes_change_nothing(tmp_path):
    """First the process that writes the checkpoint dies, then the other one."""
    undisturbed = start(tmp_path / "undisturbed")
    killed = start(tmp_path / "killed", *torchrun(2, "--max-restarts", 9))
    for victim, epoch in ((0, 3), (1, 8)):
        wait_for(epoch, tmp_path / "killed.pt", killed)
        os.kill(workers(killed)[victim], signal.SIGKILL)
    printed, _ = killed.communicate(timeout=PATIENCE)
    assert killed.returncode == 0, printed
    assert printed.count("Process 0 goes on after epoch") >= 2, printed
    other, _ = undisturbed.communicate(timeout=PATIENCE)
    assert undisturbed.returncode == 0, other
    assert other.strip()
    # gloo may still bring a process down when it leaves, with everything done; it then goes on after the last epoch.
    assert set(re.findall(r"goes on after epoch (\d+)", other)) <= {"20"}, other
    ends = final(tmp_path / "undisturbed"), final(tmp_path / "killed")
    assert ends[0].keys() == ends[1].keys()
    for key, tensor in ends[0].items():
        torch.testing.assert_close(ends[1][key], tensor, rtol=0, atol=1e-6, msg=key)
    assert {path.name for path in tmp_path.glob("killed*")} == {"killed.pt", "killed.safetensors"}
