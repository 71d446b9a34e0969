"""What ``predict`` and what it returns refuse or warn of."""

import math

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from bensemble.errors import InvalidTypeError, InvalidValueError, OutOfMemoryError
from bensemble.prediction.monte_carlo import predict
from convert import bayesify

from .networks import X, bayesian, cnn


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "exactly one of share and threshold"),
        ({"share": 0.1, "threshold": 0.1}, "exactly one of share and threshold"),
        ({"share": 1.1}, r"share must be finite and at least 0 and at most 1, got 1\.1"),
        ({"threshold": math.nan}, "threshold must be finite, got nan"),
        ({"share": 0.1, "by": "std"}, "by must be one of entropy, .*, got 'std'"),
        (
            {"threshold": 0.1, "by": "novelty_pvalue"},
            "by must be one of .*, got 'novelty_pvalue'; give its p-values as by='novelty' and level=",
        ),
    ],
)
def test_reject_refuses(arguments, message):
    with pytest.raises(InvalidValueError, match=f"reject: {message}"):
        predict(cnn(), X, likelihood="categorical").reject(**arguments)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"model": "net"}, InvalidTypeError, "model must be a torch.nn.Module or a sequence of them, got str"),
        (
            {"model": [{"weight": X}]},
            InvalidTypeError,
            "Module, got dict; .*give it these weights with load_state_dict",
        ),
        ({"model": []}, InvalidTypeError, "model must be a torch.nn.Module or a sequence of them, got a list of 0"),
        ({"model": [nn.Flatten(), 3]}, InvalidTypeError, "model must be a torch.nn.Module, got int"),
        ({"inputs": 3}, InvalidTypeError, "inputs: must be a tensor"),
        ({"inputs": []}, InvalidValueError, "at least one batch, got a loader without any"),
        ({"num_samples": 0}, InvalidValueError, "num_samples must be at least 1, got 0"),
        ({"num_samples": 2.0}, InvalidTypeError, r"num_samples must be a whole number, got 2\.0"),
        ({"chunk_size": 0}, InvalidValueError, "chunk_size must be at least 1, got 0"),
        ({"generator": 3}, InvalidTypeError, "generator must be a torch.Generator, got 3"),
        ({"likelihood": "poisson"}, InvalidValueError, "likelihood: must be one of"),
        ({"output": "logits"}, InvalidValueError, "'logits' selects nothing"),
        ({"model": nn.Threshold(9.0, math.nan)}, InvalidValueError, "got 6 of 6 values that are not, in batch 0"),
        (
            {"model": nn.Sequential(nn.Flatten(), nn.Linear(3, 9), nn.Softmax(-1)), "likelihood": "categorical"},
            InvalidValueError,
            "Categorical: outputs must be logits",
        ),
        (
            {"inputs": [torch.zeros(2, 3), torch.zeros(2, 4)]},
            InvalidValueError,
            r"outputs of a batch must have the shape \(3,\) of the first, got \(4,\)",
        ),
        (
            {"model": [nn.Flatten(), nn.Linear(3, 1)]},
            InvalidValueError,
            r"outputs of a sample must have the shape \(2, 3\) of the first, got \(2, 1\)",
        ),
    ],
)
def test_predict_refuses(arguments, error, message):
    with pytest.raises(error, match=message):
        predict(**{"model": nn.Flatten(), "inputs": torch.randn(2, 3)} | arguments)


def test_a_loader_that_shuffles_is_told_of():
    rows = TensorDataset(torch.randn(4, 3))
    with pytest.warns(UserWarning, match="predict: the loader shuffles, .*pass shuffle=False") as caught:
        predict(nn.Flatten(), DataLoader(rows, 2, shuffle=True))
    assert caught[0].filename == __file__
    predict(nn.Flatten(), DataLoader(rows, 2))


def test_a_mixed_ensemble_is_refused():
    with pytest.raises(InvalidValueError, match="predict: an ensemble must be all Bayesian or all deterministic"):
        predict([cnn(), bayesian(cnn())], X)


def test_an_untouched_posterior_warns_once_per_model():
    bnn = bayesify(cnn())
    with pytest.warns(UserWarning, match=r"neither trained nor fitted.*call bensemble\.fit_posterior") as caught:
        predict(bnn, X, 2)
    assert caught[0].filename == __file__
    predict(bnn, X, 2)
    with pytest.warns(UserWarning, match="neither trained nor fitted"):
        predict(bayesify(cnn()), X, 2)
    trained = bayesify(cnn()).train()
    optimizer = torch.optim.SGD(trained.parameters(), lr=1e-3)
    trained(X).square().mean().backward()
    optimizer.step()
    predict(trained, X, 2)


def test_a_forward_that_does_not_fit_says_so():
    class Large(nn.Module):
        def forward(self, x):
            return torch.empty(len(x), 2**50)

    with pytest.raises(
        OutOfMemoryError, match="predict: 7 examples in one forward do not fit into memory; pass chunk_s"
    ):
        predict(Large(), X)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("form", ["tensor", "tuple", "mapping", "list in a tuple", "packed", "loader"])
def test_inputs_that_are_not_finite_are_refused_even_where_the_outputs_are(value, form):
    class Bounded(nn.Module):
        """Answers anything with numbers."""

        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.ones(3, 4))

        def forward(self, x):
            x = x[0] if isinstance(x, list) else getattr(x, "data", x)
            return torch.nan_to_num(x).clamp(-1, 1) @ self.weight.T

    x = torch.rand(5, 4)
    x[3, 2] = value
    inputs = {
        "tensor": x,
        "tuple": (x,),
        "mapping": {"x": x},
        "list in a tuple": ([x],),
        "packed": nn.utils.rnn.pack_sequence(list(x[:, None])),
        "loader": [(x.nan_to_num(0, 0, 0), None), (x, None)],
    }[form]
    if form == "loader":
        expected = rf"predict: inputs must be finite, got {value} at \[3, 2\] of a .* in batch 1, one of 1"
    else:
        expected = rf"predict: inputs must be finite, got {value} at \[3, 2\] of a tensor of shape \(5, 4\)"
    with pytest.raises(InvalidValueError, match=expected):
        predict(Bounded(), inputs, likelihood="categorical")


def test_the_infinities_of_an_additive_mask_are_no_fault():
    class Masked(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(4, 3)

        def forward(self, x, mask):
            return self.linear(x) + mask

    mask = torch.tensor([[0.0, -math.inf, 0.0]]).expand(5, 3)
    assert bool((predict(Masked(), (torch.randn(5, 4), mask), likelihood="categorical").probs[:, 1] == 0).all())


def test_noise_that_overflows_is_refused():
    head = nn.Linear(4, 2)
    nn.init.constant_(head.bias, 200.0)
    with pytest.raises(InvalidValueError, match="the noise that the outputs hold must be finite, got 5 of 5 values"):
        predict(head, torch.randn(5, 4), likelihood="gaussian_head")
