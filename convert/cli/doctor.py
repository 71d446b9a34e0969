"""``bensemble doctor``: what this machine has, and what it lacks for what."""

from __future__ import annotations

import platform
import re
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path
from typing import NamedTuple

from bensemble.tables import text_table

__all__ = ["Diagnosis", "diagnose"]

#: What each extra is for. The extras of contributors are left out.
PURPOSES = {
    "io": "save and load, novelty files",
    "onnx": "export, compress, files in ONNX Runtime",
    "plots": "plots",
    "cli": "this command line",
    "demo": "bensemble demo, examples",
    "serve": "the service in examples/serve.py",
}
#: What the processor can do that decides how fast int8 and float16 files are.
FEATURES = ("avx2", "avx512f", "avx512_vnni", "avx_vnni", "avx512_bf16", "amx_int8", "asimd", "asimddp", "i8mm")

#: A line of the metadata, such as ``onnx>=1.17; extra == "onnx"``.
REQUIREMENT = re.compile(r"""(?P<package>[\w.-]+)(\[[\w,-]+\])?[^;]*;.*extra\s*==\s*['"](?P<extra>[\w-]+)['"]""")


class Diagnosis(NamedTuple):
    """What was found.

    Attributes:
        versions: Of bensemble, Python and torch, and what the machine is.
        extras: For each extra its packages and their versions; None for one that is not installed. What it
            takes from other extras is listed with them.
    """

    versions: dict[str, str]
    extras: dict[str, dict[str, str | None]]

    @property
    def missing(self) -> dict[str, list[str]]:
        """The packages that each incomplete extra lacks."""
        lacking = {name: [p for p, found in held.items() if found is None] for name, held in self.extras.items()}
        return {name: packages for name, packages in lacking.items() if packages}

    def __str__(self) -> str:
        rows = [("extra", "for", "")]
        for name, held in self.extras.items():
            lacks = self.missing.get(name)
            said = ", ".join(f"{package} {found}" for package, found in held.items())
            rows.append((name, PURPOSES[name], f"missing: {', '.join(lacks)}" if lacks else said))
        lines = [*text_table(list(self.versions.items())), "", *text_table(rows)]
        if self.missing:
            lines += ["", f"To install what is missing: pip install '.[{','.join(self.missing)}]' in the source tree"]
        return "\n".join(lines)


def diagnose() -> Diagnosis:
    """Look at this machine; nothing is imported but the metadata of packages."""
    declared = [found for line in requires("bensemble") or () if (found := REQUIREMENT.match(line))]
    extras = {
        name: [found["package"] for found in declared if found["extra"] == name and found["package"] != "bensemble"]
        for name in PURPOSES
    }
    versions = {
        "bensemble": version("bensemble"),
        "Python": f"{platform.python_version()} ({platform.python_implementation()})",
        "torch": _installed("torch") or "missing",
        "system": platform.platform(),
        "processor": " ".join([platform.machine(), *_features()]),
    }
    return Diagnosis(versions, {name: {package: _installed(package) for package in extras[name]} for name in extras})


def _installed(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _features() -> list[str]:
    """Which of the features the processor has, where the system tells (Linux)."""
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return []
    flags = re.search(r"^(?:flags|Features)\s*:(.*)$", text, re.MULTILINE)
    return [feature for feature in FEATURES if flags is not None and feature in flags[1].split()]
