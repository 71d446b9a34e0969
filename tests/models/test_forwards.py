import copy
import re

import pytest
import torch
from torch import nn

import bensemble
import convert
from bensemble.errors import InvalidValueError

X, Y = torch.randn(16, 4, generator=torch.Generator().manual_seed(0)), torch.arange(16) % 3
GOOD = [(X[:8], Y[:8]), (X[8:], Y[8:])]


def _net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))


def _last():
    net = _net()
    return convert.bayesify(net, include=convert.last_layer(net, X), example_inputs=X)


def _fit(net, batch):
    bensemble.fit_posterior(net, [(batch, Y)], likelihood="categorical")


def _repair(batch):
    net, pruned = _net(), _net()
    pruned[0].weight.data[:4] = 0
    convert.repair(pruned, net, [(batch, Y)] * 2)


CALLS = {
    "fit_posterior": lambda b: _fit(convert.bayesify(_net()), b),
    "fit_posterior ": lambda b: _fit(_last(), b),
    "predict": lambda b: bensemble.predict(convert.bayesify(_net(), init_sigma=0.1), b, 2, linearize=True),
    "predict ": lambda b: bensemble.predict(_last(), [(b, Y)], 2),
    "fit_novelty": lambda b: bensemble.fit_novelty(_net(), [(b, Y)], GOOD),
    "score": lambda b: bensemble.fit_novelty(_net(), GOOD, GOOD).score(b),
    "fine_tune": lambda b: bensemble.recipes.fine_tune(
        convert.bayesify(_net()), [(b, Y)], likelihood="categorical", epochs=1
    ),
    "prune_scores": lambda b: convert.prune_scores(_net(), [(b, Y)]),
    "prune_and_repair": lambda b: convert.prune_and_repair(_net(), [(b, Y)] * 2, sparsity=0.5),
    "repair": _repair,
}


@pytest.mark.filterwarnings("ignore:predict. the posterior", "ignore:fit_novelty:")
@pytest.mark.parametrize(
    ("batch", "words"),
    [
        (torch.zeros(16, 5), r"a tensor of shape \(16, 5\) and dtype float32, got RuntimeError: mat1 and mat2 shapes"),
        (X.double(), r"a tensor of shape \(16, 4\) and dtype float64, got RuntimeError: .*same dtype"),
        ((X, X), r"0 \(16, 4\) float32, 1 \(16, 4\) float32, got TypeError: .* 3 were given"),
    ],
    ids=["shape", "dtype", "two"],
)
@pytest.mark.parametrize("verb", CALLS)
def test_a_batch_that_does_not_fit_is_named(verb, batch, words):
    with pytest.raises(
        InvalidValueError, match=rf"{verb.strip()}: Sequential fails on a batch that is {words}"
    ) as info:
        CALLS[verb](batch)
    assert type(info.value.__cause__) in (RuntimeError, TypeError)


class OwnError(RuntimeError):
    pass


def test_an_error_of_another_type_keeps_it_and_gets_a_note():
    class Picky(nn.Linear):
        def forward(self, x):
            raise OwnError("too picky")

    with pytest.raises(OwnError, match="too picky") as info:
        bensemble.predict(Picky(4, 3), X)
    notes = getattr(info.value, "__notes__", [])
    assert notes == ([] if not hasattr(info.value, "add_note") else notes[:1])
    assert not notes or re.match(
        r"predict: Picky fails on a batch that is .*\(16, 4\).*, got OwnError: too pi", notes[0]
    )


def test_memory_errors_keep_their_cure():
    class Large(nn.Linear):
        def forward(self, x):
            return super().forward(x) + torch.empty(2**60).sum()

    with pytest.raises(bensemble.OutOfMemoryError, match="chunk_size"):
        bensemble.predict(Large(4, 3), X)


def test_a_model_of_which_a_part_is_left_names_what_is_bayesian_already():
    bnn = _last()
    with pytest.raises(bensemble.ConversionError, match=r"not included; Bayesian already, such as '2\.w_mu'"):
        convert.bayesify(bnn, include="2")


def test_plain_models_are_refused_by_the_call_that_wants_another(tmp_path):
    with pytest.raises(InvalidValueError, match=r"channel_groups: Sequential has no posteriors.*bayesify"):
        convert.channel_groups(_net(), X)
    with pytest.raises(InvalidValueError, match=r"compress: Sequential has no posteriors.*bayesify"):
        convert.compress(_net(), lambda model: 0.5, X, tmp_path / "a.onnx", max_drop=0.1)


def test_a_prior_that_does_not_fit_a_rotated_basis_is_named_shortly():
    bnn = _last()
    bensemble.fit_posterior(bnn, GOOD, likelihood="categorical")
    before = copy.deepcopy(bnn.state_dict())
    for name in ("ard", "pretrained"):
        with pytest.raises(InvalidValueError, match=rf"got '{name}'; use 'empirical'.*structure='diagonal'") as info:
            bensemble.set_prior(bnn, name)
        assert len(str(info.value)) < 500
    assert all(torch.equal(before[name], value) for name, value in bnn.state_dict().items())


def test_a_loader_that_lists_several_inputs_is_told_how_to_split_them():
    class Pair(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = _net()

        def forward(self, left, right):
            return self.inner(left + right)

    data = [[X, X, Y]]  # as a DataLoader gives TensorDataset(left, right, target)
    bnn = convert.bayesify(Pair())
    with pytest.raises(
        InvalidValueError, match=r"missing 1 .*'right'; .*unpack=lambda batch: \(batch\[:-1\], batch\[-1\]\)"
    ):
        bensemble.fit_posterior(bnn, data, likelihood="categorical")
    bensemble.fit_posterior(bnn, data, likelihood="categorical", unpack=lambda batch: (batch[:-1], batch[-1]))
