"""The state in which a model runs."""

import torch

from bensemble.models.state import calling_modules


def test_the_fast_path_comes_back_when_nobody_needs_it_off():
    """As in two threads, of which the first to begin ends first."""
    assert torch.backends.mha.get_fastpath_enabled()
    first, second = calling_modules(), calling_modules()
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    assert not torch.backends.mha.get_fastpath_enabled()
    second.__exit__(None, None, None)
    assert torch.backends.mha.get_fastpath_enabled()
