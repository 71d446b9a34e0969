"""A random network under test, with what its properties share."""

from __future__ import annotations

import copy
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from zoo.entries import Example
from zoo.forward import distance, run, scale
from zoo.result import Result
from zoo.subject import Subject

import convert
from bensemble import named_posteriors

from .network import build, make_inputs
from .recipes import Recipe

__all__ = ["RandomSubject", "assert_close", "lowest_precision", "prepare"]

#: Batch sizes of the example, and of what is tried besides.
BATCH, OTHER_BATCH = 3, 5

#: Signal-to-noise ratio under which "threshold" prunes: about half of the weights at the sigmas of a conversion.
THRESHOLD = 13.0

#: Largest difference that rounding explains, over the largest value, by the lowest precision in the network.
ROUNDING = {torch.float32: 1e-5, torch.float64: 1e-5, torch.bfloat16: 5e-2}


@dataclass
class RandomSubject(Subject):
    """A :class:`zoo.subject.Subject` that knows its recipe."""

    recipe: Recipe = field(kw_only=True)

    @property
    def other_inputs(self) -> Tensor:
        """A batch of another size."""
        return make_inputs(self.recipe, OTHER_BATCH)

    @property
    def rounding(self) -> float:
        """Largest relative difference that rounding explains."""
        return ROUNDING[lowest_precision(self.source)]

    def converted(self, model: nn.Module) -> nn.Module:
        """What the recipe's conversion makes of a model."""
        return convert.bayesify(model, prior=self.recipe.prior, estimator=self.recipe.estimator)

    def stranger(self) -> nn.Module:
        """A copy of the source with other weights."""
        other = copy.deepcopy(self.source)
        with torch.no_grad():
            for tensor in (*other.parameters(), *other.buffers()):
                if tensor.is_floating_point():
                    tensor.mul_(0.5)
        return other

    def masks(self) -> dict[str, Tensor]:
        """Zeros and ones for everything that may be pruned, as the recipe wants them."""
        generator = torch.Generator().manual_seed(self.recipe.seed)
        found = {}
        for name, posterior in self.posteriors.items():
            shape = posterior.mu.shape
            if not posterior.prunable:
                continue
            if self.recipe.zeros == "threshold":
                sigma = nn.functional.softplus(posterior.rho.detach())
                found[name] = (posterior.mu.detach().to(sigma.dtype).abs() / sigma > THRESHOLD).float()
            elif len(shape) < 2:
                continue
            elif self.recipe.zeros == "entries":
                found[name] = (torch.rand(shape, generator=generator) < 0.5).float()
            else:
                rows, columns = (torch.rand(size, generator=generator) for size in shape[:2])
                # The few outputs stay: without them, all that is before them would be dead too.
                stay = name.startswith("head") and name != "head.last.0.weight"  # hidden units may go
                kept = ((rows > 0.4) | stay)[:, None] & (columns > 0.2)
                found[name] = kept.float().reshape(*shape[:2], *[1] * (len(shape) - 2)).expand(shape).clone()
        return found

    def pruned(self, bnn: nn.Module, **options: bool) -> nn.Module:
        """The way back of a Bayesian model, with the zeros of the recipe."""
        if self.recipe.zeros == "threshold":
            return convert.to_deterministic(bnn, threshold=THRESHOLD, **options)
        return convert.to_deterministic(bnn, masks=self.masks(), **options)


def prepare(recipe: Recipe) -> RandomSubject:
    """Build the network of a recipe and convert it."""
    source = build(recipe)
    inputs = make_inputs(recipe, BATCH)
    subject = RandomSubject(source, Example(source, inputs), Result(repr(recipe), recipe.source), 1e9, recipe=recipe)
    subject.outputs = run(source, inputs)
    subject.result.facts["forward_seconds"] = 0.0
    subject.result.facts["parameters"] = sum(p.numel() for p in source.parameters())
    subject.bnn = subject.converted(source)
    subject.result.facts["posteriors"] = len(list(named_posteriors(subject.bnn)))
    return subject


def lowest_precision(model: nn.Module) -> torch.dtype:
    """The dtype of the coarsest weights."""
    dtypes = {parameter.dtype for parameter in model.parameters()} | {torch.float32}
    return max(dtypes, key=lambda dtype: torch.finfo(dtype).eps)


def assert_close(expected: dict[str, Tensor], found: dict[str, Tensor], rounding: float, what: str) -> None:
    """Raise unless all outputs agree up to ``rounding`` times their largest value."""
    assert list(expected) == list(found), f"{what}: outputs {list(found)}"
    for path, value in expected.items():
        off, largest = distance(value, found[path]), scale(value)
        assert off <= rounding * max(largest, 1e-3), f"{what}: {path} is off by {off:.3g}, largest value {largest:.3g}"
