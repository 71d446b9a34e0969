"""Some random networks through every property; ``make properties`` takes thousands."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from .census import LEAST_SHARE, REQUIRED, draw_recipes, shrunk
from .checks import check_recipe
from .faults import FAULTS, Fault, examples_until_caught
from .recipes import TRAITS, Block, Recipe
from .strategy import recipes


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@settings(max_examples=8, suppress_health_check=[HealthCheck.too_slow])
@given(recipe=recipes(), onnx=st.integers(0, 9).map(lambda number: number == 9))
def test_random_networks_have_every_property(recipe: Recipe, onnx: bool) -> None:
    check_recipe(recipe, onnx)


@pytest.mark.slow
def test_random_networks_are_of_every_kind() -> None:
    drawn = draw_recipes(100)
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


@pytest.mark.slow
def test_a_failure_shrinks_to_its_core() -> None:
    def check(recipe: Recipe) -> None:
        assert not any(block.kind == "attention" for block in recipe.blocks)

    failed = next(r for r in draw_recipes(30) if len(r.blocks) > 1 and any(b.kind == "attention" for b in r.blocks))
    assert shrunk(failed, check, 30, 0) == Recipe("sequence", 4, (Block("attention", 4),))


@pytest.mark.slow
@pytest.mark.parametrize("fault", [f for f in FAULTS if f.function in ("_read_weight", "draw")], ids=lambda f: f.name)
def test_a_fault_is_caught_and_taken_out_again(fault: Fault) -> None:
    right = fault.owner.__dict__[fault.function]
    count, by = examples_until_caught(fault)
    assert (count, by) in [(1, "mean_is_bit_equal"), (1, "masks_hold")]
    assert fault.owner.__dict__[fault.function] is right
