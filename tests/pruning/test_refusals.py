"""Masks of one's own, and what is refused."""

import math

import pytest
import torch
from torch import nn

from bensemble.errors import InvalidTypeError, InvalidValueError
from bensemble.layers import BayesianLinear
from bensemble.posteriors import named_posteriors
from bensemble.pruning.masks import apply_masks, clear_masks, prune, pruning_masks
from convert import bayesify

from .networks import net, snapshot


def test_own_masks_go_by_any_name_of_a_tied_weight():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.one, self.two = nn.Linear(3, 3), nn.Linear(3, 3)
            self.two.weight = self.one.weight

        def forward(self, x):
            return self.two(self.one(x))

    bnn = bayesify(Tied())
    mask = torch.eye(3)
    assert list(pruning_masks(bnn, masks={"two.weight": mask})) == ["one.weight"]
    assert prune(bnn, masks={"two.weight": mask.bool()}) == pytest.approx(6 / 15)
    with pytest.raises(InvalidValueError, match=r"names the tied weight 'one\.weight' twice"):
        apply_masks(bnn, {"one.weight": mask, "two.weight": mask})


def test_own_masks_keep_those_in_force():
    layer = BayesianLinear(2, 2)
    first, second = torch.tensor([[1.0, 0], [1, 1]]), torch.tensor([[1.0, 1], [0, 1]])
    apply_masks(layer, {"weight": first})
    assert torch.equal(pruning_masks(layer, masks={"weight": second})["weight"], first * second)
    apply_masks(layer, {"weight": second})
    assert torch.equal(layer.w_mask, first * second)


def test_clearing_lifts_every_mask():
    bnn = net()
    prune(bnn, sparsity=0.5)
    clear_masks(bnn)
    assert all(posterior.mask is None for _, posterior in named_posteriors(bnn))


def test_channels_need_a_criterion():
    with pytest.raises(InvalidValueError, match="granularity='channel' must come with threshold or sparsity"):
        pruning_masks(net(), granularity="channel")


def test_no_criterion_means_no_masks():
    assert pruning_masks(net()) == {}
    assert pruning_masks(nn.Linear(2, 2), sparsity=0.5) == {}
    with pytest.raises(InvalidValueError, match="prune: one of threshold, sparsity and masks must be given"):
        prune(net())


def test_weights_that_are_not_prunable_are_left_out():
    bnn = bayesify(nn.Sequential(nn.Linear(4, 4), nn.utils.parametrizations.weight_norm(nn.Linear(4, 4))))
    unprunable = {name for name, p in named_posteriors(bnn) if not p.prunable}
    assert unprunable
    assert not unprunable & pruning_masks(bnn, threshold=100.0).keys()
    assert not unprunable & pruning_masks(bnn, sparsity=0.5).keys()
    name = next(iter(unprunable))
    shape = dict(named_posteriors(bnn))[name].mu.shape
    with pytest.raises(InvalidValueError, match=f"'{name}' cannot be pruned"):
        apply_masks(bnn, {name: torch.zeros(shape)})


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"threshold": -0.1}, InvalidValueError, r"threshold must be finite and at least 0, got -0\.1"),
        ({"threshold": math.nan}, InvalidValueError, "threshold must be finite and at least 0, got nan"),
        ({"threshold": "0.83"}, InvalidTypeError, r"threshold must be a number, got '0\.83'"),
        ({"sparsity": 1.0}, InvalidValueError, r"sparsity must be finite and at least 0 and below 1, got 1\.0"),
        ({"sparsity": -0.1}, InvalidValueError, r"sparsity must be finite and at least 0 and below 1, got -0\.1"),
        ({"sparsity": math.nan}, InvalidValueError, "sparsity must be .* got nan"),
        ({"sparsity": {"7": 1.0}}, InvalidValueError, r"sparsity of '7' must be finite .* below 1, got 1\.0"),
        ({"sparsity": {"8": 0.5}}, InvalidValueError, "sparsity names '8', which has no posterior; there are 0.weight"),
        ({"sparsity": {"7.weigth": 0.5}}, InvalidValueError, "'7.weigth', .* did you mean '7.weight'"),
        ({"threshold": 1.0, "sparsity": 0.5}, InvalidValueError, "exclude each other, got threshold and sparsity"),
        ({"sparsity": 0.5, "masks": {}}, InvalidValueError, "exclude each other, got sparsity and masks"),
        (
            {"sparsity": 0.5, "granularity": "row"},
            InvalidValueError,
            "must be 'weight', 'channel' or the channel groups of a model, or 'n:m', such as '2:4', got 'row'",
        ),
        ({"granularity": "channel", "masks": {}}, InvalidValueError, "must come with threshold or sparsity"),
        ({"granularity": "4:2", "sparsity": 0.5}, InvalidValueError, "or 'n:m', such as '2:4', got '4:2'"),
        ({"granularity": "2:4", "sparsity": 0.5}, InvalidValueError, "'2:4' is a share of its own, got sparsity too"),
        ({"granularity": "2:5"}, InvalidValueError, "number of inputs is a multiple of 5, got none"),
        ({"scores": {}, "masks": {}}, InvalidValueError, "scores must come with threshold, sparsity or a granularity"),
        (
            {"sparsity": 0.5, "scores": {"7.weigth": torch.ones(4, 6)}},
            InvalidValueError,
            "scores names '7.weigth', .* did you mean '7.weight'",
        ),
        (
            {"sparsity": 0.5, "scores": {"7.weight": torch.full((4, 6), math.nan), "7.bias": torch.ones(3)}},
            InvalidValueError,
            r"(?s)2 problems.*'7\.bias' .* of shape \(4,\), got some of shape \(3,\).*'7\.weight' .* that are NaN",
        ),
        (
            {"sparsity": 0.5, "scores": {"7.weight": 1}},
            InvalidTypeError,
            "scores of '7.weight' must be a tensor, got int",
        ),
        (
            {"sparsity": 0.5, "granularity": "channel", "scores": {"7.weight": torch.ones(4, 6)}},
            InvalidValueError,
            r"scores must hold '0\.weight', which makes channels",
        ),
        ({"masks": [1]}, InvalidTypeError, "masks must map parameter names to values, got list"),
        (
            {"masks": {"7.weigth": torch.ones(4, 6)}},
            InvalidValueError,
            r"'7\.weigth', which has no posterior; did you mean '7\.weight'",
        ),
        ({"masks": {"4.weight": torch.ones(6)}}, InvalidValueError, r"'4\.weight', which has no posterior"),
        (
            {"masks": {"7.weight": torch.ones(6, 4)}},
            InvalidValueError,
            r"'7\.weight' must have shape \(4, 6\), got \(6, 4\)",
        ),
        ({"masks": {"7.weight": torch.full((4, 6), 0.5)}}, InvalidValueError, "must hold zeros and ones only"),
        ({"masks": {"7.weight": 1}}, InvalidTypeError, r"'7\.weight' must be a tensor, got int"),
        (
            {"masks": {"7.weight": torch.ones(2), "7.bias": torch.ones(2), "0.bias": torch.full((8,), 2.0)}},
            InvalidValueError,
            r"prune: 3 problems",
        ),
    ],
)
def test_refusals_leave_the_model_as_it_was(arguments, error, message):
    bnn = net()
    before = snapshot(bnn)
    with pytest.raises(error, match=message):
        prune(bnn, **arguments)
    if "masks" in arguments and len(arguments) == 1:
        with pytest.raises(error, match=message):
            apply_masks(bnn, arguments["masks"])
    after = bnn.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)


@pytest.mark.parametrize("function", [pruning_masks, clear_masks, lambda m: apply_masks(m, {})])
def test_other_objects_are_refused(function):
    with pytest.raises(InvalidTypeError, match=r"model must be a torch\.nn\.Module, got str"):
        function("model")
