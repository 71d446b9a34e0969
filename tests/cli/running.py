"""What the tests of the command line share: networks in a file, a command that runs, and its error in one line."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from typer.testing import CliRunner, Result

from convert.cli.app import app

Write = Callable[[str, str], Path]

NETS = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self, width=5):
        super().__init__()
        self.body, self.head = nn.Linear(4, width), nn.Linear(width, 3)

    def forward(self, x):
        return self.head(torch.relu(self.body(x)))

class Drifting(Net):
    \"\"\"Computes something else when it is exported.\"\"\"
    def forward(self, x):
        return super().forward(x) + (1 if torch.compiler.is_compiling() else 0)

def stopped(): raise KeyboardInterrupt
def warns():
    import warnings
    warnings.warn("a warning\\n  of the builder", RuntimeWarning)
    return Net()
"""


def run(*words: str) -> Result:
    plain = {"FORCE_COLOR": None, "TTY_COMPATIBLE": None}
    return CliRunner(env=plain).invoke(app, list(words), prog_name="bensemble")


def assert_one_line(result: Result, code: int, *parts: str) -> None:
    """The command failed with one line on stderr that holds all parts, and nothing on stdout."""
    assert (result.exit_code, result.stdout) == (code, ""), result.output
    assert result.stderr.startswith("Error: ")
    assert result.stderr.count("\n") == 1, result.stderr
    for part in parts:
        assert part in result.stderr
