"""A small model, and that a loader refuses a file for it in one line."""

from __future__ import annotations

import pytest
from torch import nn

from bensemble.errors import CheckpointError, InvalidValueError


def refused(load, *arguments, match, error=(CheckpointError, InvalidValueError)):
    with pytest.raises(error, match=match) as caught:
        load(*arguments)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 1000


def net():
    return nn.Linear(4, 3)
