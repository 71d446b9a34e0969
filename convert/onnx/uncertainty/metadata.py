"""The metadata of an uncertainty file: what its outputs mean, and what they were on the calibration data."""

from __future__ import annotations

import json
from collections.abc import Mapping

from torch import Tensor

from bensemble.errors import InvalidValueError
from bensemble.likelihoods import Bernoulli, Categorical
from bensemble.likelihoods.base import described

from ...runtime.metadata import class_names
from .closed import ClosedModel
from .networks import SampledModel
from .options import UncertaintyOptions

__all__ = ["uncertainty_metadata"]

#: Names in the file of those references of a calibration that have another name there.
OWN_NAMES = {"epistemic_std": "std"}


def uncertainty_metadata(
    options: UncertaintyOptions,
    model: SampledModel | ClosedModel,
    outputs: Mapping[str, Tensor],
    own: Mapping[str, str],
) -> dict[str, str]:
    """The metadata of the file.

    Args:
        options: What was asked.
        model: What the file computes.
        outputs: The outputs at the example.
        own: The user's strings.

    Raises:
        InvalidValueError: The user's ``classes`` are not as many as those of the outputs.
    """
    uncertainty = outputs["entropy" if "entropy" in outputs else "std"]
    found = {
        "bensemble.method": "closed" if isinstance(model, ClosedModel) else "samples",
        "bensemble.num_samples": str(model.count),
        "bensemble.likelihood": "none" if options.likelihood is None else described(options.likelihood),
        "bensemble.terms": str(uncertainty[0].numel()),
    }
    if isinstance(options.likelihood, (Bernoulli, Categorical)):
        probs = outputs["probs"]
        shape = options.likelihood.class_probs(probs).shape
        axis = options.likelihood.axis(probs) if isinstance(options.likelihood, Categorical) else len(shape) - 1
        found["bensemble.class_axis"] = str(axis)
        classes = class_names(own.get("classes", ""))
        if classes and len(classes) != shape[axis]:
            raise InvalidValueError(
                f"export_onnx: metadata['classes'] must name {shape[axis]} classes, got {len(classes)}: "
                f"{', '.join(classes)}."
            )
    if options.calibration is not None:
        reference = {OWN_NAMES.get(name, name): values for name, values in options.calibration.reference.items()}
        if isinstance(model, SampledModel) and model.is_drawn:
            # At few draws it depends on these, and the calibration's are others: a monitor would raise false alarms.
            reference.pop("mutual_information", None)
        if options.calibration.predicted:
            reference["class"] = options.calibration.predicted
        found["bensemble.calibration"] = options.calibration.to_json()
        found["bensemble.reference"] = json.dumps(reference)
    if options.thresholds:
        found["bensemble.reject"] = json.dumps(options.thresholds)
    return found if model.novelty is None else found | model.novelty.metadata()
