"""Which layers are read, and how their outputs become one row for each example, token or pixel."""

import pytest
import torch
from torch import nn
from torch.testing import assert_close

import bensemble
from bensemble.likelihoods import Categorical
from bensemble.novelty.projection import folded, random_signs

from .tasks import batches, blobs, mlp, naive_score

TRAIN, HELD = blobs(400, seed=1), blobs(120, seed=2)
FRESH = blobs(60, seed=3)[0]


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


class Rearranged(nn.Module):
    """A layer that sees windows of four, or positions first."""

    def __init__(self, windows):
        super().__init__()
        self.windows, self.layer, self.head = windows, nn.Linear(5, 6), nn.Linear(6, 3)

    def forward(self, x):
        seen = self.layer(x.reshape(-1, 4, 5) if self.windows else x.transpose(0, 1)).tanh()
        return self.head((seen.reshape(*x.shape[:2], 6) if self.windows else seen.transpose(0, 1)).mean(1))


@pytest.mark.parametrize("windows", [True, False])
def test_a_batch_as_large_as_another_axis_is_not_taken_for_it(windows):
    model, x, y = Rearranged(windows).double().eval(), torch.randn(60, 4, 5).double(), torch.arange(60) % 3
    x = x.repeat(1, 2, 1) if windows else x
    fits = [bensemble.fit_novelty(model, batches((x, y), size), [x[:25]]) for size in (4, 10)]
    assert_close(*(fit.score(x[:9]) for fit in fits), rtol=1e-7, atol=1e-7)


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


def test_a_constant_layer_is_left_out():
    model = mlp()
    with torch.no_grad():
        model[0].weight.zero_()
        model[2].weight.normal_()
    with pytest.raises(bensemble.InvalidValueError, match="'0', '2' do not vary"):
        bensemble.fit_novelty(model, batches(TRAIN), batches(HELD), joint=False)
    with pytest.raises(bensemble.InvalidValueError, match="'0, 2' do not vary"):
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
        novelty = bensemble.fit_novelty(side, batches(TRAIN), batches(HELD), projection=1, joint=False)
    named = bensemble.fit_novelty(side, batches(TRAIN), batches(HELD), projection=None, layers=["live.0", "live.2"])
    assert [layout.number for layout in novelty.reader.layouts] == [1, 2]
    novelty.reader._signs.clear()  # as after loading
    assert [layout.name for layout in named.reader.layouts] == ["live.0", "live.2"]
    with torch.no_grad():
        first = lambda x: folded(side.live[:1](x), random_signs(0, 1, 9), 4)  # noqa: E731
        second = lambda x: folded(side.live[:3](x), random_signs(0, 2, 5), 4)  # noqa: E731
        expected = naive_score([first, second], side, TRAIN, HELD[0], FRESH, joint=False, leading=1)
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
