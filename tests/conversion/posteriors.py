"""What tests of surgery share."""

from __future__ import annotations

from torch import nn

from bensemble import named_posteriors


def posteriors(model: nn.Module) -> dict:
    return dict(named_posteriors(model))
