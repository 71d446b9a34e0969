"""FSDP2 on two processes; run by test_processes.py under torchrun, with a folder as argument."""

import copy
import sys

import pytest
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor

import bensemble
from convert import to_deterministic

from .networks import Mixed, all_priors, data, make, part, train
from .processes import agree, checks_of, flat, gathered, run

FOLDER = sys.argv[-1]
MESHES = {}


def shard(model, replicated=False, **options):
    """Its larger children first, then the rest."""
    if replicated not in MESHES:
        shape = (dist.get_world_size(), 1) if replicated else (dist.get_world_size(),)
        names = ("replicate", "shard") if replicated else ("shard",)
        MESHES[replicated] = dist.device_mesh.init_device_mesh("cpu", shape, mesh_dim_names=names)
    for name, child in model.named_children():
        if name in ("conv", "attention", "gru"):
            fully_shard(child, mesh=MESHES[replicated], **options)
    return fully_shard(model, mesh=MESHES[replicated], **options)


def check_the_kl_is_one_plain_scalar():
    for replicated in (False, True):
        alone, sharded = make(prior=all_priors), shard(make(prior=all_priors), replicated)
        expected, found = bensemble.kl_divergence(alone), bensemble.kl_divergence(sharded)
        assert type(found) is torch.Tensor
        assert found.shape == ()
        assert agree(found)
        torch.testing.assert_close(found, expected, rtol=1e-6, atol=0)
        torch.testing.assert_close(sharded.conv.kl_divergence(), alone.conv.kl_divergence(), rtol=1e-6, atol=0)
        expected.backward()
        found.backward()
        for (name, wanted), got in zip(alone.named_parameters(), sharded.parameters(), strict=True):
            if wanted.grad is None:
                assert got.grad is None, name
            else:
                torch.testing.assert_close(got.grad.full_tensor(), wanted.grad, rtol=1e-5, atol=1e-6, msg=name)


def check_every_process_has_a_gradient_for_its_part_however_small():
    sharded = shard(make(pruned=False))
    bensemble.kl_divergence(sharded).backward()
    for name, posterior in bensemble.named_posteriors(sharded):
        assert isinstance(posterior.rho.grad, DTensor), name
    torch.nn.utils.clip_grad_norm_(sharded.parameters(), 1.0)


def check_noise_differs_and_parameters_stay_whole():
    sharded = shard(make()).train()
    assert not agree(sharded(data()[0]))
    train(
        sharded, [part(data(seed=i), dist.get_rank()) for i in range(5)], torch.optim.Adam(sharded.parameters(), 1e-2)
    )
    assert agree(bensemble.kl_divergence(sharded))
    path = f"{FOLDER}/sharded.safetensors"
    bensemble.save(sharded, path)
    alone = bensemble.load(path, Mixed())
    torch.testing.assert_close(bensemble.kl_divergence(sharded), bensemble.kl_divergence(alone), rtol=1e-6, atol=0)
    assert torch.equal(flat(sharded.parameters()), flat(alone.parameters()))
    torch.testing.assert_close(sharded.eval()(data()[0]), alone.eval()(data()[0]))


def check_a_sample_with_one_seed_is_that_of_one_process():
    for estimator in ("local", "weights"):
        alone, sharded, x = make(estimator=estimator).train(), shard(make(estimator=estimator)).train(), data()[0]
        with bensemble.sampling(alone, torch.Generator().manual_seed(3)):
            expected = alone(x)
        with bensemble.sampling(sharded, torch.Generator().manual_seed(3)):
            found = sharded(x)
            assert torch.equal(sharded(x), found)
        torch.testing.assert_close(found, expected)
        assert agree(found)
        with bensemble.sampling(sharded):
            assert not agree(sharded(x))


def check_a_sample_follows_the_weights():
    sharded, x = shard(make()).eval(), data()[0]
    with bensemble.sampling(sharded, torch.Generator().manual_seed(3)), torch.no_grad():
        before = sharded(x)
        for parameter in sharded.parameters():
            parameter.mul_(1.5)
        assert not torch.allclose(sharded(x), before)


def check_prediction_is_sharded_over_data():
    alone, sharded, x = make(), shard(make()), data()[0]
    options = {"likelihood": "categorical", "num_samples": 5}
    expected = bensemble.predict(alone, x, generator=torch.Generator().manual_seed(1), **options)
    mine = bensemble.predict(
        sharded, x.chunk(2)[dist.get_rank()], generator=torch.Generator().manual_seed(1), **options
    )
    torch.testing.assert_close(gathered(mine.probs).flatten(0, 1), expected.probs, rtol=0, atol=1e-6)


def check_masks_and_priors():
    alone, sharded = make(pruned=False), shard(make(pruned=False))
    for model in (alone, sharded):
        bensemble.prune(model, sparsity=0.5)
        bensemble.set_prior(model, "empirical")
    batches = [data(seed=i) for i in range(3)]
    train(alone.eval(), batches, torch.optim.SGD(alone.parameters(), 0.1, momentum=0.9))
    train(sharded.eval(), batches, torch.optim.SGD(sharded.parameters(), 0.1, momentum=0.9))
    pairs = zip(bensemble.named_posteriors(alone), bensemble.named_posteriors(sharded), strict=True)
    for (name, wanted), (_, got) in pairs:
        if wanted.mask is not None:
            assert torch.equal(got.mask, wanted.mask), name
            assert agree(got.mask), name
        torch.testing.assert_close(got.mean(), wanted.mean(), rtol=1e-5, atol=1e-6, msg=name)
        torch.testing.assert_close(got.snr(), wanted.snr(), rtol=1e-5, atol=1e-6, msg=name)
    found, expected = bensemble.posterior_summary(sharded), bensemble.posterior_summary(alone)
    assert found == pytest.approx(expected, rel=1e-5)
    bensemble.set_prior(sharded, "pretrained")
    assert float(bensemble.kl_divergence(sharded).detach().abs()) < 1e-3
    bensemble.clear_masks(sharded)
    assert all(p.mask is None for _, p in bensemble.named_posteriors(sharded))


def check_posteriors_from_elsewhere():
    sharded = shard(make())
    bensemble.set_posterior(
        sharded, {"head.weight": 0.25, "conv.bias": torch.full((6,), 0.5)}, {"head.bias": torch.ones(3)}
    )
    posteriors = dict(bensemble.named_posteriors(sharded))
    torch.testing.assert_close(posteriors["head.weight"].sigma(), torch.full((3, 5), 0.25))
    torch.testing.assert_close(posteriors["conv.bias"].sigma(), torch.full((6,), 0.5))
    assert torch.equal(posteriors["head.bias"].mean(), torch.ones(3))


def check_a_published_mark_of_pruning_becomes_a_mask():
    sharded, options = shard(make(pruned=False)), StateDictOptions(full_state_dict=True)
    state = get_model_state_dict(sharded, options=options)
    state["head.w_rho"] = state["head.w_rho"].clone()
    state["head.w_rho"][1] = -1e8
    set_model_state_dict(sharded, state, options=options)
    assert torch.equal(sharded.head.w_mask, torch.tensor([1.0, 0.0, 1.0])[:, None].expand(3, 5))
    assert float(sharded.head.w_mu.full_tensor()[1].abs().sum().detach()) == 0
    assert bool(bensemble.kl_divergence(sharded).isfinite())


def check_files():
    path = f"{FOLDER}/masks.safetensors"
    sharded, again = shard(make()), shard(make(seed=1, pruned=False, prior="ard"))
    bensemble.save(sharded, path)
    alone = bensemble.load(path, Mixed())
    bensemble.load(path, again)
    for loaded in (alone, again):
        assert torch.equal(flat(loaded.parameters()), flat(sharded.parameters()))
        torch.testing.assert_close(bensemble.kl_divergence(loaded), bensemble.kl_divergence(sharded), rtol=1e-6, atol=0)
    late = shard(Mixed())
    with pytest.raises(bensemble.CheckpointError, match=r"'conv\.bias' is deterministic and sharded; load into the p"):
        bensemble.load(path, late)
    first = dist.get_rank() == 0
    words = "folder '.*/nowhere' does not exist" if first else "save: the process that does it for all has failed"
    with pytest.raises(bensemble.BensembleError, match=words):
        bensemble.save(sharded, f"{FOLDER}/nowhere/file.safetensors")


def check_state_dict_helpers():
    batches = [part(data(seed=i), dist.get_rank()) for i in range(4)]
    for whole in (True, False):
        options = StateDictOptions(full_state_dict=whole)
        sharded, again = shard(make()), shard(make(seed=1))
        optimizer, other = (
            torch.optim.Adam(bensemble.param_groups(model, 1e-2, rho_lr=1e-1)) for model in (sharded, again)
        )
        train(sharded.eval(), batches[:2], optimizer)
        state = copy.deepcopy(
            {
                "model": get_model_state_dict(sharded, options=options),
                "optimizer": get_optimizer_state_dict(sharded, optimizer, options=options),
            }
        )
        if not whole:  # through files that all processes write together
            folder = f"{FOLDER}/dcp"
            dcp.save(state, checkpoint_id=folder)
            state = {"model": get_model_state_dict(again), "optimizer": get_optimizer_state_dict(again, other)}
            dcp.load(state, checkpoint_id=folder)
        set_model_state_dict(again, state["model"], options=options)
        set_optimizer_state_dict(again, other, optim_state_dict=state["optimizer"], options=options)
        train(sharded.eval(), batches[2:], optimizer)
        train(again.eval(), batches[2:], other)
        assert torch.equal(flat(again.parameters()), flat(sharded.parameters()))


def check_bf16_computes_with_float32_posteriors():
    policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16)
    sharded = shard(make(), mp_policy=policy).train()
    batches = [part(data(seed=i % 3), dist.get_rank()) for i in range(30)]
    losses = train(sharded, batches, torch.optim.Adam(bensemble.param_groups(sharded, 1e-2)))
    assert sum(losses[-5:]) < sum(losses[:5])
    assert all(parameter.dtype == torch.float32 for parameter in sharded.parameters())
    assert agree(bensemble.kl_divergence(sharded))


def check_what_is_refused():
    sharded = shard(make())
    with pytest.raises(
        bensemble.InvalidValueError, match=r"fit_posterior: of a sharded model a last layer that is not"
    ):
        bensemble.fit_posterior(sharded, [data()], likelihood="categorical")
    with pytest.raises(bensemble.ConversionError, match=r"to_deterministic: the model is sharded, got FSDPMixed; bens"):
        to_deterministic(sharded)


if __name__ == "__main__":
    run(checks_of(__name__))
