"""A session opens paths, bytes and file objects, and goes with its process: pickles, forks, threads, providers."""

import copy
import io
import multiprocessing
import pickle
import subprocess
import sys

import numpy as np
import onnxruntime
import pytest
import torch
from torch import nn
from uncertainty_files import write_calibrated

from convert import bayesify, export_onnx
from convert.runtime import Monitor, UncertaintyFileError, UncertaintySession

pytestmark = pytest.mark.xdist_group("uncertainty sessions")  # its fixtures are made once
X = np.linspace(-2, 2, 28, dtype="float32").reshape(7, 4)


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    path = tmp_path_factory.mktemp("sessions") / "sure.onnx"
    write_calibrated(path)
    return path


@pytest.mark.slow
@pytest.mark.parametrize("shape", [(), (4,)])
def test_an_input_that_all_examples_share_goes_into_every_batch(tmp_path, shape):
    class Scaled(nn.Module):
        def __init__(self):
            super().__init__()
            self.head = nn.Linear(4, 3)

        def forward(self, x, scale):
            return self.head(x * scale)

    inputs, path = (torch.from_numpy(X), torch.full(shape, 2.0)), tmp_path / "shared.onnx"
    bnn = bayesify(Scaled(), init_sigma=0.1)
    export_onnx(bnn, path, inputs, outputs="uncertainty", likelihood="categorical", dynamic_shapes={"scale": {}})
    session, arrays = UncertaintySession(path), (X, inputs[1].numpy())
    for size in (2, 4, 99):
        np.testing.assert_allclose(session.in_batches(size, *arrays).probs, session(*arrays).probs, rtol=1e-6)
    assert len(session.in_batches(2, X[:0], arrays[1]).probs) == 0


@pytest.mark.slow
def test_paths_bytes_file_objects_and_copies_answer_alike(path):
    session, data = UncertaintySession(path), path.read_bytes()
    with open(path, "rb") as file:
        opened = [UncertaintySession(source) for source in (str(path), data, bytearray(data), io.BytesIO(data), file)]
    opened += [copy.deepcopy(session), pickle.loads(pickle.dumps(session)), pickle.loads(pickle.dumps(opened[1]))]
    for other in opened:
        assert np.array_equal(other(X).probs, session(X).probs)
        assert other.inputs == session.inputs
    assert [other.name for other in opened[:2]] == [str(path), f"{len(data)} bytes"]
    assert opened[4].name == str(path)
    assert Monitor(opened[1]).seen == 0


def test_what_is_no_file_is_refused(path):
    damaged = bytearray(path.read_bytes())
    damaged[-1] ^= 1
    with pytest.raises(UncertaintyFileError, match=r"bytes' cannot be loaded as ONNX, .* other bytes than were"):
        UncertaintySession(bytes(damaged))
    with pytest.raises(TypeError, match=r"file must be a string, a Path, bytes, or a file opened .*, got NoneType"):
        UncertaintySession(None)
    with pytest.raises(TypeError, match="opened with mode 'rb', got a file of str"):
        UncertaintySession(io.StringIO("text"))


@pytest.mark.slow
def test_another_file_in_its_place_is_noticed(path, tmp_path):
    other = tmp_path / "m.onnx"
    other.write_bytes(path.read_bytes())
    stored = pickle.dumps(UncertaintySession(other))
    write_calibrated(other)
    changed = UncertaintySession(other)
    assert changed.metadata == UncertaintySession(path).metadata  # the same model gives the same bytes
    assert pickle.loads(stored).metadata == changed.metadata
    import onnx

    proto = onnx.load(other)
    onnx.helper.set_model_props(proto, {**changed.metadata, "note": "edited"})
    onnx.save(proto, other)
    with pytest.raises(UncertaintyFileError, match=r"m.onnx' is not the file that was opened before .*; open it anew"):
        pickle.loads(stored)


def test_an_empty_batch_has_an_empty_answer(path):
    session = UncertaintySession(path)
    for answer in (session(X[:0]), session.in_batches(3, X[:0])):
        assert {name: array.shape for name, array in answer.items()} == {
            **dict.fromkeys(("entropy", "mutual_information"), (0,)),
            **dict.fromkeys(("probs", "prediction_set"), (0, 3)),
        }
        assert answer.labels().shape == (0,)
        assert answer.sets() == []
        monitor = Monitor(session)
        monitor.update(answer)
        assert monitor.seen == 0
    with pytest.raises(ValueError, match=r"'input' must have the shape \(batch, 4\) .*, got \(0, 5\)"):
        session(np.zeros((0, 5), "float32"))


@pytest.mark.parametrize("threads", [0, -1, True, 1.5, "2"])
def test_thread_counts_that_make_no_sense_are_refused(path, threads):
    with pytest.raises(ValueError, match="UncertaintySession: threads must be a whole number of at least 1, got"):
        UncertaintySession(path, threads=threads)
    with pytest.raises(ValueError, match="threads must be at most 1024, got 100000"):
        UncertaintySession(path, threads=100_000)


def test_the_session_says_which_provider_it_got(path):
    wanted = [("CUDAExecutionProvider", {"device_id": 0}), "CPUExecutionProvider"]
    with_cuda = "CUDAExecutionProvider" in onnxruntime.get_available_providers()
    assert UncertaintySession(path, providers=wanted if not with_cuda else wanted[1:]).providers == (
        "CPUExecutionProvider",
    )
    for wrong in (None, 5, ("CPUExecutionProvider", {}), [["CPUExecutionProvider"]], [()]):
        with pytest.raises(TypeError, match="providers must be a list of names, or of pairs such as"):
            UncertaintySession(path, providers=wrong)
    assert len(UncertaintySession(path, threads=np.int64(1)).in_batches(np.int64(3), X).probs) == len(X)
    with pytest.raises(ValueError, match=r"providers must name one .* \(.*CPUExecu.*\), got NoProvider; choose"):
        UncertaintySession(path, providers="NoProvider")
    with pytest.raises(ValueError, match="got none; choose one"):
        UncertaintySession(path, providers=[])


FORKED = """
import multiprocessing, sys
import numpy as np
from convert.runtime import UncertaintySession

session, x = UncertaintySession(sys.argv[1], threads=2), np.ones((50, 4), "float32")

def entropy(_):
    return float(session(x).entropy[0])

expected = entropy(0)
with multiprocessing.get_context("fork").Pool(2) as pool:
    assert pool.map(entropy, range(6)) == [expected] * 6
open(sys.argv[1], "wb").close()
with multiprocessing.get_context("fork").Pool(1) as pool:
    try:
        pool.apply(entropy, (0,))
    except Exception as err:
        print(type(err).__name__)
assert entropy(0) == expected  # the parent goes on
"""


@pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="a system without fork")
def test_a_session_survives_a_fork(path, tmp_path):
    copied = tmp_path / "m.onnx"
    copied.write_bytes(path.read_bytes())
    command = [sys.executable, "-W", "ignore", "-c", FORKED, str(copied)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "UncertaintyFileError\n"
