"""What a converted model has become: does its noise reach the output, and how many of its weights are zero.

Reports look and change nothing. What they find is mended elsewhere.
"""

from .noise import NoiseReport, check_noise
from .zeros import SparsityReport, sparsity

__all__ = ["NoiseReport", "SparsityReport", "check_noise", "sparsity"]
