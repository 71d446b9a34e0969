"""Channels that go together: which they are, that they go, and that nothing else changes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import bensemble
from convert import channel_groups, compact, to_deterministic

from .networks import NETWORKS, Classifier, Encoder, Residual, SelfAttention
from .uncertain import IMAGES, TOKENS, assert_same, parameters, uncertain


def encoder(kind: str = "torch", **options) -> nn.Module:
    if kind == "own":
        return Encoder(nn.Sequential(SelfAttention(), SelfAttention()))
    layer = nn.TransformerEncoderLayer(16, 4, 64, batch_first=True, dropout=0.0, **options)
    return Encoder(nn.TransformerEncoder(layer, 2, enable_nested_tensor=False))


#: Most of the parameters that may be left with half of the channels of every layer; in so small networks the constant
#: channels count that zero padding needs, for a grouped convolution a whole group.
LEFT = {"residual": 0.36, "squeeze_excite": 0.36, "dense": 0.35, "inception": 0.4, "shuffle": 0.7}


@pytest.mark.parametrize("name", NETWORKS)
def test_half_of_every_layer_goes_and_compaction_removes_it(name):
    bnn = uncertain(NETWORKS[name](), IMAGES)
    groups = channel_groups(bnn, IMAGES)
    pruned = to_deterministic(bnn, sparsity={"*": 0.5}, granularity=groups)
    small = compact(pruned, IMAGES)
    assert_same(small, pruned, torch.randn(3, 3, 17, 15))
    assert parameters(small) < LEFT[name] * parameters(pruned)


@pytest.mark.parametrize("kind", ["torch", "own"])
@pytest.mark.slow
def test_half_of_the_heads_and_neurons_go(kind):
    bnn = uncertain(encoder(kind), TOKENS)
    groups = channel_groups(bnn, TOKENS)
    assert sorted(len(group) for group in groups.families().values()) == [4, 4, 64, 64]
    pruned = to_deterministic(bnn, sparsity={"*": 0.5}, granularity=groups)
    small = compact(pruned, TOKENS)
    assert_same(small, pruned, torch.randint(0, 50, (3, 5)))
    blocks = [sum(p.numel() for name, p in m.named_parameters() if "blocks" in name) for m in (small, pruned)]
    assert blocks[0] < 0.6 * blocks[1]


def test_channels_that_are_added_go_together():
    bnn = uncertain(Classifier(nn.Sequential(Residual(), Residual())), IMAGES)
    groups = channel_groups(bnn, IMAGES)
    stage = ("stem.0.weight", "body.0.second.0.weight", "body.1.second.0.weight")
    assert {names: len(found) for names, found in groups.families().items()} == {
        stage: 16,
        ("body.0.first.0.weight",): 16,
        ("body.1.first.0.weight",): 16,
    }
    assert not groups.read
    assert str(groups).splitlines() == [
        "48 groups of channels",
        "     16 of stem.0.weight, body.0.second.0.weight, body.1.second.0.weight",
        "     16 of body.0.first.0.weight",
        "     16 of body.1.first.0.weight",
    ]
    bensemble.prune(bnn, sparsity=0.5, granularity=groups)
    alive = [p.mask.flatten(1).any(1) for name, p in bensemble.named_posteriors(bnn) if name in stage]
    assert 0 < alive[0].sum() < 16
    assert all(torch.equal(mask, alive[0]) for mask in alive)


def test_the_ratio_of_a_group_is_that_of_all_its_weights():
    bnn = uncertain(Classifier(nn.Sequential(Residual())), IMAGES)
    groups = channel_groups(bnn, IMAGES)
    scores, sizes = groups.scores(bnn)
    posteriors = dict(bensemble.named_posteriors(bnn))
    stage = [posteriors[name] for name in ("stem.0.weight", "body.0.second.0.weight")]
    for channel in range(16):
        signal = sum(float(p.mu[channel].detach().double().square().sum()) for p in stage)
        noise = sum(float(p.sigma()[channel].detach().double().square().sum()) for p in stage)
        group = int(groups.made["stem.0.weight"].reshape(-1)[channel])
        assert scores[group] == pytest.approx((signal / noise) ** 0.5)
        assert sizes[group] == 3 * 9 + 16 * 9


@pytest.mark.parametrize("criterion", [{"threshold": 1e9}, {"sparsity": 0.999}])
def test_the_best_of_every_layer_stays(criterion):
    bnn = uncertain(Classifier(nn.Sequential(Residual())), IMAGES)
    groups = channel_groups(bnn, IMAGES)
    best = {names: group[groups.scores(bnn)[0][group].argmax()] for names, group in groups.families().items()}
    masks = bensemble.pruning_masks(bnn, granularity=groups, **criterion)
    for names, group in best.items():
        for name in names:
            assert torch.equal(masks[name].flatten(1).any(1), groups.made[name].reshape(-1) == group)


class MaskedAttention(SelfAttention):
    """Tokens see those before them: a constant value of a head is then not known to be one."""

    def forward(self, x: Tensor) -> Tensor:
        batch, length, width = x.shape
        parts = self.together(self.norm(x)).reshape(batch, length, 3, self.heads, width // self.heads)
        query, key, value = parts.permute(2, 0, 3, 1, 4).unbind(0)
        before = torch.ones(length, length, dtype=torch.bool, device=x.device).tril()
        mixed = nn.functional.scaled_dot_product_attention(query, key, value, attn_mask=before)
        x = x + self.proj(mixed.transpose(1, 2).reshape(batch, length, -1))
        return x + self.down(torch.relu(self.up(self.norm(x))))


def test_what_reads_a_head_is_pruned_with_it_where_a_bias_would_stay():
    bnn = uncertain(Encoder(MaskedAttention()), TOKENS)
    groups = channel_groups(bnn, TOKENS)
    assert list(groups.read) == ["blocks.proj.weight"]
    pruned = to_deterministic(bnn, sparsity={"blocks.together": 0.5}, granularity=groups)
    assert (pruned.blocks.proj.weight == 0).all(0).sum() == 8
    small = compact(pruned, TOKENS)
    assert small.get_parameter("blocks.proj.weight").shape == (16, 8)
    assert_same(small, pruned, TOKENS)


def test_what_reads_a_channel_is_pruned_where_a_frozen_layer_helps_to_make_it():
    bnn = uncertain(Classifier(nn.Sequential(Residual())), IMAGES, exclude="stem")
    groups = channel_groups(bnn, IMAGES)
    assert set(groups.read) == {"body.0.first.0.weight", "head.weight"}
    pruned = to_deterministic(bnn, sparsity={"body.0.second": 0.5}, granularity=groups)
    small = compact(pruned, IMAGES)
    assert_same(small, pruned, torch.randn(3, 3, 17, 15))
    assert small.stem[0].weight.shape[0] == 8


def test_channels_that_a_frozen_layer_reads_and_makes_stay():
    bnn = uncertain(Classifier(nn.Sequential(Residual())), IMAGES, exclude=["stem", "head"])
    assert list(channel_groups(bnn, IMAGES).families()) == [("body.0.first.0.weight",)]


@pytest.mark.parametrize("groups", [2, 8])
def test_groups_of_a_convolution_go_whole_or_evenly(groups):
    model = nn.Sequential(
        *(nn.Conv2d(3, 16, 1, bias=False), nn.ReLU(), nn.Conv2d(16, 16, 3, groups=groups, bias=False), nn.ReLU()),
        *(nn.ConvTranspose2d(16, 16, 2, groups=groups), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 5)),
    )  # without biases no channel is a constant other than zero
    bnn = uncertain(model, IMAGES)
    pruned = to_deterministic(bnn, sparsity={"*": 0.5}, granularity=channel_groups(bnn, IMAGES))
    small = compact(pruned, IMAGES)
    assert_same(small, pruned, torch.randn(3, 3, 9, 9))
    within = 4 if groups == 2 else 2
    assert [tuple(small[k].weight.shape[:2]) for k in (0, 2, 4)] == [(8, 3), (8, within), (8, within)]


def test_nothing_is_disturbed():
    bnn = uncertain(Classifier(nn.Sequential(Residual())), IMAGES).train()
    before = {name: tensor.clone() for name, tensor in bnn.state_dict().items()}
    state = torch.get_rng_state()
    channel_groups(bnn, IMAGES)
    assert torch.equal(torch.get_rng_state(), state)
    assert bnn.training
    assert all(torch.equal(tensor, before[name]) for name, tensor in bnn.state_dict().items())


def test_masks_by_groups_survive_training_and_the_way_back():
    bnn = uncertain(Classifier(nn.Sequential(Residual())), IMAGES)
    bensemble.prune(bnn, sparsity=0.5, granularity=channel_groups(bnn, IMAGES))
    optimizer = torch.optim.Adam(bensemble.param_groups(bnn.train(), lr=1e-2))
    for _ in range(3):
        loss = bnn(IMAGES).square().mean() + bensemble.kl_divergence(bnn) / 100
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    plain = to_deterministic(bnn.eval())
    assert_same(compact(plain, IMAGES), plain, IMAGES)
    assert parameters(compact(plain, IMAGES)) < 0.5 * parameters(plain)


#: Where `make test` installs torchvision and timm, and transformers.
INSTALLED = [Path(sys.prefix) / "zoo", Path(sys.prefix) / "trainers"]


@pytest.mark.slow
@pytest.mark.libraries
def test_real_architectures_shrink():
    if not all(folder.is_dir() for folder in INSTALLED):
        pytest.skip(f"{' or '.join(map(str, INSTALLED))} does not exist; `make test` makes both")
    root = Path(__file__).parents[2]
    names = ["mobilenet_v2", "densenet121", "vit_tiny_patch16_224", "gpt2"]
    command = [sys.executable, "-m", "tests.graph.sweep", *names, "--mask", "posterior 50 %"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, [root, *INSTALLED])), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, cwd=root, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("posterior 50 %") == len(names)
