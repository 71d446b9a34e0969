import math
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch.testing import assert_close

import bensemble
from bensemble.likelihoods import Bernoulli, Gaussian, GaussianHead
from bensemble.novelty.classes import bin_edges
from bensemble.novelty.heldout import HeldoutTerms
from bensemble.novelty.moments import Moments
from bensemble.novelty.projection import folded, random_signs
from convert import bayesify

from .tasks import auroc, batches, blobs, mlp, naive_score

TRAIN, HELD = blobs(400, seed=1), blobs(120, seed=2)
FRESH = blobs(60, seed=3)[0]


@pytest.mark.parametrize("joint", [True, False])
@torch.no_grad()
def test_the_score_is_the_formula(joint):
    model = mlp()
    novelty = bensemble.fit_novelty(model, batches(TRAIN), batches(HELD, 32), projection=None, joint=joint)
    expected = naive_score([model[:1], model[:3]], model, TRAIN, HELD[0], FRESH, joint=joint)
    assert_close(novelty.score(FRESH), expected, rtol=1e-9, atol=1e-9)
    assert_close(novelty.score(HELD[0]), novelty.heldout, rtol=1e-9, atol=1e-9)
    assert novelty.num_data == 400
    assert [layout.name for layout in novelty.reader.layouts] == ["0", "2"]
    assert novelty.reader.sizes == ((14,) if joint else (9, 5))


@torch.no_grad()
def test_wide_features_are_projected_and_narrow_ones_are_not():
    model = mlp(width=40)
    novelty = bensemble.fit_novelty(model, batches(TRAIN), batches(HELD), projection=7, joint=False)
    features = [lambda x: folded(model[:1](x), random_signs(0, 0, 40), 28), model[:3]]
    expected = naive_score(features, model, TRAIN, HELD[0], FRESH, joint=False, leading=7)
    assert_close(novelty.score(FRESH), expected, rtol=1e-7, atol=1e-7)  # many features are combinations of six
    assert novelty.reader.sizes == (28, 5)
    assert [len(distance.directions) for distance in novelty.distances] == [9, 5]
    together = bensemble.fit_novelty(model, batches(TRAIN), batches(HELD), projection=7)
    features = [lambda x: folded(torch.cat([model[:1](x), model[:3](x)], 1), random_signs(0, -1, 45), 28)]
    expected = naive_score(features, model, TRAIN, HELD[0], FRESH, leading=7)
    assert_close(together.score(FRESH), expected, rtol=1e-7, atol=1e-7)
    assert together.reader.sizes == (28,)
    unprojected = bensemble.fit_novelty(model, batches(TRAIN), batches(HELD), projection=12)
    assert unprojected.reader.sizes == (45,)
    sources = [torch.Generator().manual_seed(seed) for seed in (1, 1, 2)]
    fits = [bensemble.fit_novelty(model, batches(TRAIN), batches(HELD), projection=7, generator=s) for s in sources]
    seeded = [fit.score(FRESH) for fit in fits]
    assert torch.equal(seeded[0], seeded[1])
    assert not torch.allclose(seeded[0], seeded[2])


@pytest.mark.parametrize("leading", [4, 8, 12, 100])
@torch.no_grad()
def test_directions_that_are_not_kept_share_one_variance(leading):
    model = mlp()
    novelty = bensemble.fit_novelty(model, batches(TRAIN), batches(HELD), projection=leading, layers=["0", "3"])
    expected = naive_score([model[:1], model[:4]], model, TRAIN, HELD[0], FRESH, leading=leading)
    assert_close(novelty.score(FRESH), expected, rtol=1e-9, atol=1e-9)
    assert len(novelty.distances[0].directions) == min(2 + leading, 14)


@torch.no_grad()
def test_a_stranger_that_leaves_the_directions_is_told():
    """What was hardly ever seen is strange, however small it is beside what varies."""
    features = 40
    x = torch.randn(2000, features, generator=torch.Generator().manual_seed(3)).double()
    x, y = x * torch.where(torch.arange(features) < 4, 10.0, 0.1), (x[:, 0] > 0).long()
    model = torch.nn.Sequential(torch.nn.Identity(), torch.nn.Linear(features, 2)).double()
    novelty = bensemble.fit_novelty(model, batches((x[:1500], y[:1500])), [x[1500:]], projection=10, layers=["0"])
    familiar, strange = x[1500:1600], x[1500:1600].clone()
    strange[:, -1] += 4
    assert auroc(novelty.score(familiar), novelty.score(strange)) > 0.95


def test_the_projection_is_made_of_integers_and_keeps_distances():
    """A hash in plain Python integers gives the same signs; squared lengths are kept within 5 standard errors."""
    mask = 2**64 - 1

    def mixed(z):
        z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9 & mask
        z = (z ^ (z >> 27)) * 0x94D049BB133111EB & mask
        return z ^ (z >> 31)

    key = mixed(12345 + 3 * 0x9E3779B97F4A7C15 & mask)
    wanted = [-1 if mixed(key + n * 0x9E3779B97F4A7C15 & mask) >> 63 else 1 for n in range(1, 13)]
    assert torch.equal(random_signs(12345, 2, 12), torch.tensor(wanted, dtype=torch.int8))
    x, signs = torch.randn(2000, 300), random_signs(1, 0, 300)
    places = torch.zeros(300, 64)
    places[torch.arange(300), torch.arange(300) % 64] = signs.float()
    assert_close(folded(x, signs, 64), x @ places)
    ratio = folded(x, signs, 64).square().sum(1) / x.square().sum(1)
    assert abs(float(ratio.mean()) - 1) < 5 * math.sqrt(2 / 64 / 2000)
    assert float(ratio.std()) == pytest.approx(math.sqrt(2 / 64 - 2 / 300), rel=0.15)


def test_moments_do_not_cancel_where_means_are_large():
    rows, labels = torch.randn(300, 4).double(), torch.arange(300) % 3
    moved, moments = rows + 1e8, Moments(4)
    for part, own in zip(moved.split(70), labels.split(70), strict=True):
        moments.add(part, own, 3)
    found = moments.statistics(torch.full((3,), 100.0).double(), torch.arange(3), 3)
    means = torch.stack([rows[labels == c].mean(0) for c in range(3)])
    centred = rows - means[labels]
    assert_close(found.within, centred.T @ centred / 300, rtol=1e-6, atol=1e-6)
    assert_close(found.overall, (rows - rows.mean(0)).T @ (rows - rows.mean(0)) / 300, rtol=1e-6, atol=1e-6)
    assert_close(found.class_means - 1e8, means, rtol=1e-6, atol=1e-6)


def test_pvalues_count_held_out_scores():
    novelty = bensemble.fit_novelty(mlp(), batches(TRAIN), batches(HELD))
    held = novelty.heldout
    some = torch.cat([held[:10], torch.tensor([held.min() - 1, held.max() + 1]).double()])
    counted = torch.tensor([(1 + int((held >= s).sum())) / 121 for s in some]).double()
    assert_close(novelty.pvalue(some), counted)
    assert novelty.pvalue(some)[-1] == novelty.smallest_pvalue == 1 / 121
    assert novelty.pvalue(some)[-2] == 1
    assert novelty.pvalue(some.view(3, 4).float()).shape == (3, 4)


def test_pvalues_of_fresh_familiar_data_are_uniform():
    """Two samples: the standard error of a share is sqrt(p (1 - p) (1/n_held + 1/n_fresh))."""
    model, held, fresh = mlp(), blobs(2000, seed=11), blobs(2000, seed=12)
    novelty = bensemble.fit_novelty(model, batches(blobs(1000, seed=10)), batches(held, 500))
    pvalues = novelty.pvalue(novelty.score(fresh[0]))
    for level in (0.01, 0.05, 0.2, 0.5, 0.9):
        error = math.sqrt(level * (1 - level) * (1 / 2000 + 1 / 2000))
        assert abs(float((pvalues <= level).double().mean()) - level) < 4 * error
    strangers = 4 * torch.randn(500, 6, dtype=torch.float64)
    assert auroc(novelty.score(fresh[0]), novelty.score(strangers)) > 0.9


def test_a_bayesian_model_is_read_at_its_means_and_left_as_it_was():
    model = mlp()
    bnn = bayesify(model, init_sigma=0.5)
    bnn.train()
    bnn[1].eval()
    plain = bensemble.fit_novelty(model, batches(TRAIN), batches(HELD))
    state = torch.get_rng_state()
    novelty = bensemble.fit_novelty(bnn, torch.utils.data.DataLoader(list(zip(*TRAIN, strict=True)), 50), batches(HELD))
    assert torch.equal(state, torch.get_rng_state())
    with bensemble.sampling(bnn):
        scores = novelty.score(FRESH)
    assert torch.equal(scores, plain.on(bnn).score(FRESH))
    assert_close(scores, plain.score(FRESH), rtol=1e-9, atol=1e-9)
    assert bnn.training
    assert not bnn[1].training
    assert not any(module._forward_hooks for module in bnn.modules())


def test_a_loader_gives_the_scores_of_its_inputs():
    novelty = bensemble.fit_novelty(mlp(), batches(TRAIN), batches(HELD))
    assert_close(novelty.score(batches(HELD, 7)), novelty.score(HELD[0]), rtol=1e-9, atol=1e-9)


def test_threads_do_not_see_each_others_features():
    """Each thread waits inside the forward for the other one, so that both hooks are there at once."""
    model, meeting = mlp(), threading.Barrier(2, timeout=60)
    novelty = bensemble.fit_novelty(model, batches(TRAIN), batches(HELD))
    inputs = [FRESH[:25], FRESH[25:]]
    alone = [novelty.score(x) for x in inputs]
    handle = model.register_forward_pre_hook(lambda *_: (meeting.wait(), None)[1])
    with ThreadPoolExecutor(2) as pool:
        together = list(pool.map(novelty.score, inputs))
    handle.remove()
    for one, other in zip(alone, together, strict=True):
        assert_close(one, other, rtol=1e-9, atol=1e-9)  # a thread of a pool multiplies matrices in other blocks


@torch.no_grad()
def test_label_sets_are_classes_without_energy():
    model, (x, y) = mlp(outputs=2), TRAIN
    sets = torch.stack([y > 0, y > 1], 1).double()
    novelty = bensemble.fit_novelty(model, batches((x, sets)), [HELD[0]], likelihood=Bernoulli(), projection=None)
    expected = naive_score([model[:1], model[:3]], model, TRAIN, HELD[0], FRESH, energy=False)
    assert_close(novelty.score(FRESH), expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(("likelihood", "outputs"), [(Gaussian(1.0), 1), (GaussianHead(), 2)])
@torch.no_grad()
def test_bins_of_a_number_are_classes_without_energy(likelihood, outputs):
    model, (x, _) = mlp(outputs=outputs), TRAIN
    target = x[:, :1] ** 3
    novelty = bensemble.fit_novelty(
        model, batches((x, target)), [(HELD[0], HELD[0][:, :1])], likelihood=likelihood, projection=None
    )
    bins = torch.empty(400, dtype=torch.long)
    bins[target[:, 0].argsort()] = torch.arange(400) // 40
    expected = naive_score([model[:1], model[:3]], model, (x, bins), HELD[0], FRESH, energy=False)
    assert_close(novelty.score(FRESH), expected, rtol=1e-9, atol=1e-9)
    assert len(bin_edges(torch.tensor([1.0, 1.0, 1.0, 2.0]))) == 2


def test_few_examples_many_classes_collinear_features_and_duplicates():
    model = mlp(outputs=40)
    with torch.no_grad():
        model[0].weight[1:4] = model[0].weight[:1]  # collinear
        model[0].weight[4] = 0
        model[0].bias[4] = 0  # dead
    x = blobs(50)[0]
    y = torch.cat([torch.arange(40), torch.zeros(10, dtype=torch.long)])
    x[45:] = x[40]
    novelty = bensemble.fit_novelty(model, [(x, y)], [(x[:25], y[:25])])  # 15 classes are missing in the held-out part
    scores = novelty.score(FRESH)
    assert bool(scores.isfinite().all())
    assert float(novelty.score(100 * FRESH).median()) > float(scores.max())


def test_held_out_data_without_variance_still_gives_scores():
    x, _ = TRAIN
    with pytest.warns(UserWarning, match="3 held-out terms give p-values of 1/4"):
        novelty = bensemble.fit_novelty(mlp(), batches(TRAIN), [x[:1].expand(3, -1)])
    assert bool(novelty.score(x).isfinite().all())


def test_of_very_many_held_out_terms_a_random_part_is_kept(monkeypatch):
    monkeypatch.setattr("bensemble.novelty.heldout.MOST", 100)
    terms = HeldoutTerms(torch.Generator().manual_seed(0))
    for start in range(0, 1000, 50):
        values = torch.arange(start, start + 50).double()
        terms.add(values[:, None], values.long())
    values, _ = terms.gathered()
    assert 25 <= len(values) <= 100
    assert bool((values[:, 0].diff() > 0).all())
    assert abs(float(values.mean()) - 500) < 5 * 289 / math.sqrt(len(values))


def test_it_prints_and_counts():
    seen = []
    novelty = bensemble.fit_novelty(mlp(), batches(TRAIN), batches(HELD), progress=lambda *p: seen.append(p))
    assert seen == [(n, 11) for n in range(1, 12)]
    text = repr(novelty)
    assert "Novelty of Sequential (categorical), per example: 400 training terms" in text
    assert "120 held-out terms, so p-values of 0.0083 and above" in text
    assert "3 classes, one Gaussian in 14 directions of 14" in text
    assert [line.split() for line in text.splitlines()[-2:]] == [["0", "9"], ["2", "5"]]
