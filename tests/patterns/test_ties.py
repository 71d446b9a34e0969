"""Ties that code for deterministic models makes, breaks and resizes after the conversion."""

from __future__ import annotations

import copy
import gc
import pickle
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from bensemble import ConversionError, kl_divergence, named_posteriors, prune, sampling
from convert import bayesify, to_deterministic

from .tied import LanguageModel


@pytest.mark.parametrize("training", [False, True])
def test_tying_again_keeps_one_posterior(training: bool) -> None:
    bnn = bayesify(LanguageModel()).train(training)
    kl = kl_divergence(bnn)
    bnn.head.weight = bnn.embedding.weight  # what tie_weights() does, in every state
    names = [name for name, _ in named_posteriors(bnn)]
    assert names == ["embedding.weight", "body.weight", "body.bias"]
    assert bnn.head.w_mu is bnn.embedding.weight_mu
    assert bnn.head.w_rho is bnn.embedding.weight_rho
    torch.testing.assert_close(kl_divergence(bnn), kl)
    with sampling(bnn):
        assert torch.equal(bnn.head.weight, bnn.embedding.weight)
    back = to_deterministic(bnn)
    assert back.head.weight is back.embedding.weight


def test_a_lookup_reads_the_sample_of_its_tie() -> None:
    bnn, index = bayesify(LanguageModel().eval()), torch.arange(9)
    with sampling(bnn), torch.no_grad():
        assert torch.equal(bnn.embedding(index), torch.as_tensor(bnn.head.weight).clone())
        assert not torch.equal(bnn.embedding(index), bnn.embedding.weight_mu)


def test_tying_a_head_to_a_deterministic_embedding_makes_the_table_its_mean() -> None:
    model = LanguageModel()
    model.head.weight = nn.Parameter(torch.randn(9, 6))
    bnn = bayesify(model.eval())
    bnn.head.weight = bnn.embedding.weight
    assert bnn.head.w_mu is bnn.embedding.weight
    assert to_deterministic(bnn).head.weight.shape == (9, 6)


def test_resizing_after_the_conversion_is_refused_with_the_order_that_works() -> None:
    bnn = bayesify(LanguageModel().eval())
    larger = nn.Embedding(11, 6)
    with torch.no_grad():
        larger.weight[:9] = bnn.embedding.weight  # copying out of a posterior works
    bnn.embedding = larger
    with pytest.raises(ConversionError, match=r"'weight' has .* \(9, 6\), got .* \(11, 6\).*bayesify again"):
        bnn.head.weight = larger.weight
    resized = to_deterministic(bnn)
    resized.head = nn.Linear(6, 11, bias=False)
    resized.head.weight = resized.embedding.weight
    again = bayesify(resized)
    assert again(torch.tensor([[10]])).shape == (1, 1, 11)
    assert again.head.w_mu is again.embedding.weight_mu


# -- ties that the source did not have


class Untied(nn.Module):
    """Three matrices of one shape: of a twin, of a sampled layer, and a raw one."""

    def __init__(self) -> None:
        super().__init__()
        self.linear, self.cell, self.raw = nn.Linear(5, 5), nn.RNNCell(5, 5), nn.Parameter(torch.randn(5, 5))

    def forward(self, x: Tensor) -> Tensor:
        return self.cell(self.linear(x)) @ self.raw


PLACES: dict[str, tuple[Callable[[nn.Module], nn.Module], str]] = {
    "linear.weight": (lambda model: model.linear, "weight"),
    "cell.weight_hh": (lambda model: model.cell, "weight_hh"),
    "raw": (lambda model: model, "raw"),
}
COPIES = {"itself": lambda model: model, "deepcopy": copy.deepcopy, "pickle": lambda m: pickle.loads(pickle.dumps(m))}


@pytest.fixture
def untied() -> nn.Module:
    """Every posterior with a sigma and a prior of its own."""
    bnn = bayesify(Untied().eval(), prior="pretrained", init_sigma=lambda name, weight: 0.01 * len(name))
    assert len(list(named_posteriors(bnn))) == 5
    return bnn


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("copied", COPIES.values(), ids=COPIES)
@pytest.mark.parametrize("source", PLACES)
@pytest.mark.parametrize("target", PLACES)
def test_a_new_tie_shares_the_whole_posterior(untied, source: str, target: str, copied, training: bool) -> None:
    bnn = copied(untied).train(training)
    prune(bnn, masks={source: torch.ones(5, 5).tril()})
    before = dict(named_posteriors(bnn))
    kept, rho, kl = before[source].mu, before[source].rho, before[source].kl()
    (owner, name), (other, taken) = PLACES[source], PLACES[target]
    setattr(other(bnn), taken, getattr(owner(bnn), name))
    after = dict(named_posteriors(bnn))
    assert len(after) == (5 if source == target else 4)
    (tied,) = (posterior for posterior in after.values() if posterior.mu is kept)
    for posterior in (tied, *tied.ties):
        assert posterior.rho is rho
        assert torch.equal(posterior.mask, torch.ones(5, 5).tril())
        torch.testing.assert_close(posterior.kl(), kl)
    assert len(tied.ties) == (source != target)
    torch.testing.assert_close(kl_divergence(bnn), sum(posterior.kl() for posterior in after.values()))
    with sampling(bnn):
        assert torch.equal(getattr(owner(bnn), name) + 0, getattr(other(bnn), taken) + 0)
    back = to_deterministic(bnn)
    assert getattr(owner(back), name) is getattr(other(back), taken)


def test_a_new_tie_is_pruned_only_where_both_may_be() -> None:
    bnn = bayesify(nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(5, 5)), nn.Linear(5, 5)).eval())
    direction = bnn[0].parametrizations.weight
    bnn[1].weight = direction.original1
    assert not any(p.prunable for _, p in named_posteriors(bnn) if p.mu is bnn[1].w_mu)
    assert not any(name.endswith("original1") or name == "1.weight" for name in _pruned(bnn))


@pytest.mark.parametrize("name", ["embedding.weight", "head.weight"])
def test_a_tied_embedding_is_pruned_only_when_it_is_named(name: str) -> None:
    bnn, mask = bayesify(LanguageModel().eval()), torch.ones(9, 6).tril()
    assert _pruned(copy.deepcopy(bnn)) == ["body.weight", "body.bias"]
    prune(bnn, masks={name: mask})
    with sampling(bnn), torch.no_grad():
        lookup = bnn.embedding(torch.arange(9))
        assert torch.equal(lookup != 0, mask.bool())
        assert torch.equal(bnn.head.weight + 0, lookup)
    plain = to_deterministic(bnn)
    assert plain.head.weight is plain.embedding.weight
    assert torch.equal(plain.head.weight != 0, mask.bool())


def test_a_fresh_weight_gets_a_rho_of_its_own() -> None:
    bnn = bayesify(LanguageModel().eval())
    rho = bnn.head.w_rho
    bnn.head.weight = nn.Parameter(torch.zeros(9, 6))
    assert bnn.head.w_rho is not bnn.embedding.weight_rho is rho
    assert torch.equal(bnn.head.w_rho, rho)
    assert [name for name, _ in named_posteriors(bnn)] == [
        "embedding.weight",
        "body.weight",
        "body.bias",
        "head.weight",
    ]
    with sampling(bnn):
        assert not torch.equal(bnn.head.weight - bnn.head.w_mu, bnn.embedding.weight - bnn.embedding.weight_mu)
    own = bnn.body.w_rho
    bnn.body.weight = nn.Parameter(torch.zeros(6, 6))
    assert bnn.body.w_rho is own, "nobody shares it"


def test_tying_again_after_a_checkpoint_was_assigned() -> None:
    """torch unties what ``assign=True`` loads, and callers tie again."""
    trained, bnn = LanguageModel(), bayesify(LanguageModel())
    with pytest.warns(UserWarning, match="comes from a deterministic checkpoint"):
        bnn.load_state_dict(trained.state_dict(), assign=True)
    assert bnn.head.w_mu is not bnn.embedding.weight_mu
    bnn.head.weight = bnn.embedding.weight
    assert len(list(named_posteriors(bnn))) == 3
    back = to_deterministic(bnn)
    assert back.head.weight is back.embedding.weight


def test_layers_that_are_gone_are_forgotten() -> None:
    from bensemble.layers.sharing import posterior_of_mean

    bnn = bayesify(nn.Linear(3, 3))
    mean = bnn.w_mu
    assert posterior_of_mean(mean).layer is bnn
    del bnn
    gc.collect()
    assert posterior_of_mean(mean) is None
    plain = to_deterministic(bayesify(nn.Linear(3, 3)), inplace=True)
    assert posterior_of_mean(plain.weight) is None


def test_a_mean_that_was_resized_past_the_layer_is_refused_where_it_is_used() -> None:
    """Hugging Face's resize_token_embeddings swaps the data of the table that it finds."""
    bnn = bayesify(LanguageModel().eval())
    bnn.embedding.weight.data = torch.randn(11, 6)
    message = (
        r"resize: 'weight' of Embedding has a posterior of shape \(9, 6\), got a mean of shape \(11, 6\); call to_det"
    )
    with pytest.raises(ConversionError, match=message), sampling(bnn):
        pass
    with pytest.raises(ConversionError, match=message):
        kl_divergence(bnn)
    again = bayesify(to_deterministic(bnn))
    with sampling(again):
        assert again(torch.tensor([[10]])).shape == (1, 1, 11)


def _pruned(bnn: nn.Module) -> list[str]:
    prune(bnn, threshold=1e9)
    return [name for name, posterior in named_posteriors(bnn) if posterior.mask is not None]
