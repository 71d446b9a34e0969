"""What several files of tests read."""

import pytest
from uncertainty_files import write_calibrated


@pytest.fixture(scope="session")
def calibrated(tmp_path_factory):
    """A Bayesian model, the path of its uncertainty file, and the calibration in it; no test changes them."""
    path = tmp_path_factory.mktemp("runtime") / "sure.onnx"
    bnn, calibration = write_calibrated(path)
    return bnn, path, calibration
