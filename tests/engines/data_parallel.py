"""DistributedDataParallel on two processes; run by test_processes.py under torchrun, with a folder as argument."""

import contextlib
import copy
import sys
import warnings

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)
from torch.nn.parallel import DistributedDataParallel

import bensemble
from bensemble.models.ranks import _tries_left
from convert import bayesify, prune_scores

from .networks import Mixed, all_priors, data, make, part, train
from .processes import agree, checks_of, flat, gathered, run

FOLDER = sys.argv[-1]


def check_the_kl_is_one_number_and_counts_once():
    alone, ddp = make(prior=all_priors), DistributedDataParallel(make(prior=all_priors))
    expected, found = bensemble.kl_divergence(alone), bensemble.kl_divergence(ddp)
    assert torch.equal(found, expected)
    assert agree(found)
    expected.backward()
    ddp.eval()
    (0 * ddp(data()[0]).sum() + bensemble.kl_divergence(ddp)).backward()
    for (name, wanted), got in zip(alone.named_parameters(), ddp.parameters(), strict=True):
        torch.testing.assert_close(got.grad, torch.zeros_like(got) if wanted.grad is None else wanted.grad, msg=name)


def check_noise_differs_and_parameters_do_not():
    ddp = DistributedDataParallel(make()).train()
    same = data()[0]
    assert not agree(ddp(same))
    train(ddp, [part(data(seed=i), dist.get_rank()) for i in range(5)], torch.optim.Adam(ddp.parameters(), 1e-2))
    assert agree(flat(ddp.parameters()))
    assert agree(bensemble.kl_divergence(ddp))


def check_priors_and_masks_are_those_of_the_first_process():
    bnn = make(seed=dist.get_rank())
    assert not agree(flat(bnn.buffers()))
    ddp = DistributedDataParallel(bnn)
    assert agree(flat(ddp.buffers()))
    assert agree(flat(p.prior.sigma for _, p in bensemble.named_posteriors(ddp) if hasattr(p.prior, "sigma")))
    train(ddp, [part(data(), dist.get_rank())], torch.optim.SGD(ddp.parameters(), 0.1))
    bensemble.prune(ddp, sparsity=0.6)
    masks = [p.mask for _, p in bensemble.named_posteriors(ddp) if p.mask is not None]
    assert agree(flat(masks))
    train(ddp, [part(data(), dist.get_rank())], torch.optim.Adam(ddp.parameters(), 0.1))
    assert agree(flat(masks))
    with bensemble.sampling(ddp.eval()):
        assert all((p.layer._read_weight(p.name)[p.mask == 0] == 0).all()
                   for _, p in bensemble.named_posteriors(ddp) if p.mask is not None)  # fmt: skip


def check_a_sample_with_one_seed_is_the_same_function():
    ddp, x = DistributedDataParallel(make()).train(), data()[0]
    with bensemble.sampling(ddp, torch.Generator().manual_seed(3)):
        held = ddp(x)
    assert agree(held)
    with bensemble.sampling(ddp):
        assert not agree(ddp(x))


def check_prediction_is_sharded_over_data():
    bnn, x = make(), data()[0]
    ddp = DistributedDataParallel(make())
    whole = bensemble.predict(bnn, x, 5, likelihood="categorical", generator=torch.Generator().manual_seed(1))
    mine = bensemble.predict(
        ddp, x.chunk(2)[dist.get_rank()], 5, likelihood="categorical", generator=torch.Generator().manual_seed(1)
    )
    together = gathered(mine.probs).flatten(0, 1)
    torch.testing.assert_close(together, whole.probs, rtol=0, atol=1e-6)


def check_files():
    ddp, path = DistributedDataParallel(make()), f"{FOLDER}/parallel.safetensors"
    train(ddp, [part(data(), dist.get_rank())], torch.optim.SGD(ddp.parameters(), 0.1))
    if dist.get_rank() == 0:
        bensemble.save(ddp, path)
    dist.barrier()
    plain = bensemble.load(path, Mixed())
    again = DistributedDataParallel(make(seed=1))
    bensemble.load(path, again)
    for loaded in (plain, again):
        assert torch.equal(flat(loaded.parameters()), flat(ddp.parameters()))
        assert torch.equal(bensemble.kl_divergence(loaded), bensemble.kl_divergence(ddp))
    wrapped = DistributedDataParallel(Mixed())
    with pytest.raises(
        bensemble.CheckpointError, match=r"'head\.weight' is deterministic and wrapped; load into the pla"
    ):
        bensemble.load(path, wrapped)


def check_state_dict_helpers():
    options = StateDictOptions(full_state_dict=True)
    ddp, again = DistributedDataParallel(make()), DistributedDataParallel(make(seed=1, pruned=False))
    optimizer, other = (torch.optim.Adam(bensemble.param_groups(model, 1e-2, rho_lr=1e-1)) for model in (ddp, again))
    batches = [part(data(seed=i), dist.get_rank()) for i in range(4)]
    train(ddp.eval(), batches[:2], optimizer)
    # Into the module itself, because the helper does not know how DDP would call the masks that are new to it.
    set_model_state_dict(again.module, get_model_state_dict(ddp, options=options), options=options)
    state = copy.deepcopy(get_optimizer_state_dict(ddp, optimizer, options=options))
    set_optimizer_state_dict(again, other, optim_state_dict=state, options=options)
    train(ddp.eval(), batches[2:], optimizer)
    train(again.eval(), batches[2:], other)
    assert torch.equal(flat(again.parameters()), flat(ddp.parameters()))
    assert agree(flat(again.parameters()))


class Branches(nn.Module):
    """A layer for inputs that do not occur here, with a norm of its own."""

    def __init__(self):
        super().__init__()
        self.used, self.unused, self.norm = nn.Linear(3, 3), nn.Linear(3, 3), nn.LayerNorm(3)

    def forward(self, x):
        return self.used(x) if x.mean() < 100 else self.norm(self.unused(x))


class WithKL(nn.Module):
    """The network and its KL in one forward: then the wrapper knows that the KL reaches every posterior."""

    def __init__(self, bnn):
        super().__init__()
        self.bnn = bnn

    def forward(self, x):
        return self.bnn(x), bensemble.kl_divergence(self.bnn)


def check_layers_without_a_gradient():
    x = part(data(), dist.get_rank())[0][:, :, 0]
    ends = [
        ends_of(x, static_graph=True),
        ends_of(x, static_graph=True, inside=True),
        ends_of(x, find_unused_parameters=True, inside=True),
        ends_of(x, find_unused_parameters=True, inside=True, accumulated=2),
    ]
    for end in ends[1:]:
        torch.testing.assert_close(end, ends[0], rtol=0, atol=1e-6)


def ends_of(x, inside=False, accumulated=1, **options):
    """Where four steps lead, which are the same steps whatever the arguments."""
    torch.manual_seed(0)
    bnn = bayesify(Branches(), prior="normal").eval()
    start = bnn.unused.w_mu.detach().clone()
    ddp = DistributedDataParallel(WithKL(bnn) if inside else bnn, **options)
    optimizer = torch.optim.SGD(ddp.parameters(), 0.1)
    for _ in range(4):
        for share, last in zip(x.chunk(accumulated), [*[False] * (accumulated - 1), True], strict=True):
            with contextlib.nullcontext() if last else ddp.no_sync():
                y, kl = ddp(share) if inside else (ddp(share), bensemble.kl_divergence(ddp))
                (bensemble.elbo_loss(y.square().mean(), kl, num_data=10) / accumulated).backward()
        optimizer.step()
        optimizer.zero_grad()
    assert not torch.equal(bnn.unused.w_mu, start)  # the prior pulls at it
    assert agree(flat(ddp.parameters()))
    return flat(bnn.parameters())


def check_equal_random_states_are_noticed_once():
    torch.manual_seed(0)
    bnn = make().train()
    _tries_left.clear()
    for key in range(2):
        dist.distributed_c10d._get_default_store().delete_key(f"bensemble/random_state/{key}")
    dist.barrier()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        if dist.get_rank() == 0:
            bensemble.kl_divergence(bnn)  # on its own, and nobody waits
        dist.barrier()
        for _ in range(3):
            bensemble.kl_divergence(bnn)
            dist.barrier()
    messages = [str(warning.message) for warning in caught]
    assert len(messages) == 1, messages
    assert "all 2 processes have the same random state" in messages[0]


def check_scores_are_refused():
    ddp = DistributedDataParallel(make())
    with pytest.raises(bensemble.InvalidValueError, match=r"prune_scores: the model must be in one process, got Distr"):
        prune_scores(ddp, [data()], likelihood="categorical")


if __name__ == "__main__":
    run(checks_of(__name__))
