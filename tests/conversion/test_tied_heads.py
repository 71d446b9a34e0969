"""A head that is tied to the embedding and converted alone: its use gets the posterior, the lookup reads the mean."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

import bensemble
from bensemble.errors import CheckpointError
from bensemble.likelihoods import Categorical
from convert import bayesify, check_noise, last_layer, plan, to_deterministic

TOKENS = torch.arange(60).view(10, 6) % 9


class Tied(nn.Module):
    """A small language model with one table for the lookup and the head."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.body, self.lm_head = nn.Embedding(9, 5), nn.Linear(5, 5), nn.Linear(5, 9, bias=False)
        self.lm_head.weight = self.table.weight

    def forward(self, tokens: Tensor) -> Tensor:
        return self.lm_head(torch.tanh(self.body(self.table(tokens))))


@pytest.fixture
def net() -> Tied:
    torch.manual_seed(0)
    return Tied()


@pytest.fixture
def bnn(net: Tied) -> Tied:
    return bayesify(net, include=last_layer(net, TOKENS), example_inputs=TOKENS)


def test_the_plan_says_which_lookup_keeps_the_mean(net: Tied) -> None:
    (row,) = [row for row in plan(net, include="lm_head", example_inputs=TOKENS).rows if row.is_bayesian]
    assert (row.name, row.aliases, row.lookups) == ("table.weight", ("lm_head.weight",), ("table.weight",))
    for selection in (None, "*", ["table", "lm_head"]):
        rows = plan(net, include=selection, example_inputs=TOKENS).rows
        assert all(row.lookups == () for row in rows)
    assert all(row.lookups == () for row in plan(net, include="body", example_inputs=TOKENS).rows)


def test_the_head_alone_is_bayesian_and_stays_tied(net: Tied, bnn: Tied) -> None:
    assert [name for name, _ in bensemble.named_posteriors(bnn)] == ["lm_head.weight"]
    assert bnn.lm_head.is_last
    assert type(bnn.table) is nn.Embedding
    assert bnn.table.weight is bnn.lm_head.w_mu
    assert check_noise(bnn, TOKENS)
    bnn.lm_head.weight = bnn.table.weight  # what tie_weights() of transformers does
    assert bnn.table.weight is bnn.lm_head.w_mu
    back = to_deterministic(bnn)
    assert back.lm_head.weight is back.table.weight
    assert_close(back(TOKENS), net(TOKENS))


def test_the_prediction_is_closed_and_its_spread_that_of_the_head(bnn: Tied) -> None:
    with torch.no_grad():
        bnn.lm_head.w_rho.copy_(torch.randn(9, 5))
    p = bensemble.predict(bnn, TOKENS)
    assert p.method == "closed"
    hidden = torch.tanh(bnn.body(bnn.table(TOKENS))).detach()
    sigma = torch.nn.functional.softplus(bnn.lm_head.w_rho.detach())
    assert_close(p.std.square(), hidden.square() @ sigma.square().t())


def test_fit_and_save_and_load(bnn: Tied, tmp_path: Path) -> None:
    batches = [(TOKENS[:, :-1], TOKENS[:, 1:])]
    before = bnn.table.weight.detach().clone()
    report = bensemble.fit_posterior(bnn, batches, likelihood=Categorical(dim=-1), val_loader=[*batches])
    assert report.structure == "kronecker"
    assert torch.equal(bnn.table.weight, before)
    bensemble.save(bnn, tmp_path / "m.safetensors")
    other = Tied()
    loaded = bensemble.load(tmp_path / "m.safetensors", other)
    assert loaded.table.weight is loaded.lm_head.w_mu
    assert loaded.lm_head.is_last
    ours, theirs = (bensemble.predict(m, TOKENS, likelihood=Categorical(dim=-1)).probs for m in (bnn, loaded))
    assert_close(ours, theirs)


def test_a_checkpoint_with_the_tie_is_not_loaded_without_it(bnn: Tied, tmp_path: Path) -> None:
    bensemble.save(bnn, tmp_path / "m.safetensors")
    untied = Tied()
    untied.lm_head.weight = nn.Parameter(untied.lm_head.weight.detach().clone())
    with pytest.raises(
        CheckpointError, match=r"'lm_head\.weight' and 'table\.weight' are one shared weight in the file"
    ):
        bensemble.load(tmp_path / "m.safetensors", untied)
    loaded = bensemble.load(tmp_path / "m.safetensors", bayesify(Tied(), include="lm_head"))
    assert torch.equal(loaded.table.weight, bnn.table.weight)


def test_training_moves_both_uses_of_the_mean(bnn: Tied) -> None:
    optimizer = torch.optim.SGD(bnn.parameters(), 0.1)
    loss = nn.functional.cross_entropy(bnn.train()(TOKENS[:, :-1]).flatten(0, 1), TOKENS[:, 1:].flatten())
    bensemble.elbo_loss(loss, bensemble.kl_divergence(bnn), num_data=50).backward()
    before = bnn.table.weight.detach().clone()
    optimizer.step()
    assert not torch.equal(bnn.table.weight, before)
    assert bnn.table.weight is bnn.lm_head.w_mu
