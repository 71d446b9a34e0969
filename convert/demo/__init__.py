"""``bensemble demo``: the whole story on real digits, from an ordinary network to ONNX files.

A guest like any other user: it imports public names of ``bensemble`` and ``convert`` only. One file for each part:
``data`` and ``network``, ``contest`` to compare, ``pictures``, ``page`` and ``report`` to show; ``story`` tells it in
order.
"""

from bensemble import MissingPackageError

try:
    from .story import run_demo
except ModuleNotFoundError as err:
    raise MissingPackageError(
        f"convert.demo: needs {str(err.name).partition('.')[0]}, which is not installed; install bensemble with its "
        "demo extra, from the source tree: pip install '.[demo]'."
    ) from err

__all__ = ["run_demo"]
