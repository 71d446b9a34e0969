"""``python -m tests.torch_matrix [--row NAME] [--missing] [--quick] [-- PYTEST ARGUMENTS]``.

Each row has an environment of its own in ``.venv-matrix``, made on first use by the rule of the Makefile that makes
``.venv``, and kept. The tests of ``make test`` are run and recorded, row by row, or with ``--quick`` those of ``make
quick``. With arguments for pytest nothing is recorded.
Two tests are left out: the one that installs the wheel would download another torch for every run, and the one of the
recorded results comes after them.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
from datetime import date
from pathlib import Path
from xml.etree import ElementTree

from .rows import ROOT, ROWS, Result, Row, read, record

#: Files with versions that a row replaces, and the variable of the Makefile that names each.
PINS = {"CONSTRAINTS": "constraints.txt", "SAMPLE": "tests/zoo/sample-requirements.txt"}
IGNORED = ("--ignore=tests/test_wheel.py", "--ignore=tests/torch_matrix")


def main() -> int:
    """Run the rows and print a table; the exit code is 1 if any of them failed."""
    parser = argparse.ArgumentParser(prog="python -m tests.torch_matrix")
    parser.add_argument("--row", action="append", choices=[row.name for row in ROWS], help="only this row; repeatable")
    parser.add_argument(
        "--missing", action="store_true", help="only rows without a recorded pass, to go on after a stop"
    )
    parser.add_argument("--quick", action="store_true", help="only the tests of `make quick`")
    parser.add_argument("--install", action="store_true", help="make the environments and stop")
    parser.add_argument("--workers", default="auto", help="processes for pytest-xdist (default: auto)")
    parser.add_argument("arguments", nargs="*", help="for pytest, after `--`; nothing is recorded then")
    options = parser.parse_args()
    done = [name for name, result in read().items() if options.missing and result.passed and not result.failed]
    rows = [row for row in ROWS if row.name in (options.row or [row.name]) and row.name not in done]
    results = []
    for row in rows:
        print(f"{row.name}: its environment", flush=True)
        python = environment(row)
        if not options.install:
            results.append(run(row, python, options.workers, options.quick, options.arguments))
            if not options.arguments:
                record(results[-1])
    print(f"\n{'python':8}{'torch':10}{'passed':>8}{'failed':>8}{'skipped':>9}")
    for result in results:
        print(f"{result.python:8}{result.torch:10}{result.passed:8}{result.failed:8}{result.skipped:9}")
    return int(any(result.failed or not result.passed for result in results))


def environment(row: Row) -> Path:
    """The Python of a row's environment, made if it is not there or older than the files that say what it holds."""
    folder = ROOT / ".venv-matrix" / row.name
    folder.mkdir(parents=True, exist_ok=True)
    variables = {"VENV": str(folder), "PYTHON": interpreter(row.python)}
    for variable, source in PINS.items():
        pins = (ROOT / source).read_text()
        for package in ("torch", "torchvision"):
            pins = re.sub(rf"^{package}==.*$", f"{package}=={getattr(row, package)}", pins, flags=re.MULTILINE)
        target = folder / Path(source).name
        if not target.exists() or target.read_text() != pins:
            target.write_text(pins)
        variables[variable] = str(target)
    settings = [f"{name}={value}" for name, value in variables.items()]
    subprocess.run(["make", "--no-print-directory", *settings, f"{folder}/.ready"], cwd=ROOT, check=True)
    return folder / "bin" / "python"


def interpreter(python: str) -> str:
    """A Python of that version: on the PATH, or one that pyenv has."""
    pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv"))
    found = [shutil.which(f"python{python}"), *map(str, sorted(pyenv.glob(f"versions/{python}.*/bin/python")))]
    for candidate in filter(None, found):
        if subprocess.run([candidate, "--version"], capture_output=True, check=False).returncode == 0:
            return candidate
    raise SystemExit(f"torch-matrix: Python {python} must be installed, got neither python{python} nor one of pyenv.")


def run(row: Row, python: Path, workers: str, quick: bool, arguments: list[str]) -> Result:
    """Run the suite, or what the arguments say, and count."""
    report = python.parents[1] / "report.xml"
    report.unlink(missing_ok=True)
    command = [str(python), "-m", "pytest", "-n", workers, "--dist", "loadgroup", *IGNORED, f"--junitxml={report}"]
    command += ["-m", "not slow and not long and not data and not libraries" if quick else "not data"]
    subprocess.run([*command, *arguments], cwd=ROOT, check=False)
    counts = dict.fromkeys(("tests", "failures", "errors", "skipped"), 0)
    if report.exists():  # pytest did not stop before the first test
        suite = ElementTree.parse(report).getroot().find("testsuite")
        assert suite is not None
        counts = {name: int(suite.attrib[name]) for name in counts}
    failed = counts["failures"] + counts["errors"]
    passed = counts["tests"] - failed - counts["skipped"]
    which = "quick" if quick else "test"
    return Result(row.python, row.torch, which, passed, failed, counts["skipped"], date.today().isoformat())


if __name__ == "__main__":
    sys.exit(main())
