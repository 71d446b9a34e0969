"""fit_novelty in two real processes."""

import pytest

from tests.engines.launching import output_of, torchrun

pytestmark = pytest.mark.long


def test_two_processes():
    printed = output_of(torchrun(2, "-m", "tests.novelty.workers"))
    assert "9 checks passed" in printed
