"""What training loops of one process do around the step: each works on a Bayesian model as on any other."""

import copy
import functools

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn, update_bn
from torch.utils.checkpoint import checkpoint

import bensemble
from convert import bayesify

X = torch.randn(32, 2, 6, 6, generator=torch.Generator().manual_seed(0))
Y = (X[:, 0].mean((1, 2)) > 0).long()


class Net(nn.Module):
    def __init__(self, norm=True):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(2, 6, 3), nn.BatchNorm2d(6) if norm else nn.Identity()
        self.attention, self.head = nn.MultiheadAttention(6, 2, batch_first=True), nn.Linear(6, 2)

    def forward(self, x):
        x = F.relu(self.norm(self.conv(x))).flatten(2).mT
        return self.head(self.attention(x, x, x, need_weights=False)[0].mean(1))


def make(norm=True):
    torch.manual_seed(0)
    return bayesify(Net(norm), prior="normal").train()


def loss_of(bnn, x=X, y=Y):
    return bensemble.elbo_loss(F.cross_entropy(bnn(x), y), bensemble.kl_divergence(bnn), num_data=1000)


def gradients(bnn):
    return [parameter.grad.clone() for parameter in bnn.parameters()]


def train(bnn, optimizer, steps=5):
    torch.manual_seed(1)
    for _ in range(steps):
        optimizer.zero_grad()
        loss_of(bnn).backward()
        optimizer.step()
    return [parameter.detach() for parameter in bnn.parameters()]


def test_accumulated_batches_give_the_gradient_of_one():
    bnn = make(norm=False).eval()
    loss_of(bnn).backward()
    whole = gradients(bnn)
    bnn.zero_grad()
    for x, y in zip(X.chunk(4), Y.chunk(4), strict=True):
        (loss_of(bnn, x, y) / 4).backward()
    torch.testing.assert_close(gradients(bnn), whole, rtol=1e-4, atol=1e-6)


def test_a_checkpointed_part_runs_again_with_the_noise_of_its_first_run():
    bnn = make(norm=False)
    torch.manual_seed(1)
    loss_of(bnn).backward()
    plain = gradients(bnn)
    forward, bnn.forward = bnn.forward, lambda x: checkpoint(forward, x, use_reentrant=False)
    bnn.zero_grad()
    torch.manual_seed(1)
    loss_of(bnn).backward()
    torch.testing.assert_close(gradients(bnn), plain)


def test_clipping_sees_the_gradient_of_the_kl():
    bnn = make()
    (1e4 * bensemble.kl_divergence(bnn)).backward()
    before = torch.nn.utils.clip_grad_norm_(bnn.parameters(), 1.0)
    assert before > 1e3
    norms = [p.grad.norm() for p in bnn.parameters() if p.grad is not None]
    torch.testing.assert_close(torch.stack(norms).norm(), torch.tensor(1.0))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_with_a_scaler_learns(dtype):
    bnn = make()
    optimizer, scaler = torch.optim.Adam(bensemble.param_groups(bnn, lr=1e-2)), torch.amp.GradScaler("cpu", 2.0**10)
    before, losses = [p.detach().clone() for p in bnn.parameters()], []
    for _ in range(40):
        with torch.autocast("cpu", dtype):
            loss = loss_of(bnn)
        assert loss.dtype == torch.float32
        optimizer.zero_grad()
        scaler.scale(loss).backward()
        scaler.unscale_(optimizer)
        torch.nn.utils.clip_grad_norm_(bnn.parameters(), 10.0, error_if_nonfinite=True)
        scaler.step(optimizer)
        scaler.update()
        losses.append(float(loss.detach()))
    assert sum(losses[-5:]) < 0.8 * sum(losses[:5])
    assert all(not torch.equal(p, old) for p, old in zip(bnn.parameters(), before, strict=True))
    assert all(p.rho.dtype == torch.float32 for _, p in bensemble.named_posteriors(bnn))


@pytest.mark.parametrize("kind", [{"fused": True}, {"foreach": True}])
@pytest.mark.parametrize("rule", [functools.partial(torch.optim.AdamW, eps=1e-3), torch.optim.SGD])
def test_fused_and_foreach_optimizers_do_the_same_steps(rule, kind):
    ends = []  # with a small eps Adam makes steps of the rounding errors of gradients that are 0
    for options in (kind, {"foreach": False}):
        bnn = make()
        ends.append(train(bnn, rule(bensemble.param_groups(bnn, lr=1e-2, weight_decay=0.1), **options)))
    torch.testing.assert_close(*ends, rtol=1e-4, atol=1e-6)


def test_lbfgs_minimises_one_sample_of_the_bound():
    """Its line search needs one function for all evaluations of a step: a sample that is held."""
    bnn = make(norm=False)
    optimizer = torch.optim.LBFGS(bnn.parameters(), max_iter=30, line_search_fn="strong_wolfe")
    with bensemble.sampling(bnn, torch.Generator().manual_seed(0)):
        before = float(loss_of(bnn).detach())

        def closure():
            optimizer.zero_grad()
            loss = loss_of(bnn)
            loss.backward()
            return loss

        optimizer.step(closure)
        assert float(loss_of(bnn).detach()) < 0.7 * before


@pytest.mark.parametrize("average", [None, get_ema_multi_avg_fn(0.5)], ids=["swa", "ema"])
def test_averages_keep_masks_and_get_their_norms_anew(average):
    bnn = make()
    bensemble.prune(bnn, sparsity=0.5)
    averaged = AveragedModel(bnn, multi_avg_fn=average)
    optimizer = torch.optim.Adam(bnn.parameters(), lr=1e-2)
    ends = []
    for _ in range(3):
        train(bnn, optimizer)
        averaged.update_parameters(bnn)
        ends.append(bnn.head.w_rho.detach().clone())
    expected = sum(ends) / 3 if average is None else (ends[0] + ends[1]) / 4 + ends[2] / 2
    torch.testing.assert_close(averaged.module.head.w_rho, expected)
    assert torch.equal(averaged.module.conv.w_mask, bnn.conv.w_mask)
    assert bool((averaged.module.conv.w_mu[averaged.module.conv.w_mask == 0] == 0).all())
    statistics = copy.deepcopy(averaged.module.norm.running_mean)
    update_bn([X], averaged)
    assert not torch.allclose(averaged.module.norm.running_mean, statistics)
    assert bool(bensemble.kl_divergence(averaged).isfinite())


def test_deterministic_algorithms_are_enough_for_a_repeat():
    torch.use_deterministic_algorithms(True)
    try:
        ends = []
        for _ in range(2):
            bnn = make()
            ends.append(train(bnn, torch.optim.Adam(bnn.parameters(), lr=1e-2)))
    finally:
        torch.use_deterministic_algorithms(False)
    assert all(torch.equal(one, other) for one, other in zip(*ends, strict=True))
