"""The model that comes back from ``bayesify``, and the one that comes back from it."""

from __future__ import annotations

import gc
import weakref
from collections import deque

import pytest
import torch
from patterns.aliases import ListedWeights
from patterns.architectures import Mixed
from patterns.recurrent import Packed
from patterns.tied import LanguageModel
from torch import nn
from torch.nn.utils import parametrizations
from zoo.checks import Fingerprint

from bensemble import BayesianLinear, sampling
from convert import bayesify, to_deterministic

from .networks import small
from .posteriors import posteriors


def test_a_copy_by_default_and_the_model_itself_in_place() -> None:
    model = small()
    bnn = bayesify(model)
    assert bnn is not model
    assert bnn[3].w_mu is not model[3].weight
    assert bnn[3].w_mu.data_ptr() != model[3].weight.data_ptr()
    weight = model[3].weight
    assert bayesify(model, inplace=True) is model
    assert model[3].w_mu is weight


def test_the_copy_keeps_flags_dtype_and_attributes() -> None:
    model = small().double()
    model[0].eval()
    model.note = {"trained": "on digits"}
    bnn = bayesify(model)
    assert [module.training for module in bnn.modules()] == [module.training for module in model.modules()]
    assert {p.dtype for p in bnn.parameters()} == {torch.float64}
    assert bnn.note == model.note
    assert bnn.note is not model.note
    assert list(bnn.state_dict())[:4] == ["0.w_mu", "0.w_rho", "0.b_mu", "0.b_rho"]


def test_layers_that_are_bayesian_already_stay_as_they_are() -> None:
    model = nn.Sequential(BayesianLinear(4, 4, init_sigma=0.3), nn.Linear(4, 2))
    rho = model[0].w_rho.detach().clone()
    bnn = bayesify(model)
    assert torch.equal(bnn[0].w_rho, rho)
    assert bnn[0].init_sigma == 0.3
    assert isinstance(bnn[1], BayesianLinear)
    step = bayesify(bayesify(small(), include="0"), include="3")
    assert set(posteriors(step)) == {"0.weight", "0.bias", "3.weight", "3.bias"}


def test_the_estimator_reaches_the_twins() -> None:
    bnn = bayesify(small(), estimator="weights")
    assert {bnn[0].estimator, bnn[3].estimator} == {"weights"}
    back = to_deterministic(bnn)
    assert "estimator" not in vars(back[0])
    x, row = torch.randn(1, 3, 4, 4), nn.Linear(3, 2)
    one_draw = bayesify(row, estimator="weights", init_sigma=0.5).train()
    same_rows = x[0, :, 0, 0].expand(5, 3)
    out = one_draw(same_rows)
    assert torch.equal(out, out[:1].expand(5, 2)), "one draw of the weights serves the whole batch"


def test_the_dtype_of_the_variance_reaches_the_twins_and_spares_the_means() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(16, 2))
    x = torch.randn(2, 3, 4, 4)
    bnn = bayesify(model, variance_dtype=torch.bfloat16, init_sigma=0.3).train()
    precise = bayesify(model, init_sigma=0.3).train()
    draws = []
    for network in (precise, bnn):
        torch.manual_seed(0)
        draws.append(network(x))
    assert not torch.equal(*draws)
    torch.testing.assert_close(*draws, rtol=0.02, atol=0.02)
    assert torch.equal(bnn.eval()(x), precise.eval()(x))
    assert "variance_dtype" not in vars(to_deterministic(bnn)[0])


def test_nothing_keeps_a_discarded_model_alive() -> None:
    model = Mixed()
    bnn = bayesify(model)
    with sampling(bnn):
        bnn(torch.randn(1, 2, 4))
    watched = [weakref.ref(model), weakref.ref(bnn), weakref.ref(bnn.gru)]
    del model, bnn
    gc.collect()
    assert [ref() for ref in watched] == [None] * 3


def test_a_sample_as_a_plain_network() -> None:
    model = Mixed().eval()
    bnn = bayesify(model)
    x, generator = torch.randn(2, 3, 4), torch.Generator()
    plain = to_deterministic(bnn, sample=True, generator=generator.manual_seed(5))
    assert [type(module) for module in plain.modules()] == [type(module) for module in model.modules()]
    with sampling(bnn, generator.manual_seed(5)), torch.no_grad():
        torch.testing.assert_close(plain(x), bnn(x))
    assert torch.equal(bnn(x), model(x)), "the Bayesian model is as it was"
    assert not torch.equal(plain(x), model(x))


def test_a_sample_of_a_tie_is_one_tensor() -> None:
    plain = to_deterministic(bayesify(LanguageModel()), sample=True)
    assert plain.head.weight is plain.embedding.weight


def test_masks_stay_for_torch_to_train_on() -> None:
    bnn = bayesify(nn.Sequential(nn.Linear(6, 5), nn.MultiheadAttention(5, 1)))
    pruned = to_deterministic(bnn, sparsity=0.5, keep_masks=True)
    assert torch.nn.utils.prune.is_pruned(pruned)
    mask = pruned[0].weight_mask.clone()
    assert 0 < int(mask.sum()) < mask.numel()
    optimizer = torch.optim.SGD(pruned.parameters(), lr=0.1)
    pruned[0](torch.randn(4, 6)).square().sum().backward()
    optimizer.step()
    pruned[0](torch.randn(1, 6))
    assert not bool(pruned[0].weight[mask == 0].any())


def test_what_is_not_prunable_stays_whole() -> None:
    model = nn.Sequential(parametrizations.weight_norm(nn.Linear(6, 5)), nn.Linear(5, 4))
    bnn = bayesify(model)
    pruned = to_deterministic(bnn, sparsity=0.9)
    direction = pruned[0].parametrizations.weight.original1
    assert torch.equal(direction, model[0].parametrizations.weight.original1)
    assert float((pruned[1].weight == 0).float().mean()) == pytest.approx(0.9)
    assert bool(torch.isfinite(pruned(torch.randn(2, 6))).all())


def test_recurrent_layers_come_back_with_their_list_of_weights() -> None:
    model = Packed()
    back = to_deterministic(bayesify(model))
    assert all(
        a is getattr(back.lstm, n) for a, n in zip(back.lstm._flat_weights, back.lstm._flat_weights_names, strict=True)
    )
    back.half().float()
    assert back(torch.randn(2, 5, 6)).shape == (2, 5, 3)


def test_aliases_come_back_as_they_were() -> None:
    model = ListedWeights()
    back = to_deterministic(bayesify(model))
    assert back.weights[0] is back.one.weight
    assert back.named["again"][0] is back.one.weight
    assert sorted(vars(back)) == sorted(vars(model))


def test_back_and_forth_many_times_changes_nothing() -> None:
    model = Mixed().eval()
    before, turned = Fingerprint(model), model
    for _ in range(5):
        turned = to_deterministic(bayesify(turned))
    before.compare(turned, "five rounds", identity=False)


class Keeps(nn.Module):
    """Holds activations of its last forward in every kind of place."""

    class Cache:
        pass

    def __init__(self):
        super().__init__()
        self.a, self.b, self.cache = nn.Linear(6, 8), nn.Linear(8, 3), self.Cache()

    def forward(self, x):
        h = self.a(x).relu()
        self.last, self.pyramid, self.maps = h, [h, (h.mean(1, keepdim=True),)], {"h": {"deep": h + 1}}
        self.cache.keys = deque([h * 2], maxlen=2)
        return self.b(h + self.pyramid[1][0])


@pytest.mark.parametrize("trained", [False, True])
def test_activations_that_a_module_keeps_are_copied_detached(trained):
    """Nested in lists, dictionaries and objects; one that is held twice stays one."""
    model = Keeps()
    x = torch.randn(4, 6)
    model(x).sum().backward()
    bnn = bayesify(model, example_inputs=x if trained else None)
    if trained:
        bnn.train()(x).sum().backward()
    plain = to_deterministic(bnn)
    for copied, source in ((bnn, model),) if not trained else ((plain, bnn),):
        assert copied.last is copied.pyramid[0]
        held = (copied.last, copied.pyramid[1][0], copied.maps["h"]["deep"], copied.cache.keys[0])
        assert not any(tensor.requires_grad for tensor in held)
        assert torch.equal(copied.cache.keys[0], source.cache.keys[0])
        assert source.last.grad_fn is not None
