"""Held weight samples: one function inside a context, whatever else is going on around it."""

import copy
import io
import pickle
import threading

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.testing import assert_close

import bensemble
from bensemble.errors import InvalidTypeError
from bensemble.layers import BayesianConv2d, BayesianLinear
from bensemble.noise.stack import mean_mode
from bensemble.posteriors import named_posteriors
from convert import bayesify


def network():
    return nn.Sequential(BayesianConv2d(1, 3, 2), nn.Tanh(), nn.Flatten(), BayesianLinear(12, 4))


def seeded(seed):
    return torch.Generator().manual_seed(seed)


X = torch.linspace(-1, 1, 45).reshape(5, 1, 3, 3)


def sample_of(model, seed, x=X):
    with bensemble.sampling(model, seeded(seed)):
        return model(x)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("grad", [True, False])
def test_the_sample_is_mu_plus_sigma_times_noise_for_every_batch(training, grad):
    model = network().train(training)
    with torch.set_grad_enabled(grad), bensemble.sampling(model, seeded(3)):
        outputs, parts = model(X), torch.cat([model(x[None]) for x in X])
        read = {name: getattr(p.layer, p.name) + 0 for name, p in named_posteriors(model)}
    assert_close(outputs, parts)
    generator = seeded(3)
    for name, posterior in named_posteriors(model):
        noise = torch.randn(posterior.mu.shape, generator=generator)
        assert_close(read[name], (posterior.mu + F.softplus(posterior.rho) * noise).detach().requires_grad_(grad))
    hidden = torch.tanh(F.conv2d(X, read["0.weight"], read["0.bias"])).flatten(1)
    assert_close(outputs, F.linear(hidden, read["3.weight"], read["3.bias"]))
    assert [m.training for m in model.modules()] == [training] * len(list(model.modules()))


def test_outside_the_context_the_layer_is_as_before():
    model = network().eval()
    mean = model(X)
    with bensemble.sampling(model):
        assert not torch.equal(model(X), mean)
    assert torch.equal(model(X), mean)
    with pytest.raises(KeyError, match="inside"), bensemble.sampling(model):
        raise KeyError("inside")
    assert torch.equal(model(X), mean)


def test_a_generator_makes_the_sample_repeatable_and_the_default_one_is_left_alone():
    model = network()
    before = torch.get_rng_state()
    first, again, other = sample_of(model, 0), sample_of(model, 0), sample_of(model, 1)
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    torch.manual_seed(7)
    with bensemble.sampling(model):
        drawn = model(X)
    torch.manual_seed(7)
    with bensemble.sampling(model):
        assert torch.equal(model(X), drawn)


def test_gradients_reach_mu_and_rho_with_the_noise_held():
    model = network()
    with bensemble.sampling(model, seeded(0)):
        model(X).square().sum().backward()
    noise = {}
    generator = seeded(0)
    for name, posterior in named_posteriors(model):
        noise[name] = torch.randn(posterior.mu.shape, generator=generator)
    twin = nn.Sequential(nn.Conv2d(1, 3, 2), nn.Tanh(), nn.Flatten(), nn.Linear(12, 4))
    with torch.no_grad():
        for name, posterior in named_posteriors(model):
            twin.get_parameter(name).copy_(posterior.mu + posterior.sigma() * noise[name])
    twin(X).square().sum().backward()
    for name, posterior in named_posteriors(model):
        expected = twin.get_parameter(name).grad
        assert_close(posterior.mu.grad, expected)
        assert_close(posterior.rho.grad, expected * noise[name] * torch.sigmoid(posterior.rho))


def test_the_sample_follows_its_posterior_while_it_is_trained_or_replaced():
    model = network().eval()
    with bensemble.sampling(model, seeded(0)), torch.no_grad():
        before = model(X)
        model[3].b_mu.add_(1.0)
        assert_close(model(X), before + 1.0)
        model[3].b_mu = nn.Parameter(model[3].b_mu + 1.0)
        assert_close(model(X), before + 2.0)
        weight = model[3].weight + 0
        next(model[3].posteriors()).set_mask(torch.eye(4, 12))
        assert_close(model[3].weight + 0, weight * torch.eye(4, 12))
        model[3].w_mask.zero_()
        assert (model[3].weight + 0).eq(0).all()


def test_functional_call_inside_sees_each_of_its_weights():
    """Temporaries may come to lie at the address of the one before."""
    layer = BayesianLinear(3, 3, bias=False).eval()
    with bensemble.sampling(layer, seeded(0)), torch.no_grad():
        noise = layer(torch.eye(3)) - layer.w_mu.T
        for value in range(20):
            output = torch.func.functional_call(layer, {"weight": torch.full((3, 3), float(value))}, torch.eye(3))
            assert_close(output, value + noise)


def test_contexts_nest_and_the_inner_one_wins():
    model = network()
    with bensemble.sampling(model, seeded(0)):
        outer = model(X)
        with bensemble.sampling(model, seeded(1)):
            assert torch.equal(model(X), sample_of(model, 1))
            with mean_mode(model):
                assert torch.equal(model(X), copy.deepcopy(model).eval()(X))
        assert torch.equal(model(X), outer)
        with bensemble.sampling(model[3], seeded(1)):  # a part of the model: the rest keeps the outer sample
            inner = model(X)
            assert torch.equal(model[0](X), sample_of(model[0], 0))
        assert not torch.equal(inner, outer)
        assert torch.equal(model(X), outer)


def test_a_copy_taken_inside_is_an_ordinary_model():
    model = network().eval()
    mean = model(X)
    with bensemble.sampling(model, seeded(0)):
        copied, file = copy.deepcopy(model), io.BytesIO()
        torch.save(model, file)
        file.seek(0)
        loaded, pickled = torch.load(file, weights_only=False), pickle.loads(pickle.dumps(model))
        for other in (copied, loaded, pickled):
            assert torch.equal(other(X), mean)
            assert list(other.__dict__) == list(model.__dict__)
            assert not torch.equal(model(X), mean)
    assert torch.equal(copied(X), mean)
    assert torch.equal(sample_of(copied, 5), sample_of(model, 5))


@pytest.mark.slow
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("grad", [True, False])
def test_a_model_compiled_before_gives_the_eager_sample_inside(training, grad):
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    model = network().train(training)
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    with torch.set_grad_enabled(grad):
        outside = compiled(X)
        for seed in range(12):
            expected = sample_of(model, seed)
            with bensemble.sampling(model, seeded(seed)):
                assert torch.equal(compiled(X), expected)
            with bensemble.sampling(compiled, seeded(seed)):
                assert torch.equal(compiled(X), expected)
        if not training:
            assert torch.equal(compiled(X), outside)
            assert torch.equal(outside, model(X))
    # Compiled once outside and once inside: what changes from sample to sample is data.
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 2


@pytest.mark.slow
def test_compiled_models_with_sampled_weights_give_the_eager_sample_too():
    torch._dynamo.reset()
    for module, x in ((nn.MultiheadAttention(4, 2), torch.randn(3, 2, 4)), (nn.Bilinear(4, 4, 3), torch.randn(2, 4))):
        model = bayesify(module).eval()
        compiled = torch.compile(model, backend="eager")
        arguments = (x, x, x) if isinstance(module, nn.MultiheadAttention) else (x, x)
        compiled(*arguments)
        for seed in range(3):
            outputs = []
            for run in (model, compiled):
                with bensemble.sampling(model, seeded(seed)):
                    result = run(*arguments)
                    outputs.append(result[0] if isinstance(result, tuple) else result)
            assert torch.equal(*outputs)


def test_threads_do_not_see_each_other():
    """Half of the threads sample, half compute the mean, on one model; a barrier makes their contexts overlap."""
    model, rounds, wrong = network().eval(), 40, []
    mean = model(X).detach()
    expected = {seed: sample_of(model, seed).detach() for seed in range(4)}
    barrier = threading.Barrier(8, timeout=60)

    def work(number):
        for _ in range(rounds):
            barrier.wait()
            with torch.no_grad():
                if number % 2:
                    ok = torch.equal(model(X), mean)
                else:
                    with bensemble.sampling(model, seeded(number // 2)):
                        first = model(X)
                        ok = torch.equal(first, model(X)) and torch.allclose(first, expected[number // 2])
            if not ok:
                wrong.append(number)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_a_context_that_ends_in_another_order_or_is_a_generator_stays_with_its_thread():
    """Two generators that hold contexts are resumed in turn, as pipelines do."""
    model = network().eval()

    def outputs(seed):
        with bensemble.sampling(model, seeded(seed)):
            while True:
                yield model(X)

    mean = model(X)
    first, second = outputs(0), outputs(1)
    next(first), next(second)
    first.close()  # the outer one ends first
    assert torch.equal(next(second), sample_of(model, 1))
    second.close()
    assert torch.equal(model(X), mean)


def test_tied_weights_share_one_draw():
    first, second = BayesianLinear(3, 3, bias=False), BayesianLinear(3, 3, bias=False)
    second.w_mu, second.w_rho = first.w_mu, first.w_rho
    model = nn.Sequential(first, second)
    with bensemble.sampling(model):
        assert torch.equal(first.weight + 0, second.weight + 0)


@pytest.mark.parametrize("mode", [torch.inference_mode, torch.no_grad])
def test_samples_under_inference_mode(mode):
    model = network()
    with bensemble.sampling(model, seeded(0)):
        with mode():
            first, read = model(X), model[3].weight + 0
            assert torch.equal(first, model(X))
        later = model(X)
        later.sum().backward()  # a value kept under inference_mode must not come back here
        assert_close(later.detach(), first.clone())
        assert_close((model[3].weight + 0).detach(), read.clone())
    with torch.inference_mode():
        born_there = network()
        with bensemble.sampling(born_there):
            before = born_there(X)
            assert torch.equal(born_there(X), before)
            born_there[3].b_mu += 1.0  # has no version that would tell
            assert_close(born_there(X), before + 1.0)


def test_transforms_inside_see_the_sample():
    model = network().eval()
    with bensemble.sampling(model, seeded(0)):
        expected = model(X)
        assert_close(torch.func.vmap(lambda x: model(x[None])[0])(X), expected)
        jacobian = torch.func.jacrev(model)(X)
        assert_close(jacobian, torch.autograd.functional.jacobian(model, X))


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_noise_is_drawn_in_the_precision_of_rho(dtype):
    layer = BayesianLinear(3, 4, dtype=dtype)
    precise = torch.float64 if dtype is torch.float64 else torch.float32
    with bensemble.sampling(layer, seeded(0)):
        weight = layer.weight + 0
    noise = torch.randn(4, 3, generator=seeded(0), dtype=precise)
    assert_close(weight, (layer.w_mu.to(precise) + layer.w_rho.exp().log1p() * noise).to(dtype))


def test_on_the_meta_device_shapes_go_through():
    model = network().to("meta")
    with bensemble.sampling(model):
        assert model(X.to("meta")).shape == (5, 4)


def test_a_model_without_posteriors_is_left_alone_and_other_things_are_refused():
    plain = nn.Linear(3, 2)
    with bensemble.sampling(plain):
        assert plain.weight is plain._parameters["weight"]
    context = bensemble.sampling([plain])
    with pytest.raises(InvalidTypeError, match=r"sampling: model must be a torch.nn.Module, got list"):
        context.__enter__()
