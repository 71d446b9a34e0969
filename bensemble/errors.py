"""The errors of the toolkit. All have one root, and each is also a builtin error such as ``ValueError``.

Messages have one form: ``<verb>: '<dotted.path>' <fact>, got <value>; <what to do>.``
"""

from __future__ import annotations

import sysconfig
import traceback
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

__all__ = [
    "BensembleError",
    "CheckpointError",
    "ConversionError",
    "ExportError",
    "InvalidTypeError",
    "InvalidValueError",
    "MissingPackageError",
    "OutOfMemoryError",
    "ReadOnlyError",
    "SamplingError",
    "VerificationError",
    "needs_extra",
    "one_line",
    "raising_line",
    "refuse",
    "shown",
    "user_line",
]


class BensembleError(Exception):
    """Root of all errors of bensemble and convert."""


class InvalidValueError(BensembleError, ValueError):
    """An argument has a value that cannot work."""


class InvalidTypeError(BensembleError, TypeError):
    """An argument has the wrong type."""


class MissingPackageError(BensembleError, ImportError):
    """A package of one of the extras of bensemble is not installed."""


class ConversionError(BensembleError, ValueError):
    """A model cannot be converted as asked; the model is unchanged."""


class ReadOnlyError(BensembleError, RuntimeError):
    """A draw was written to, or a weight with a posterior was replaced."""


class OutOfMemoryError(BensembleError, MemoryError):
    """A request does not fit into memory."""


class SamplingError(BensembleError, RuntimeError):
    """A forward is recomputed during backward, but its weight sample is no longer held."""


class CheckpointError(BensembleError, ValueError):
    """A file or state dict is damaged or does not fit the model."""


class ExportError(BensembleError, RuntimeError):
    """A model could not be written as ONNX; no file was changed."""


class VerificationError(ExportError):
    """The exported file does not reproduce the model; no file was changed."""


@contextmanager
def needs_extra(verb: str, extra: str) -> Iterator[None]:
    """Around the imports of packages that only an extra of bensemble installs: say which extra where one is missing.

    Args:
        verb: The public function or module that needs them.
        extra: Name of the extra, as in ``pyproject.toml``.

    Raises:
        MissingPackageError: A package cannot be imported.
    """
    try:
        yield
    except ImportError as err:
        package = err.name.partition(".")[0] if err.name else one_line(err)
        raise MissingPackageError(
            f"{verb}: needs {package}, which is not installed; install bensemble with its {extra} extra, from the "
            f"source tree: pip install '.[{extra}]'.",
            name=err.name,
        ) from err


def refuse(verb: str, problems: Iterable[str], error: type[BensembleError] = ConversionError, most: int = 10) -> None:
    """Raise one error that lists the problems, sorted; do nothing without problems.

    Args:
        verb: The public function that raises.
        problems: One sentence each, without the verb.
        error: The class to raise.
        most: Number of problems to print.
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
    """Text from a file or a foreign exception for a message: on one line, short, without control characters.

    Args:
        text: The text.
        most: Largest length; longer text is cut.
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


def raising_line(err: BaseException) -> str:
    """The innermost line of a user's code, or of another library's, behind an exception: file, number and text.

    Args:
        err: An exception; those that caused it are searched first.

    Returns:
        Such as "net.py:12 `return x.view(-1)`"; "" where no such line is known.
    """
    causes = [err]
    while (cause := causes[-1].__cause__ or causes[-1].__context__) is not None and cause not in causes:
        causes.append(cause)
    lines = (user_line(traceback.extract_tb(cause.__traceback__)) for cause in reversed(causes))
    return next(filter(None, lines), "")


def user_line(frames: Sequence[traceback.FrameSummary]) -> str:
    """The same of a stack, the innermost frame last."""
    for frame in reversed(frames):
        if frame.line and not _is_inner(Path(frame.filename)):
            return f"{Path(frame.filename).name}:{frame.lineno} `{shown(frame.line, 120)}`"
    return ""


def _is_inner(file: Path) -> bool:
    """Whether a file is of torch, of this library, or of Python itself."""
    packages = {part for part in file.parts if part in ("site-packages", "dist-packages")}
    if packages:
        return file.parts[file.parts.index(packages.pop()) + 1] in ("torch", "onnxscript", "bensemble", "convert")
    own = Path(__file__).resolve().parents[1]
    return any(file.is_relative_to(own / name) for name in ("bensemble", "convert")) or file.is_relative_to(_PYTHON)


_PYTHON = sysconfig.get_path("stdlib")
