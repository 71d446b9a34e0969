"""``torch.func`` and what else passes weights by name: a Bayesian layer takes them under both names."""

import copy
import pickle

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import spectral_norm
from torch.testing import assert_close

from bensemble import sampling
from bensemble.errors import ConversionError
from bensemble.layers import BayesianLinear

from .weights_of import assert_untouched, frozen_state, layer


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
