"""Bayesian layers, what they share, and the registry of the torch.nn type that each is the twin of.

What looks at a whole model, or decides which of its layers become Bayesian, does not belong here.
"""

from .base import BaseBayesianLayer
from .conv import BayesianConv1d, BayesianConv2d, BayesianConv3d
from .linear import BayesianLinear
from .linear_in_weights import LinearOpLayer
from .registry import bayesian_type, register, register_lazily, registered_types
from .transposed import BayesianConvTranspose1d, BayesianConvTranspose2d, BayesianConvTranspose3d
from .weights import weight_property

register_lazily("transformers.pytorch_utils", "Conv1D", "bensemble.layers.hf_conv1d")

__all__ = [
    "BaseBayesianLayer",
    "BayesianConv1d",
    "BayesianConv2d",
    "BayesianConv3d",
    "BayesianConvTranspose1d",
    "BayesianConvTranspose2d",
    "BayesianConvTranspose3d",
    "BayesianLinear",
    "LinearOpLayer",
    "bayesian_type",
    "register",
    "register_lazily",
    "registered_types",
    "weight_property",
]
