"""Full disks, read-only folders, Ctrl-C and too little memory: the old file stays, and so does the model."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from torch import nn

import bensemble
from bensemble.checkpoint.writing import replacing, working_folder
from bensemble.errors import CheckpointError, ExportError, InvalidValueError
from convert import bayesify, compress, export_onnx

ROOT = Path(__file__).parents[2]


def network(width=200):
    return nn.Sequential(nn.Linear(4, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 3))


def write(verb, path, width=200):
    bnn = bayesify(network(width)).eval()
    if verb == "save":
        bensemble.save(bnn, path)
    else:
        export_onnx(bnn, path, torch.randn(1, 4))


@contextmanager
def mounted(folder, options):
    """A file system of its own in a folder; it needs root."""
    made = subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", folder], capture_output=True, check=False)
    if made.returncode:
        pytest.skip("only root mounts file systems")
    try:
        yield folder
    finally:
        subprocess.run(["umount", folder], check=True)


@contextmanager
def limited_files(size):
    """No file may be larger than this: a write fails as on a full disk."""
    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, old[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old)


@pytest.mark.skipif(sys.platform != "linux", reason="mounts")
@pytest.mark.parametrize("verb", ["save", "export"])
def test_a_full_disk_leaves_the_old_file(verb, tmp_path):
    with mounted(tmp_path, "size=128k") as folder:
        path = folder / "model"
        path.write_bytes(b"old")
        with pytest.raises((CheckpointError, ExportError), match=r"cannot be written, got .*[Ss]pace") as caught:
            write(verb, path)
        assert "\n" not in str(caught.value)
        assert path.read_bytes() == b"old"
        assert [entry.name for entry in folder.iterdir()] == ["model"]


@pytest.mark.parametrize("verb", ["save", "export"])
def test_a_write_that_fails_half_way_leaves_the_old_file(verb, tmp_path):
    path = tmp_path / "model"
    path.write_bytes(b"old")
    with (
        limited_files(60_000),
        pytest.raises((CheckpointError, ExportError), match=r"cannot be written, got .*too large"),
    ):
        write(verb, path)
    assert path.read_bytes() == b"old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["model"]


@pytest.mark.skipif(sys.platform != "linux", reason="mounts")
@pytest.mark.parametrize("verb", ["save", "export"])
def test_a_read_only_disk_is_refused_before_anything_is_done(verb, tmp_path):
    with mounted(tmp_path, "ro"):
        with pytest.raises(InvalidValueError, match="cannot be written, Read-only file system; choose another path"):
            write(verb, tmp_path / "model")
        assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write everywhere")
def test_a_read_only_folder_is_refused(tmp_path):
    tmp_path.chmod(0o555)
    with pytest.raises(InvalidValueError, match="cannot be written, Permission denied; choose another path"):
        write("save", tmp_path / "model")


HOLDER = """
import sys, time
from pathlib import Path
from bensemble.checkpoint.writing import replacing, working_folder
with replacing(Path(sys.argv[1])) as temporary, working_folder() as folder:
    temporary.write_text("half")
    (folder / "much").write_text("half")
    print("held", flush=True)
    time.sleep(600)
"""


@pytest.mark.long
@pytest.mark.skipif(os.name == "nt", reason="Windows has other locks")
def test_the_next_run_removes_what_a_killed_one_left_and_nothing_else(tmp_path, monkeypatch):
    """Another process that is writing to the same file is left alone."""
    folder, scratch = tmp_path / "folder", tmp_path / "scratch"
    for path in (folder, scratch, scratch / "bensemble-working-mine"):
        path.mkdir()
    (scratch / "bensemble-working-mine" / "kept").write_text("no lock of ours")
    (folder / ".other.0123.tmp").write_text("of another file")
    monkeypatch.setattr(tempfile, "tempdir", str(scratch))
    target = folder / "[model]"  # a name with wildcards
    command = [sys.executable, "-c", HOLDER, str(target)]
    environment = {**os.environ, "TMPDIR": str(scratch)}
    holders = [
        subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True) for _ in range(2)
    ]
    assert [holder.stdout.readline() for holder in holders] == ["held\n"] * 2
    holders[0].kill()
    holders[0].wait()
    (folder / ".[model].4567.tmp").mkdir()  # killed before it had its lock
    (scratch / "bensemble-working-0").mkdir()
    assert (len(list(folder.iterdir())), len(list(scratch.iterdir()))) == (4, 4)
    time.sleep(1.1)  # a file of the last second may belong to somebody who is about to lock it
    with replacing(target) as temporary, working_folder():
        temporary.write_text("whole")
    assert target.read_text() == "whole"
    assert (len(list(folder.iterdir())), len(list(scratch.iterdir()))) == (3, 2), "of the other process, and its own"
    holders[1].kill()
    holders[1].wait()
    for holder in holders:
        holder.stdout.close()
    with replacing(target) as temporary, working_folder():
        temporary.write_text("newer")
    assert sorted(entry.name for entry in folder.iterdir()) == [".other.0123.tmp", "[model]"]
    assert [entry.name for entry in scratch.iterdir()] == ["bensemble-working-mine"]


def test_a_new_file_has_the_permissions_that_open_gives_and_keeps_those_of_the_old_one(tmp_path):
    bnn, path = bayesify(network(8)), tmp_path / "model"
    (tmp_path / "plain").write_text("")
    bensemble.save(bnn, path)
    assert path.stat().st_mode == (tmp_path / "plain").stat().st_mode
    path.chmod(0o640)
    bensemble.save(bnn, path)
    assert path.stat().st_mode & 0o777 == 0o640


def interrupted_after(seconds, action):
    """Run an action and send this process a real SIGINT meanwhile; whether it arrived before the end."""

    def interrupt():
        if not done.wait(seconds):
            os.kill(os.getpid(), signal.SIGINT)

    done = threading.Event()
    thread = threading.Thread(target=interrupt)
    old = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        try:
            thread.start()
            action()
            done.set()
            thread.join()
            time.sleep(0.01)  # a signal that was sent already is raised here
            return False
        except KeyboardInterrupt:
            return True
    finally:
        done.set()
        thread.join()
        signal.signal(signal.SIGINT, old)


only_on_demand = pytest.mark.skipif(
    "BENSEMBLE_KILLS" not in os.environ, reason="a signal may hit the interpreter itself; part of `make hostile`"
)


@only_on_demand
def test_ctrl_c_in_the_middle_of_a_conversion_in_place():
    """Wherever it comes, the model is what it was, or wholly Bayesian, and computes the same."""
    x, states = torch.randn(2, 64), set()
    for attempt in range(12):
        model = nn.Sequential(
            *(nn.Sequential(nn.Linear(64, 64), nn.LayerNorm(64), nn.ReLU()) for _ in range(60))
        ).eval()
        before, names = model(x), list(model.state_dict())
        interrupted = interrupted_after(0.004 * attempt, lambda model=model: bayesify(model, inplace=True))
        posteriors = sum(1 for _ in bensemble.named_posteriors(model))
        assert posteriors in (0, 120), f"{posteriors} of 120 weights are Bayesian"
        assert torch.equal(model(x), before)
        assert posteriors or list(model.state_dict()) == names
        assert interrupted or posteriors
        states.add(interrupted)
    assert True in states


@only_on_demand
@pytest.mark.long
@pytest.mark.parametrize("seconds", [0.05, 2.0, 4.0])
def test_ctrl_c_in_the_middle_of_compress(seconds, tmp_path, monkeypatch):
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(scratch))
    bnn, x, path = bayesify(network(16)).eval(), torch.randn(8, 4), tmp_path / "small.onnx"
    path.write_bytes(b"old")
    expected, state = bnn(x), {name: value.clone() for name, value in bnn.state_dict().items()}

    def score(model):
        time.sleep(0.5)
        return -float((model(x) - expected).square().mean())

    assert interrupted_after(seconds, lambda: compress(bnn, score, x, path, max_drop=1e-4))
    assert path.read_bytes() == b"old"
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["scratch", "small.onnx"]
    assert list(scratch.glob("bensemble-working-*")) == []
    assert torch.equal(bnn(x), expected)
    assert all(torch.equal(value, state[name]) for name, value in bnn.state_dict().items())


SCARCE = """
import resource, warnings
from pathlib import Path
import torch
from torch import nn
import bensemble
from bensemble.errors import OutOfMemoryError
from convert import bayesify
warnings.simplefilter("ignore")
torch.set_num_threads(1)
bnn, x = bayesify(nn.Sequential(nn.Linear(4, 4000), nn.ReLU(), nn.Linear(4000, 3))).eval(), torch.randn(80_000, 4)
bensemble.predict(bnn, x[:10], 2)
used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + 2**30, -1))
try:
    bensemble.predict(bnn, x, 2)
except OutOfMemoryError as err:
    print(err)
print(bensemble.predict(bnn, x, 2, chunk_size=5000).mean.shape)
"""


@pytest.mark.long
@pytest.mark.skipif(sys.platform != "linux", reason="a limit of the address space")
def test_too_little_memory_says_the_size_and_smaller_chunks_go_through():
    done = subprocess.run([sys.executable, "-c", SCARCE], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    told, shape = done.stdout.splitlines()
    assert told.startswith("predict: 80000 examples in one forward do not fit into memory; pass chunk_size with fewer")
    assert shape == "torch.Size([80000, 3])"


def test_a_failure_while_loading_leaves_the_model(tmp_path, monkeypatch):
    """Ctrl-C, or anything else, in the middle of ``load``."""
    bnn, path = bayesify(network(8)), tmp_path / "model"
    bensemble.save(bnn, path)
    fresh, x = network(8), torch.randn(2, 4)
    before = fresh(x)
    monkeypatch.setattr(nn.Module, "load_state_dict", lambda *_, **__: signal.raise_signal(signal.SIGINT))
    old = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            bensemble.load(path, fresh)
    finally:
        signal.signal(signal.SIGINT, old)
    assert torch.equal(fresh(x), before)
    assert not list(bensemble.named_posteriors(fresh))
