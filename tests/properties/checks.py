"""What has to hold for every network, each a function that raises AssertionError with the finding.

Checks of the zoo and of the patterns run on random networks too, beside those of :mod:`.noise`, :mod:`.pruning` and
:mod:`.files`.
"""

from __future__ import annotations

from collections.abc import Callable

from patterns.checks import (
    checkpoint_is_assigned,
    converts_with_example_inputs,
    copies_inside_contexts_are_ordinary,
    every_posterior_is_noisy_in_train_mode,
    in_place_keeps_every_object,
)
from zoo.checks import (
    check_noise_agrees,
    deepcopy_and_pickle_agree,
    every_posterior_moves_the_output,
    gradients_arrive,
    held_sample_is_used_everywhere,
    mean_is_bit_equal,
    plan_accounts_for_everything,
    posteriors_match_parameters,
    source_is_untouched,
    train_mode_is_noisy,
    way_back_is_exact,
)
from zoo.fingerprint import Fingerprint

from .files import checkpoint_comes_back, onnx_runtime_agrees, original_checkpoint_loads
from .noise import kl_is_that_of_torch, local_noise_has_its_size, samples_have_the_size_of_sigma
from .pruning import compaction_is_exact, masks_hold, pruned_way_back_is_exact
from .recipes import Recipe
from .subject import RandomSubject, prepare

__all__ = ["PROPERTIES", "ROTATING", "check_recipe"]


def check_recipe(recipe: Recipe, onnx: bool) -> None:
    """Every property of one network, of those in ROTATING one in turn.

    Args:
        recipe: The network.
        onnx: Whether to write it as an ONNX file too, which takes longer than everything else.
    """
    subject = prepare(recipe)
    before = Fingerprint(subject.source)
    for check in (*PROPERTIES, *ROTATING[recipe.seed % len(ROTATING)], gradients_arrive):
        check(subject)
    if onnx:
        onnx_runtime_agrees(subject)
    source_is_untouched(subject, before)


#: For every network.
PROPERTIES: list[Callable[[RandomSubject], None]] = [
    mean_is_bit_equal,
    posteriors_match_parameters,
    plan_accounts_for_everything,
    kl_is_that_of_torch,
    held_sample_is_used_everywhere,
    samples_have_the_size_of_sigma,
    local_noise_has_its_size,
    train_mode_is_noisy,
    deepcopy_and_pickle_agree,
    original_checkpoint_loads,
    checkpoint_comes_back,
    way_back_is_exact,
    masks_hold,
    pruned_way_back_is_exact,
    compaction_is_exact,
]

#: One row for each network, by its seed: they say in detail what the others imply.
ROTATING: list[list[Callable[[RandomSubject], None]]] = [
    [every_posterior_moves_the_output, check_noise_agrees],
    [every_posterior_moves_the_output, every_posterior_is_noisy_in_train_mode],
    [copies_inside_contexts_are_ordinary, converts_with_example_inputs],
    [checkpoint_is_assigned, in_place_keeps_every_object],
]
