"""What is tried, and what came of it."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
RESULTS = Path(__file__).with_name("results.json")


@dataclass(frozen=True)
class Row:
    """One environment.

    Attributes:
        python: A minor version of Python.
        torch: A version of torch.
        torchvision: The version that was built for it.
    """

    python: str
    torch: str
    torchvision: str

    @property
    def name(self) -> str:
        """What the row is called on the command line, and its environment's folder."""
        return f"py{self.python}-torch{self.torch}"


#: The oldest and the newest of both. What lies between them is what ``make test`` itself runs with.
ROWS = (
    Row("3.10", "2.10.0", "0.25.0"),
    Row("3.13", "2.14.1", "0.29.1"),
)


#: Failures that are known, by the name of the row, each with its reason.
KNOWN: dict[str, tuple[str, ...]] = {
    "py3.10-torch2.10.0": (
        "the exporter of torch 2.10 cannot follow the statistics of a Bernoulli likelihood (test_uncertainty)",
        "the same in closed form, of several labels (test_closed)",
        "the same in closed form, of one label (test_closed)",
        "ONNX Runtime 1.23, the last one for Python 3.10, reads external data above the file's folder (test_traps)",
        "the same through a link (test_traps)",
    )
}


@dataclass(frozen=True)
class Result:
    """What pytest counted in a row; an error counts as a failure.

    Attributes:
        tests: Which tests were run, as ``make`` calls them: "test" or "quick".
    """

    python: str
    torch: str
    tests: str
    passed: int
    failed: int
    skipped: int
    date: str

    @property
    def name(self) -> str:
        """The name of its row."""
        return f"py{self.python}-torch{self.torch}"


def read() -> dict[str, Result]:
    """The recorded results by the names of their rows."""
    results = [Result(**fields) for fields in json.loads(RESULTS.read_text())] if RESULTS.exists() else []
    return {result.name: result for result in results}


def record(result: Result) -> None:
    """Write a result in place of the older one of its row; rows that are no longer tried go."""
    results = {**read(), result.name: result}
    kept = [json.dumps(asdict(results[row.name])) for row in ROWS if row.name in results]
    RESULTS.write_text("[\n  " + ",\n  ".join(kept) + "\n]\n")


def version(text: str) -> tuple[int, ...]:
    """A version as numbers, without the zeros at its end: 2.10 is 2.10.0."""
    numbers = [int(number) for number in text.split(".")]
    while numbers and not numbers[-1]:
        numbers.pop()
    return tuple(numbers)
