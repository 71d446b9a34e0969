import pytest
import torch
from hypothesis import settings

# The same examples in every run, and no time limits: what fails here fails everywhere.
settings.register_profile("repeatable", derandomize=True, deadline=None, max_examples=50, print_blob=True)
settings.load_profile("repeatable")


@pytest.fixture(scope="session", autouse=True)
def _one_thread():
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)
