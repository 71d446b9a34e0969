"""Trained weights from files that others wrote, into a model.

What a file holds is found in ``files``, how it goes into a model in ``loading``. The format of ``bensemble.save`` lies
in ``bensemble.checkpoint``; nothing here executes anything that is in a file.
"""

from .loading import load_weights

__all__ = ["load_weights"]
