"""Uncertainty files in production: a package on numpy, ONNX Runtime and the standard library, without torch.

    session = UncertaintySession("sure.onnx")
    answer = session(images)  # answer.probs, answer.entropy, answer.mutual_information
    monitor = Monitor(session)
    monitor.update(answer)
    print(monitor.verdict())

The distribution ``bensemble-runtime`` is this folder under the name ``bensemble_runtime``.
"""

from .answers import Answer
from .files import UncertaintyFileError
from .monitor import Monitor
from .sessions import UncertaintySession
from .verdict import Verdict

__all__ = ["Answer", "Monitor", "UncertaintyFileError", "UncertaintySession", "Verdict"]
