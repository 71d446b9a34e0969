import math
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import nn
from torch.testing import assert_close

import bensemble
from bensemble.likelihoods import Bernoulli, Categorical, Gaussian, GaussianHead
from bensemble.novelty.classes import bin_edges
from bensemble.novelty.heldout import HeldoutTerms
from bensemble.novelty.moments import Moments
from bensemble.novelty.projection import random_signs
from convert import bayesify

from .tasks import auroc, batches, blobs, mlp

TRAIN, HELD = blobs(400, seed=1), blobs(120, seed=2)
FRESH = blobs(60, seed=3)[0]


def naive_distance(train, labels, rows):
    """The formula with inverses and one loop over classes, in float64."""

    def inverse(centred):
        covariance = centred.T @ centred / len(centred)
        return torch.linalg.inv(covariance + 0.01 * covariance.diagonal().mean() * torch.eye(len(covariance)).double())

    means = {int(c): train[labels == c].mean(0) for c in labels.unique()}
    within = inverse(torch.stack([x - means[int(c)] for x, c in zip(train, labels, strict=True)]))
    overall, mean = inverse(train - train.mean(0)), train.mean(0)
    nearest = [min(float((x - m) @ within @ (x - m)) for m in means.values()) for x in rows]
    far = [float((x - mean) @ overall @ (x - mean)) for x in rows]
    return torch.tensor(nearest, dtype=torch.float64) - torch.tensor(far, dtype=torch.float64)


def standardised(values, heldout):
    return (values - heldout.mean()) / heldout.std(correction=0)


def naive_score(features, logits, data, held, new, energy=True):
    """The score of new inputs from the features of each layer, written out."""
    pairs = [[naive_distance(f(data[0]), data[1], f(x)) for x in (held, new)] for f in features]
    sums = [sum(standardised(pair[i], pair[0]) for pair in pairs) for i in (0, 1)]
    score = standardised(sums[1], sums[0])
    if not energy:
        return score
    energies = [-logits(x).exp().sum(1).log() for x in (held, new)]
    return score + standardised(energies[1], energies[0])


@torch.no_grad()
def test_the_score_is_the_formula():
    model = mlp()
    novelty = bensemble.fit_novelty(model, batches(TRAIN), batches(HELD, 32), projection=None)
    expected = naive_score([model[:1], model[:3]], model, TRAIN, HELD[0], FRESH)
    assert_close(novelty.score(FRESH), expected, rtol=1e-9, atol=1e-9)
    assert_close(novelty.score(HELD[0]), novelty.heldout, rtol=1e-9, atol=1e-9)
    assert novelty.num_data == 400
    assert [layout.name for layout in novelty.reader.layouts] == ["0", "2"]


@torch.no_grad()
def test_wide_layers_are_projected_and_narrow_ones_are_not():
    model = mlp()
    novelty = bensemble.fit_novelty(model, batches(TRAIN), batches(HELD), projection=7)
    signs = random_signs(0, 0, 9, 7).double()
    expected = naive_score([lambda x: model[:1](x) @ signs, model[:3]], model, TRAIN, HELD[0], FRESH)
    assert_close(novelty.score(FRESH), expected, rtol=1e-9, atol=1e-9)
    assert novelty.reader.sizes == (7, 5)
    sources = [torch.Generator().manual_seed(seed) for seed in (1, 1, 2)]
    fits = [bensemble.fit_novelty(model, batches(TRAIN), batches(HELD), projection=7, generator=s) for s in sources]
    seeded = [fit.score(FRESH) for fit in fits]
    assert torch.equal(seeded[0], seeded[1])
    assert not torch.allclose(seeded[0], seeded[2])


def test_the_projection_is_made_of_integers_and_keeps_distances():
    """A hash in plain Python integers gives the same signs; squared lengths are kept within 5 standard errors."""
    mask = 2**64 - 1

    def mixed(z):
        z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9 & mask
        z = (z ^ (z >> 27)) * 0x94D049BB133111EB & mask
        return z ^ (z >> 31)

    key = mixed(12345 + 3 * 0x9E3779B97F4A7C15 & mask)
    wanted = [-1 if mixed(key + n * 0x9E3779B97F4A7C15 & mask) >> 63 else 1 for n in range(1, 13)]
    assert torch.equal(random_signs(12345, 2, 4, 3).sign().int(), torch.tensor(wanted).view(4, 3).int())
    x = torch.randn(2000, 300)
    ratio = (x @ random_signs(1, 0, 300, 64)).square().sum(1) / x.square().sum(1)
    assert abs(float(ratio.mean()) - 1) < 5 * math.sqrt(2 / 64)
    assert float(ratio.std()) == pytest.approx(math.sqrt(2 / 64), rel=0.15)


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


class Net(nn.Module):
    """A convolution, one with stride, and a head for each image or each pixel."""

    def __init__(self, pixels):
        super().__init__()
        self.first, self.second = nn.Conv2d(2, 6, 3, padding=1), nn.Conv2d(6, 4, 2, stride=2)
        self.head = nn.ConvTranspose2d(4, 3, 2, stride=2) if pixels else nn.Linear(4, 3)
        self.pixels = pixels

    def forward(self, x):
        x = self.second(self.first(x).relu()).relu()
        return self.head(x) if self.pixels else self.head(x.mean((2, 3)))


def images(n, seed):
    source = torch.Generator().manual_seed(seed)
    return torch.randn(n, 2, 6, 8, generator=source, dtype=torch.float64)


@torch.no_grad()
def test_convolutions_are_averaged_over_positions():
    model, data = Net(False).double(), (images(100, 1), torch.arange(100) % 3)
    held = images(40, 2)
    novelty = bensemble.fit_novelty(model, batches(data), [held])
    features = [lambda x: model.first(x).mean((2, 3)), lambda x: model.second(model.first(x).relu()).mean((2, 3))]
    new = images(20, 3)
    assert_close(novelty.score(new), naive_score(features, model, data, held, new), rtol=1e-9, atol=1e-9)


@torch.no_grad()
def test_pixels_get_a_score_each_and_ignored_ones_do_not_count():
    model, likelihood = Net(True).double(), Categorical(dim=1)
    data = (images(30, 1), torch.randint(0, 3, (30, 6, 8)))
    held = (images(12, 2), torch.randint(0, 3, (12, 6, 8)))
    data[1][:, :2] = held[1][:, 5] = -100
    novelty = bensemble.fit_novelty(model, batches(data, 8), batches(held, 5), likelihood=likelihood)
    large = [model.first, lambda x: model.second(model.first(x).relu()).repeat_interleave(2, 2).repeat_interleave(2, 3)]

    def rows(f):
        return lambda x: f(x).movedim(1, -1)

    train = (data[0], data[1][data[1] >= 0])
    features = [lambda x, f=f: rows(f)(x)[data[1] >= 0] if x is data[0] else
                rows(f)(x)[held[1] >= 0] if x is held[0] else rows(f)(x).flatten(0, 2) for f in large]  # fmt: skip
    logits = lambda x: rows(model)(x)[held[1] >= 0] if x is held[0] else rows(model)(x).flatten(0, 2)  # noqa: E731
    new = images(3, 3)
    found = novelty.score(new)
    assert found.shape == (3, 6, 8)
    assert len(novelty.heldout) == 12 * 5 * 8
    assert novelty.num_data == 30 * 4 * 8
    assert_close(found.flatten(), naive_score(features, logits, train, held[0], new), rtol=1e-9, atol=1e-9)


class Tokens(nn.Module):
    """A transformer for sequences of tokens, with a padding mask that the features heed."""

    def __init__(self, per_token, batch_first=True):
        super().__init__()
        self.embed, self.per_token, self.batch_first = nn.Embedding(20, 8), per_token, batch_first
        self.layer = nn.TransformerEncoderLayer(8, 2, 12, batch_first=batch_first)
        self.head = nn.Linear(8, 3)

    def forward(self, tokens, attention_mask=None):
        padding = None if attention_mask is None else attention_mask == 0
        x = self.embed(tokens) if self.batch_first else self.embed(tokens).transpose(0, 1)
        x = self.layer(x, src_key_padding_mask=padding)
        x = x if self.batch_first else x.transpose(0, 1)
        if self.per_token:
            return self.head(x)
        kept = torch.ones(tokens.shape) if attention_mask is None else attention_mask
        return self.head((x * kept[..., None]).sum(1) / kept.sum(1, keepdim=True))


def test_transformers_sequence_or_batch_first_have_equal_scores():
    """Seven sequences of seven tokens: only the module itself tells the two axes apart."""
    first = Tokens(False).double().eval()
    second = Tokens(False, batch_first=False).double().eval()
    second.load_state_dict(first.state_dict())
    tokens, labels = torch.randint(0, 20, (70, 7)), torch.arange(70) % 3
    fits = [bensemble.fit_novelty(m, batches((tokens, labels), 7), [tokens[:21]]) for m in (first, second)]
    assert [layout.name for layout in fits[0].reader.layouts] == ["layer.self_attn", "layer.linear1", "layer.linear2"]
    assert_close(*(fit.score(tokens[:9]) for fit in fits), rtol=1e-7, atol=1e-7)


def test_a_sequence_has_one_score_however_long_its_padding():
    model = Tokens(False).double()
    tokens, labels = torch.randint(0, 20, (60, 5)), torch.arange(60) % 3
    novelty = bensemble.fit_novelty(model, batches((tokens, labels), 20), [tokens[:25]])
    padded = torch.cat([tokens, torch.zeros(60, 4, dtype=torch.long)], 1)
    mask = torch.cat([torch.ones(60, 5), torch.zeros(60, 4)], 1).double()
    found = novelty.score({"tokens": padded, "attention_mask": mask})
    assert_close(found, novelty.score(tokens), rtol=1e-7, atol=1e-7)


def test_tokens_get_a_score_each():
    model, tokens = Tokens(True).double(), torch.randint(0, 20, (40, 6))
    labels = torch.randint(0, 3, (40, 6))
    labels[:, 4:] = -100
    likelihood = Categorical(dim=-1)
    novelty = bensemble.fit_novelty(model, batches((tokens, labels)), [(tokens, labels)], likelihood=likelihood)
    scores = novelty.score(tokens[:5])
    assert scores.shape == (5, 6)
    assert_close(scores[:, :4].flatten(), novelty.heldout[:20], rtol=1e-9, atol=1e-9)
    assert novelty.pvalue(scores).shape == (5, 6)


class Windows(nn.Module):
    """Layers whose axis 0 is the batch times windows, and a layer that is called twice."""

    def __init__(self):
        super().__init__()
        self.inside, self.twice, self.head = nn.Linear(2, 4), nn.Linear(4, 4), nn.Linear(4, 3)

    def forward(self, x):
        x = self.twice(self.twice(self.inside(x.reshape(-1, 2, 2)).relu()))
        return self.head(x.mean(1).view(-1, 3, 4).mean(1))


@torch.no_grad()
def test_windows_and_layers_called_twice():
    model, (x, y) = Windows().double(), blobs(200, 12)
    novelty = bensemble.fit_novelty(model, batches((x, y)), [x[:50]], projection=None)

    def inside(x):
        return model.inside(x.reshape(-1, 2, 2)).reshape(len(x), 6, 4).mean(1)

    def twice(x):
        first = model.twice(model.inside(x.reshape(-1, 2, 2)).relu())
        return ((first + model.twice(first)) / 2).reshape(len(x), 6, 4).mean(1)

    expected = naive_score([inside, twice], model, (x, y), x[:50], x[50:70])
    assert_close(novelty.score(x[50:70]), expected, rtol=1e-8, atol=1e-8)


class Letters(nn.Module):
    """Words of letters: a convolution over the letters of every word, then one answer for each word."""

    def __init__(self):
        super().__init__()
        self.letters, self.head = nn.Conv1d(2, 4, 3), nn.Linear(4, 3)

    def forward(self, x):
        return self.head(self.letters(x.flatten(0, 1)).amax(-1)).view(*x.shape[:2], 3)


@torch.no_grad()
def test_letters_are_averaged_for_each_word():
    model, x, y = Letters().double(), torch.randn(60, 5, 2, 6).double(), torch.randint(0, 3, (60, 5))
    novelty = bensemble.fit_novelty(model, batches((x, y), 7), [x[:20]], likelihood=Categorical(dim=-1))

    def words(x):
        return model.letters(x.flatten(0, 1)).mean(-1)

    logits = lambda x: model(x).flatten(0, 1)  # noqa: E731
    expected = naive_score([words], logits, (x, y.flatten()), x[:20], x[20:25])
    assert_close(novelty.score(x[20:25]).flatten(), expected, rtol=1e-9, atol=1e-9)


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
    assert all(torch.equal(a, b) for a, b in zip(alone, together, strict=True))


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


def test_a_constant_layer_is_left_out():
    model = mlp()
    with torch.no_grad():
        model[0].weight.zero_()
        model[2].weight.normal_()
    with pytest.raises(bensemble.InvalidValueError, match="'0', '2' do not vary"):
        bensemble.fit_novelty(model, batches(TRAIN), batches(HELD))

    class Side(nn.Module):
        def __init__(self):
            super().__init__()
            self.dead, self.live = nn.Linear(6, 4).double(), mlp()
            nn.init.zeros_(self.dead.weight)

        def forward(self, x):
            return 0 * self.dead(x).sum() + self.live(x)

    side = Side()
    with pytest.warns(UserWarning, match="'dead' left out, because their outputs do not vary"):
        novelty = bensemble.fit_novelty(side, batches(TRAIN), batches(HELD), projection=3)
    named = bensemble.fit_novelty(side, batches(TRAIN), batches(HELD), projection=None, layers=["live.0", "live.2"])
    assert [layout.number for layout in novelty.reader.layouts] == [1, 2]
    assert [layout.name for layout in named.reader.layouts] == ["live.0", "live.2"]
    with torch.no_grad():
        first = lambda x: side.live[:1](x) @ random_signs(0, 1, 9, 3).double()  # noqa: E731
        second = lambda x: side.live[:3](x) @ random_signs(0, 2, 5, 3).double()  # noqa: E731
        expected = naive_score([first, second], side, TRAIN, HELD[0], FRESH)
    assert_close(novelty.score(FRESH), expected, rtol=1e-9, atol=1e-9)


@torch.no_grad()
def test_layers_may_be_named():
    model = mlp()
    novelty = bensemble.fit_novelty(model, batches(TRAIN), batches(HELD), layers=["3"], projection=None)
    expected = naive_score([model[:4]], model, TRAIN, HELD[0], FRESH)
    assert_close(novelty.score(FRESH), expected.detach(), rtol=1e-9, atol=1e-9)


def test_compiled_and_wrapped_models_are_read_inside():
    model = mlp()
    compiled = torch.compile(model, backend="eager")
    compiled(FRESH)
    novelty = bensemble.fit_novelty(compiled, batches(TRAIN), batches(HELD))
    assert novelty.model is model
    assert torch.equal(novelty.on(compiled).score(FRESH), novelty.score(FRESH))
    inner = mlp()
    inner.compile(backend="eager")
    inner(FRESH)
    assert bensemble.fit_novelty(inner, batches(TRAIN), batches(HELD)).score(FRESH).shape == (60,)


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
    assert [line.split() for line in text.splitlines()[-2:]] == [["0", "9", "9", "3"], ["2", "5", "5", "3"]]
