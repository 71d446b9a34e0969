"""Every error of the toolkit has one root; each child is also the builtin that a caller would expect.

Messages follow one form: ``<verb>: '<dotted.path>' <fact>, got <value>; <what to do>.``
"""

from __future__ import annotations

from collections.abc import Iterable

__all__ = [
    "BensembleError",
    "CheckpointError",
    "ConversionError",
    "ExportError",
    "InvalidTypeError",
    "InvalidValueError",
    "OutOfMemoryError",
    "ReadOnlyError",
    "SamplingError",
    "VerificationError",
    "one_line",
    "refuse",
    "shown",
]


class BensembleError(Exception):
    """Root of every error that bensemble and convert raise on purpose."""


class InvalidValueError(BensembleError, ValueError):
    """An argument of the right type has a value that cannot work."""


class InvalidTypeError(BensembleError, TypeError):
    """An argument has the wrong type."""


class ConversionError(BensembleError, ValueError):
    """A model cannot be converted as asked; the model is left as it was."""


class ReadOnlyError(BensembleError, RuntimeError):
    """Something tried to write into a posterior draw, or to replace a posterior weight."""


class OutOfMemoryError(BensembleError, MemoryError):
    """What was asked for at once does not fit into memory."""


class SamplingError(BensembleError, RuntimeError):
    """A forward runs again during backward, and the sample that it ran with is not held any more."""


class CheckpointError(BensembleError, ValueError):
    """A file or state dict does not fit the model, or is not what it claims to be."""


class ExportError(BensembleError, RuntimeError):
    """A model could not be written as ONNX; no file was changed."""


class VerificationError(ExportError):
    """The exported file does not reproduce the model; no file was changed."""


def refuse(verb: str, problems: Iterable[str], error: type[BensembleError] = ConversionError, most: int = 10) -> None:
    """Raise one error that lists all problems, sorted, at most ``most`` of them. Does nothing without problems.

    Args:
        verb: The public function that refuses.
        problems: One sentence each, without the verb.
        error: The class to raise.
        most: How many problems to print.
    """
    found = sorted({shown(problem, 900) for problem in problems})
    if not found:
        return
    if len(found) == 1:
        raise error(f"{verb}: {found[0]}")
    listed = "\n".join(f"  - {problem}" for problem in found[:most])
    more = f"\n  ... and {len(found) - most} more" if len(found) > most else ""
    raise error(f"{verb}: {len(found)} problems.\n{listed}{more}")


def shown(text: object, most: int = 80) -> str:
    """Text from outside as a part of one line: short, without control characters or line ends.

    Args:
        text: A name in a file, or what somebody else's exception says.
        most: Length from which on it is cut.
    """
    words = " ".join(str(text).split())
    safe = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in words[: most + 1])
    return safe if len(safe) <= most else f"{safe[: most - 3]}..."


def one_line(err: BaseException, most: int = 200) -> str:
    """Type and first line of an exception, to be quoted inside another message.

    Args:
        err: An exception of torch, ONNX Runtime or the user's code.
        most: Number of characters from which on it is cut.
    """
    lines = [line.strip() for line in str(err).splitlines() if line.strip()]
    return shown(f"{type(err).__name__}: {lines[0].rstrip('.')}" if lines else type(err).__name__, most)
