"""SIGKILL at random moments and in the middle of writes: a file is the old one or the new one.

The next run removes what was left behind.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from .kills import DEEDS

pytestmark = [pytest.mark.long, pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")]

#: In all; `make hostile` asks for 50.
KILLS = int(os.environ.get("BENSEMBLE_KILLS", "9"))
SHARES = {"save": 0.5, "export": 0.2, "train": 0.3}


@pytest.mark.parametrize("deed", DEEDS)
def test_a_killed_process_leaves_a_whole_file(deed, tmp_path):
    count = max(2, round(KILLS * SHARES[deed]))
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-m", "tests.hostile.kills", deed, str(count), str(tmp_path)],
        cwd=Path(__file__).parents[2],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    fell = {where: int(number) for number, where in re.findall(r"(\d+) (\D+?)[,;]", done.stdout)}
    assert sum(fell.values()) == count
    assert fell["between writes"] < count, "no kill fell into a write"
    assert done.stdout.endswith("left: model\n")
    print(done.stdout)
