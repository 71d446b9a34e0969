"""Contract tests for Bayesian layers: what every layer guarantees, and a check of each guarantee.

Tests of one particular layer or of whole models belong in ``tests``. For a registered layer of your own write::

    from bensemble.testing import CONTRACTS, check_layer

    @pytest.mark.parametrize("contract", CONTRACTS)
    def test_my_layer(contract):
        check_layer(lambda: MyLinear(3, 4), lambda: torch.randn(5, 3), contracts=[contract])
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn

from ..errors import InvalidValueError
from . import distribution, forward, storage
from .case import Case

__all__ = ["CONTRACTS", "check_layer"]

_contracts: dict[str, Callable[[Case], None]] = {
    **forward.CONTRACTS,
    **distribution.CONTRACTS,
    **storage.CONTRACTS,
}

#: The names of the contracts.
CONTRACTS = tuple(_contracts)


def check_layer(
    make_layer: Callable[[], nn.Module],
    make_input: Callable[[], Tensor],
    *,
    contracts: Iterable[str] | None = None,
    dtypes: Iterable[torch.dtype] = (torch.float32, torch.float64, torch.bfloat16, torch.float16),
    num_samples: int = 10_000,
    seed: int = 0,
) -> None:
    """Check the contracts of a layer. All randomness is seeded; the caller's random state does not change.

    Args:
        make_layer: Returns a Bayesian layer, or a deterministic module of a registered type, which is converted.
        make_input: Returns a small float32 input, batch first.
        contracts: Which of ``CONTRACTS`` to check; default all. A layer that is not a twin passes the contracts that
            compare with the deterministic module.
        dtypes: Dtypes in which the layer must compute.
        num_samples: Samples in each statistical comparison. The default detects a single sigma that is 10 % wrong.
        seed: Seed of all randomness.

    Raises:
        AssertionError: Contracts do not hold; the message says what was found.
        InvalidTypeError: ``make_layer`` returns neither a Bayesian layer nor a module of a registered type.
        InvalidValueError: A contract does not exist.

    Example:
        >>> bensemble.testing.check_layer(lambda: bensemble.BayesianLinear(3, 4), lambda: torch.randn(5, 3))
    """
    names = list(CONTRACTS if contracts is None else contracts)
    for name in names:
        if name not in _contracts:
            raise InvalidValueError(f"check_layer: contracts must be among {', '.join(CONTRACTS)}, got {name!r}.")
    broken: dict[str, AssertionError] = {}
    with torch.random.fork_rng(devices=[]):
        case = Case(make_layer, make_input, tuple(dtypes), num_samples)
        layer = type(case.layer()).__name__
        for name in names:
            torch.manual_seed(seed)
            try:
                _contracts[name](case)
            except AssertionError as error:
                broken[name] = error
    if broken:
        told = "\n".join(f"  {name}: {' '.join(str(error).split())}" for name, error in broken.items())
        first = next(iter(broken.values()))
        raise AssertionError(f"check_layer: {layer} breaks {len(broken)} of {len(names)} contracts.\n{told}") from first
