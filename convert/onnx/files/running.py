"""An ONNX file as a torch module, so that what was written for the model runs on its files: metrics, errors, timing."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from bensemble.errors import InvalidTypeError, InvalidValueError, shown
from bensemble.models.outputs import describe, tensor_paths

from ...runtime import check_digest

__all__ = ["OnnxModel", "feed", "one_thread_session"]


def one_thread_session(path: str | os.PathLike[str]) -> Any:
    """An ONNX Runtime session on one CPU thread, as silent as it can be.

    It raises what ONNX Runtime raises, and UncertaintyFileError where a file of ours has other bytes than were written.
    """
    import onnxruntime  # not needed to export without verification

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 4
    check_digest(path)
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"], enable_fallback=0)


def feed(session: Any, tensors: Sequence[Tensor]) -> dict[str, Any]:
    """Arrays by input name, for tensors in the order of the file's inputs."""
    names = [entry.name for entry in session.get_inputs()]
    return {name: tensor.detach().numpy() for name, tensor in zip(names, tensors, strict=True)}


class OnnxModel(nn.Module):
    """Runs an ONNX file in ONNX Runtime on one CPU thread, as if it were the torch model that it came from.

    It takes tensors by position, or by the names of the file's inputs, and returns a tensor, or a dict of them by name
    where the file has several outputs. It has no weights and no gradients.

    Args:
        path: The file.

    Raises:
        InvalidValueError: ONNX Runtime cannot load it, or it has other bytes than ``export_onnx`` wrote.

    Example:
        >>> evaluate(OnnxModel("small.onnx"))  # the same function that evaluates the torch model
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        super().__init__()
        self.path = str(path)
        try:
            if not Path(path).is_file():
                raise FileNotFoundError("there is no such file")
            self.session = one_thread_session(path)
            self.input_names = [entry.name for entry in self.session.get_inputs()]
            self.output_names = [entry.name for entry in self.session.get_outputs()]
        except ImportError:
            raise
        except Exception as err:
            raise InvalidValueError(
                f"OnnxModel: ONNX Runtime cannot load '{self.path}', it is damaged or something else, got "
                f"{shown(err, 200)}; write it again."
            ) from err
        self.eval()

    def forward(self, *inputs: Any, **named: Any) -> Tensor | dict[str, Tensor]:
        """The file's outputs."""
        found = self.outputs(named if named else inputs)
        return next(iter(found.values())) if len(found) == 1 else found

    def outputs(self, inputs: Any) -> dict[str, Tensor]:
        """All outputs by name, for a tensor, a tuple or a mapping.

        Raises:
            InvalidTypeError: The inputs are something else.
            InvalidValueError: They do not fit the file's inputs.
        """
        given = self.feed(inputs)
        try:
            arrays = self.session.run(None, given)
            return {name: torch.as_tensor(array) for name, array in zip(self.output_names, arrays, strict=True)}
        except Exception as err:
            raise InvalidValueError(
                f"OnnxModel: '{self.path}' rejects the inputs, got {describe(inputs)} ({shown(err, 200)}); "
                "give what the model was exported with."
            ) from err

    def feed(self, inputs: Any) -> dict[str, Any]:
        """Arrays by input name: by the names of a mapping where they are the file's, else by order."""
        if not isinstance(inputs, (Tensor, tuple, list, dict)) and not hasattr(inputs, "keys"):
            raise InvalidTypeError(f"OnnxModel: inputs must be tensors, got {describe(inputs)}.")
        found = {path.replace(".", "_"): tensor.detach().cpu().numpy() for path, tensor in tensor_paths(inputs)}
        if set(self.input_names) <= set(found):
            return {name: found[name] for name in self.input_names}
        if len(found) != len(self.input_names):
            raise InvalidValueError(
                f"OnnxModel: '{self.path}' takes {len(self.input_names)} inputs ({', '.join(self.input_names)}), "
                f"got {describe(inputs)}."
            )
        return dict(zip(self.input_names, found.values(), strict=True))
