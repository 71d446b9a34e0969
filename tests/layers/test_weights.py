"""The weight of a Bayesian layer under its original name: what reads and writes do."""

import copy
import pickle
import re

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import fuse_conv_bn_eval, fuse_linear_bn_eval, parametrize, prune, spectral_norm, weight_norm
from torch.testing import assert_close

from bensemble import sampling
from bensemble.errors import BensembleError, ConversionError, InvalidTypeError, ReadOnlyError
from bensemble.layers import BayesianConv2d

from .weights_of import assert_untouched, frozen_state, layer

ORDER = "take the deterministic model: apply them before bayesify, or after to_deterministic"


def test_training_reads_are_draws_and_gradients_reach_mu_and_rho():
    bnn = layer()
    draw = bnn.weight
    torch.manual_seed(1)
    first_use = draw + 0
    torch.manual_seed(1)
    eps = torch.randn(4, 3)
    assert torch.equal(draw + 0, first_use)
    assert not isinstance(draw, nn.Parameter)
    assert_close(draw + 0, bnn.w_mu + F.softplus(bnn.w_rho) * eps)
    assert not torch.equal(bnn.weight + 0, draw + 0)

    x, cotangent = torch.randn(5, 3), torch.randn(5, 4)
    (F.linear(x, draw) * cotangent).sum().backward()
    expected = cotangent.T @ x
    assert_close(bnn.w_mu.grad, expected)
    assert_close(bnn.w_rho.grad, expected * eps * torch.sigmoid(bnn.w_rho))


def test_evaluation_reads_give_the_parameter_itself():
    bnn = layer(training=False)
    assert bnn.weight is bnn.w_mu
    assert bnn.bias is bnn.b_mu
    assert layer(bias=False).bias is None


def test_the_draw_is_one_value_however_it_is_used():
    draw = layer().weight
    assert torch.equal(draw + 0, draw + 0)
    assert_close(draw.T.contiguous().T + 0, draw + 0)
    assert draw.tolist() == (draw + 0).tolist()
    assert torch.equal(torch.from_numpy(draw.detach().numpy()), draw.detach() + 0)
    assert repr(draw).startswith("WeightDraw(")


def test_no_gradient_reaches_pruned_entries_through_a_draw():
    bnn = layer()
    next(bnn.posteriors()).set_mask(torch.eye(4, 3))
    for state in (nn.Identity(), bnn):
        bnn.zero_grad()
        with sampling(state):
            F.linear(torch.randn(5, 3), bnn.weight).square().sum().backward()
        for gradient in (bnn.w_mu.grad, bnn.w_rho.grad):
            assert torch.equal(gradient != 0, torch.eye(4, 3, dtype=bool))


def test_gradients_of_gradients_pass_through_a_draw():
    bnn, x = layer(), torch.randn(5, 3, requires_grad=True)

    def second_derivatives(weight):
        (first,) = torch.autograd.grad(F.linear(x, weight).pow(3).sum(), bnn.w_rho, create_graph=True)
        return torch.autograd.grad(first.square().sum(), [x, bnn.w_mu, bnn.w_rho])

    torch.manual_seed(1)
    through_draw = second_derivatives(bnn.weight)
    torch.manual_seed(1)
    plain = second_derivatives(bnn.w_mu + F.softplus(bnn.w_rho) * torch.randn(4, 3))
    for actual, expected in zip(through_draw, plain, strict=True):
        assert_close(actual, expected)


def test_copies_of_a_draw_are_ordinary_tensors():
    draw = layer().weight
    value = draw.detach() + 0
    for made in (copy.deepcopy(draw), copy.copy(draw), pickle.loads(pickle.dumps(draw))):
        assert type(made) is torch.Tensor
        assert torch.equal(made, value)


def test_a_pruned_mean_reads_as_zero_and_is_read_only():
    bnn = layer(training=False)
    with torch.no_grad():
        bnn.w_mu.fill_(1.0)
    next(bnn.posteriors()).set_mask(torch.eye(4, 3))
    assert torch.equal(bnn.weight + 0, torch.eye(4, 3))
    with torch.no_grad():
        bnn.w_mu.fill_(1.0)  # what an optimizer that knows nothing of masks may do
    assert torch.equal(bnn.weight + 0, torch.eye(4, 3))
    with pytest.raises(ReadOnlyError, match="clamp_: 'weight' of BayesianLinear is computed from its posterior"):
        bnn.weight.data.clamp_(0)


WRITES = {
    "data": lambda w: w.data.clamp_(min=0),
    "data.setter": lambda w: setattr(w, "data", torch.zeros(4, 3)),
    "zero_": lambda w: nn.init.zeros_(w),
    "normal_": lambda w: nn.init.normal_(w),
    "copy_": lambda w: w.detach().copy_(torch.zeros(4, 3)),
    "sub_": lambda w: w.detach().T[1:].sub_(1.0),
    "mul_": lambda w: w.mul_(0.5),
    "fill_": lambda w: w[0].fill_(0.0),
    "add_": lambda w: w.view(-1).add_(1.0),
    "index_put_": lambda w: w.__setitem__(w.detach() > 0, 0.0),
    "add": lambda w: torch.add(torch.zeros(4, 3), 1.0, out=w),
}


@pytest.mark.parametrize("operation", WRITES)
@pytest.mark.parametrize("state", ["train", "sampling", "pruned mean"])
def test_a_write_into_a_computed_weight_is_refused_and_names_the_mean(operation, state):
    bnn = layer(training=state == "train")
    if state == "pruned mean":
        next(bnn.posteriors()).set_mask(torch.ones(4, 3))
    before = frozen_state(bnn)
    with (
        sampling(bnn if state == "sampling" else nn.Identity()),
        torch.no_grad(),
        pytest.raises(ReadOnlyError, match=r"'weight' of BayesianLinear .* write into `w_mu` under torch.no_grad\(\)"),
    ):
        WRITES[operation](bnn.weight)
    assert_untouched(bnn, before)
    assert issubclass(ReadOnlyError, (BensembleError, RuntimeError))


def test_in_eval_the_weight_is_the_mean_and_writable():
    bnn = layer(training=False)
    nn.init.ones_(bnn.weight)
    bnn.bias.data.fill_(2.0)
    assert bnn.w_mu.eq(1).all()
    assert bnn.b_mu.eq(2).all()


@pytest.mark.parametrize("training", [True, False])
def test_an_assigned_parameter_becomes_the_mean(training):
    bnn, table = layer(training), nn.Embedding(4, 3)
    bnn.weight = table.weight
    assert bnn.w_mu is table.weight
    assert list(bnn._parameters) == ["w_mu", "w_rho", "b_mu", "b_rho"]
    bnn.weight = bnn.weight
    bnn.w_rho = bnn.w_rho
    assert bnn.w_mu is table.weight


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize(
    ("act", "message"),
    [
        (lambda m: delattr(m, "weight"), "delete: 'weight'"),
        (lambda m: delattr(m, "w_mu"), "delete: 'w_mu'"),
        (lambda m: delattr(m, "b_rho"), "delete: 'b_rho'"),
        (lambda m: m._parameters.__delitem__("bias"), "delete: 'bias'"),
        (lambda m: m.register_parameter("weight", nn.Parameter(torch.zeros(4, 3))), "register_parameter: 'weight'"),
        (lambda m: m.register_parameter("other", m.w_mu), "register_parameter: 'other'"),
        (lambda m: prune.l1_unstructured(m, "weight", 0.5), "register_parameter: 'weight_orig'"),
        (lambda m: prune.l1_unstructured(m, "w_mu", 0.5), "register_parameter: 'w_mu_orig'"),
        (lambda m: prune.random_unstructured(m, "w_rho", 0.5), "register_parameter: 'w_rho_orig'"),
        (lambda m: parametrize.register_parametrization(m, "w_mu", nn.Identity()), "delete: 'w_mu'"),
        (
            lambda m: parametrize.register_parametrization(m, "weight", nn.Identity()),
            "register_parametrization: 'weight'",
        ),
        (nn.utils.parametrizations.weight_norm, "register_parametrization: 'weight'"),
        (nn.utils.parametrizations.orthogonal, "register_parametrization: 'weight'"),
        (weight_norm, "delete: 'weight'"),
        (spectral_norm, "delete: 'weight'"),
    ],
)
@pytest.mark.filterwarnings("ignore:`torch.nn.utils.weight_norm` is deprecated:FutureWarning")
def test_what_would_take_a_weight_away_is_refused_with_the_order_that_works(act, message, training):
    bnn = layer(training)
    before = frozen_state(bnn)
    with pytest.raises(ConversionError, match=f"{message} belongs to a posterior; .*{ORDER}"):
        act(bnn)
    assert_untouched(bnn, before)


@pytest.mark.parametrize("bias", [True, False])
def test_norm_fusion_is_refused(bias):
    convolution = BayesianConv2d(2, 3, 1, bias=bias).eval()
    before = frozen_state(convolution)
    with pytest.raises(ConversionError, match=f"fuse: 'weight' belongs to a posterior.*{ORDER}"):
        fuse_conv_bn_eval(convolution, nn.BatchNorm2d(3).eval())
    with pytest.raises(ConversionError, match="fuse: 'weight' belongs"):
        fuse_linear_bn_eval(layer(training=False, bias=bias), nn.BatchNorm1d(4).eval())
    assert_untouched(convolution, before)


@pytest.mark.parametrize("training", [True, False])
def test_another_shape_or_another_kind_of_value_is_refused(training):
    bnn = layer(training)
    before = frozen_state(bnn)
    for value, got in ((nn.Parameter(torch.zeros(5, 3)), "a tensor of shape (5, 3)"), (None, "None"), (3, "3")):
        with pytest.raises(
            ConversionError, match=re.escape(f"a posterior of shape (4, 3), got {got}; call to_deterministic")
        ):
            bnn.weight = value
    with pytest.raises(ConversionError, match=r"'bias' has no posterior, got a tensor of shape \(4,\)"):
        layer(training, bias=False).bias = nn.Parameter(torch.zeros(4))
    with pytest.raises(
        InvalidTypeError, match=r"'weight' of BayesianLinear must be an nn.Parameter, got a plain tensor; copy"
    ):
        bnn.weight = torch.zeros(4, 3)
    assert_untouched(bnn, before)
