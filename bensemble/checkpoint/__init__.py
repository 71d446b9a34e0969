"""Checkpoints that describe themselves: tensors as safetensors, and how to make the model Bayesian again as JSON.

Nothing in them is ever unpickled or executed. A fresh deterministic model is enough to load one::

    bensemble.save(bnn, "model.safetensors")
    bnn = bensemble.load("model.safetensors", build_model())
"""

from .loading import load
from .saving import save

__all__ = ["load", "save"]
