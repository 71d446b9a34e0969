"""What a fit is compared with on held-out data: the network as it was, and the network with one temperature.

Whatever is chosen on held-out data is chosen on one half of the terms and measured on the other, and the other way
round, so that the numbers of a report are those of data that nothing was chosen on.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ..likelihoods import DiscreteLikelihood, Likelihood
from ..models.batches import device_of, to_device
from ..models.forwards import forward
from ..models.outputs import OutputSelector
from ..models.ranks import failing_together, gathered

__all__ = ["crossed", "tempered_terms"]

#: Candidates for the temperature, from 1/4 to 16 in steps of a tenth of a power of two.
TEMPERATURES = tuple(2.0 ** (k / 10) for k in range(-20, 41))


def crossed(tried: Mapping[Any, Tensor]) -> Tensor:
    """The terms of the best candidate, chosen for each half of the terms on the other half.

    Args:
        tried: The negative log likelihood of every term, by candidate.
    """
    candidates = list(tried.values())
    odd = torch.arange(candidates[0].numel()) % 2 == 1
    if candidates[0].numel() < 4:
        return min(candidates, key=lambda terms: float(terms.mean()))
    found = torch.empty_like(candidates[0])
    for here, there in ((odd, ~odd), (~odd, odd)):
        found[here] = min(candidates, key=lambda terms: float(terms[there].nan_to_num(torch.inf).mean()))[here]
    return found


@torch.no_grad()
def tempered_terms(
    model: nn.Module, batches: list[tuple[Any, Any]], likelihood: Likelihood, output: OutputSelector | None
) -> Tensor | None:
    """NLL of every held-out term of the mean network with one temperature; None where outputs are no logits."""
    if not isinstance(likelihood, DiscreteLikelihood):
        return None
    parts: dict[float, list[Tensor]] = {temperature: [torch.zeros(0)] for temperature in TEMPERATURES}
    with failing_together("fit_posterior"):
        for batch in batches:
            inputs, target = to_device(batch, device_of(model))
            raw = forward("fit_posterior", model, inputs, output)
            for temperature, terms in parts.items():
                terms.append(likelihood.terms(raw / temperature, target).cpu())
    return crossed({temperature: gathered(torch.cat(terms)) for temperature, terms in parts.items()})
