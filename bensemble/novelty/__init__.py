"""Does a network know this kind of input at all? Distances in feature space, and p-values from held-out inputs.

``fitting`` holds ``fit_novelty``, ``scoring`` what it returns; ``features`` reads the layers, ``moments`` and
``distance`` are the mathematics. Novelty is for strangers. What tells a network's own errors, its entropies, belongs in
``prediction`` and ``calibration``.
"""

from .fitting import fit_novelty
from .scoring import Novelty

__all__ = ["Novelty", "fit_novelty"]
