"""An ONNX file as a torch module, so that code written for the torch model (a metric, say) also takes its files."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from bensemble.errors import InvalidTypeError, InvalidValueError
from bensemble.models.outputs import describe, tensor_paths, with_tensors

from .sessions import OnnxFile

__all__ = ["OnnxModel", "input_arrays"]


def input_arrays(session: Any, tensors: Sequence[Tensor]) -> dict[str, Any]:
    """Arrays by input name, for tensors in the order of the file's inputs."""
    names = [entry.name for entry in session.get_inputs()]
    return {name: tensor.detach().numpy() for name, tensor in zip(names, tensors, strict=True)}


class OnnxModel(nn.Module):
    """Runs an ONNX file in ONNX Runtime on one CPU thread; it is called as the torch model is.

    It takes tensors by position, or by the names of the file's inputs, and returns a tensor, or a dict of them by name
    where the file has several outputs. It has no weights and no gradients.

    Args:
        path: The file.
        like: An output of the torch model, whose type the outputs then have, such as a dict with one tensor.

    Raises:
        InvalidValueError: ONNX Runtime cannot load it, it has other bytes than ``export_onnx`` wrote, or another number
            of outputs than ``like`` has tensors.

    Example:
        >>> share = accuracy(convert.OnnxModel("plain.onnx", like=model(x)))  # of the file, by the same function
    """

    def __init__(self, path: str | os.PathLike[str], like: Any = None) -> None:
        super().__init__()
        self.file, self.like = OnnxFile(path), like
        self.path, self.session = self.file.path, self.file.session
        self.input_names, self.output_names = self.file.input_names, self.file.output_names
        if like is not None and len(list(tensor_paths(like))) != len(self.output_names):
            raise InvalidValueError(
                f"OnnxModel: like must have a tensor for each output of '{self.path}', {', '.join(self.output_names)}, "
                f"got {describe(like)}; leave it out, or pass an output of the model that was exported."
            )
        self.eval()

    def forward(self, *inputs: Any, **named: Any) -> Any:
        """The file's outputs: a tensor, a dict of them, or what ``like`` is."""
        found = self.outputs(named if named else inputs)
        if self.like is not None:
            return with_tensors(self.like, iter(found.values()))
        return next(iter(found.values())) if len(found) == 1 else found

    def outputs(self, inputs: Any) -> dict[str, Tensor]:
        """All outputs by name, for a tensor, a tuple or a mapping.

        Raises:
            InvalidTypeError: The inputs are something else.
            InvalidValueError: They do not fit the file's inputs.
        """
        if not isinstance(inputs, (Tensor, tuple, list, dict)) and not hasattr(inputs, "keys"):
            raise InvalidTypeError(f"OnnxModel: inputs must be tensors, got {describe(inputs)}.")
        given = {path.replace(".", "_"): tensor.detach().cpu().numpy() for path, tensor in tensor_paths(inputs)}
        return {name: torch.as_tensor(array) for name, array in self.file.run(given, describe(inputs)).items()}
