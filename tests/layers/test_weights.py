"""Reading and assigning ``.weight`` under its original name, and what is refused there."""

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
from bensemble.layers import BayesianConv2d, BayesianLinear

ORDER = "take the deterministic model: apply them before bayesify, or after to_deterministic"


def layer(training=True, **kwargs):
    return BayesianLinear(3, 4, **kwargs).train(training)


def frozen_state(module):
    return type(module), {key: (value, copy.deepcopy(value)) for key, value in module._parameters.items()}


def assert_untouched(module, before):
    cls, parameters = before
    assert type(module) is cls
    assert list(module._parameters) == list(parameters)
    for key, (parameter, value) in parameters.items():
        assert module._parameters[key] is parameter
        assert value is None or torch.equal(parameter, value)
    assert not module._forward_pre_hooks


# -- reading


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


# -- writing


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


# -- functional_call


@pytest.mark.parametrize("state", ["train", "eval", "pruned", "sampling"])
@pytest.mark.parametrize("transform", ["none", "grad", "vmap", "jvp", "compile"])
@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated")  # torch's own, in jvp
def test_functional_call_takes_original_names_and_leaves_the_layer_as_it_was(state, transform):
    bnn = layer(training=state == "train")
    if state == "pruned":
        next(bnn.posteriors()).set_mask(torch.eye(4, 3))
    before, x = frozen_state(bnn), torch.randn(2, 3)
    tensors = {"weight": torch.randn(4, 3), "bias": torch.randn(4)}
    given = dict(tensors)

    def run(values):
        return torch.func.functional_call(bnn, values, x)

    with sampling(bnn if state == "sampling" else nn.Identity()):
        if transform == "none":
            output = run(tensors)
        elif transform == "grad":
            gradient = torch.func.grad(lambda values: run(values).sum())(tensors)
            kept = torch.eye(4, 3) if state == "pruned" else torch.ones(4, 3)
            assert_close(gradient["weight"], x.sum(0).expand(4, 3) * kept)
            output = None
        elif transform == "vmap":
            stacked = {name: value.expand(5, *value.shape) for name, value in tensors.items()}
            output = torch.func.vmap(run, randomness="same")(stacked)[3]
        elif transform == "jvp":
            output, _ = torch.func.jvp(run, (tensors,), (tensors,))
        else:
            torch._dynamo.reset()
            output = torch.compile(run, backend="eager", fullgraph=True)(tensors)
    assert_untouched(bnn, before)
    assert all(tensors[name] is given[name] for name in given)
    if state in ("eval", "pruned") and output is not None:
        weight = tensors["weight"] * (torch.eye(4, 3) if state == "pruned" else 1)
        assert_close(output, F.linear(x, weight, tensors["bias"]))


def test_a_functional_training_loop_learns_means_and_sigmas():
    bnn, x, y = layer(init_sigma=0.5), torch.randn(64, 3), torch.randn(64, 4)
    names = ["weight", "bias", "w_rho", "b_rho"]
    tensors = {name: torch.zeros_like(getattr(bnn.eval(), name)) for name in names}
    bnn.train()

    def loss(values):
        return (torch.func.functional_call(bnn, values, x) - y).square().mean()

    first = loss(tensors)
    for _ in range(300):
        gradients = torch.func.grad(loss)(tensors)
        tensors = {name: value - 0.3 * gradients[name] for name, value in tensors.items()}
    least_squares = torch.linalg.lstsq(torch.cat([x, torch.ones(64, 1)], 1), y).solution
    assert loss(tensors) < first / 1.5
    assert tensors["w_rho"].max() < -2
    assert_close(tensors["weight"], least_squares[:3].T, atol=0.1, rtol=0)


@pytest.mark.parametrize("way", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m)), copy.copy])
def test_copies_answer_to_the_original_names_too(way):
    other, weight, x = way(layer(training=False)), torch.randn(4, 3), torch.randn(2, 3)
    assert_close(torch.func.functional_call(other, {"weight": weight}, x), F.linear(x, weight, other.bias))
    with pytest.raises(ConversionError, match="delete: 'weight'"):
        spectral_norm(other)


def test_functional_call_takes_posterior_names_too():
    bnn, x = layer(), torch.randn(2, 3)
    tensors = {"w_mu": torch.zeros(4, 3), "w_rho": torch.full((4, 3), -50.0), "b_rho": torch.full((4,), -50.0)}
    assert_close(torch.func.functional_call(bnn, tensors, x), bnn.b_mu.expand(2, 4))


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated")
@pytest.mark.parametrize("estimator", ["local", "weights"])
def test_transforms_see_one_function_under_one_noise(estimator):
    bnn, x = layer(), torch.randn(5, 3)
    bnn.estimator = estimator

    def run(value):
        torch.manual_seed(0)
        return bnn(value)

    assert torch.func.vmap(bnn, randomness="different")(x).shape == (5, 4)
    assert_close(torch.func.jvp(run, (x,), (torch.zeros_like(x),))[0], run(x))
    jacobian = torch.func.jacrev(run)(x)
    assert_close(jacobian, torch.autograd.functional.jacobian(run, x))


def test_reset_parameters_works_in_every_state():
    bnn = layer()
    for state in (nn.Identity(), bnn):
        with sampling(state):
            before = bnn.w_mu.detach().clone()
            bnn.reset_parameters()
            assert not torch.equal(bnn.w_mu, before)


def test_a_trace_records_the_original_name():
    class Reader(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = BayesianLinear(3, 3)

        def forward(self, x):
            return x @ self.linear.weight

    graph = torch.fx.Tracer().trace(Reader())
    assert "linear.weight" in {node.target for node in graph.nodes if node.op == "get_attr" and node.users}
