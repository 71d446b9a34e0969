"""Checkpoints: published posteriors, deterministic state dicts, and what is refused."""

import warnings

import pytest
import torch
from torch import nn
from torch.testing import assert_close

import bensemble
from bensemble.layers import BayesianConv2d, BayesianLinear
from bensemble.posteriors import named_posteriors

WARNING = "load_state_dict: '.*' comes from a deterministic checkpoint; the means are replaced and the sigmas kept"


class Network(nn.Module):
    """Bayesian layers between ordinary ones, nested and shared by an alias."""

    def __init__(self, bayesian=True, **kwargs):
        super().__init__()
        convolution, linear = (BayesianConv2d, BayesianLinear) if bayesian else (nn.Conv2d, nn.Linear)
        self.body = nn.Sequential(convolution(1, 2, 2, **kwargs), nn.BatchNorm2d(2), nn.ReLU())
        self.head = nn.ModuleDict({"out": linear(8, 3, **kwargs)})

    def forward(self, x):
        return self.head["out"](self.body(x).flatten(1))


def plain_state(**kwargs):
    state = Network(bayesian=False, **kwargs).state_dict()
    return {key: value + 1 if value.is_floating_point() else value for key, value in state.items()}


def assert_means_are(model, state):
    for name, posterior in named_posteriors(model):
        assert_close(posterior.mu, state[name])


def published(rows=4, columns=3):
    """Keys as in published checkpoints: pairs of mu and rho and nothing else."""
    return {
        "w_mu": torch.randn(rows, columns),
        "w_rho": torch.randn(rows, columns) - 3,
        "b_mu": torch.randn(rows),
        "b_rho": torch.randn(rows) - 3,
    }


# -- published checkpoints


def test_a_published_checkpoint_loads():
    state, layer = published(), BayesianLinear(3, 4)
    assert not any(layer.load_state_dict(state))
    assert all(torch.equal(value, state[key]) for key, value in layer.state_dict().items())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_pruned_weights_of_a_published_checkpoint_become_a_mask(dtype):
    state = published()
    state["w_rho"][1:3] = -1e8
    state["w_mu"][1:3] = 0.5  # some writers left the mean
    state["b_rho"][:] = -1e8
    before = {key: value.clone() for key, value in state.items()}
    layer = BayesianLinear(3, 4, dtype=dtype)
    layer.load_state_dict({key: value.to(dtype) for key, value in state.items()})

    kept = torch.tensor([1.0, 0.0, 0.0, 1.0])
    weight, bias = layer.posteriors()
    assert torch.equal(weight.mask, kept[:, None].expand(4, 3).to(weight.mask.dtype))
    assert bias.mask.eq(0).all()
    assert weight.mu[1:3].eq(0).all()
    assert layer.w_rho[1:3].min() > -50
    assert_close(layer.w_rho[0].to(dtype), state["w_rho"][0].to(dtype))
    kl = layer.kl_divergence()
    kl.backward()
    assert kl.isfinite()
    assert layer.w_rho.grad.isfinite().all()
    assert layer.b_rho.grad.eq(0).all()
    with bensemble.sampling(layer):
        assert layer.weight[1:3].eq(0).all()
    assert all(torch.equal(state[key], before[key]) for key in before)


def test_the_model_that_a_pruned_checkpoint_was_saved_from_computes_the_same():
    state = published()
    state["w_rho"][0] = -1e8
    state["w_mu"][0] = 0.0
    layer, x = BayesianLinear(3, 4), torch.randn(5, 3)
    layer.load_state_dict(state)
    assert_close(layer.eval()(x), nn.functional.linear(x, state["w_mu"], state["b_mu"]))
    again = BayesianLinear(3, 4)
    again.load_state_dict(layer.state_dict())
    assert torch.equal(again.w_mask, layer.w_mask)


def test_a_mask_comes_and_goes_with_the_checkpoint():
    masked, plain = BayesianLinear(3, 4), BayesianLinear(3, 4)
    masked.apply_pruning(1.0)
    full = plain.state_dict()
    plain.load_state_dict(masked.state_dict())
    assert torch.equal(plain.w_mask, masked.w_mask)
    masked.load_state_dict(full)
    assert "w_mask" not in masked.state_dict()


def test_priors_with_tensors_are_saved_and_loaded():
    layer, fresh = BayesianLinear(3, 4, prior="pretrained"), BayesianLinear(3, 4, prior="pretrained")
    assert set(layer.state_dict()) >= {"w_prior_mean", "w_prior_sigma", "b_prior_mean", "b_prior_sigma"}
    fresh.load_state_dict(layer.state_dict())
    assert_close(fresh.kl_divergence(), layer.kl_divergence())
    fresh.load_state_dict(published())  # without a prior in it: the layer's own stays
    assert torch.equal(fresh.w_prior_mean, layer.w_prior_mean)


# -- deterministic checkpoints


@pytest.mark.parametrize("assign", [False, True])
@pytest.mark.parametrize("wrapper", ["none", "nested", "module.", "_orig_mod."])
def test_a_deterministic_checkpoint_loads_strictly_with_one_warning(wrapper, assign):
    model, state = Network(), plain_state()
    wrapped = {
        "none": lambda: model,
        "nested": lambda: nn.ModuleDict({"a": nn.Sequential(nn.ReLU(), model)}),
        "module.": lambda: nn.DataParallel(model),
        "_orig_mod.": lambda: torch.compile(model, backend="eager"),
    }[wrapper]()
    prefix = {"none": "", "nested": "a.1."}.get(wrapper, wrapper)
    rhos = {name: p.rho.detach().clone() for name, p in named_posteriors(model)}
    keys = list(model.state_dict())
    with pytest.warns(UserWarning, match=WARNING) as caught:
        result = wrapped.load_state_dict({prefix + key: value for key, value in state.items()}, assign=assign)
    assert len(caught) == 1
    assert not any(result)
    assert_means_are(model, state)
    for name, posterior in named_posteriors(model):
        assert torch.equal(posterior.rho, rhos[name])
        assert posterior.mu.requires_grad
    assert torch.equal(model.body[1].running_mean, state["body.1.running_mean"])
    assert list(model.state_dict()) == keys


def test_each_load_warns_once():
    model = Network()
    for _ in range(2):
        with pytest.warns(UserWarning, match=WARNING) as caught:
            model.load_state_dict(plain_state())
        assert len(caught) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model.load_state_dict(model.state_dict())


def test_masks_and_priors_stay_under_a_deterministic_checkpoint():
    layer = BayesianLinear(3, 4, prior="pretrained")
    layer.apply_pruning(1.0)
    mask, mean = layer.w_mask.clone(), layer.w_prior_mean.clone()
    with pytest.warns(UserWarning, match=WARNING):
        layer.load_state_dict(nn.Linear(3, 4).state_dict())
    assert torch.equal(layer.w_mask, mask)
    assert torch.equal(layer.w_prior_mean, mean)
    assert layer.eval().weight[mask == 0].eq(0).all()


def test_a_checkpoint_of_another_dtype_is_cast():
    model = Network(dtype=torch.bfloat16)
    state = {key: value.double() for key, value in plain_state().items()}
    with pytest.warns(UserWarning, match=WARNING):
        model.load_state_dict(state)
    assert {p.mu.dtype for _, p in named_posteriors(model)} == {torch.bfloat16}
    assert {p.rho.dtype for _, p in named_posteriors(model)} == {torch.float32}


def test_on_the_meta_device_a_checkpoint_must_bring_its_sigmas():
    with torch.device("meta"):
        model = Network()
    with pytest.warns(UserWarning, match=WARNING), pytest.raises(RuntimeError, match=r"Missing key.*body.0.w_rho"):
        model.load_state_dict(plain_state(), assign=True)
    model.load_state_dict(Network().state_dict(), assign=True)
    assert model.eval()(torch.randn(2, 1, 3, 3)).shape == (2, 3)


# -- refusals, as of any module


def test_a_checkpoint_of_another_model_is_refused_by_the_names_it_has():
    layer = BayesianLinear(3, 4)
    before = {key: value.clone() for key, value in layer.state_dict().items()}
    with pytest.raises(
        RuntimeError, match=r"Missing key\(s\) in state_dict: \"w_mu\", \"w_rho\".*\n.*Unexpected.*\"kernel\""
    ):
        layer.load_state_dict({"kernel": torch.zeros(4, 3)})
    with pytest.raises(RuntimeError, match=r"size mismatch for w_mu: .*\[5, 3\].*\[4, 3\]"):
        layer.load_state_dict(published(rows=5))
    assert all(torch.equal(value, before[key]) for key, value in layer.state_dict().items())
    with pytest.warns(UserWarning, match=WARNING), pytest.raises(RuntimeError, match="size mismatch for w_mu"):
        layer.load_state_dict(nn.Linear(3, 5).state_dict())
    assert all(torch.equal(value, before[key]) for key, value in layer.state_dict().items())


def test_a_part_of_a_checkpoint_loads_without_strict():
    layer, bias = BayesianLinear(3, 4), torch.randn(4)
    before = layer.w_mu.detach().clone()
    with pytest.warns(UserWarning, match=WARNING):
        missing, unexpected = layer.load_state_dict({"bias": bias}, strict=False)
    assert missing == ["w_mu", "w_rho"]
    assert unexpected == []
    assert torch.equal(layer.b_mu, bias)
    assert torch.equal(layer.w_mu, before)


def test_the_state_dict_given_is_not_changed():
    state = plain_state()
    keys, values = list(state), [value.clone() for value in state.values()]
    with pytest.warns(UserWarning, match=WARNING):
        Network().load_state_dict(state)
    assert list(state) == keys
    assert all(torch.equal(a, b) for a, b in zip(state.values(), values, strict=True))


def test_hooks_that_rename_keys_still_work():
    """A hook of the user's that brings an old checkpoint up to date runs before the layer looks for its weights."""
    layer = BayesianLinear(3, 4)

    def rename(module, state, prefix, *_):
        state[prefix + "weight"] = state.pop(prefix + "kernel")

    layer.register_load_state_dict_pre_hook(rename)
    plain = nn.Linear(3, 4)
    with pytest.warns(UserWarning, match=WARNING):
        layer.load_state_dict({"kernel": plain.weight, "bias": plain.bias})
    assert torch.equal(layer.w_mu, plain.weight)
