"""An ONNX file as a torch module, so that code written for the torch model (a metric, say) also takes its files."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from bensemble.errors import InvalidTypeError, InvalidValueError, needs_extra, shown
from bensemble.models.outputs import describe, tensor_paths, with_tensors

from ...runtime import check_digest

__all__ = ["OnnxModel", "input_arrays", "one_thread_session"]


def one_thread_session(path: str | os.PathLike[str]) -> Any:
    """An ONNX Runtime session on one CPU thread that prints nothing below a fatal error.

    It raises what ONNX Runtime raises, and UncertaintyFileError where the digest in a file does not match its bytes.
    """
    with needs_extra("OnnxModel", "onnx"):
        import onnxruntime  # not needed to export without verification

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 4
    check_digest(path)
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"], enable_fallback=0)


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
        >>> evaluate(OnnxModel("small.onnx", like=model(x)))  # the same function that evaluates the torch model
    """

    def __init__(self, path: str | os.PathLike[str], like: Any = None) -> None:
        super().__init__()
        self.path, self.like = str(path), like
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
        """Arrays by input name: a mapping's values by its keys where they are the file's names, else by order."""
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
