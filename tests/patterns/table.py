"""The table of patterns: one small model each, the reason why it is nasty, and what the plan should say about it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any

from torch import nn
from zoo.entries import Entry, Example

#: The modules that add to the table, in the order in which the tests run them.
THEMES = (
    "fused",
    "recurrent",
    "subclasses",
    "operations",
    "raw",
    "tied",
    "aliases",
    "recomputed",
    "wrappers",
    "containers",
    "control",
    "classes",
    "numerics",
    "research",
    "odd",
)


@dataclass(frozen=True)
class Pattern:
    """One nasty model.

    Attributes:
        name: Unique name.
        why: What about it breaks a converter, in one line.
        build: Makes the model and inputs for it; called after seeding.
        stays: The parameters of two or more dimensions larger than one that stay deterministic.
        stays_blind: The same where neither example inputs nor a trace help; None when it makes no difference.
        silent: Posteriors that cannot reach the output, each with the reason.
        known: Name of a check that the pattern cannot pass, with the reason.
    """

    name: str
    why: str
    build: Callable[[], Example] = field(repr=False)
    stays: frozenset[str] = frozenset()
    stays_blind: frozenset[str] | None = None
    silent: dict[str, str] = field(default_factory=dict)
    known: dict[str, str] = field(default_factory=dict)

    @property
    def entry(self) -> Entry:
        """The pattern as an entry of the zoo, whose checks it has to pass."""
        return Entry("patterns", self.name, "patterns", self.build, known=self.known)


PATTERNS: dict[str, Pattern] = {}


def pattern(
    why: str,
    *,
    stays: tuple[str, ...] = (),
    stays_blind: tuple[str, ...] | None = None,
    silent: dict[str, str] | None = None,
    known: dict[str, str] | None = None,
) -> Callable[[Callable[[], tuple[nn.Module, Any]]], Callable[[], tuple[nn.Module, Any]]]:
    """Decorator of a builder: adds it to the table under its own name."""

    def add(build: Callable[[], tuple[nn.Module, Any]]) -> Callable[[], tuple[nn.Module, Any]]:
        assert build.__name__ not in PATTERNS, f"two patterns are called {build.__name__}"
        PATTERNS[build.__name__] = Pattern(
            build.__name__,
            why,
            lambda: Example(*build()),
            frozenset(stays),
            None if stays_blind is None else frozenset(stays_blind),
            silent or {},
            known or {},
        )
        return build

    return add


def all_patterns() -> list[Pattern]:
    """Every pattern of every theme."""
    for theme in THEMES:
        import_module(f".{theme}", __package__)
    return list(PATTERNS.values())
