"""Local reparameterization and KL by hand-written gradients, for float32 on the CPU in eager mode.

They compute what :mod:`bensemble.gaussian` and :mod:`bensemble.priors` say in plain operations; what differs is the
work around the two matrix products. ``moments`` goes once over the weights for sigma^2 and the KL, and once back;
``reparameterization`` and ``drawing`` keep only what their gradients need; ``operations`` are the products themselves.

Wherever these do not apply (other devices and dtypes, torch.compile, vmap, masks), the plain formulas run; under
double backward the plain formula is differentiated instead.
"""

from .drawing import draw_weight
from .moments import applies_to, fused_kl, shared_moments
from .operations import ConvolutionOp, LinearOp, Operation
from .reparameterization import local_reparameterization

__all__ = [
    "ConvolutionOp",
    "LinearOp",
    "Operation",
    "applies_to",
    "draw_weight",
    "fused_kl",
    "local_reparameterization",
    "shared_moments",
]
