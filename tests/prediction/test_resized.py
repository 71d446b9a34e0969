"""The closed form behind a last layer whose output is resized: exact, or not taken."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.autograd.function import once_differentiable

from bensemble import predict
from bensemble.likelihoods import Categorical
from bensemble.prediction.closed import closed_form
from convert import bayesify

GRID = torch.rand(2, 4, 3, 2, generator=torch.Generator().manual_seed(0)) * 2 - 1
SAME = {
    "bilinear": lambda y: F.interpolate(y, size=(7, 5), mode="bilinear"),
    "bilinear, aligned corners": lambda y: F.interpolate(y, size=(7, 5), mode="bilinear", align_corners=True),
    "bicubic": lambda y: F.interpolate(y, scale_factor=2, mode="bicubic"),
    "nearest": lambda y: F.interpolate(y, size=(7, 5)),
    "smaller": lambda y: F.interpolate(y, size=(2, 3), mode="bilinear", antialias=True),
    "averaged": lambda y: F.avg_pool2d(y, 2),
    "averaged over all": lambda y: y.mean((2, 3), keepdim=True),
    "cut": lambda y: y[..., 1:-1, :2],
    "cut and enlarged": lambda y: F.interpolate(y[..., 1:-1, :2], size=(4, 4), mode="bilinear"),
    "warped": lambda y: F.grid_sample(y, GRID.to(y), padding_mode="border", align_corners=False),
}
OTHER = {
    "added": lambda y: F.interpolate(y + 1, scale_factor=2),
    "padded with zeros": lambda y: F.pad(F.interpolate(y, scale_factor=2), (1, 1)),
    "other for each class": lambda y: torch.stack([y[:, 0], y[:, 1].flip(1), y[:, 2, :1].expand_as(y[:, 2])], 1),
    "mixed classes": lambda y: F.interpolate(0.5 * (y + y.roll(1, 1)), scale_factor=2),
    "rectified": lambda y: F.interpolate(y, scale_factor=2).relu(),
    "probabilities": lambda y: F.interpolate(y, scale_factor=2).softmax(1),
    "a maximum": lambda y: F.max_pool2d(y, 3, 1),
    "another convolution": lambda y: F.conv2d(F.interpolate(y, scale_factor=2), torch.ones(3, 3, 3, 3).to(y) / 27),
}  # fmt: skip


class Once(torch.autograd.Function):
    """Twice as many rows; it has no second derivatives."""

    @staticmethod
    def forward(ctx, y):
        return y.repeat_interleave(2, -2)

    @staticmethod
    @once_differentiable
    def backward(ctx, slope):
        return slope.unflatten(-2, (-1, 2)).sum(-2)


OTHER["without second derivatives"] = Once.apply


class Segmenter(nn.Module):
    def __init__(self, after, inputs=5, stride=1):
        super().__init__()
        self.body, self.after = nn.Conv2d(2, inputs, 3, padding=1), after
        self.head = nn.Conv2d(inputs, 3, 1, stride)

    def forward(self, x):
        return {"out": self.after(self.head(torch.tanh(self.body(x)))), "aux": x}


def of(*how):
    torch.manual_seed(0)
    bnn = bayesify(Segmenter(*how).double().eval(), include="head")
    bnn.head.is_last = True
    with torch.no_grad():
        for posterior in bnn.head.posteriors():
            posterior.rho.uniform_(-3, -1)
    return bnn, torch.randn(2, 2, 5, 6).double()


@pytest.mark.parametrize("inputs", [2, 5])
@pytest.mark.parametrize("case", SAME)
def test_the_variance_is_that_of_the_jacobian(case, inputs):
    bnn, x = of(SAME[case], inputs)
    outputs = (form := closed_form(bnn, None)).outputs(form.record(x, None))
    own = torch.cat([posterior.variance().flatten() for posterior in bnn.head.posteriors()])
    expected = []
    for one in bnn(x)["out"].flatten()[::11]:
        slopes = torch.autograd.grad(one, (bnn.head.w_mu, bnn.head.b_mu), retain_graph=True)
        expected.append(torch.cat([slope.flatten() for slope in slopes]).square() @ own)
    torch.testing.assert_close(outputs.variance.flatten()[::11], torch.stack(expected), rtol=1e-6, atol=0)


def test_probabilities_are_those_of_many_draws():
    bnn, x = of(SAME["bilinear"])
    closed = predict(bnn, x, likelihood=Categorical(1))
    bnn.head.is_last = False
    sampled = predict(bnn, x, 4000, likelihood=Categorical(1), keep_samples=False)
    assert (closed.method, sampled.method) == ("closed", "weights")
    assert float((closed.probs - sampled.probs).abs().max()) < 0.01
    assert float((closed.mutual_information - sampled.mutual_information).abs().max()) < 0.01


@pytest.mark.parametrize("case", OTHER)
def test_what_is_not_the_same_for_all_channels_is_sampled(case):
    bnn, x = of(OTHER[case])
    assert predict(bnn, x, 2).method == "weights"


def test_a_head_that_strides_and_is_resized_is_sampled():
    bnn, x = of(SAME["bilinear"], 5, 2)
    assert predict(bnn, x, 2).method == "weights"


def test_no_more_channels_than_classes_are_resized_at_once():
    bnn, x = of(SAME["bilinear"], 8)
    form = closed_form(bnn, None)
    seen = form.record(x, None)
    blocks = list(seen.resized(seen.input))
    assert [block.shape[1] for block in blocks] == [3, 3, 2]
    torch.testing.assert_close(torch.cat(blocks, 1), SAME["bilinear"](seen.input))


def test_the_random_state_does_not_move():
    bnn, x = of(SAME["bilinear"])
    state = torch.random.get_rng_state()
    closed_form(bnn, None).record(x, None)
    assert torch.equal(state, torch.random.get_rng_state())
