"""Some random networks through every property; ``make properties`` takes thousands."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from .census import LEAST_SHARE, REQUIRED, draw_recipes
from .checks import check_recipe
from .recipes import TRAITS, Block, Recipe
from .strategy import recipes


@pytest.mark.filterwarnings("ignore")
@settings(max_examples=16, suppress_health_check=[HealthCheck.too_slow])
@given(recipe=recipes(), onnx=st.integers(0, 9).map(lambda number: number == 9))
def test_random_networks_have_every_property(recipe: Recipe, onnx: bool) -> None:
    check_recipe(recipe, onnx)


def test_random_networks_are_of_every_kind() -> None:
    drawn = draw_recipes(300)
    for trait in REQUIRED:
        share = sum(map(TRAITS[trait], drawn)) / len(drawn)
        assert share >= LEAST_SHARE, f"{trait}: {share:.1%}"


def test_a_recipe_prints_as_what_makes_it() -> None:
    recipe = Recipe("tokens", 4, (Block("lstm", 8, norm="batch"), Block("mean", 8)), head="pair", seed=3)
    assert repr(recipe) == (
        "Recipe(source='tokens', width=4, blocks=(Block(kind='lstm', width=8, norm='batch'), "
        "Block(kind='mean', width=8)), head='pair', seed=3)"
    )
    for drawn in draw_recipes(20):
        assert eval(repr(drawn), {"Recipe": Recipe, "Block": Block}) == drawn
