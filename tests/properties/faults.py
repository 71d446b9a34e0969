"""Faults in our own code, one line each, put in one at a time: the properties must notice every one of them.

A fault replaces one function by what it would be with one line wrong, where the rest of the code looks it up.
"""

from __future__ import annotations

import copy
import functools
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import bensemble.checkpoint.saving
import bensemble.kernels
import bensemble.layers.linear_in_weights
import bensemble.objective
import bensemble.posterior
import convert.graph.compaction.cutting
import convert.graph.compaction.rules.normalisation
import convert.onnx.deployable
import convert.surgery.collapsing
from bensemble.kernels import Moments
from bensemble.layers.parameters import PosteriorParameters
from bensemble.layers.reading import WeightReading
from bensemble.noise.lazy_weights import random_draw
from bensemble.noise.stack import active_sample
from bensemble.posterior import Posterior
from bensemble.posteriors import bayesian_layers, is_bayesian

from .census import draw_recipes
from .checks import check_recipe
from .recipes import Recipe

__all__ = ["FAULTS", "MOST_EXAMPLES", "Fault", "examples_until_caught"]

#: Networks within which every fault has to be caught, drawn with a seed of their own.
MOST_EXAMPLES = 50
SEED = 1


@dataclass(frozen=True)
class Fault:
    """One wrong line.

    Attributes:
        name: What is wrong.
        owner: The module or class that holds the function.
        function: Its name.
        wrong: Makes the wrong function of the right one.
        in_files: Whether it shows in ONNX files only.
    """

    name: str
    owner: Any
    function: str
    wrong: Callable[[Any], Any]
    in_files: bool = False


def examples_until_caught(fault: Fault) -> tuple[int | None, str]:
    """How many random networks it takes until a property fails, and which one that was.

    Returns:
        None for the number where :data:`MOST_EXAMPLES` networks show nothing.
    """
    right = fault.owner.__dict__[fault.function]
    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        patch.setattr(fault.owner, fault.function, fault.wrong(right))
        for count, recipe in enumerate(_drawn(), start=1):
            try:
                check_recipe(recipe, onnx=fault.in_files)
            except Exception as err:
                return count, _property_of(err)
    return None, "nothing"


@functools.cache
def _drawn() -> list[Recipe]:
    return draw_recipes(MOST_EXAMPLES, SEED)


def _property_of(err: Exception) -> str:
    """The name of the function that :func:`check_recipe` was in."""
    frame, names = err.__traceback__, list[str]()
    while frame is not None:
        names.append(frame.tb_frame.f_code.co_name)
        frame = frame.tb_next
    return names[names.index("check_recipe") + 1]


def _negative(kl: Any) -> Any:
    return lambda *args: -kl(*args)


def _no_masks(apply_masks: Any) -> Any:
    return lambda model, masks: None


def _not_squared(shared_moments: Any) -> Any:
    def wrong(mu: Tensor, rho: Tensor, prior: Any) -> Any:
        right = shared_moments(mu, rho, prior)
        return Moments(right.mean, right.variance.sqrt(), right.kl)

    return wrong


def _ties_forgotten(reduce: Any) -> Any:
    return lambda self, protocol: (PosteriorParameters, (copy.deepcopy(dict(self)), self.means))


def _centred_on_zero(describe_prior: Any) -> Any:
    def wrong(name: str, posterior: Posterior) -> Any:
        described = describe_prior(name, posterior)
        return {**described, "mean": 0.0} if "mean" in described else described

    return wrong


def _next_channels(select: Any) -> Any:
    return lambda tensor, masks: select(tensor, {axis: mask.roll(1) for axis, mask in masks.items()})


def _folded_twice(fold: Any) -> Any:
    def wrong(cut: Any, flow: Any, reader: Any, solution: Any) -> None:
        fold(cut, flow, reader, solution)
        if reader.bias in cut.tensors:
            new, old = cut.tensors[reader.bias], flow.leaves[reader.bias].tensor.detach()
            convert.graph.compaction.cutting._put(cut, flow, reader.bias, 2 * new - old[solution.stays(reader.outputs)])

    return wrong


def _no_shift(scaled: Any) -> Any:
    return lambda x, affine, weight, bias: scaled(x, affine, weight, None)


def _no_slope(backward: Any) -> Any:
    def wrong(*args: Any) -> Any:
        g_mu, g_rho, _ = backward(*args)
        return g_mu, None if g_rho is None else torch.zeros_like(g_rho), None

    return staticmethod(wrong)


def _always_drawn(read_weight: Any) -> Any:
    def wrong(self: WeightReading, name: str) -> Any:
        posterior = self._posterior(name)
        if posterior is not None and isinstance(posterior.mu, Tensor) and active_sample(self) is None:
            return random_draw(posterior, posterior.draw_noise)
        return read_weight(self, name)

    return wrong


def _ties_counted_twice(named_posteriors: Any) -> Any:
    def wrong(model: nn.Module) -> Iterator[tuple[str, Posterior]]:
        for _, layer in bayesian_layers(model):
            yield from ((posterior.name, posterior) for posterior in layer._posteriors())

    return wrong


def _unmasked(draw: Any) -> Any:
    def wrong(self: Posterior, noise: Tensor) -> Tensor:
        return (self.mu + self.sigma() * noise).to(self.mu.dtype)

    return wrong


def _one_draw(copy_of: Any) -> Any:
    def wrong(model: nn.Module) -> nn.Module:
        return convert.surgery.collapsing.to_deterministic(model, sample=True) if is_bayesian(model) else copy_of(model)

    return wrong


FAULTS = (
    Fault("the KL has the wrong sign", bensemble.posterior, "_kl", _negative),
    Fault("a tied posterior counts twice in the KL", bensemble.objective, "named_posteriors", _ties_counted_twice),
    Fault(
        "sigma is not squared in the local noise", bensemble.layers.linear_in_weights, "shared_moments", _not_squared
    ),
    Fault("the gradient of rho is zero", bensemble.kernels._Moments, "backward", _no_slope),
    Fault("weights are drawn in eval mode too", WeightReading, "_read_weight", _always_drawn),
    Fault("deepcopy loses ties", PosteriorParameters, "__reduce_ex__", _ties_forgotten),
    Fault("samples ignore the masks", Posterior, "draw", _unmasked),
    Fault("the way back ignores the masks", convert.surgery.collapsing, "apply_masks", _no_masks),
    Fault("the mean of a prior is not saved", bensemble.checkpoint.saving, "describe_prior", _centred_on_zero),
    Fault("compaction keeps the next channels", convert.graph.compaction.cutting, "_select", _next_channels),
    Fault("compaction folds a constant twice", convert.graph.compaction.cutting, "_fold", _folded_twice),
    Fault("compaction drops the shift of norms", convert.graph.compaction.rules.normalisation, "_scaled", _no_shift),
    Fault("the ONNX file holds a draw, not the mean", convert.onnx.deployable, "_copy", _one_draw, in_files=True),
)
