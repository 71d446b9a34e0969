"""Arguments that one would naturally try: they work, or end in one line that says what to write."""

import pytest
import torch
from torch import nn

import bensemble
from bensemble import predict, recipes, rejection_curve
from bensemble.errors import InvalidTypeError
from convert import bayesify, compare_onnx, compress


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))

    def forward(self, x, mask=None):
        return self.linear(x)


X, Y = torch.randn(6, 4), torch.tensor([0, 1, 2, 0, 1, 2])


@pytest.mark.filterwarnings("ignore:.*neither trained nor fitted")
@pytest.mark.parametrize(
    ("batch", "line"),
    [
        ({"image": X, "label": Y}, "pass unpack=lambda batch: (batch['image'], batch['label'])."),
        ({"id": ["a"], "image": X, "labels": Y}, "pass unpack=lambda batch: (batch['image'], batch['labels'])."),
        ({"features": X, "target": Y}, "pass unpack=lambda batch: (batch['features'], batch['target'])."),
        ({"x": X, "y": Y}, "pass unpack=lambda batch: ({key: batch[key] for key in ('x',)}, batch['y'])."),
        ({"image": X}, "pass unpack=lambda batch: (batch['image'], None)."),
    ],
)
def test_keys_that_the_forward_does_not_take_are_named_with_the_line_that_helps(batch, line):
    model = Net()
    bnn = bayesify(model)
    readers = [
        lambda unpack: predict(bnn, [batch], likelihood="categorical", unpack=unpack),
        lambda unpack: bensemble.fit_posterior(bnn, [batch], likelihood="categorical", unpack=unpack),
        lambda unpack: bensemble.fit_novelty(model, [batch] * 9, [batch], likelihood="categorical", unpack=unpack),
        lambda unpack: recipes.fine_tune(bnn, [batch], likelihood="categorical", epochs=1, unpack=unpack),
    ]
    for number, read in enumerate(readers):
        with pytest.raises(InvalidTypeError, match=r"Net takes the arguments \(x, mask\), got the keys") as caught:
            read(None)
        assert str(caught.value).endswith(line)
        if number == 0 or (number != 2 and "None" not in line):
            read(eval(line.removeprefix("pass unpack=").removesuffix(".")))


def test_a_mapping_given_directly_names_its_keys():
    with pytest.raises(
        InvalidTypeError,
        match=r"takes the arguments \(x, mask\), got the keys 'image'; give these names, or the tensor",
    ):
        predict(Net(), {"image": X})


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (lambda: bayesify(Net(), prior=lambda w: w), r"prior must be callable as \(name, weight\), got <lambda>\(w\)"),
        (lambda: bayesify(Net(), prior=lambda name, w: w), r"prior must be one of .*, got tensor\(\[\["),
        (lambda: bayesify(Net(), init_sigma=lambda w: 0.1), r"init_sigma must be callable as \(name, weight\), got"),
        (lambda: bayesify(Net(), include=lambda m: True), r"include must be callable as \(name, module\), got"),
        (lambda: predict(Net(), X, progress=True), r"progress must be callable as \(done, total\), got True"),
        (
            lambda: predict(Net(), X, progress=lambda n: n),
            r"progress must be callable as \(done, total\), got <lam",
        ),
        (lambda: predict(Net(), [(X, Y)], unpack=lambda x, y: x), r"unpack must be callable as \(batch\), got"),
        (lambda: rejection_curve(X, Y), "rejection_curve: prediction must be of classes or of a regression, got a ten"),
        (lambda: rejection_curve(predict(Net(), X, likelihood="categorical"), [0]), "got list; use torch.as_tensor"),
        (lambda: predict(Net(), X, num_samples=X), "num_samples must be a whole number, got tensor"),
        (
            lambda: compress(bayesify(Net()), lambda: 1, X, "x", max_drop=1),
            r"evaluate must be callable as \(model\), got",
        ),
        (lambda: compare_onnx({"a": "x"}, X, evaluate=0.9), r"evaluate must be callable as \(model\), got 0.9"),
    ],
)
def test_natural_mistakes_end_in_one_line(call, match):
    with pytest.raises(InvalidTypeError, match=match) as caught:
        call()
    assert "\n" not in str(caught.value)


def test_the_kl_of_a_model_without_posteriors_is_warned_of():
    with pytest.warns(UserWarning, match="kl_divergence: Net has no posteriors, so the KL is 0; call convert.bayesify"):
        assert bensemble.kl_divergence(Net()) == 0
    assert bensemble.posterior_summary(Net())["kl"] == 0
