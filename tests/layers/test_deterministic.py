"""In eval() a Bayesian layer is its torch.nn layer, bit for bit, over all arguments; elsewhere where sigma is tiny."""

import pytest
import torch
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from torch import nn
from torch.testing import assert_close

from bensemble import sampling
from bensemble.gaussian import RHO_MIN
from bensemble.layers import (
    BayesianConv1d,
    BayesianConv2d,
    BayesianConv3d,
    BayesianConvTranspose1d,
    BayesianConvTranspose2d,
    BayesianConvTranspose3d,
    BayesianLinear,
)

DTYPES = st.sampled_from([torch.float32, torch.float64, torch.bfloat16])
TWINS = {
    nn.Linear: BayesianLinear,
    nn.Conv1d: BayesianConv1d,
    nn.Conv2d: BayesianConv2d,
    nn.Conv3d: BayesianConv3d,
    nn.ConvTranspose1d: BayesianConvTranspose1d,
    nn.ConvTranspose2d: BayesianConvTranspose2d,
    nn.ConvTranspose3d: BayesianConvTranspose3d,
}
CONVOLUTIONS = list(zip((nn.Conv1d, nn.Conv2d, nn.Conv3d), (1, 2, 3), strict=True))
TRANSPOSED = list(zip((nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d), (1, 2, 3), strict=True))


def sizes(axes, least, most):
    """A number, or one number for each axis."""
    number = st.integers(least, most)
    return st.one_of(number, st.tuples(*[number] * axes))


@st.composite
def linear(draw):
    arguments = {"in_features": draw(st.integers(1, 5)), "out_features": draw(st.integers(1, 5))}
    leading = draw(st.lists(st.integers(1, 3), max_size=3))
    return nn.Linear, arguments, (*leading, arguments["in_features"])


@st.composite
def channels(draw, axes):
    groups = draw(st.integers(1, 3))
    arguments = {
        "in_channels": groups * draw(st.integers(1, 2)),
        "out_channels": groups * draw(st.integers(1, 2)),
        "groups": groups,
        "kernel_size": draw(sizes(axes, 1, 3)),
        "stride": draw(sizes(axes, 1, 2)),
        "dilation": draw(sizes(axes, 1, 2)),
    }
    batch = draw(st.sampled_from([(), (1,), (3,)]))
    spatial = draw(st.tuples(*[st.integers(5, 7)] * axes))
    return arguments, (*batch, arguments["in_channels"], *spatial)


@st.composite
def convolution(draw):
    nn_type, axes = draw(st.sampled_from(CONVOLUTIONS))
    arguments, shape = draw(channels(axes))
    arguments["padding"] = draw(st.one_of(sizes(axes, 0, 2), st.sampled_from(["valid", "same"])))
    if arguments["padding"] == "same":
        arguments["stride"] = 1
    arguments["padding_mode"] = draw(st.sampled_from(["zeros", "zeros", "reflect", "replicate", "circular"]))
    return nn_type, arguments, shape


@st.composite
def transposed(draw):
    nn_type, axes = draw(st.sampled_from(TRANSPOSED))
    arguments, shape = draw(channels(axes))
    arguments["padding"] = draw(sizes(axes, 0, 1))
    arguments["output_padding"] = draw(st.integers(0, 1))
    return nn_type, arguments, shape


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths:UserWarning")
@settings(max_examples=150, suppress_health_check=[HealthCheck.too_slow])
@given(case=st.one_of(linear(), convolution(), transposed()), bias=st.booleans(), dtype=DTYPES)
def test_the_layer_equals_its_deterministic_type(case, bias, dtype):
    nn_type, arguments, shape = case
    x = torch.randn(shape, dtype=dtype)
    plain = nn_type(**arguments, bias=bias, dtype=dtype)
    try:
        expected = plain(x)
    except (RuntimeError, ValueError):  # an output without elements, or output padding beyond the stride
        assume(False)
    layer = TWINS[nn_type](**arguments, bias=bias, dtype=dtype)
    assert isinstance(layer, nn_type)
    assert repr(layer) == f"Bayesian{plain!r}"
    assert (layer.bias is None) == (not bias)
    with torch.no_grad():
        for name, parameter in plain.named_parameters():
            getattr(layer.eval(), name).copy_(parameter)

    assert torch.equal(layer(x), expected)

    # Every other path of a forward takes the same arguments: without noise the numbers are the same.
    with torch.no_grad():
        for posterior in layer.posteriors():
            posterior.rho.fill_(RHO_MIN)
    for grad in (True, False):
        with torch.set_grad_enabled(grad):
            for estimator in ("local", "weights"):
                layer.estimator = estimator
                assert_close(layer.train()(x), expected)
            with sampling(layer):
                assert_close(layer(x), expected)
    layer.estimator = "local"
    layer(x).float().square().sum().backward()
    plain(x).float().square().sum().backward()
    assert_close(layer.w_mu.grad, plain.weight.grad)
    if bias:
        assert_close(layer.b_mu.grad, plain.bias.grad)


@pytest.mark.parametrize("nn_type", [nn_type for nn_type, _ in TRANSPOSED])
def test_a_transposed_convolution_takes_its_output_size(nn_type):
    axes = nn_type(1, 1, 1).weight.dim() - 2
    layer, x = TWINS[nn_type](2, 3, 3, stride=2), torch.randn(2, 2, *[4] * axes)
    for training in (True, False):
        assert layer.train(training)(x, output_size=[10] * axes).shape[2:] == (10,) * axes
        with sampling(layer):
            assert layer(x, [10] * axes).shape[2:] == (10,) * axes


def test_channels_last_and_strided_inputs_change_nothing():
    x = torch.randn(4, 6, 5, 5)[:, ::2]
    for layout in (torch.contiguous_format, torch.channels_last):
        layer = BayesianConv2d(3, 8, 3).to(memory_format=layout)
        plain = nn.Conv2d(3, 8, 3).to(memory_format=layout)
        plain.load_state_dict({"weight": layer.w_mu, "bias": layer.b_mu})
        y = x.to(memory_format=layout)
        assert torch.equal(layer.eval()(y), plain(y))
        torch.manual_seed(0)
        noise = layer.train()(y) - plain(y)
        torch.manual_seed(0)
        again = layer(y) - plain(y)
        assert torch.equal(noise, again)
        assert noise.shape == (4, 8, 3, 3)
