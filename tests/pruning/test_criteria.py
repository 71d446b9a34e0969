"""Which weights and channels go: by ratio, by scores, by share, by pattern."""

import math

import pytest
import torch
from torch import nn

from bensemble.layers import BayesianLinear
from bensemble.objective import kl_divergence
from bensemble.posteriors import named_posteriors
from bensemble.pruning.masks import prune, pruning_masks
from convert import bayesify, to_deterministic

from .networks import net, snapshot

X = torch.randn(5, 3, 8, 8)


def weights(model):
    return {name: p for name, p in named_posteriors(model) if p.mu.ndim > 1}


def test_the_threshold_is_that_of_the_layers():
    bnn = net()
    before = snapshot(bnn)
    masks = pruning_masks(bnn, threshold=0.83)
    assert all(torch.equal(value, before[name]) for name, value in bnn.state_dict().items())
    assert masks.keys() == dict(named_posteriors(bnn)).keys()
    for name, posterior in named_posteriors(bnn):
        expected = posterior.layer.get_pruning_masks(0.83)[f"{posterior.stem}_mu"]
        assert torch.equal(masks[name], expected)
        assert expected.numel() - expected.sum() > 0 or expected.numel() < 10
    assert all(mask.min() == 1 for mask in pruning_masks(bnn, threshold=0.0).values())


@pytest.mark.parametrize("sparsity", [0.0, 0.1, 0.5, 0.9, 0.99])
def test_sparsity_takes_the_lowest_ratios_of_the_whole_model(sparsity):
    bnn = net()
    masks = pruning_masks(bnn, sparsity=sparsity)
    assert masks.keys() == weights(bnn).keys()
    total = sum(mask.numel() for mask in masks.values())
    pruned = round(sparsity * total)
    assert total - sum(float(mask.sum()) for mask in masks.values()) == pruned
    ratios = {name: p.snr().detach() for name, p in weights(bnn).items()}
    gone = [float(ratios[name][mask == 0].max()) for name, mask in masks.items() if (mask == 0).any()]
    kept = [float(ratios[name][mask == 1].min()) for name, mask in masks.items() if (mask == 1).any()]
    assert not gone or not kept or max(gone) <= min(kept)


def test_layers_may_have_shares_of_their_own_the_first_match_counts():
    bnn = net()
    masks = pruning_masks(bnn, sparsity={"2": 0.5, "7.weight": 0.0, "[07].*": 0.25})
    shares = {name: 1 - float(mask.mean()) for name, mask in masks.items()}
    assert shares == {"0.weight": 0.25, "2.weight": 0.5, "7.weight": 0.0}
    for name, posterior in weights(bnn).items():
        ratio, mask = posterior.snr().detach(), masks.get(name)
        assert mask is None or shares[name] == 0 or ratio[mask == 0].max() <= ratio[mask == 1].min()
    assert 1 - float(pruning_masks(bnn, sparsity={"[7]": 0.5})["7.weight"].mean()) == 0.5  # a pattern of modules
    everywhere = pruning_masks(bnn, sparsity={"*": 0.5})
    assert everywhere.keys() == weights(bnn).keys()
    assert all(mask.sum() == mask.numel() / 2 for mask in everywhere.values())


def test_channels_of_layers_may_have_shares_of_their_own():
    bnn = net()
    masks = pruning_masks(bnn, sparsity={"0": 0.5, "3": 0.34}, granularity="channel")
    dead = {name: int((p.layer.channel_rows(masks[name]).sum(1) == 0).sum()) for name, p in weights(bnn).items()}
    assert dead == {"0.weight": 4, "2.weight": 0, "3.weight": 2, "7.weight": 0}


def test_equal_ratios_are_pruned_to_the_asked_share():
    layer = BayesianLinear(10, 10)
    nn.init.ones_(layer.w_mu)
    nn.init.constant_(layer.w_rho, -3)
    assert pruning_masks(layer, sparsity=0.37)["weight"].sum() == 63


def channel_ratio(posterior):
    """By the definition, looping over the output channels of a plain forward."""
    layer, mu, sigma = posterior.layer, posterior.mu.detach(), posterior.sigma().detach()
    if not isinstance(layer, nn.ConvTranspose2d):
        return [(mu[c].norm() / sigma[c].norm(), [(c,)]) for c in range(len(mu))]
    per_group, inputs = layer.out_channels // layer.groups, layer.in_channels // layer.groups
    found = []
    for c in range(layer.out_channels):
        group, column = divmod(c, per_group)
        rows = slice(group * inputs, (group + 1) * inputs)
        found.append((mu[rows, column].norm() / sigma[rows, column].norm(), [(rows, column)]))
    return found


@pytest.mark.parametrize("criterion", [{"threshold": 3.0}, {"sparsity": 0.4}])
def test_channels_go_as_a_whole_by_their_ratio_and_the_best_of_a_layer_stays(criterion):
    bnn = net()
    masks = pruning_masks(bnn, granularity="channel", **criterion)
    kept, gone, removed = [], [], 0
    for name, posterior in weights(bnn).items():
        channels = channel_ratio(posterior)
        best = max(ratio for ratio, _ in channels)
        for ratio, places in channels:
            part = torch.cat([masks[name][place].flatten() for place in places])
            assert part.unique().numel() == 1
            if ratio == best:
                assert part[0] == 1
                continue
            (kept if part[0] else gone).append(float(ratio))
            removed += 0 if part[0] else part.numel()
    assert kept
    assert gone
    assert max(gone) < min(kept)
    if "threshold" in criterion:
        assert max(gone) <= 3 < min(kept)
    else:
        total = sum(mask.numel() for mask in masks.values())
        largest = max(p.mu.numel() // p.layer.channel_rows(p.mu).shape[0] for p in weights(bnn).values())
        assert 0.4 * total - largest < removed <= 0.4 * total


@pytest.mark.parametrize("criterion", [{"threshold": 3.0}, {"sparsity": 0.4}])
def test_a_pruned_channel_is_constant_in_the_output(criterion):
    bnn = bayesify(nn.ConvTranspose2d(4, 6, 3, groups=2))
    with torch.no_grad():
        bnn.w_mu.mul_(torch.rand(bnn.w_mu.shape[:2])[..., None, None])
    prune(bnn, granularity="channel", sparsity=0.4)
    output = to_deterministic(bnn)(torch.randn(2, 4, 5, 5))
    dead = bnn.channel_rows(bnn.w_mask).sum(1) == 0
    assert 0 < dead.sum() < 6
    assert torch.equal(output.flatten(2).std(2).amax(0) == 0, dead)


def magnitudes(bnn):
    return {name: p.mu.detach().abs() for name, p in weights(bnn).items()}


def test_given_scores_rank_instead_of_the_ratios():
    bnn = net()
    scores = magnitudes(bnn)
    flat = torch.cat([score.flatten() for score in scores.values()])
    limit = flat.kthvalue(round(0.6 * len(flat))).values
    masks = pruning_masks(bnn, sparsity=0.6, scores=scores)
    assert all(torch.equal(mask.bool(), scores[name] > limit) for name, mask in masks.items())
    above = pruning_masks(bnn, threshold=float(limit), scores=scores)
    assert all(torch.equal(above[name], mask) for name, mask in masks.items())
    one = pruning_masks(bnn, sparsity=0.5, scores={"7.weight": scores["7.weight"]})
    assert {name: int(mask.sum()) for name, mask in one.items()} == {"7.weight": 12}
    plain = to_deterministic(bnn, sparsity=0.6, scores=scores)
    assert torch.equal(plain[7].weight != 0, masks["7.weight"].bool())


def test_pruned_weights_are_the_first_to_go_by_given_scores():
    bnn = net()
    prune(bnn, sparsity=0.3)
    before = {name: p.mask.clone() for name, p in weights(bnn).items()}
    masks = pruning_masks(bnn, sparsity=0.5, scores={name: -p.mu.detach().abs() for name, p in weights(bnn).items()})
    assert sum(int((mask == 0).sum()) for mask in masks.values()) == round(0.5 * sum(m.numel() for m in masks.values()))
    assert all((masks[name] <= mask).all() for name, mask in before.items())


def test_channels_have_the_mean_of_given_scores():
    bnn = net()
    scores = magnitudes(bnn)
    masks = pruning_masks(bnn, threshold=0.12, granularity="channel", scores=scores)
    for name, posterior in weights(bnn).items():
        means = posterior.layer.channel_rows(scores[name]).mean(1)
        alive = posterior.layer.channel_rows(masks[name]).amax(1).bool()
        assert torch.equal(alive, (means > 0.12) | (means == means.max()))
    assert any((mask == 0).any() for mask in masks.values())


@pytest.mark.parametrize(("pattern", "keep", "of"), [("2:4", 2, 4), ("1:2", 1, 2)])
def test_of_every_m_inputs_n_stay_the_best(pattern, keep, of):
    bnn = bayesify(
        nn.Sequential(
            nn.Conv2d(3, 8, 3),
            nn.Conv2d(8, 4, 3, groups=2),
            nn.ConvTranspose2d(4, 6, 2),
            nn.Linear(8, 5),
            nn.Linear(6, 2),
        )
    )
    masks = pruning_masks(bnn, granularity=pattern)
    assert masks.keys() == {"1.weight", "2.weight", "3.weight"} | ({"4.weight"} if of == 2 else set())
    for name, axis in (("1.weight", 1), ("2.weight", 0), ("3.weight", 1)):
        posterior = dict(named_posteriors(bnn))[name]
        pieces = masks[name].movedim(axis, -1).unflatten(-1, (-1, of))
        sizes = posterior.mu.detach().abs().movedim(axis, -1).unflatten(-1, (-1, of))
        assert (pieces.sum(-1) == keep).all()
        assert (sizes.where(pieces > 0, math.inf).amin(-1) >= sizes.where(pieces == 0, -1).amax(-1)).all()
    plain = to_deterministic(
        bnn, granularity=pattern, scores={"3.weight": -dict(named_posteriors(bnn))["3.weight"].mu.abs()}
    )
    assert float((plain[3].weight == 0).float().mean()) == 1 - keep / of
    assert not (plain[1].weight == 0).any()
    zeros = sum(int((mask == 0).sum()) for mask in masks.values())
    assert prune(bnn, granularity=pattern) == zeros / sum(p.mu.numel() for _, p in named_posteriors(bnn))


def test_hugging_face_conv1d_channels_are_columns():
    conv1d = pytest.importorskip("transformers.pytorch_utils").Conv1D
    bnn = bayesify(conv1d(5, 7))
    nn.init.normal_(bnn.w_mu)
    mask = pruning_masks(bnn, granularity="channel", sparsity=0.5)["weight"]
    assert mask.sum(0).unique().tolist() == [0, 7]


def test_pruning_twice_only_adds():
    bnn = net()
    first = prune(bnn, threshold=1.0)
    masks = {name: p.mask.clone() for name, p in named_posteriors(bnn) if p.mask is not None}
    with torch.no_grad():
        for _, posterior in named_posteriors(bnn):
            posterior.mu.add_(1.0)
    assert prune(bnn, threshold=0.5) >= first
    for name, posterior in named_posteriors(bnn):
        assert (posterior.mask <= masks[name]).all()
    total = sum(p.mu.numel() for p in weights(bnn).values())
    before = sum(float((p.mask == 0).sum()) for p in weights(bnn).values())
    again = pruning_masks(bnn, sparsity=0.9)
    assert sum(float((mask == 0).sum()) for mask in again.values()) == max(round(0.9 * total), before)


def test_prune_reports_the_share_and_lets_training_go_on():
    bnn = net()
    share = prune(bnn, sparsity=0.7)
    count = sum(p.mu.numel() for _, p in named_posteriors(bnn))
    zeros = sum(int((p.mean() == 0).sum()) for _, p in named_posteriors(bnn))
    assert share == zeros / count
    optimizer = torch.optim.Adam(bnn.parameters(), 1e-2)
    bnn.train()
    for _ in range(3):
        optimizer.zero_grad()
        (bnn(X).square().mean() + kl_divergence(bnn) / 100).backward()
        optimizer.step()
    assert all(bool((p.mean()[p.mask == 0] == 0).all()) for _, p in named_posteriors(bnn) if p.mask is not None)
    plain = to_deterministic(bnn)
    assert sum(int((plain.get_parameter(name) == 0).sum()) for name in weights(net())) >= zeros
