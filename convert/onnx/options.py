"""The arguments of ``export_onnx``, checked, as one object that the stages of an export pass along."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import nn

from bensemble.checks import check_takes
from bensemble.errors import ExportError, InvalidTypeError, InvalidValueError, refuse
from bensemble.models.state import unwrapped

from .shrinking.quantization import Quantization
from .uncertainty.options import UncertaintyOptions

__all__ = ["ExportOptions", "checked_models"]


@dataclass(frozen=True)
class ExportOptions:
    """The arguments of one export, under the names that they have there; ``target`` is ``path`` with links followed.

    Raises:
        InvalidTypeError: ``metadata`` is not a mapping.
        InvalidValueError: Another argument cannot work; all of them in one error.
        ExportError: onnxruntime is needed and not installed.
    """

    path: Path
    target: Path
    outputs: str
    output_names: Sequence[str] | None
    opset: int | None
    metadata: Mapping[str, str]
    uncertainty: UncertaintyOptions | None
    quantization: Quantization | None
    sparse: bool
    verify: bool
    verbose: bool
    progress: Callable[[str], None] | None = None

    def stage(self, name: str) -> None:
        """A stage of the export begins."""
        if self.progress is not None:
            self.progress(name)

    def __post_init__(self) -> None:
        if self.progress is not None:
            check_takes("export_onnx", "progress", self.progress, "stage")
        if not isinstance(self.metadata, Mapping):
            kind = type(self.metadata).__name__
            raise InvalidTypeError(f"export_onnx: metadata must be a mapping of strings, got {kind}.")
        opset, problems = self.opset, []
        if self.outputs not in ("mean", "uncertainty"):
            problems.append(f"outputs: must be 'mean' or 'uncertainty', got {self.outputs!r}.")
        if self.outputs == "uncertainty" and self.output_names is not None:
            problems.append(f"output_names: must be left out with outputs='uncertainty', got {self.output_names!r}.")
        if opset is not None and (isinstance(opset, bool) or not isinstance(opset, int) or opset < 1):
            problems.append(f"opset: must be a positive integer, got {opset!r}.")
        for key, value in self.metadata.items():
            if not isinstance(key, str) or not isinstance(value, str) or not key:
                problems.append(f"metadata: must map strings to strings, got {key!r}: {value!r}.")
            elif key.startswith("bensemble."):
                problems.append(f"metadata: {key!r} is reserved; choose a key that does not start with 'bensemble.'.")
        refuse("export_onnx", problems, InvalidValueError)
        if (self.verify or self.quantization) and find_spec("onnxruntime") is None:
            raise ExportError(
                f"export_onnx: {'verify=True' if self.verify else 'quantize'} needs onnxruntime, which is not "
                "installed; install bensemble with its onnx extra, from the source tree: pip install '.[onnx]'."
            )


def checked_models(model: Any, outputs: str) -> list[nn.Module]:
    """The model, or the models of an ensemble, without the wrappers of torch.compile and data parallel training."""
    several = isinstance(model, (list, tuple)) and outputs == "uncertainty" and len(model) > 0
    models = list(model) if several else [model]
    for member in models:
        if not isinstance(member, nn.Module):
            raise InvalidTypeError(
                f"export_onnx: model must be a torch.nn.Module, got {type(member).__name__}; "
                "an ensemble is a sequence of them, with outputs='uncertainty'."
            )
        if isinstance(member, torch.jit.ScriptModule):
            raise InvalidTypeError(
                "export_onnx: model must be Python code, got a ScriptModule; give the module it came from."
            )
    return [unwrapped(member) for member in models]
