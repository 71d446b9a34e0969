import pytest
import torch
from hypothesis import settings
from remembering import remember_operators

# The same examples in every run, and no time limits: what fails here fails everywhere.
settings.register_profile("repeatable", derandomize=True, deadline=None, max_examples=50, print_blob=True)
settings.load_profile("repeatable")


@pytest.fixture(scope="session", autouse=True)
def _one_thread():
    torch.set_num_threads(1)


def pytest_collection_finish(session):
    """Fail where pytest-xdist does not group tests, as 3.8 with pytest 9.2: fixtures would be made by every worker."""
    config = session.config
    if hasattr(config, "workerinput") and config.getvalue("loadgroup"):
        lost = [i.nodeid for i in session.items if i.get_closest_marker("xdist_group") and "@" not in i.nodeid]
        if lost:
            raise pytest.UsageError(f"'{lost[0]}' lost its group; install another pytest or pytest-xdist.")


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


@pytest.fixture(scope="session", autouse=True)
def forget_operators():
    """Exports remember what they share; the value is a function that makes the next one parse torch's operators."""
    with pytest.MonkeyPatch.context() as patch:
        yield remember_operators(patch.setattr)
