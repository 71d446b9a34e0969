r"""sigma = softplus(rho) of one block of float32, and the sum of its logarithms, with as few dear functions as can be.

With :math:`p = \mathrm{sigmoid}(\rho)` and :math:`y = p / (1 - p/2)`, softplus is an inverse hyperbolic tangent, whose
series ends early where sigma is small, as it is in most posteriors:

.. math:: \sigma = -\log(1 - p) = 2\,\mathrm{artanh}(y/2) = y + \frac{y^3}{12} + \frac{y^5}{80} + \dots

The logarithm needs no logarithm, because rho is one: from :math:`\rho = \log(e^\sigma - 1)` follows

.. math:: \log\sigma = \rho - \frac{\sigma}{2} - \log\frac{\sinh(\sigma/2)}{\sigma/2}
                     = \rho - \frac{\sigma}{2} - \frac{\sigma^2}{24} + \frac{\sigma^4}{2880} - \dots
"""

from __future__ import annotations

import torch
from torch import Tensor

from .blocks import sum_of_logs

__all__ = ["softplus", "sum_of_log_sigma"]

#: Up to these rho the terms left out of the two series are below the rounding of float32.
_CUBIC_IS_ENOUGH, _FOURTH_ORDER_IS_ENOUGH = -3.3, -0.5

_ONE = torch.ones((), dtype=torch.float32, device="cpu")


def softplus(rho: Tensor, most: float, out: Tensor, scratch: Tensor) -> Tensor:
    """Sigma of one block.

    Args:
        rho: The block, at most 80.
        most: Its maximum.
        out: Where sigma goes.
        scratch: Room for as much again.
    """
    if most > _CUBIC_IS_ENOUGH:
        return torch.exp(rho, out=out).log1p_()
    p = torch.sigmoid(rho, out=out)
    y = p.div_(torch.add(_ONE, p, alpha=-0.5, out=scratch))
    return y.addcmul_(y, torch.mul(y, y, out=scratch), value=1 / 12)


def sum_of_log_sigma(rho: Tensor, most: float, sigma: Tensor, variance: Tensor, scratch: Tensor) -> float:
    """Sum of log sigma over one block; not finite where float32 is too narrow for the short cuts taken.

    Args:
        rho: The block.
        most: Its maximum.
        sigma: Its sigma.
        variance: Its sigma^2.
        scratch: Room for a quarter of it.
    """
    if most > _FOURTH_ORDER_IS_ENOUGH:
        return sum_of_logs(sigma, scratch)
    total = float(rho.sum()) - float(sigma.sum()) / 2 - float(variance.sum()) / 24
    return total if most < _CUBIC_IS_ENOUGH else total + float(torch.dot(variance, variance)) / 2880
