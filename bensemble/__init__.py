"""Gaussian posteriors for the weights of PyTorch networks.

Here live layers, priors, the variational objective, sampling, prediction, posterior fitting, calibration, pruning and
checkpoints. What decides which weights of a network become Bayesian, and what writes ONNX, belongs in ``convert``.

Names load on first use, so that ONNX files can be inspected and compared where torch is not installed.
"""

from __future__ import annotations

from importlib import import_module
from pkgutil import iter_modules
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
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
        MissingPackageError,
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
    from .objective import distillation_loss, elbo_loss, kl_divergence, kl_warmup, param_groups, posterior_summary
    from .posterior import Posterior
    from .posteriors import named_posteriors
    from .prediction import ClassPrediction, Prediction, RegressionPrediction, predict, sampling
    from .pruning.channels import ChannelGroups
    from .pruning.masks import apply_masks, clear_masks, prune, pruning_masks

__version__ = "1.0.0"

_NAMES = {
    "calibration": "Calibration RejectionCurve calibrate rejection_curve",
    "checkpoint": "load save",
    "errors": (
        "BensembleError CheckpointError ConversionError ExportError InvalidTypeError InvalidValueError "
        "MissingPackageError OutOfMemoryError ReadOnlyError SamplingError VerificationError"
    ),
    "fitting": "FitReport fit_posterior set_posterior set_prior",
    "layers": (
        "BaseBayesianLayer BayesianConv1d BayesianConv2d BayesianConv3d BayesianConvTranspose1d "
        "BayesianConvTranspose2d BayesianConvTranspose3d BayesianLinear"
    ),
    "novelty": "Novelty fit_novelty",
    "objective": "distillation_loss elbo_loss kl_divergence kl_warmup param_groups posterior_summary",
    "posterior": "Posterior",
    "posteriors": "named_posteriors",
    "prediction": "ClassPrediction Prediction RegressionPrediction predict sampling",
    "pruning.channels": "ChannelGroups",
    "pruning.masks": "apply_masks clear_masks prune pruning_masks",
}
_HOMES = {name: home for home, names in _NAMES.items() for name in names.split()}
#: Modules of this package that are attributes of it, as if it had imported them.
_ROOMS = [module.name for module in iter_modules(__path__) if module.name != "__main__"]


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
    "MissingPackageError",
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
    "distillation_loss",
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


def __getattr__(name: str) -> Any:
    if name in _ROOMS:
        return import_module(f".{name}", __name__)
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f".{_HOMES[name]}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted((*__all__, *_ROOMS, "__version__"))
