"""A sample of the zoo for every test run: all hand-written networks, and a few of each library that is installed."""

from __future__ import annotations

import pytest
import torch

from .checks import check_entry
from .entries import LIBRARIES, Entry, entries
from .result import Result

#: Names by library, each for a way in which networks hold their weights. `make zoo` runs all.
SAMPLE = {
    "torchvision": ["mobilenet_v3_small", "swin_t", "vit_b_32", "fasterrcnn_mobilenet_v3_large_320_fpn", "r3d_18"],
}


@pytest.mark.parametrize("entry", entries("torch"), ids=lambda entry: entry.name)
@pytest.mark.slow
def test_hand_written(entry: Entry) -> None:
    _check(entry)


@pytest.mark.parametrize("library", [library for library in LIBRARIES if library != "torch"])
@pytest.mark.slow
def test_library(library: str) -> None:
    try:
        listed = entries(library)
    except ImportError as err:
        pytest.skip(f"{err}; `make zoo` installs it and runs all its models")
    for entry in listed:
        if entry.name in SAMPLE.get(library, ()):
            _check(entry)


def _check(entry: Entry) -> None:
    result = Result(entry.key, entry.family)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        check_entry(entry, result, budget=5.0)
    finally:
        torch.set_num_threads(threads)
    assert result.ok, result.failed
