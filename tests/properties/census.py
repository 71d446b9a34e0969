"""Many distinct recipes from one seed, what they have in common, and the loop that checks them."""

from __future__ import annotations

import contextlib
import random
import time
import traceback
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from hypothesis import HealthCheck, Phase, Verbosity, given, seed, settings

from .recipes import TRAITS, Recipe
from .strategy import recipes

__all__ = ["LEAST_SHARE", "REQUIRED", "Census", "describe", "draw_recipes", "shrunk"]

#: Traits that so large a share of the networks must have.
REQUIRED = ("residual", "shared", "tied", "attention", "recurrent", "normalised", "frozen")
LEAST_SHARE = 0.15

#: hypothesis draws this many times as many as are wanted: it varies each one a little, and often repeats it.
_DRAWS = 4


def draw_recipes(count: int, number: int = 0) -> list[Recipe]:
    """Distinct recipes, the same for the same seed.

    Args:
        count: How many.
        number: The seed of hypothesis.
    """
    found: dict[Recipe, None] = {}
    _draw(count, number, lambda recipe: found.setdefault(recipe))
    return random.Random(number).sample(list(found), count)


def shrunk(failed: Recipe, check: Callable[[Recipe], None], count: int, number: int) -> Recipe:
    """The simplest recipe that hypothesis finds to fail as well.

    Args:
        failed: One of ``draw_recipes(count, number)``.
        check: Raises for a recipe that fails.
        count: How many were drawn.
        number: The seed that they were drawn with.
    """
    last, found = failed, False

    def look(recipe: Recipe) -> None:
        nonlocal last, found
        found = found or recipe == failed  # all that come before have been checked
        if found:
            try:
                check(recipe)
            except Exception:
                last = recipe
                raise

    with contextlib.suppress(Exception):
        _draw(count, number, look, Phase.shrink)
    return last


def _draw(count: int, number: int, look: Callable[[Recipe], None], *more: Phase) -> None:
    @seed(number)
    @settings(
        max_examples=_DRAWS * count,
        database=None,
        deadline=None,
        phases=[Phase.generate, *more],
        suppress_health_check=list(HealthCheck),
        verbosity=Verbosity.quiet,
    )
    @given(recipes())
    def draw(recipe: Recipe) -> None:
        look(recipe)

    draw()


@dataclass
class Census:
    """What became of many networks.

    Attributes:
        passed: The networks without a failure.
        failed: Networks with the property that failed first and what it said.
        written: How many became an ONNX file as well.
        seconds: Processor time.
    """

    passed: list[Recipe] = field(default_factory=list)
    failed: list[tuple[Recipe, str]] = field(default_factory=list)
    written: int = 0
    seconds: float = 0.0

    def run(
        self, drawn: Sequence[Recipe], onnx_each: int, check: Callable[[Recipe, bool], None], skip: int = 0
    ) -> None:
        """Check every recipe and go on after failures.

        Args:
            drawn: The recipes.
            onnx_each: Every so manyth network is written as an ONNX file too.
            check: Raises for a recipe that fails.
            skip: How many recipes to leave out at the start.
        """
        start = time.process_time()
        for index, recipe in list(enumerate(drawn))[skip:]:
            onnx = index % onnx_each == 0
            try:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")
                    check(recipe, onnx)
            except Exception as err:
                self.failed.append((recipe, _brief(err)))
                print(f"FAILED {_brief(err)}\n  {recipe}", flush=True)
            else:
                self.passed.append(recipe)
            self.written += onnx
            if (index + 1) % 100 == 0:
                print(f"{index + 1} networks, {len(self.failed)} failures", flush=True)
        self.seconds = time.process_time() - start


def describe(drawn: Sequence[Recipe]) -> str:
    """A table of the shares of networks with each trait."""
    lines = ["| part | networks | share |", "|---|---:|---:|"]
    for trait, has in TRAITS.items():
        count = sum(map(has, drawn))
        lines.append(f"| {trait} | {count:,} | {100 * count / len(drawn):.1f} % |")
    return "\n".join(lines)


def _brief(err: Exception) -> str:
    frames = [f"{frame.name}:{frame.lineno}" for frame in traceback.extract_tb(err.__traceback__)]
    text = " ".join(str(err).split())[:600]
    return f"{type(err).__name__} in {' > '.join(frames[-4:])}: {text}"
