"""Thresholds above which the runtime rejects a prediction, checked against the outputs that a file will have."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

from bensemble.checks import check_number
from bensemble.errors import InvalidTypeError, InvalidValueError
from bensemble.likelihoods import DiscreteLikelihood, Likelihood
from bensemble.novelty import Novelty

__all__ = ["checked_thresholds"]

PVALUE = "novelty_pvalue"


def checked_thresholds(reject: Any, likelihood: Likelihood | None, novelty: Any) -> dict[str, float]:
    """The argument ``reject`` of ``export_onnx``.

    Args:
        reject: A mapping from the names of uncertainties to numbers, or None.
        likelihood: What the outputs mean.
        novelty: What ``fit_novelty`` returned, or None.

    Raises:
        InvalidTypeError: It is no mapping, or a threshold is no number.
        InvalidValueError: The file will not have such an output, or the value can reject nothing or everything.
    """
    if reject is None:
        return {}
    if not isinstance(reject, Mapping):
        raise InvalidTypeError(
            "export_onnx: reject must be a mapping such as {'entropy': 0.5, 'novelty_pvalue': 0.01}, got "
            f"{type(reject).__name__}."
        )
    known = ["entropy", "mutual_information"] if isinstance(likelihood, DiscreteLikelihood) else ["std"]
    known += ["noise_std"] if likelihood is not None and "std" in known else []
    known += ["novelty", PVALUE] if novelty is not None else []
    unknown = [repr(name) for name in reject if name not in known]
    if unknown or not reject:
        raise InvalidValueError(
            f"export_onnx: reject must name uncertainties of the file ({', '.join(known)}), got "
            f"{', '.join(unknown) or 'none'}; novelty needs novelty=fit_novelty(...)."
        )
    limits: dict[str, dict[str, float]] = {"novelty": {}, PVALUE: {"above": 0, "below": 1}}
    thresholds = {
        name: check_number("export_onnx", f"reject[{name!r}]", value, **limits.get(name, {"least": 0}))
        for name, value in reject.items()
    }
    members = novelty if isinstance(novelty, Sequence) else [novelty]
    held_out = min((len(member.heldout) for member in members if isinstance(member, Novelty)), default=0)
    level = thresholds.get(PVALUE, 1.0)
    if level * (held_out + 1) < 1:
        warnings.warn(
            f"export_onnx: no p-value is below {1 / (held_out + 1):.2g} = 1 / (n + 1) for the {held_out} held-out "
            f"terms of the novelty, so reject={{'{PVALUE}': {level:g}}} rejects nothing; hold out more, or raise the "
            "level.",
            UserWarning,
            stacklevel=4,
        )
    return thresholds
