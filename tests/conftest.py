import copy
import functools
import typing

import pytest
import torch
from hypothesis import settings

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
    """Let torch.onnx parse the source of its 500 operators once, not for every file: two thirds of a small export.

    Every export gets a copy. The value is a function that makes the next one parse them again. Where torch calls this
    something else, the tests take longer.
    """
    try:
        from torch.onnx._internal.exporter._registration import ONNXRegistry

        read = functools.cache(ONNXRegistry.from_torchlib)
    except (ImportError, AttributeError):
        yield lambda: None
        return

    def copied(cls, *args, **kwargs):
        registry = copy.copy(read(*args, **kwargs))
        registry.functions = {target: list(functions) for target, functions in registry.functions.items()}
        return registry

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ONNXRegistry, "from_torchlib", classmethod(copied))
        yield read.cache_clear


@pytest.fixture(scope="session", autouse=True)
def _operators_are_collected_once():
    """Let torch.export list the operators that it might keep whole once, not for every file: a fifth of a small export.

    They are listed again where an operator was registered since. Annotations of torch's closures, which it evaluates
    5,000 times for a file, are taken from a cache. Where torch calls this something else, the tests take longer.
    """
    try:
        import torch.export.exported_program as exported

        count = torch._C._dispatch_get_registrations_for_dispatch_key
        collect = exported._collect_all_valid_cia_ops
        assert torch._ops.Callable
    except (ImportError, AttributeError):
        yield
        return
    found = functools.cache(lambda registered: collect())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(exported, "_collect_all_valid_cia_ops", lambda: found(len(count("CompositeImplicitAutograd"))))
        patch.setattr(torch._ops, "Callable", typing.Callable)
        yield
