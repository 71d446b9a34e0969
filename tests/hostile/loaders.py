"""Everything that reads a file, each as a function from a path to a fingerprint of what was read.

What a loader may raise is listed with it: anything else is a bug.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

import bensemble
from bensemble.errors import BensembleError
from convert import load_weights
from convert.cli.exporting import read_calibration
from convert.cli.failures import WrongUsage
from convert.cli.labelled_data import read_data
from convert.demo.data import load_mnist
from convert.onnx import OnnxModel, compare_onnx, inspect_onnx
from convert.runtime import Monitor, UncertaintySession

from .sources import INPUTS, Network

__all__ = ["LOADERS", "Loader"]


@dataclass(frozen=True)
class Loader:
    """One way a file comes in.

    Attributes:
        source: The whole file that is damaged.
        load: Reads the file and uses what it read; gives a fingerprint of it.
        refuses: Error classes that are an answer.
    """

    source: str
    load: Callable[[Path], str]
    refuses: tuple[type[Exception], ...] = (BensembleError,)


def _checkpoint(path: Path) -> str:
    bnn = bensemble.load(path, Network()).eval()
    return _digest([*bnn.state_dict().items(), ("kl", bensemble.kl_divergence(bnn)), ("out", bnn(_TOKENS))])


def _weights(path: Path) -> str:
    return _digest(load_weights(Network(), path).state_dict().items())


def _inspected(path: Path) -> str:
    return str(inspect_onnx(path)).replace(str(path), "")


def _model(path: Path) -> str:
    found = OnnxModel(path).outputs(INPUTS)
    return _digest(found.items())


def _compared(path: Path) -> str:

    def total(model: Any) -> float:
        return sum(float(value.double().nan_to_num(9.0).sum()) for value in model.outputs(INPUTS).values())

    return str(compare_onnx({"file": path}, INPUTS, rounds=0, evaluate=total))


def _runtime(path: Path) -> str:
    session = UncertaintySession(path, threads=1)
    answer = session(INPUTS.numpy())
    told = [repr(session).replace(str(path), ""), repr(answer), str(answer.labels()), str(answer.sets())]
    monitor = Monitor(session)
    monitor.update(answer)
    return _digest([*answer.items(), *enumerate([*told, monitor.verdict()])])


def _monitor(path: Path) -> str:
    monitor = Monitor.from_json(path.read_text(errors="replace"))
    state = json.loads(monitor.to_json()) | {"own": ""}  # a new name each time
    return f"{monitor.verdict()} {state} {monitor.merge(monitor).seen}"


def _calibration(path: Path) -> str:
    return repr(read_calibration(path))


def _data(path: Path) -> str:
    inputs, labels = read_data(path, need_labels=True)
    named = inputs if isinstance(inputs, dict) else dict(enumerate(inputs if isinstance(inputs, tuple) else [inputs]))
    return _digest([*named.items(), ("labels", labels)])


def _mnist(path: Path) -> str:
    images = load_mnist(path)
    return _digest([("train", images.train[0]), ("test", images.test[0])])


_TOKENS = torch.arange(10).reshape(2, 5)

LOADERS = {
    "bensemble.load": Loader("model.checkpoint", _checkpoint),
    "weights checkpoint": Loader("model.checkpoint", _weights),
    "weights safetensors": Loader("weights.safetensors", _weights),
    "weights shards": Loader("weights.index.json", _weights),
    "weights torch": Loader("weights.pt", _weights),
    "weights torch legacy": Loader("weights.legacy", _weights),
    "inspect_onnx": Loader("plain.onnx", _inspected),
    "OnnxModel": Loader("plain.onnx", _model),
    "OnnxModel edited": Loader("plain-edited.onnx", _model),
    "compare_onnx": Loader("sure-edited.onnx", _compared),
    "UncertaintySession": Loader("sure.onnx", _runtime, (ValueError, TypeError)),
    "UncertaintySession edited": Loader("sure-edited.onnx", _runtime, (ValueError, TypeError)),
    "Monitor.from_json": Loader("monitor.json", _monitor, (ValueError,)),
    "calibration": Loader("calibration.json", _calibration),
    "labelled data": Loader("data.npz", _data, (BensembleError, WrongUsage)),
    "demo data": Loader("mnist.npz", _mnist),
}


def _digest(items: Iterable[tuple[Any, Any]]) -> str:
    digest = hashlib.sha256()
    for name, value in items:
        if isinstance(value, (torch.Tensor, np.ndarray)):
            value = np.asarray(value.detach() if isinstance(value, torch.Tensor) else value)
            value = (value.dtype, value.shape, value.tobytes())
        digest.update(repr((name, value)).encode("utf-8", "replace"))
    return digest.hexdigest()
