"""``bensemble demo``: the whole story on real digits, from an ordinary network to ONNX files.

A guest like any other user: it imports public names of ``bensemble`` and ``convert`` only. One file for each part:
``data`` and ``network``, ``contest`` to compare, ``pictures``, ``page`` and ``report`` to show; ``story`` tells it in
order.
"""

from bensemble.errors import needs_extra

with needs_extra("convert.demo", "demo"):
    from .story import run_demo

__all__ = ["run_demo"]
