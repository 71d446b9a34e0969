"""What one model's process reports, as plain data that goes through JSON."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass
class Result:
    """The outcome of all checks on one model.

    Attributes:
        key: ``library/name``.
        family: The entry's family.
        passed: Names of the checks that passed.
        failed: Check name -> what was wrong.
        excused: Check name -> why this model may fail it; its failure is not counted.
        facts: Numbers and lists: parameters, coverage, posteriors, names with reasons, seconds, peak_mib.
    """

    key: str
    family: str
    passed: list[str] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)
    excused: dict[str, str] = field(default_factory=dict)
    facts: dict[str, Any] = field(default_factory=dict)

    @property
    def ok(self) -> bool:
        """Whether nothing failed."""
        return not self.failed

    def to_json(self) -> dict[str, Any]:
        """A dictionary that :meth:`from_json` reads."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Result:
        """The inverse of :meth:`to_json`."""
        return cls(**data)
