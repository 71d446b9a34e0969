"""fit_posterior in two real processes."""

import pytest

from tests.engines.launching import output_of, torchrun

pytestmark = pytest.mark.long


def test_two_processes():
    assert "8 checks passed" in output_of(torchrun(2, "-m", "tests.fitting.workers"))
