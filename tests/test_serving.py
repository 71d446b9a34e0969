"""The service of examples/serve.py as a real process: concurrent requests, bad ones among them, and restarts."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.error import HTTPError, URLError
from urllib.request import urlopen

import numpy as np
import pytest
import torch
from torch import nn

import bensemble
from convert import bayesify, export_onnx
from convert.runtime import Monitor, UncertaintySession

pytest.importorskip("fastapi")
pytest.importorskip("uvicorn")
datasets = pytest.importorskip("sklearn.datasets")

pytestmark = pytest.mark.long
SCRIPT = Path(__file__).parents[1] / "examples" / "serve.py"
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}


class Service:
    """The process, on a free port of the loopback interface."""

    def __init__(self, folder, *arguments):
        with socket.socket() as found:
            found.bind(("127.0.0.1", 0))
            self.url = f"http://127.0.0.1:{found.getsockname()[1]}"
        self.log = folder / "log.txt"
        with open(self.log, "ab") as log:
            command = [sys.executable, str(SCRIPT), *arguments, "--port", self.url.rpartition(":")[2]]
            self.process = subprocess.Popen(command, cwd=folder, env=ENVIRONMENT, stdout=log, stderr=log)

    def __enter__(self):
        for _ in range(600):
            try:
                self.health = json.loads(self.get("/health"))
                return self
            except URLError:
                if self.process.poll() is not None:
                    break
                time.sleep(0.2)
        self.__exit__()
        raise AssertionError(self.log.read_text())

    def __exit__(self, *_):
        self.process.kill()
        self.process.wait()

    def get(self, path):
        with urlopen(self.url + path, timeout=60) as reply:
            return reply.read().decode()

    def post(self, inputs):
        """Status and content of the reply."""
        data = inputs if isinstance(inputs, bytes) else json.dumps(inputs).encode()
        try:
            with urlopen(f"{self.url}/predict", data, timeout=60) as reply:
                return reply.status, json.load(reply)
        except HTTPError as err:
            with err:
                return err.code, json.load(err)

    def post_all(self, several):
        with ThreadPoolExecutor(len(several)) as threads:
            return list(threads.map(self.post, several))

    def metrics(self):
        lines = self.get("/metrics").splitlines()
        assert all(re.fullmatch(r"# TYPE \w+ (counter|gauge)|bensemble_\w+ \S+", line) for line in lines)
        return {name: float(value) for name, value in (line.split() for line in lines if line[0] != "#")}

    def stop(self, how):
        self.process.send_signal(how)
        assert self.process.wait(60) in (0, -how), self.log.read_text()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder in which the service was started without a file, so that it made one."""
    folder = tmp_path_factory.mktemp("service")
    with Service(folder) as service:
        assert service.health == {"file": "digits.onnx", "provider": "CPUExecutionProvider", "seen": 0}
    return folder


@pytest.fixture
def file(folder):
    """The file, without counts of the test before."""
    (folder / "digits.onnx.monitor.json").unlink(missing_ok=True)
    return folder / "digits.onnx"


@pytest.fixture(scope="module")
def parts():
    """The inputs of 200 requests, of one to three digits each, all different."""
    digits = datasets.load_digits().data / 16
    ends = np.cumsum([1 + i % 3 for i in range(200)])
    return np.split(digits[: ends[-1]].astype(np.float32), ends[:-1])


def same(found, wanted):
    assert found.keys() == wanted.keys()
    for name, value in wanted.items():
        if name in ("label", "set", "rejected"):
            assert found[name] == value, name
        else:  # a batch of another size rounds otherwise, and a p-value may differ by one held-out input
            np.testing.assert_allclose(found[name], value, rtol=1e-4, atol=2e-3 if name == "novelty_pvalue" else 1e-5)


def test_many_clients_get_their_own_answers(file, parts):
    session, examples = UncertaintySession(file), sum(map(len, parts))
    bad = [[[1.0, 2.0]], [["a"] * 64], [[1.0], [1.0, 2.0]], {"inputs": 1}, 3, [], [[None] * 64], b"[[", b"\xff"] * 3
    requests = [part.tolist() for part in parts]
    for i, one in enumerate(bad):
        requests.insert(7 * i, one)
    with Service(file.parent, file.name, "--wait", "20") as service:
        replies = service.post_all(requests)
        metrics = service.metrics()
        assert json.loads(service.get("/health"))["seen"] == examples
        nan = [parts[0][0].tolist(), [float("nan")] * 64]
        status, content = service.post(nan)
        assert (status, content["label"][1], content["probs"][1][0]) == (200, None, None)
        after = service.metrics()
    good = [reply for request, reply in zip(requests, replies, strict=True) if not any(request is one for one in bad)]
    refused = [reply for request, reply in zip(requests, replies, strict=True) if any(request is one for one in bad)]
    assert [status for status, _ in good] == [200] * 200
    assert [status for status, _ in refused] == [422] * len(bad)
    assert "must have the shape (batch, 64)" in refused[0][1]["detail"]
    assert refused[3][1]["detail"] == "the body must be a JSON list of inputs, got dict"
    assert all(content["detail"] for _, content in refused)
    assert "the body must be a JSON list of inputs, got something else ('utf-8' codec" in refused[-1][1]["detail"]
    for part, (_, content) in zip(parts, good, strict=True):
        same(content, session(part).to_dict())
    assert metrics["bensemble_requests_total"] == 200 + len(bad)
    assert metrics["bensemble_refused_total"] == len(bad)
    assert metrics["bensemble_examples_seen"] == examples
    assert 2 <= metrics["bensemble_batches_total"] < 100
    assert metrics["bensemble_seconds_total"] > 0
    assert metrics["bensemble_unanswered_total"] == 0
    assert after["bensemble_unanswered_total"] == 1
    assert metrics["bensemble_rejected_total"] == sum(sum(content["rejected"]) for _, content in good)
    assert after["bensemble_rejected_total"] == metrics["bensemble_rejected_total"] + 1  # NaN, and not the digit
    assert after["bensemble_examples_seen"] == examples + 1
    monitor = Monitor(session)
    monitor.update([session(part) for part in parts])
    assert metrics["bensemble_drift_evidence"] == pytest.approx(monitor.verdict().evidence, abs=1)
    assert metrics["bensemble_drifted"] == monitor.verdict().drifted


def test_counts_survive_a_stop_and_a_kill(file, parts):
    snapshot = file.with_name("digits.onnx.monitor.json")
    requests = [part.tolist() for part in parts[:60]]
    examples = sum(map(len, requests))

    waits = ("--wait", "2000", "--every", "3600")
    with Service(file.parent, file.name, *waits) as service, ThreadPoolExecutor(len(requests)) as threads:
        replies = [threads.submit(service.post, request) for request in requests]
        time.sleep(0.8)
        assert not any(reply.done() for reply in replies)
        service.stop(signal.SIGTERM)  # while all of them wait for their batch
        assert {reply.result()[0] for reply in replies} == {200}
    assert Monitor.from_json(snapshot.read_text()).seen == examples
    counted = examples

    with Service(file.parent, file.name, "--every", "3600") as service:  # goes on, and is killed before a snapshot
        assert service.health["seen"] == counted
        service.post_all(requests)
        assert service.metrics()["bensemble_examples_seen"] == counted + examples
        service.stop(signal.SIGKILL)
    assert Monitor.from_json(snapshot.read_text()).seen == counted

    with Service(file.parent, file.name, "--every", "0.3") as service:  # is killed after one
        assert service.health["seen"] == counted
        service.post_all(requests)
        time.sleep(1.5)
        service.post(requests[0])
        service.stop(signal.SIGKILL)
    kept = Monitor.from_json(snapshot.read_text()).seen
    assert counted + examples <= kept <= counted + examples + len(requests[0])
    with Service(file.parent, file.name) as service:
        assert service.health["seen"] == kept
        service.stop(signal.SIGTERM)
    assert Monitor.from_json(snapshot.read_text()).seen == kept


def test_a_snapshot_of_another_file_is_refused(file):
    snapshot = file.with_name("digits.onnx.monitor.json")
    snapshot.write_text("{}")
    with pytest.raises(AssertionError, match="from_json"), Service(file.parent, file.name):
        pass
    assert snapshot.read_text() == "{}"


def test_a_file_of_pictures_takes_whole_numbers(tmp_path):
    torch.manual_seed(0)

    class Pictures(nn.Module):
        def __init__(self):
            super().__init__()
            self.head = nn.Linear(12, 3)

        def forward(self, pictures):
            return self.head(pictures.flatten(1).float() / 255)

    pictures = torch.randint(0, 256, (40, 2, 2, 3), dtype=torch.uint8)
    bnn, labels = bayesify(Pictures()), torch.arange(40) % 3
    bensemble.fit_posterior(bnn, [(pictures, labels)], likelihood="categorical", beta=0.1)
    p = bensemble.predict(bnn, pictures, likelihood="categorical", num_samples=4)
    options = {"likelihood": "categorical", "calibration": bensemble.calibrate(p, labels, temperature=1.0)}
    export_onnx(bnn, tmp_path / "pictures.onnx", pictures[:1], outputs="uncertainty", **options)
    session = UncertaintySession(tmp_path / "pictures.onnx")
    with Service(tmp_path, "pictures.onnx") as service:
        status, content = service.post(pictures[:2].tolist())
        assert status == 200, content
        same(content, session(pictures[:2].numpy()).to_dict())
        status, content = service.post((pictures[:2].long() + 200).tolist())
        assert (status, content["detail"][:37]) == (422, "the numbers must fit into uint8, got ")
        assert service.post((pictures[:2] / 255).tolist())[0] == 422
