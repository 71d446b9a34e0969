"""A session: an uncertainty file in ONNX Runtime, its metadata, and answers for batches."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from .answers import Answer
from .files import UncertaintyFileError, check_count, check_digest, message
from .inputs import checked_feed, not_finite, numpy_dtype
from .metadata import check_kind, read_metadata

__all__ = ["UncertaintySession"]


class UncertaintySession:
    """Runs an uncertainty file that :func:`convert.export_onnx` wrote.

    Args:
        path: The file.
        threads: Number of threads of ONNX Runtime; None for its own default.
        providers: Its execution providers.

    Attributes:
        inputs: Dtype and shape of each input by name, in the order of a call; a string is an axis of any size.
        outputs: Names of the arrays in an answer.
        classes: Names of the classes, from the user's metadata ``classes``.
        likelihood: Name and settings of the likelihood, or ``"none"``.
        reference: For each measure its quantiles on the calibration data, at evenly spaced levels from 0 to 1; for
            ``novelty`` on the held-out data of its fit.
        num_data: Number of examples of the calibration data; 0 without calibration.
        counts: Number of examples behind the reference of each measure.
        metadata: Every string of the file.

    Raises:
        FileNotFoundError: There is no such file.
        UncertaintyFileError: It is damaged, not an uncertainty file, or of a newer version. A file of ``export_onnx``
            is compared with its digest before ONNX Runtime loads it.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        threads: int | None = None,
        providers: Sequence[str] = ("CPUExecutionProvider",),
    ) -> None:
        if not isinstance(path, (str, os.PathLike)):
            raise TypeError(f"UncertaintySession: path must be a string or a Path, got {type(path).__name__}.")
        self.path = Path(path)
        if not self.path.is_file():
            raise FileNotFoundError(f"UncertaintySession: there is no file '{self.path}'; check the path.")
        try:
            import onnxruntime  # the rest of this module works without
        except ImportError as err:
            raise ImportError(
                f"UncertaintySession: needs {err.name}, which is not installed; pip install onnxruntime."
            ) from err
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4
        if threads is not None:
            options.intra_op_num_threads = threads
        try:
            check_digest(self.path)
            self._session = onnxruntime.InferenceSession(
                str(self.path),
                options,
                providers=[providers] if isinstance(providers, str) else list(providers),
                enable_fallback=0,
            )
            self.metadata: dict[str, str] = dict(self._session.get_modelmeta().custom_metadata_map)
            takes, gives = self._session.get_inputs(), self._session.get_outputs()
            self.inputs = {entry.name: (numpy_dtype(entry.type), tuple(entry.shape)) for entry in takes}
            outputs = {entry.name: tuple(entry.shape) for entry in gives}
        except Exception as err:
            raise UncertaintyFileError(
                f"UncertaintySession: '{self.path}' cannot be loaded as ONNX, it is damaged or something else, got "
                f"{message(err)}; fetch it again."
            ) from err
        check_kind(self.path, self.metadata)
        self.outputs = tuple(outputs)
        self._axes = {name: shape[:1] for name, shape in outputs.items()}
        try:
            told = read_metadata(self.metadata, outputs)
        except (AttributeError, KeyError, OverflowError, RecursionError, TypeError, ValueError) as err:
            raise UncertaintyFileError(
                f"UncertaintySession: the metadata of '{self.path}' is damaged, got {message(err)}; export it again."
            ) from err
        self.likelihood, self.classes, self._class_axis = told.likelihood, told.classes, told.class_axis
        self.reference, self.num_data, self.counts = told.reference, told.num_data, told.counts

    def __call__(self, *arrays: np.ndarray, **named: np.ndarray) -> Answer:
        """The outputs for a batch; arrays in the order or by the names of :attr:`inputs`.

        An example with NaN or infinity in its inputs gets NaN in every output, an empty prediction set and no label;
        its novelty is that of the strangest inputs. The others keep their answers. The -inf of an additive mask, which
        has nothing above 0, is no such value.

        Raises:
            TypeError: An input is missing, unknown, not an array or of another dtype.
            ValueError: An input has another shape.
            UncertaintyFileError: ONNX Runtime cannot run the file on it.
        """
        feed = checked_feed(self.inputs, arrays, named)
        try:
            values = self._session.run(list(self.outputs), feed)
        except Exception as err:
            shapes = ", ".join(f"{name} {list(array.shape)}" for name, array in feed.items())
            raise UncertaintyFileError(
                f"session: ONNX Runtime cannot run '{self.path}' on {shapes}, got {message(err)}; give inputs like "
                "those that it was exported with, or export it again."
            ) from err
        found = dict(zip(self.outputs, values, strict=True))
        for name, array in feed.items():
            rows = not_finite(array)
            if rows.any():
                answers = [output for output in found if not output.startswith("novelty")]
                found |= {output: self._without(output, found[output], name, rows) for output in answers}
        return Answer(found, self.classes, self._class_axis)

    def in_batches(self, size: int, *arrays: np.ndarray, **named: np.ndarray) -> Answer:
        """One answer for many examples, computed ``size`` at a time, so that memory stays bounded."""
        check_count("in_batches", "size", size)
        feed = checked_feed(self.inputs, arrays, named)
        most = max(len(array) for array in feed.values())
        parts = [
            self(**{name: array[start : start + size] for name, array in feed.items()})
            for start in range(0, most, size)
        ]
        joined = {name: np.concatenate([part[name] for part in parts]) for name in self.outputs}
        return Answer(joined, self.classes, self._class_axis)

    def __repr__(self) -> str:
        takes = ", ".join(f"{name}: {dtype}{list(shape)}" for name, (dtype, shape) in self.inputs.items())
        return f"UncertaintySession('{self.path}', {takes} -> {', '.join(self.outputs)}, {self.likelihood})"

    def _without(self, output: str, values: np.ndarray, name: str, rows: np.ndarray) -> np.ndarray:
        """An output without an answer for rows of an input; for every row where their first axes are not the same."""
        same = self._axes[output] == self.inputs[name][1][:1] and len(values) == len(rows)
        changed = values.copy()
        changed[rows if same else ...] = np.nan if values.dtype.kind == "f" else 0
        return changed
