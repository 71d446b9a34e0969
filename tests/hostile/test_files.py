"""A seeded sample of the damaged files of ``make hostile``, and that the watchers see what they are there to see."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.hostile.__main__ import cases, faults
from tests.hostile.loaders import LOADERS
from tests.hostile.pool import Case, run_cases
from tests.hostile.sources import make_sources
from tests.hostile.worker import damaged, mutations_of

pytestmark = [
    pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="Linux tells the peak of memory"),
    pytest.mark.xdist_group("damaged files"),
]


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sources")
    make_sources(folder)
    return folder


@pytest.mark.long
def test_every_damaged_file_gets_one_readable_line_or_loads(sources):
    wrong, outcomes = [], set()
    for case, answer in run_cases(sources, cases(400)):
        outcomes.add(answer["outcome"])
        wrong += [f"{tuple(case)}: {faults(answer)} {answer['message']}"] if faults(answer) else []
    assert not wrong, "\n".join(wrong)
    assert outcomes == {"refused", "loaded equal", "loaded different"}


@pytest.mark.long
def test_what_we_wrote_is_never_read_otherwise(sources):
    """Checkpoints and exported files hold a digest: damage is refused, or was to the digest's own name."""
    kinds = [
        (name, how) for name in ("bensemble.load", "UncertaintySession") for how in ("flipped bits", "overwritten")
    ]
    chosen = [Case(name, how, seed) for name, how in kinds for seed in range(1000, 1025)]
    assert {answer["outcome"] for _, answer in run_cases(sources, chosen)} <= {"refused", "loaded equal"}


@pytest.mark.long
def test_a_case_is_named_by_its_seed(sources):
    for name, loader in LOADERS.items():
        for mutation in mutations_of(loader.source):
            assert damaged(sources, name, mutation, 7) == damaged(sources, name, mutation, 7)
        assert any(
            damaged(sources, name, "flipped bits", n) != damaged(sources, name, "flipped bits", 7) for n in (1, 2)
        )


BROKEN = """
import os, signal, sys
from pathlib import Path
from bensemble.errors import InvalidValueError
from tests.hostile import worker
from tests.hostile.loaders import Loader

def refuse(text):
    raise InvalidValueError(text)

MISDEEDS = [
    lambda path: os.system("true"),
    lambda path: exec("1"),
    lambda path: path.with_name("other").write_text("x"),
    lambda path: b"x" * 1200 * 2**20,
    lambda path: {}["a"],
    lambda path: refuse("two" + chr(10) + "lines"),
    lambda path: os.kill(os.getpid(), signal.SIGSEGV),
    lambda path: [None for _ in iter(int, 1)],
]
worker.SECONDS = 2 if int(sys.argv[3]) else 60  # a loaded machine takes its time over a gigabyte
todo = iter(MISDEEDS[int(sys.argv[3]) :])
whole = (Path(sys.argv[1]) / "calibration.json").read_bytes()
load = lambda path: None if path.read_bytes() == whole else next(todo)(path)
worker.LOADERS = {"calibration": Loader("calibration.json", load)}
worker.main(Path(sys.argv[1]), Path(sys.argv[2]))
"""
CRASH, HANG = 6, 7


@pytest.mark.long
def test_the_worker_sees_misbehaviour(sources, tmp_path):
    answers = _misbehave(0, sources, tmp_path, CRASH, code=-signal.SIGSEGV)
    assert len(answers) == CRASH, "the crash gives no answer"
    for answer, fault in zip(
        answers, ("os.system", "exec", "open", "MiB", "wrong error", "unreadable error"), strict=True
    ):
        assert any(fault in found for found in faults(answer)), answer


@pytest.mark.long
def test_a_hang_ends_the_worker(sources, tmp_path):
    assert _misbehave(HANG, sources, tmp_path, 0, code=-signal.SIGPROF) == []


def _misbehave(first, sources, folder, more, code):
    """Let a worker read files with a loader that does everything that a loader must not do, one thing after another."""
    done = subprocess.run(
        [sys.executable, "-c", BROKEN, str(sources), str(folder), str(first)],
        cwd=Path(__file__).parents[2],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        input="".join(
            json.dumps({"loader": "calibration", "mutation": "truncated", "seed": seed}) + "\n"
            for seed in range(more + 1)
        ),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == code, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()[1:]]
