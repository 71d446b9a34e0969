"""``bensemble demo``: the whole story on real digits, from an ordinary network to ONNX files.

A guest like any other user: it imports public names of ``bensemble`` and ``convert`` only. One file for each part:
``data`` and ``network``, ``contest`` to compare, ``pictures``, ``page`` and ``report`` to show; ``story`` tells it in
order.
"""

try:
    from .story import run_demo
except ModuleNotFoundError as err:
    raise ImportError(
        f"convert.demo: needs {err.name}, which is not installed; install bensemble from its source tree with the "
        "extra [demo]."
    ) from err

__all__ = ["run_demo"]
