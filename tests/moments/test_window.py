"""The window of a convolution against the convolution."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F

from convert.graph.moments.registry import Operation
from convert.graph.moments.rules.window import Bands, Window

SETTINGS: dict[str, dict[str, Any]] = {
    "plain": {},
    "padded": {"padding": (2, 1)},
    "stride and dilation": {"stride": (2, 1), "padding": (1, 3), "dilation": (1, 2)},
    "same": {"padding": "same"},
}


def window(settings: dict[str, Any], weight: torch.Tensor, size: tuple[int, int]) -> Window:
    rest = (settings.get("stride", 1), settings.get("padding", 0), settings.get("dilation", 1), 1)
    return Window(Operation("conv2d", F.conv2d, (None, weight, None, *rest), {}), size, weight)


@pytest.mark.filterwarnings("ignore:Using padding=.same.")
@pytest.mark.parametrize("name", SETTINGS)
@pytest.mark.parametrize("kernel", [(3, 5), (4, 2)])
def test_bands_are_the_convolution_where_taps_are_a_product(name, kernel):
    settings, size = SETTINGS[name], (9, 12)
    taps = (torch.rand(kernel[0], 1) * torch.rand(kernel[1])).double().view(1, 1, *kernel)
    bands = Bands(window(settings, taps, size), taps)
    x = torch.rand(2, 1, *size).double()
    expected = F.conv2d(x, taps, **settings)
    torch.testing.assert_close(bands(x), expected)
    torch.testing.assert_close(bands.of_two(x, 1, [1, 1]), (expected[..., :-1] + expected[..., 1:]) / 2)
    rows = (expected[:, :, :-1] + expected[:, :, 1:]) / 2
    torch.testing.assert_close(bands.of_two(x, 0, [2, 1]), rows[:, :, ::2])


def test_what_pairs_have_is_convolved_with_zeros_beyond_the_edges():
    taps = (torch.rand(3, 1) * torch.rand(5)).view(1, 1, 3, 5)
    bands = Bands(window({"padding": (1, 2)}, taps, (8, 10)), taps)
    x = torch.rand(2, 1, 8, 10)
    wide = F.pad(x, (2, 2, 1, 1))
    for axis, step in ((0, [2, 1]), (1, [1, 2])):
        size = wide.shape[axis + 2] - 1
        products = wide.narrow(axis + 2, 0, size) * wide.narrow(axis + 2, 1, size)
        inner = x.narrow(axis + 2, 0, x.shape[axis + 2] - 1) * x.narrow(axis + 2, 1, x.shape[axis + 2] - 1)
        expected = F.conv2d(products, taps)[:, :, :: step[0], :: step[1]]
        torch.testing.assert_close(bands.of_pairs(inner, axis, step), expected)


@pytest.mark.parametrize("padding", [0, 1, 2])
def test_half_the_sum_and_half_the_difference_of_pairs(padding):
    weight, bias, x = torch.randn(4, 2, 3, 5), torch.randn(4), torch.randn(2, 2, 7, 12)
    halves = window({"padding": padding}, weight, (7, 12))
    whole = F.conv2d(x, weight, bias, padding=padding)
    assert halves.halves
    found = halves.halved(x, weight, bias)
    even, odd = whole[..., ::2], whole[..., 1::2]
    torch.testing.assert_close(found, ((even + odd) / 2, (even - odd) / 2), rtol=1e-4, atol=1e-5)
    assert not window({"padding": padding}, weight, (7, 13)).halves
    assert not window({"padding": "same"}, torch.randn(4, 2, 2, 5), (7, 12)).halves  # pads one side more
