"""Where noise comes from: torch's default generator in training, and nowhere else unasked."""

import copy
import io
import pickle

import pytest
import torch
from torch import nn

import bensemble
from bensemble.gaussian import standard_normal_like
from bensemble.layers import BayesianConv2d, BayesianLinear
from convert import bayesify, plan, to_deterministic


def network():
    return nn.Sequential(BayesianConv2d(1, 2, 2), nn.ReLU(), nn.Flatten(), BayesianLinear(8, 3, prior="ard"))


X, EXTRA = torch.ones(2, 1, 3, 3), nn.Linear(3, 3)

LOOKS = {
    "repr": repr,
    "str": str,
    "state_dict": lambda m: m.state_dict(),
    "load_state_dict": lambda m: m.load_state_dict(m.state_dict()),
    "named_parameters": lambda m: list(m.named_parameters()),
    "deepcopy": copy.deepcopy,
    "pickle": lambda m: pickle.loads(pickle.dumps(m)),
    "torch.save": lambda m: torch.save(m, io.BytesIO()),
    "to": lambda m: m.double().float(),
    "plan": lambda m: str(plan(nn.Sequential(m, EXTRA))),
    "bayesify": lambda m: bayesify(nn.Sequential(copy.deepcopy(m), EXTRA)),
    "to_deterministic": to_deterministic,
    "eval": lambda m: m.eval()(X),
    "kl_divergence": bensemble.kl_divergence,
    "posterior_summary": bensemble.posterior_summary,
    "pruning_masks": lambda m: bensemble.pruning_masks(m, threshold=0.83),
    "sampling with a generator": lambda m: sampled(m, torch.Generator().manual_seed(0)),
    "metadata of a draw": lambda m: (
        m[3].weight.shape,
        m[3].weight.dtype,
        m[3].weight.device,
        m[3].weight.requires_grad,
    ),
    "size of a draw": lambda m: (
        len(m[3].weight),
        m[3].weight.numel(),
        m[3].weight.stride(),
        m[3].weight.is_contiguous(),
    ),
}


def sampled(model, generator=None):
    with bensemble.sampling(model, generator):
        return model(X)


@pytest.mark.parametrize("look", LOOKS)
@pytest.mark.parametrize("training", [True, False])
def test_looking_never_moves_the_default_generator(look, training):
    model = network().train(training)
    before = torch.get_rng_state()
    LOOKS[look](model)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("act", [lambda m: m(X), sampled, lambda m: m[3].weight + 0, lambda m: repr(m[3].weight)])
def test_drawing_moves_it_and_repeats_with_its_seed(act):
    model = network()
    torch.manual_seed(5)
    before = torch.get_rng_state()
    first = act(model)
    assert not torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(5)
    again = act(model)
    assert again == first if isinstance(first, str) else torch.equal(again, first)


def test_training_noise_is_fresh_for_each_forward_and_each_activation():
    layer = BayesianLinear(8, 3)
    x = torch.ones(4, 8)
    first, second = layer(x), layer(x)
    assert not torch.equal(first, second)
    assert first.unique().numel() == first.numel()
    layer.estimator = "weights"
    rows = layer(x)
    assert torch.allclose(rows, rows[:1])
    assert not torch.allclose(layer(x), rows)


def test_an_activation_checkpoint_recomputes_with_the_same_noise():
    model = network()
    torch.manual_seed(1)
    model(X).square().sum().backward()
    plain = [p.grad.clone() for p in model.parameters()]
    model.zero_grad()
    torch.manual_seed(1)
    torch.utils.checkpoint.checkpoint(model, X, use_reentrant=False).square().sum().backward()
    assert all(torch.equal(p.grad, grad) for p, grad in zip(model.parameters(), plain, strict=True))


def test_flat_noise_for_channels_last_comes_from_the_default_generator():
    like = torch.empty(2, 3, 4, 5).to(memory_format=torch.channels_last)
    torch.manual_seed(0)
    noise = standard_normal_like(like)
    torch.manual_seed(0)
    assert torch.equal(noise.permute(0, 2, 3, 1).flatten(), torch.randn(120))
