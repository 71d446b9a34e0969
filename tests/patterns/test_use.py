"""What people do with a model after the conversion, on models that hold both kinds of Bayesian layers."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import fusion, parametrizations, prune

from bensemble import ConversionError, ReadOnlyError, named_posteriors, sampling
from convert import bayesify, check_noise, to_deterministic

from .architectures import Mixed
from .odd import MaskedConv

# -- reading and writing weights


def test_reading_metadata_of_a_weight_draws_nothing(bnn: nn.Module) -> None:
    bnn.train()
    state = torch.random.get_rng_state()
    for weight in (bnn.linear.weight, bnn.attention.in_proj_weight, bnn.gru.weight_ih_l0, bnn.raw):
        assert (weight.dtype, weight.device.type, weight.ndim) == (torch.float32, "cpu", 2)
        assert weight.shape[1] in (3, 4)
        assert weight.requires_grad
    assert torch.equal(state, torch.random.get_rng_state())


@pytest.mark.parametrize(
    ("read", "mean"),
    [
        (lambda bnn: bnn.linear.weight, "w_mu"),
        (lambda bnn: bnn.attention.in_proj_weight, "in_proj_weight_mu"),
        (lambda bnn: bnn.attention.out_proj.weight, "weight_mu"),
        (lambda bnn: bnn.gru.weight_hh_l0, "weight_hh_l0_mu"),
        (lambda bnn: bnn.raw, "raw_mu"),
    ],
    ids=["linear", "packed", "out_proj", "recurrent", "raw"],
)
@pytest.mark.parametrize(
    "write",
    [
        lambda w: w.data.clamp_(0),
        lambda w: nn.init.zeros_(w),
        lambda w: w.detach().mul_(2),
        lambda w: w[0].fill_(0),
        lambda w: w.t().add_(1),
        lambda w: torch.neg(w, out=w),
        lambda w: w.__setitem__(0, 0.0),
        lambda w: setattr(w, "data", torch.zeros(w.shape)),
    ],
    ids=["data", "init", "detach", "row", "view", "out", "setitem", "set_data"],
)
def test_writing_into_a_draw_is_refused_and_names_the_mean(bnn: nn.Module, read, mean: str, write) -> None:
    before = {name: tensor.clone() for name, tensor in bnn.state_dict().items()}
    bnn.train()
    with torch.no_grad(), pytest.raises(ReadOnlyError, match=f"write into `{mean}`"):
        write(read(bnn))
    bnn.eval()
    with torch.no_grad(), sampling(bnn), pytest.raises(ReadOnlyError, match=f"write into `{mean}`"):
        write(read(bnn))
    assert all(torch.equal(tensor, before[name]) for name, tensor in bnn.state_dict().items())


def test_a_forward_that_writes_into_its_own_weight_is_refused_and_can_be_excluded() -> None:
    model, x = nn.Sequential(MaskedConv(1, 3, 3, padding=1), nn.Conv2d(3, 2, 1)), torch.randn(2, 1, 4, 4)
    with pytest.raises(ReadOnlyError, match=r"mul_: 'weight' of MaskedConv .*, or exclude the layer from bayesify"):
        bayesify(model).train()(x)
    bnn = bayesify(model, exclude=MaskedConv).train()
    assert not torch.equal(bnn(x), bnn(x))
    assert torch.equal(bnn.eval()(x), model(x))


class ScaledByItsWeight(nn.Module):
    """Reads ``weight.data``, as code from before ``torch.no_grad`` does."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(4, 6), nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(torch.relu(self.a(x) / self.a.weight.data.abs().mean()))


def test_reading_data_is_a_read(x: Tensor) -> None:
    model, x = ScaledByItsWeight(), torch.randn(3, 4)
    for bnn in (bayesify(model), bayesify(model, example_inputs=x)):
        assert torch.equal(bnn.eval()(x), model.eval()(x))
        bnn.train()(x).sum().backward()
        assert check_noise(bnn, x)
        with sampling(bnn, torch.Generator().manual_seed(0)):
            assert torch.equal(bnn.a.weight.data + 0, bnn.a.weight + 0)
            assert not bnn.a.weight.data.requires_grad


def test_writing_in_eval_reaches_the_mean(bnn: nn.Module, x: Tensor) -> None:
    with torch.no_grad():
        bnn.raw.mul_(2.0)
        bnn.attention.in_proj_weight.data[0] = 0.0
    assert torch.equal(bnn.raw, bnn.raw_mu)
    assert not bool(bnn.attention.in_proj_weight_mu[0].any())


# -- changes that need the deterministic model


@pytest.mark.parametrize(
    "change",
    [
        lambda bnn: prune.l1_unstructured(bnn.linear, "weight", 0.5),
        lambda bnn: prune.l1_unstructured(bnn.attention, "in_proj_weight", 0.5),
        lambda bnn: parametrizations.weight_norm(bnn.linear),
        lambda bnn: parametrizations.spectral_norm(bnn.gru, "weight_ih_l0"),
        lambda bnn: parametrizations.orthogonal(bnn, "raw"),
        lambda bnn: nn.utils.spectral_norm(bnn.linear),
        lambda bnn: delattr(bnn.linear, "weight"),
        lambda bnn: delattr(bnn, "raw"),
        lambda bnn: bnn.register_parameter("raw", nn.Parameter(torch.zeros(4, 3))),
        lambda bnn: setattr(bnn, "raw", nn.Parameter(torch.zeros(3, 4))),
    ],
    ids=[
        "prune",
        "prune_packed",
        "weight_norm",
        "spectral",
        "orthogonal",
        "legacy",
        "del",
        "del_raw",
        "register",
        "shape",
    ],
)
def test_changes_of_structure_are_refused_with_the_order_that_works(bnn: nn.Module, x: Tensor, change) -> None:
    with pytest.raises(ConversionError, match=r"to_deterministic"):
        change(bnn)
    assert bnn(x).shape == (2, 3, 3)


def test_norm_fusion_is_refused() -> None:
    bnn = bayesify(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)).eval())
    with pytest.raises(ConversionError, match=r"fuse: .*take the deterministic model"):
        fusion.fuse_conv_bn_eval(bnn[0], bnn[1])


# -- functional calls


@pytest.mark.parametrize("training", [False, True])
def test_functional_call_takes_original_and_posterior_names(bnn: nn.Module, x: Tensor, training: bool) -> None:
    bnn.train(training)
    means = {name: posterior.mu for name, posterior in named_posteriors(bnn)}
    before = {name: mean.detach().clone() for name, mean in means.items()}
    original = {name: torch.zeros_like(mean) for name, mean in means.items()}
    torch.manual_seed(1)
    by_original = torch.func.functional_call(bnn, original, (x,))
    stems = {"linear.w": "linear.weight", "linear.b": "linear.bias"}
    posterior = {f"{stem}_mu": original[name] for stem, name in stems.items()}
    posterior |= {f"{name}_mu": value for name, value in original.items() if name not in stems.values()}
    torch.manual_seed(1)
    assert torch.equal(by_original, torch.func.functional_call(bnn, posterior, (x,)))
    if not training:
        assert torch.equal(by_original, torch.func.functional_call(to_deterministic(bnn), original, (x,)))
    for name, after in named_posteriors(bnn):
        assert after.mu is means[name]
        assert torch.equal(after.mu, before[name])


def test_functional_gradients_agree_with_backward(bnn: nn.Module, x: Tensor) -> None:
    parameters = {name: p.detach() for name, p in bnn.named_parameters()}

    def loss(values: dict[str, Tensor]) -> Tensor:
        return torch.func.functional_call(bnn, values, (x,)).square().sum()

    with sampling(bnn, torch.Generator().manual_seed(0)):
        functional = torch.func.grad(loss)(parameters)
        bnn(x).square().sum().backward()
    for name, parameter in bnn.named_parameters():
        torch.testing.assert_close(functional[name], parameter.grad, msg=name)


def test_vmap_over_an_ensemble_of_weights(x: Tensor) -> None:
    bnns = [bayesify(nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)).eval()) for _ in range(3)]
    parameters, buffers = torch.func.stack_module_state(bnns)
    template = copy.deepcopy(bnns[0])

    def call(values: dict[str, Tensor], state: dict[str, Tensor], data: Tensor) -> Tensor:
        return torch.func.functional_call(template, (values, state), (data,))

    stacked = torch.func.vmap(call, in_dims=(0, 0, None))(parameters, buffers, x)
    torch.testing.assert_close(stacked, torch.stack([bnn(x) for bnn in bnns]))


# -- training and averaging


@pytest.mark.slow
def test_every_kind_of_layer_learns(x: Tensor) -> None:
    torch.manual_seed(0)
    bnn, target = bayesify(Mixed()), torch.randn(2, 3, 3)
    optimizer = torch.optim.Adam(bnn.parameters(), lr=1e-2)
    losses = []
    for _ in range(200):
        loss = F.mse_loss(bnn(x), target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert sum(losses[-10:]) < 0.5 * sum(losses[:10])
    assert all(bool(torch.isfinite(p).all()) for p in bnn.parameters())


def test_weights_are_averaged_like_any_other(bnn: nn.Module, x: Tensor) -> None:
    average = torch.optim.swa_utils.AveragedModel(bnn)
    average.update_parameters(bnn)
    with torch.no_grad():
        bnn.raw.add_(2.0)
    average.update_parameters(bnn)
    torch.testing.assert_close(average.module.raw_mu, bnn.raw_mu - 1.0)
    assert average(x).shape == (2, 3, 3)


# -- state beside the posteriors


def test_a_buffer_of_the_users_own_follows_the_dtype_of_the_model() -> None:
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.randn(4, 4))
            self.register_buffer("weight_scale", torch.ones(4))

        def forward(self, data: Tensor) -> Tensor:
            return data @ self.weight * self.weight_scale

    bnn = bayesify(Scaled(), prior="pretrained").bfloat16()
    assert bnn.weight_scale.dtype == bnn.weight_mu.dtype == torch.bfloat16
    assert bnn.weight_rho.dtype == bnn.weight_prior_sigma.dtype == torch.float32
    assert bnn(torch.randn(2, 4, dtype=torch.bfloat16)).dtype == torch.bfloat16


def test_the_list_of_a_recurrent_layer_follows_its_posteriors(bnn: nn.Module) -> None:
    gru = bnn.gru
    assert gru._flat_weights[0] is gru.weight_ih_l0_mu
    with sampling(bnn):
        assert torch.equal(gru._flat_weights[0], gru.weight_ih_l0)
        assert not torch.equal(gru._flat_weights[0], gru.weight_ih_l0_mu)
    gru.flatten_parameters()
    gru.weight_ih_l0 = nn.Parameter(torch.zeros_like(gru.weight_ih_l0_mu))
    back = to_deterministic(bnn).gru
    names = back._flat_weights_names
    assert all(weight is getattr(back, name) for weight, name in zip(back._flat_weights, names, strict=True))
