"""Per-example noise is taken where it is right, and nowhere else."""

import copy
import math

import pytest
import torch
from torch import nn
from torch.testing import assert_close
from torch.utils.data import DataLoader, TensorDataset

from bensemble import BayesianLinear, named_posteriors, predict
from bensemble.gaussian import rho_from_sigma
from bensemble.noise.stack import sampling
from convert import bayesify

X = torch.randn(6, 5)


def bayesian(model, sigma=0.3):
    bnn = bayesify(model).eval()
    with torch.no_grad():
        for _, posterior in named_posteriors(bnn):
            posterior.rho.copy_(rho_from_sigma(sigma * (0.5 + torch.rand(posterior.rho.shape))))
    return bnn


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def module(forward, **children):
    """A module with the given children and forward(self, x)."""

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            for name, child in children.items():
                setattr(self, name, child)

    Net.forward = forward
    return Net()


def skip(self, x):
    h = self.a(x).tanh()
    h = h + self.norm(self.b(h)) * torch.sigmoid(h)
    return self.c(torch.cat([h, x.flatten(1)], 1))


def several(self, x):
    first, second = self.a(x).chunk(2, dim=1)
    return {"logits": self.c(first.softmax(-1) * second.clamp(min=-1)), "extra": first.mean(1)}


def embedded(self, x):
    return self.c(self.table((x > 0).long()).flatten(1))


ALLOWED = {
    "mlp": lambda: nn.Sequential(nn.Linear(5, 8), nn.ReLU(inplace=True), nn.Dropout(0.5), nn.Linear(8, 3)),
    "norms": lambda: nn.Sequential(nn.BatchNorm1d(5), nn.Linear(5, 8), nn.LayerNorm(8), nn.GELU(), nn.Linear(8, 3)),
    "residual": lambda: module(skip, a=nn.Linear(5, 4), b=nn.Linear(4, 4), norm=nn.BatchNorm1d(4), c=nn.Linear(9, 3)),
    "structured": lambda: module(several, a=nn.Linear(5, 8), c=nn.Linear(4, 3)),
    "embedded": lambda: module(embedded, table=nn.Embedding(2, 3), c=nn.Linear(15, 2)),
    "no bias": lambda: nn.Sequential(nn.Linear(5, 8, bias=False), nn.SiLU(), nn.Linear(8, 3)),
}


def log_ratio(one, other, samples):
    """Log ratio of the standard deviations, in standard errors for the kurtosis of a normal times three."""
    return (one.std / other.std).log().abs().max() / math.sqrt(3 / samples)


@pytest.mark.parametrize("name", ALLOWED)
def test_marginals_are_those_of_weight_samples(name):
    torch.manual_seed(1)
    bnn = bayesian(ALLOWED[name]())
    local = predict(bnn, X, 4000, joint=False, generator=seeded())
    weights = predict(bnn, X, 4000, generator=seeded(1))
    assert (local.method, weights.method) == ("local", "weights")
    assert log_ratio(local, weights, 4000) < 5
    assert ((local.mean - weights.mean).abs() < 5 * (local.mcse.square() + weights.mcse.square()).sqrt()).all()
    # Noise of different examples is independent, unlike that of one weight sample.
    first, second = local.samples[:, 0, 0], local.samples[:, 1, 0]
    assert abs(float(torch.corrcoef(torch.stack((first, second)))[0, 1])) < 5 / math.sqrt(4000)


def folded(self, x):
    """Tokens folded into the batch, then averaged: their noise is not independent."""
    tokens = x.unsqueeze(-1).expand(-1, -1, 5)
    return self.a(tokens.reshape(-1, 5)).view(len(x), 5, -1).mean(1)


def twice(self, x):
    return self.a(self.a(x)) + self.a(x)


def compared(self, x):
    h = self.a(x)
    return h - h[:1]


def centred(self, x):
    h = self.a(x)
    return h - h.mean(0)


def attended(self, x):
    h = self.a(x)
    return (h @ h.t()).softmax(-1) @ h


def counted(self, x):
    return self.a(x) / x.shape[0]


def hidden_count(self, x):
    return self.a(x) * torch.tensor(1.0 / len(x))


def placed(self, x):
    return self.a(x) + torch.arange(len(x)).unsqueeze(1)


def functional(self, x):
    return nn.functional.linear(x, self.a.weight)


def random(self, x):
    return self.a(x) + torch.randn(1, 3)


def branching(self, x):
    h = self.a(x)
    return h if h[0, 0] > 0 else -h


def numbers(self, x):
    return self.a(x) + float(self.a(x).detach().numpy().mean())


def buffered(self, x):
    out = torch.empty(len(x), 3)
    out[:, :] = self.a(x)
    return out


def overwritten(self, x):
    x[:, 0] = self.b(x).squeeze(1)
    return self.a(x)


def broadcast(self, x):
    h = self.a(x)
    return h[:, 0] + h[:, 1:2]


REFUSED = {
    "folded tokens": lambda: module(folded, a=nn.Linear(5, 3)),
    "tokens": lambda: module(lambda self, x: self.a(x.unsqueeze(1).expand(-1, 4, -1)).mean(1), a=nn.Linear(5, 3)),
    "called twice": lambda: module(twice, a=nn.Linear(5, 5)),
    "compared": lambda: module(compared, a=nn.Linear(5, 3)),
    "centred": lambda: module(centred, a=nn.Linear(5, 3)),
    "attended": lambda: module(attended, a=nn.Linear(5, 3)),
    "batch statistics": lambda: nn.Sequential(nn.Linear(5, 4), nn.BatchNorm1d(4, track_running_stats=False)),
    "convolution": lambda: nn.Sequential(nn.Unflatten(1, (1, 5)), nn.Conv1d(1, 3, 3), nn.AdaptiveAvgPool1d(1)),
    "counted": lambda: module(counted, a=nn.Linear(5, 3)),
    "hidden count": lambda: module(hidden_count, a=nn.Linear(5, 3)),
    "placed": lambda: module(placed, a=nn.Linear(5, 3)),
    "read": lambda: module(functional, a=nn.Linear(5, 3)),
    "random": lambda: module(random, a=nn.Linear(5, 3)),
    "branching": lambda: module(branching, a=nn.Linear(5, 3)),
    "numpy": lambda: module(numbers, a=nn.Linear(5, 3)),
    "buffered": lambda: module(buffered, a=nn.Linear(5, 3)),
    "overwritten": lambda: module(overwritten, a=nn.Linear(5, 3), b=nn.Linear(5, 1)),
    "broadcast": lambda: module(broadcast, a=nn.Linear(5, 6)),
    "recurrent": lambda: module(lambda self, x: self.a(x.unsqueeze(-1))[0][:, -1], a=nn.RNN(1, 3, batch_first=True)),
    "attention": lambda: nn.Sequential(
        nn.Unflatten(1, (5, 1)), nn.Linear(1, 4), nn.TransformerEncoderLayer(4, 2, 8, batch_first=True)
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_not_proven_falls_back_to_weight_samples(name):
    bnn = bayesian(REFUSED[name]())
    inputs = X.clone()
    prediction = predict(bnn, inputs.clone(), 5, joint=False, generator=seeded())
    assert prediction.method == "weights"
    torch.manual_seed(0)
    expected = predict(bnn, inputs.clone(), 5, generator=seeded())
    if name != "random":
        assert_close(prediction.samples, expected.samples)


@pytest.mark.parametrize(("name", "factor"), [("folded tokens", 1.5), ("called twice", 1.2), ("centred", 3.0)])
def test_where_it_is_refused_it_would_be_wrong(name, factor):
    """The spread by noise per activation, as training has it, is another than that of weight samples."""
    torch.manual_seed(0)
    model = REFUSED[name]()
    bnn = bayesian(model)
    alike = 1 + 0.1 * X
    right = predict(bnn, alike, 2000, joint=False).std
    with torch.no_grad():
        wrong = torch.stack([bnn.train()(alike) for _ in range(2000)]).std(0)
    ratio = (wrong / right)[right > 1e-6]
    assert max(float(ratio.max()), float(1 / ratio.min())) > factor


def test_tied_weights_are_shared():
    model = nn.Sequential(nn.Linear(5, 5), nn.Tanh(), nn.Linear(5, 5))
    model[2].weight = model[0].weight
    assert predict(bayesian(model), X, 4, joint=False).method == "weights"


def test_a_pruned_weight_makes_no_noise():
    bnn = bayesian(nn.Sequential(nn.Linear(5, 3)))
    for _, posterior in named_posteriors(bnn):
        posterior.set_mask(torch.zeros_like(posterior.mu))
    prediction = predict(bnn, X, 4, joint=False)
    assert prediction.method == "local"
    assert prediction.std.abs().max() == 0


def test_batches_and_chunks_have_noise_of_their_own():
    bnn = bayesian(ALLOWED["mlp"]())
    loader = DataLoader(TensorDataset(X), batch_size=4)
    whole, parts = (predict(bnn, inputs, 3000, joint=False, generator=seeded()) for inputs in (X, loader))
    assert parts.method == "local"
    assert log_ratio(whole, parts, 3000) < 5
    again = predict(bnn, loader, 3000, joint=False, generator=seeded())
    assert_close(again.std, parts.std, rtol=0, atol=0)


def test_inputs_in_structures_and_one_example():
    bnn = bayesian(module(lambda self, x, scale=None: self.a(x if scale is None else x * scale), a=nn.Linear(5, 3)))
    for inputs in ({"x": X, "scale": torch.ones(6, 1)}, (X, None), X[:1]):
        assert predict(bnn, inputs, 4, joint=False).method == "local"
    assert predict(bnn, {"x": X, "scale": torch.ones(1, 5)}, 4, joint=False).method == "weights"
    assert predict(bnn, {"x": X, "scale": torch.tensor(2.0)}, 4, joint=False).method == "weights"


def test_nothing_is_moved_or_kept():
    bnn = bayesian(ALLOWED["residual"]())
    before, inputs, state = copy.deepcopy(bnn.state_dict()), X.clone(), torch.get_rng_state()
    predict(bnn, inputs, 4, joint=False, generator=seeded())
    assert torch.equal(inputs, X)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(value, before[key]) for key, value in bnn.state_dict().items())
    with sampling(bnn, seeded()):
        assert type(bnn(X)) is torch.Tensor


def test_ensembles_and_plain_models():
    members = [bayesian(ALLOWED["mlp"]()), bayesian(REFUSED["called twice"]())]
    assert predict(members[:1] * 2, X, 3, joint=False).method == "local"
    assert predict(nn.Linear(5, 2), X, joint=False).method == "deterministic"
    mixed = [bayesian(nn.Linear(5, 5)), members[1]]
    assert predict(mixed, X, 3, joint=False).method == "local"


def test_half_precision():
    bnn = bayesian(ALLOWED["mlp"]()).bfloat16()
    local, weights = (predict(bnn, X.bfloat16(), 3000, joint=joint) for joint in (False, True))
    assert local.method == "local"
    assert (local.std / weights.std - 1).abs().max() < 0.15


def test_a_layer_built_by_hand():
    layer = nn.Sequential(BayesianLinear(5, 4), nn.ReLU(), BayesianLinear(4, 2)).eval()
    with pytest.warns(UserWarning, match="neither trained nor fitted"):
        assert predict(layer, X, 3, joint=False).method == "local"
