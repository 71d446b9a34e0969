"""What the tests of the runtime share: a calibrated classifier and its file, answers and references without a file."""

from types import SimpleNamespace

import numpy as np
import torch
from onnx_models import mlp
from torch import nn

import bensemble
from convert import bayesify
from convert.onnx import export_onnx
from convert.runtime import Answer

CLASSES = ("cat", "dog", "eel")
POWERS = {"entropy": 1, "mutual_information": 2}


def model(scale: float = 20.0) -> nn.Module:
    torch.manual_seed(0)
    network = mlp()
    with torch.no_grad():
        network[3].weight.mul_(scale)
    bnn = bayesify(network, init_sigma=0.1)
    with torch.no_grad():
        bnn[0].w_rho.add_(0.1 * torch.rand_like(bnn[0].w_rho))
    return bnn.eval()


def write_calibrated(path):
    """A classifier whose file carries a calibration on 500 examples, and the calibration."""
    bnn, x = model(), torch.randn(500, 4)
    held_out = bensemble.predict(bnn, x, 6, likelihood="categorical", generator=torch.Generator().manual_seed(1))
    targets = torch.distributions.Categorical(probs=held_out.probs).sample()
    calibration = bensemble.calibrate(held_out, targets)
    options = {"likelihood": "categorical", "calibration": calibration, "metadata": {"classes": "cat, dog,eel"}}
    options["generator"] = torch.Generator().manual_seed(1)
    export_onnx(bnn, path, x[:1], outputs="uncertainty", num_samples=6, **options)
    return bnn, calibration


def answers(values) -> Answer:
    return Answer({"entropy": np.asarray(values), "mutual_information": np.asarray(values) ** 2})


def reference(values: np.ndarray) -> SimpleNamespace:
    """What a monitor reads of a session: the quantiles of calibration data."""
    quantiles = {name: tuple(np.quantile(values**power, np.linspace(0, 1, 101))) for name, power in POWERS.items()}
    counts = dict.fromkeys(quantiles, len(values))
    return SimpleNamespace(name="sure.onnx", reference=quantiles, outputs=tuple(quantiles), counts=counts)
