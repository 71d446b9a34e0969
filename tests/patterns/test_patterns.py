"""Every pattern through every check."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch
from zoo.checks import prepare
from zoo.forward import run
from zoo.result import Result

import convert

from .checks import check_pattern
from .table import Pattern, all_patterns

TESTS = Path(__file__).parents[1]


@pytest.mark.slow
@pytest.mark.parametrize("pattern", all_patterns(), ids=lambda pattern: pattern.name)
@pytest.mark.filterwarnings("ignore")
def test_pattern(pattern: Pattern) -> None:
    result = check_pattern(pattern)
    assert not result.failed, f"{pattern.why}: " + "; ".join(f"{k}: {v}" for k, v in result.failed.items())


def test_there_are_at_least_eighty_patterns() -> None:
    assert len(all_patterns()) >= 80


@pytest.mark.long
def test_saved_models_load_in_a_process_that_cannot_import_convert(tmp_path: Path) -> None:
    """``torch.save`` of the whole model, wherever torch can save the source."""
    saved = []
    for pattern in all_patterns():
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            subject = prepare(pattern.entry, Result(pattern.name, ""), budget=0.0)
            try:
                pickle.dumps(subject.source)
            except Exception:
                continue
            bnn = convert.bayesify(subject.source)
            outputs = run(bnn, subject.example.inputs)
            torch.save((bnn, subject.example.inputs, outputs), tmp_path / f"{pattern.name}.pt")
        saved.append(pattern.name)
    assert len(saved) >= 80
    done = subprocess.run(
        [sys.executable, "-m", "patterns.reload", str(tmp_path)],
        cwd=TESTS, env={**os.environ, "PYTHONPATH": str(TESTS)}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.split() == sorted(saved)
