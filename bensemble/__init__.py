"""Gaussian posteriors for the weights of PyTorch networks.

Here live layers, priors, the variational objective, sampling, prediction, posterior fitting, calibration, pruning and
checkpoints. What decides which weights of a network become Bayesian, and what writes ONNX, belongs in ``convert``.
"""

from . import likelihoods, priors, recipes
from .calibration import Calibration, RejectionCurve, calibrate, rejection_curve
from .checkpoint import load, save
from .errors import (
    BensembleError,
    CheckpointError,
    ConversionError,
    ExportError,
    InvalidTypeError,
    InvalidValueError,
    OutOfMemoryError,
    ReadOnlyError,
    SamplingError,
    VerificationError,
)
from .fitting import FitReport, fit_posterior, set_posterior, set_prior
from .layers import (
    BaseBayesianLayer,
    BayesianConv1d,
    BayesianConv2d,
    BayesianConv3d,
    BayesianConvTranspose1d,
    BayesianConvTranspose2d,
    BayesianConvTranspose3d,
    BayesianLinear,
)
from .novelty import Novelty, fit_novelty
from .objective import elbo_loss, kl_divergence, kl_warmup, param_groups, posterior_summary
from .posterior import Posterior
from .posteriors import named_posteriors
from .prediction import ClassPrediction, Prediction, RegressionPrediction, predict, sampling
from .pruning.channels import ChannelGroups
from .pruning.masks import apply_masks, clear_masks, prune, pruning_masks

__version__ = "1.0.0"

__all__ = [
    "BaseBayesianLayer",
    "BayesianConv1d",
    "BayesianConv2d",
    "BayesianConv3d",
    "BayesianConvTranspose1d",
    "BayesianConvTranspose2d",
    "BayesianConvTranspose3d",
    "BayesianLinear",
    "BensembleError",
    "Calibration",
    "ChannelGroups",
    "CheckpointError",
    "ClassPrediction",
    "ConversionError",
    "ExportError",
    "FitReport",
    "InvalidTypeError",
    "InvalidValueError",
    "Novelty",
    "OutOfMemoryError",
    "Posterior",
    "Prediction",
    "ReadOnlyError",
    "RegressionPrediction",
    "RejectionCurve",
    "SamplingError",
    "VerificationError",
    "apply_masks",
    "calibrate",
    "clear_masks",
    "elbo_loss",
    "fit_novelty",
    "fit_posterior",
    "kl_divergence",
    "kl_warmup",
    "likelihoods",
    "load",
    "named_posteriors",
    "param_groups",
    "posterior_summary",
    "predict",
    "priors",
    "prune",
    "pruning_masks",
    "recipes",
    "rejection_curve",
    "sampling",
    "save",
    "set_posterior",
    "set_prior",
]
