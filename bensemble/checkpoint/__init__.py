"""Checkpoints: tensors as safetensors, and a JSON header that says how to make a deterministic model Bayesian again.

Reading, writing and checking files belongs here; ONNX files belong in ``convert``. Loading a checkpoint never unpickles
or executes anything in it. It needs a new deterministic model only::

    bensemble.save(bnn, "model.safetensors")
    bnn = bensemble.load("model.safetensors", build_model())
"""

from .loading import load
from .saving import save

__all__ = ["load", "save"]
