"""Uncertainty files in production: a package on numpy, ONNX Runtime and the standard library, without torch.

    session = UncertaintySession("sure.onnx")
    answer = session(images)  # answer.probs, answer.entropy, answer.mutual_information
    monitor = Monitor(session)
    monitor.update(answer)
    print(monitor.verdict())

This folder may be copied out of the package and used by itself.
"""

from .answers import Answer
from .files import UncertaintyFileError
from .monitor import Monitor
from .sessions import UncertaintySession
from .verdict import Verdict

__all__ = ["Answer", "Monitor", "UncertaintyFileError", "UncertaintySession", "Verdict"]
