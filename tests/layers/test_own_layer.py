"""A layer type from outside the repository: everything it needs is what stands here."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.testing import assert_close

import bensemble
from bensemble.errors import ConversionError, InvalidTypeError, InvalidValueError
from bensemble.layers import BaseBayesianLayer, LinearOpLayer, bayesian_type, register, weight_property
from bensemble.priors import Normal
from bensemble.testing import CONTRACTS, check_layer
from convert import bayesify, plan, to_deterministic


class CausalConv1d(nn.Conv1d):
    """A user's own module: a convolution that looks at the past only."""

    def forward(self, x):
        return super().forward(F.pad(x, ((self.kernel_size[0] - 1) * self.dilation[0], 0)))


@register(CausalConv1d)
class BayesianCausalConv1d(LinearOpLayer, CausalConv1d):
    """Its Bayesian type: how a given weight and bias are applied. Noise, KL, masks and conversion come with it."""

    def linear_op(self, weight, bias, x):
        past = (self.kernel_size[0] - 1) * self.dilation[0]
        return self._conv_forward(F.pad(x, (past, 0)), weight, bias)


@pytest.mark.parametrize("contract", CONTRACTS)
def test_it_keeps_the_contracts(contract):
    check_layer(
        *(lambda: CausalConv1d(2, 3, 2, dilation=2), lambda: torch.randn(4, 2, 3)),
        contracts=[contract],
        num_samples=1_500,
    )


def test_whole_models_with_it_convert_there_and_back():
    model = nn.Sequential(CausalConv1d(2, 4, 3), nn.ReLU(), nn.Conv1d(4, 1, 1))
    x = torch.randn(3, 2, 10)
    assert [row.name for row in plan(model).rows if row.is_bayesian] == ["0.weight", "0.bias", "2.weight", "2.bias"]
    bnn = bayesify(model)
    assert type(bnn[0]) is BayesianCausalConv1d
    assert torch.equal(bnn.eval()(x), model(x))
    bensemble.elbo_loss(bnn.train()(x).square().mean(), bensemble.kl_divergence(bnn), num_data=3).backward()
    assert bnn[0].w_rho.grad.abs().sum() > 0
    with bensemble.sampling(bnn):
        future = x.clone()
        future[..., 5:] += 1.0
        assert torch.equal(bnn(x)[..., :5], bnn(future)[..., :5])
    back = to_deterministic(bnn)
    assert type(back[0]) is CausalConv1d
    assert torch.equal(back(x), model(x))


class Doubled(bensemble.BayesianLinear):
    """A layer of ours with an operation of its own."""

    def linear_op(self, weight, bias, input):
        return 2 * super().linear_op(weight, bias, input)


def test_an_operation_that_a_subclass_overrides_is_the_one_that_trains():
    layer, x = Doubled(4, 3), torch.randn(5, 4)
    for posterior in layer.posteriors():
        nn.init.constant_(posterior.rho, -40.0)
    assert_close(layer.train()(x), layer.eval()(x))


class BayesianScale(BaseBayesianLayer):
    """A layer that stands for no deterministic module, as in the text of the base class."""

    scale = weight_property("scale")

    def __init__(self, features):
        super().__init__(prior_sigma=1.0)
        self.scale_mu = nn.Parameter(torch.ones(features))
        self.scale_rho = nn.Parameter(torch.full((features,), -1.0))

    def forward(self, x):
        return x * self.scale


def test_a_layer_of_its_own_kind_follows_the_three_states():
    check_layer(lambda: BayesianScale(3), lambda: torch.randn(5, 3))
    layer, x = BayesianScale(3), torch.ones(2, 3)
    assert torch.equal(layer.eval()(x), x)
    assert not torch.equal(layer.train()(x), layer(x))
    assert_close(torch.func.functional_call(layer.eval(), {"scale": torch.full((3,), 2.0)}, x), 2 * x)
    with pytest.raises(ConversionError, match="delete: 'scale' belongs to a posterior"):
        del layer.scale


def test_a_layer_of_its_own_kind_stays_pruned():
    layer = BayesianScale(3)
    next(layer.posteriors()).set_mask(torch.tensor([1.0, 0.0, 1.0]))
    x = torch.ones(1, 3)
    with bensemble.sampling(layer):
        held = layer(x)
        assert torch.equal(held, layer(x))
    for out in (layer.train()(x), layer.eval()(x), held):
        assert out[0, 1] == 0.0
        assert (out[0, [0, 2]] != 0.0).all()


class ReadsItself(BaseBayesianLayer):
    """Draws by itself, as layers written for the published interface do."""

    def __init__(self):
        super().__init__()
        self.w_mu, self.w_rho = nn.Parameter(torch.ones(3)), nn.Parameter(torch.zeros(3))

    def forward(self, x):
        return x * (self.w_mu + F.softplus(self.w_rho) * torch.randn(3))


def test_a_sample_that_cannot_be_held_is_said():
    model = nn.Sequential(ReadsItself(), BayesianScale(3))
    message = (
        r"sampling: ReadsItself declares w_mu and w_rho .*; read the weight through `w = bensemble\.layers\.weight_prop"
    )
    with pytest.warns(UserWarning, match=message), bensemble.sampling(model):
        pass
    assert bensemble.kl_divergence(model) > 0


class Shift(nn.Module):
    """Adds a weight, so that the gradient of the sum is the gradient of both."""

    def __init__(self):
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.randn(4, 3)), None

    def forward(self, x):
        return x + self.weight


class BayesianShift(LinearOpLayer, Shift):
    def linear_op(self, weight, bias, x):
        return x + weight


def test_a_gradient_that_others_hold_is_not_written_to():
    layer = BayesianShift.__new__(BayesianShift)
    layer.adopt(Shift(), prior_sigma=1.0, init_sigma=0.1, prior=Normal(0.01))
    layer.estimator, x = "weights", torch.randn(4, 3, requires_grad=True)
    loss = (layer.train()(2.0 * x) * torch.ones(4, 3)).sum() + layer.kl_divergence()
    loss.backward()
    assert torch.equal(x.grad, torch.full((4, 3), 2.0))
    assert not torch.equal(layer.w_mu.grad, torch.ones(4, 3))


def test_types_match_exactly():
    class Special(CausalConv1d):
        pass

    assert bayesian_type(CausalConv1d) is BayesianCausalConv1d
    assert bayesian_type(Special) is None


def test_what_cannot_be_registered_is_refused():
    with pytest.raises(InvalidTypeError, match=r"register: need a subclass of BaseBayesianLayer and Conv1d, got "):
        register(nn.Conv1d)(nn.Conv1d)
    with pytest.raises(InvalidTypeError, match=r"register: need a subclass of BaseBayesianLayer and Bilinear, got "):
        register(nn.Bilinear)(BaseBayesianLayer)

    class Another(LinearOpLayer, CausalConv1d):
        pass

    with pytest.raises(InvalidValueError, match="register: CausalConv1d already has the twin BayesianCausalConv1d"):
        register(CausalConv1d)(Another)
    layer = bayesify(nn.Sequential(CausalConv1d(2, 3, 2)))[0]
    layer.__class__ = type("Unfinished", (LinearOpLayer, CausalConv1d), {})
    with pytest.raises(NotImplementedError, match=r"Unfinished must define linear_op\(weight, bias, input\)"):
        layer(torch.randn(1, 2, 4))
