"""What comes before the first sampled weight is computed once, and only where nobody can tell."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.testing import assert_close

from bensemble import named_posteriors, predict, sampling
from bensemble.gaussian import rho_from_sigma
from bensemble.prediction import ensembles
from convert import bayesify

X = torch.randn(4, 3, 8, 8)


def seeded():
    return torch.Generator().manual_seed(0)


def head_only(trunk, head=None, forward=None):
    """A network whose head alone is Bayesian, with sigmas large enough to see."""

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.trunk, self.head = trunk, head or nn.Linear(6, 3)

        def forward(self, x):
            return self.head(self.trunk(x).mean((2, 3)))

    if forward is not None:
        Net.forward = forward
    torch.manual_seed(2)
    bnn = bayesify(Net().eval(), include="head")
    with torch.no_grad():
        for _, posterior in named_posteriors(bnn):
            posterior.rho.copy_(rho_from_sigma(0.3 * (0.5 + torch.rand(posterior.rho.shape))))
    return bnn


def trunk():
    return nn.Sequential(
        nn.Conv2d(3, 6, 3),
        nn.BatchNorm2d(6),
        nn.ReLU(inplace=True),
        nn.Dropout(0.5),
        nn.Conv2d(6, 6, 3),
        nn.MaxPool2d(2),
    )


def expected(bnn, x, samples=4):
    generator, found = seeded(), []
    with torch.no_grad():
        for _ in range(samples):
            with sampling(bnn, generator):
                found.append(bnn(x))
    return torch.stack(found)


class Convolutions(torch.utils._python_dispatch.TorchDispatchMode):
    """Counts the convolutions that are computed."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += "convolution" in str(func)
        return func(*args, **(kwargs or {}))


def computed(bnn, x, samples=4, **options):
    with Convolutions() as counter:
        prediction = predict(bnn, x, samples, generator=seeded(), **options)
    return counter.count, prediction


def plain(self, x):
    return self.head(self.trunk(x).mean((2, 3)))


def in_place_after(self, x):
    """Writes into what the trunk gave, so that it cannot serve twice."""
    features = self.trunk(x)
    shift = self.head(features.mean((2, 3))).mean()
    features += shift
    return features.mean((2, 3))


def through_data(self, x):
    features = self.trunk(x)
    shift = self.head(features.mean((2, 3))).mean()
    features.data.add_(shift)
    return features.mean((2, 3))


def random(self, x):
    return self.head(self.trunk(x + torch.rand(())).mean((2, 3)))


def writes_input(self, x):
    x += 1
    return self.head(self.trunk(x).mean((2, 3)))


def stateful(self, x):
    self.calls = getattr(self, "calls", 0) + 1
    return self.head(self.trunk(x * self.calls).mean((2, 3)))


def set_weight(self, x):
    """A hidden input: the trunk's second convolution uses what the head said last time."""
    scale = getattr(self, "last", torch.ones(()))
    out = self.head((self.trunk(x) * scale).mean((2, 3)))
    self.last = out.detach().abs().mean()
    return out


def to_list(self, x):
    features = self.trunk(x)
    return self.head(features.mean((2, 3))) + features.sum().item() + torch.tensor(features.flatten().tolist()).sum()


def skips(self, x):
    """Features of the trunk are used again after the head."""
    low = F.relu(self.trunk[0](x))
    high = self.trunk[4](low)
    values, places = high.flatten(2).max(-1)
    return self.head(values) + low.mean((1, 2, 3))[:, None] + places[:, :3]


def with_gradients(self, x):
    with torch.enable_grad():
        x = x.clone().requires_grad_()
        slope = torch.autograd.grad(self.trunk(x).sum(), x)[0]
    return self.head(slope.mean((2, 3)).repeat(1, 2))


SHARED = {"plain": plain, "skips": skips}
NOT_SHARED = {
    "in place": in_place_after,
    "through data": through_data,
    "with gradients": with_gradients,
}


@pytest.mark.parametrize("name", SHARED)
def test_the_trunk_is_computed_once(name):
    bnn = head_only(trunk(), forward=SHARED[name])
    count, prediction = computed(bnn, X)
    assert count == 2
    assert_close(prediction.samples, expected(bnn, X), rtol=0, atol=0)
    assert prediction.std.min() > 1e-3


@pytest.mark.parametrize("name", NOT_SHARED)
def test_the_trunk_is_computed_anew_where_that_could_be_noticed(name):
    bnn = head_only(trunk(), forward=NOT_SHARED[name])
    count, prediction = computed(bnn, X)
    assert count >= 8
    assert_close(prediction.samples, expected(bnn, X))


def test_a_list_of_numbers_ends_the_prefix():
    bnn = head_only(trunk(), forward=to_list)
    count, prediction = computed(bnn, X)
    assert count == 2
    assert_close(prediction.samples, expected(bnn, X))


def test_random_numbers_in_the_trunk_are_drawn_for_every_sample():
    bnn = head_only(trunk(), forward=random)
    torch.manual_seed(5)
    count, prediction = computed(bnn, X)
    torch.manual_seed(5)
    assert count == 8
    assert_close(prediction.samples, expected(bnn, X))


def test_a_written_input_goes_on_changing():
    bnn = head_only(trunk(), forward=writes_input)
    count, prediction = computed(bnn, X.clone())
    assert count == 8
    assert_close(prediction.samples, expected(bnn, X.clone()))


def test_python_state_departs_from_the_record():
    bnn = head_only(trunk(), forward=stateful)
    count, prediction = computed(bnn, X)
    bnn.calls = 0
    first = expected(bnn, X)
    assert count == 8
    assert_close(prediction.samples[0], first[0])
    assert not torch.allclose(prediction.samples[1], prediction.samples[0])


def test_a_hidden_tensor_is_seen():
    bnn = head_only(trunk(), forward=set_weight)
    _, prediction = computed(bnn, X)
    del bnn.last
    assert_close(prediction.samples, expected(bnn, X))


def test_every_batch_has_a_prefix_of_its_own():
    bnn = head_only(trunk())
    count, prediction = computed(bnn, X, chunk_size=2)
    assert count == 4 + 6  # a chunk and its halves are compared
    assert_close(prediction.samples, expected(bnn, X))
    count, prediction = computed(bnn, [X[:3], X[3:]], keep_samples=True)
    assert count == 4
    assert_close(prediction.samples, expected(bnn, X))


def test_a_network_that_is_bayesian_from_the_start_is_not_watched(monkeypatch):
    bnn = bayesify(nn.Sequential(nn.Conv2d(3, 6, 3), nn.Flatten(), nn.Linear(216, 2)))
    kept = []
    original = ensembles.Prefix
    monkeypatch.setattr(ensembles, "Prefix", lambda device: kept.append(original(device)) or kept[-1])
    with pytest.warns(UserWarning, match="neither trained nor fitted"):
        predict(bnn, [X, X], 3)
    assert len(kept) == 1
    assert not kept[0].useful


def test_hooks_see_every_forward():
    bnn, seen = head_only(trunk()), []
    bnn.trunk[4].register_forward_hook(lambda module, args, out: seen.append(out))
    count, _ = computed(bnn, X)
    assert count == 2
    assert len(seen) == 4
    assert_close(seen[3], seen[0])
    bnn.trunk[4].register_forward_hook(lambda module, args, out: out * 2)
    count, prediction = computed(bnn, X)
    assert count == 2
    assert_close(prediction.samples, expected(bnn, X))


def test_a_bayesian_tail_of_other_layers():
    class Tail(nn.Module):
        def __init__(self):
            super().__init__()
            self.rnn, self.attention = nn.LSTM(6, 6, batch_first=True), nn.MultiheadAttention(6, 2, batch_first=True)

        def forward(self, x):
            x = self.rnn(x)[0]
            return self.attention(x, x, x)[0].mean(1)

    def tokens(self, x):
        return self.head(self.trunk(x).flatten(2).transpose(1, 2))

    bnn = head_only(trunk(), Tail(), tokens)
    count, prediction = computed(bnn, X)
    assert count == 2
    assert_close(prediction.samples, expected(bnn, X))


def test_an_error_after_the_prefix_is_the_users_own():
    def fails(self, x):
        found = self.head(self.trunk(x).mean((2, 3)))
        self.calls = getattr(self, "calls", 0) + 1
        if self.calls == 3:
            raise KeyError("mine")
        return found

    bnn = head_only(trunk(), forward=fails)
    with pytest.raises(KeyError, match="mine"):
        predict(bnn, X, 4)
    assert bnn.calls == 3


def test_inference_mode_and_compiled_models_work_without():
    bnn = head_only(trunk())
    with torch.inference_mode():
        _, prediction = computed(bnn, X.clone())
    assert_close(prediction.samples.clone(), expected(bnn, X))
    compiled = torch.compile(bnn, backend="eager")
    assert_close(predict(compiled, X, 4, generator=seeded()).samples, expected(bnn, X))


@pytest.mark.filterwarnings("ignore:predict. the posterior is neither trained nor fitted")
def test_looking_at_weights_alone_is_nothing_to_remember():
    """Such a memo saves nothing, and while calls are watched torch does not run its fused encoder layer."""
    bnn = bayesify(nn.TransformerEncoderLayer(8, 2, 16, batch_first=True).eval())
    with torch.profiler.profile() as profile:
        predict(bnn, torch.randn(2, 3, 8), num_samples=4)
    assert "aten::_transformer_encoder_layer_fwd" in {event.name for event in profile.events()}
