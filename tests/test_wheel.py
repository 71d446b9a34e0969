"""The built wheel works in an empty environment."""

import os
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.long
def test_the_wheel_works_in_an_empty_environment():
    script = Path(__file__).with_name("wheel_smoke.py")
    command = [sys.executable, str(script), "--linked"]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}  # it would not be empty
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr[-4000:]
    assert "works with torch" in done.stdout
