"""``bensemble demo``: the whole story on real digits, from an ordinary network to ONNX files.

One file for each part of it: ``data`` and ``network``, ``training`` with the two recipes, ``curves``, ``metrics`` and
``contest`` to compare, ``files`` for ONNX, ``pictures``, ``page`` and ``report`` to show; ``story`` tells it in order.
"""

try:
    import matplotlib as _matplotlib  # noqa: F401
    import rich as _rich  # noqa: F401
    import sklearn as _sklearn  # noqa: F401
    import torchmetrics as _torchmetrics  # noqa: F401
except ImportError as err:
    raise ImportError(
        f"convert.demo: needs {err.name}, which is not installed; install bensemble from its source tree with the "
        "extra [demo]."
    ) from err

from .story import run_demo

__all__ = ["run_demo"]
