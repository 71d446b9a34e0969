"""Channels that go together: what the graph finds, and that compaction removes what is pruned by it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import bensemble
from bensemble.errors import ConversionError, InvalidValueError
from convert import bayesify, channel_groups, compact, compaction_report, to_deterministic

from .masking import shift_norms
from .networks import NETWORKS, Classifier, Encoder, Residual, SelfAttention

IMAGES, TOKENS = torch.randn(2, 3, 12, 12), torch.randint(0, 50, (2, 6))


def parameters(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def uncertain(model: nn.Module, inputs: Tensor, **options) -> nn.Module:
    """A posterior whose signal-to-noise ratios differ from channel to channel."""
    shift_norms(model.eval(), torch.Generator().manual_seed(1))
    bnn = bayesify(model, example_inputs=inputs, **options)
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for _, posterior in bensemble.named_posteriors(bnn):
            posterior.rho.add_(torch.rand(posterior.rho.shape, generator=generator))
    return bnn


def encoder(kind: str = "torch", **options) -> nn.Module:
    if kind == "own":
        return Encoder(nn.Sequential(SelfAttention(), SelfAttention()))
    layer = nn.TransformerEncoderLayer(16, 4, 64, batch_first=True, dropout=0.0, **options)
    return Encoder(nn.TransformerEncoder(layer, 2, enable_nested_tensor=False))


@torch.no_grad()
def assert_same(small: nn.Module, model: nn.Module, inputs: Tensor) -> None:
    """Within 1e-5 of the largest output."""
    expected = model(inputs)
    assert float((small(inputs) - expected).abs().max()) <= 1e-5 * float(expected.abs().max())


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


# -- what is refused


def test_groups_of_another_model_are_refused():
    groups = channel_groups(uncertain(Classifier(nn.Sequential(Residual())), IMAGES), IMAGES)
    other = bayesify(nn.Sequential(nn.Linear(3, 3)))
    with pytest.raises(InvalidValueError, match=r"granularity names 'stem\.0\.weight', which has no posterior"):
        bensemble.prune(other, sparsity=0.5, granularity=groups)
    wider = Classifier(nn.Sequential(Residual()))
    wider.stem[0] = nn.Conv2d(3, 32, 3)
    with pytest.raises(
        InvalidValueError,
        match=r"'stem\.0\.weight' have shape \(16, 1, 1, 1\), got a weight of shape \(32, 3, 3, 3\)",
    ):
        bensemble.prune(bayesify(wider), sparsity=0.5, granularity=groups)


class Branching(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(3, 4), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.one(x)
        return self.two(hidden if hidden.sum() > 0 else -hidden)


def test_what_cannot_be_found_is_said():
    x = torch.randn(2, 3)
    with pytest.raises(ConversionError, match=r"Branching cannot be traced, got torch\.fx .*torch\.export"):
        channel_groups(bayesify(Branching(), example_inputs=x), x)
    with pytest.raises(ConversionError, match="Linear has no Bayesian layers"):
        channel_groups(nn.Linear(3, 2), x)
    with pytest.raises(InvalidValueError, match="channel_groups: the model rejects example_inputs"):
        channel_groups(bayesify(nn.Sequential(nn.Linear(3, 2))), torch.randn(2, 4))


def halving(module, args, output):
    return output * 0.5


def adding(module, args):
    return (args[0] + 1,)


@pytest.mark.parametrize(
    ("register", "name"),
    [
        (lambda model: model[0].register_forward_hook(halving), "'0'"),
        (lambda model: model[1].register_forward_hook(halving), "'1'"),
        (lambda model: model[2].register_forward_pre_hook(adding), "'2'"),
        (lambda model: model.register_forward_hook(halving), "the model itself"),
    ],
    ids=["layer", "container", "before", "root"],
)
def test_hooks_that_change_outputs_are_named(register, name):
    model = nn.Sequential(nn.Linear(5, 10), nn.Sequential(nn.Linear(10, 10), nn.ReLU()), nn.Linear(10, 3)).eval()
    register(model)
    x, message = torch.randn(4, 5), f"without the hooks of {name}; put what they do into a forward"
    with pytest.raises(ConversionError, match=message):
        channel_groups(bayesify(model), x)
    assert message in compaction_report(model, x).notes[0]


class Positions(nn.Module):
    """Tables of positions, cut to the size of the input, as DETR's demo has them."""

    def __init__(self, cut):
        super().__init__()
        self.read, self.write, self.cut = nn.Linear(4, 8), nn.Linear(8, 2), cut
        self.table = nn.Parameter(torch.rand(20, 8))

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.read(x)
        return self.write(torch.relu(hidden + self.cut(self.table, hidden.shape[1])).mean(1))


CUTS = {
    "index": lambda table, size: table[:size],
    "transposed": lambda table, size: table.T[:, :size].T,
    "last": lambda table, size: table[-size:],
    "narrow": lambda table, size: table.narrow(0, 0, size),
    "in steps": lambda table, size: table[: 2 * size : 2],
}


@pytest.mark.parametrize("kind", CUTS)
def test_a_table_cut_to_the_size_of_the_input_is_followed(kind):
    model, x = Positions(CUTS[kind]).eval(), torch.randn(2, 7, 4)
    bnn = uncertain(model, x, include=["read", "table", "write"])
    groups = channel_groups(bnn, x)
    assert not groups.notes
    pruned = to_deterministic(bnn, sparsity=0.5, granularity=groups)
    small = compact(pruned, x)
    assert parameters(small) < parameters(pruned)
    for length in (7, 5, 9):
        assert_same(small, pruned, torch.randn(3, length, 4))


class Cut(nn.Module):
    """Channels taken by an index of a computed size."""

    def __init__(self, cut):
        super().__init__()
        self.read, self.write, self.cut = nn.Linear(5, 12), nn.Linear(6, 2), cut

    def forward(self, x: Tensor) -> Tensor:
        return self.write(self.cut(torch.relu(self.read(x))))


@pytest.mark.parametrize(
    "cut", [lambda h: h[:, : h.shape[1] // 2] * h[:, h.shape[1] // 2 :], lambda h: h[:, :: h.shape[1] // 6]]
)
def test_channels_cut_to_a_computed_size_stay_right(cut):
    model, x = Cut(cut).eval(), torch.randn(3, 5)
    with torch.no_grad():
        model.read.weight[:4], model.read.bias[:4] = 0, 0
    assert_same(compact(model, x), model, torch.randn(7, 5))
    channel_groups(bayesify(model), x)


# -- in full size

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
