"""Which layer is the last one, whose outputs are the logits, and where there is none."""

from __future__ import annotations

import copy
import dataclasses
import random
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bensemble.errors import InvalidTypeError, InvalidValueError
from convert import bayesify, last_layer

from .heads import Network, Tied, x


@dataclasses.dataclass
class Output:
    loss: Tensor | None
    logits: Tensor
    hidden: Tensor


def images() -> Tensor:
    return torch.randn(2, 3, 8, 8)


def segmenter(*after: nn.Module) -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.ReLU(), nn.Conv2d(8, 5, 1), *after)


def resized(**how: Any) -> nn.Module:
    return segmenter(nn.Upsample(scale_factor=2, **how))


def _never(*args: Any) -> Any:
    raise AssertionError("what is compiled cannot be watched")


FOUND: dict[str, tuple[Callable[[], nn.Module], Callable[[], Any], str]] = {
    "as it is": (lambda: Network(lambda m, h: m.fc(h)), x, "fc"),
    "the root": (lambda: nn.Linear(4, 3), x, ""),
    "reshapes and transposes": (lambda: Network(lambda m, h: m.fc(h).T.reshape(-1)[None]), x, "fc"),
    "indexing": (lambda: Network(lambda m, h: m.fc(h)[::2, 1]), x, "fc"),
    "indices": (lambda: Network(lambda m, h: m.fc(h)[torch.tensor([3, 0])]), x, "fc"),
    "a mapping": (lambda: Network(lambda m, h: {"hidden": h, "logits": m.fc(h)}), x, "fc"),
    "a dataclass": (lambda: Network(lambda m, h: Output(None, m.fc(h), h)), x, "fc"),
    "the first of a tuple": (lambda: Network(lambda m, h: (m.fc(h), h)), x, "fc"),
    "a cast": (lambda: Network(lambda m, h: m.fc(h).float() / 3).bfloat16(), lambda: x().bfloat16(), "fc"),
    "more elements than bfloat16 can count": (
        lambda: Network(lambda m, h: m.fc(h)).bfloat16(), lambda: torch.randn(500, 4).bfloat16(), "fc"
    ),
    "float16": (lambda: Network(lambda m, h: m.fc(h) * 3).half(), lambda: x().half(), "fc"),
    "float64": (lambda: Network(lambda m, h: m.fc(h) / 0.7).double(), lambda: x().double(), "fc"),
    "a temperature": (lambda: Network(lambda m, h: m.fc(h) / 2.3), x, "fc"),
    "a temperature that was trained": (
        lambda: Network(lambda m, h: m.fc(h) * m.scale.exp(), scale=nn.Parameter(torch.tensor(1.2))), x, "fc"
    ),
    "in place": (lambda: Network(lambda m, h: m.fc(h).mul_(-2)), x, "fc"),
    "dropout and identity": (
        lambda: Network(lambda m, h: m.after(m.fc(h)), after=nn.Sequential(nn.Dropout(0.5), nn.Identity())), x, "fc"
    ),
    "rows put together": (lambda: Network(lambda m, h: torch.stack(list(m.fc(h)))), x, "fc"),
    "a head beside that is not read": (
        lambda: Network(lambda m, h: (m.fc(h), m.other(h))[0], other=nn.Linear(8, 3)), x, "fc"
    ),
    "tied to an embedding": (Tied, lambda: torch.randint(0, 9, (2, 6)), "lm_head"),
    "a 1x1 convolution": (segmenter, images, "2"),
    "bilinear": (lambda: resized(mode="bilinear"), images, "2"),
    "bilinear, aligned corners": (lambda: resized(mode="bilinear", align_corners=True), images, "2"),
    "bicubic": (lambda: resized(mode="bicubic"), images, "2"),
    "nearest": (lambda: resized(mode="nearest"), images, "2"),
    "averages of positions": (lambda: segmenter(nn.AvgPool2d(2)), images, "2"),
    "resized, then averaged": (lambda: segmenter(nn.Upsample(scale_factor=4), nn.AvgPool2d(2)), images, "2"),
    "a transposed convolution": (
        lambda: nn.Sequential(nn.Conv2d(3, 4, 1), nn.ConvTranspose2d(4, 2, 2, 2)), images, "1"
    ),
    "compiled": (lambda: torch.compile(Network(lambda m, h: m.fc(h)), backend=_never), x, "_orig_mod.fc"),
    "data parallel": (lambda: nn.DataParallel(Network(lambda m, h: m.fc(h))), x, "module.fc"),
}  # fmt: skip


@pytest.mark.parametrize("case", FOUND)
def test_the_last_layer_is_found(case: str) -> None:
    make, inputs, expected = FOUND[case]
    assert last_layer(make(), inputs()) == expected


@pytest.mark.parametrize("case", ["as it is", "the root", "bilinear", "a temperature"])
def test_of_a_bayesian_model(case: str) -> None:
    make, inputs, expected = FOUND[case]
    assert last_layer(bayesify(make()), inputs()) == expected


LINKS = {
    "softmax": lambda y: y.softmax(-1),
    "softmax in another dtype": lambda y: F.softmax(y / 2, 1, dtype=torch.float64),
    "log_softmax": lambda y: nn.LogSoftmax(-1)(y / 2),
    "sigmoid": lambda y: torch.sigmoid(y[:, 0]).reshape(-1, 1),
    "log_sigmoid": F.logsigmoid,
}


@pytest.mark.parametrize("case", LINKS)
def test_a_softmax_at_the_end_is_warned_of(case: str) -> None:
    network = Network(lambda m, h: LINKS[case](m.fc(h)))
    with pytest.warns(UserWarning, match=rf"last_layer: a {case.split()[0]} follows 'fc'; .* want the logits"):
        assert last_layer(network, x()) == "fc"
    bnn = bayesify(network, include="fc", example_inputs=x())
    assert not bnn.fc.is_last


def test_no_warning_of_a_softmax_before_the_last_layer() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert last_layer(Network(lambda m, h: m.fc(h.softmax(-1))), x()) == "fc"


class _Twice(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return 2 * x


class _Random(nn.Module):
    """Draws random numbers, also in evaluation mode."""

    def forward(self, x: Tensor) -> Tensor:
        random.random()
        return x.clone() if torch.rand(()) >= 0 else x


class _Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.fc(x)


class _Positive(nn.Module):
    """Outputs far above zero, so that a rectifier has nothing to do on the example inputs."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(4, 3)
        nn.init.constant_(self.fc.bias, 100.0)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.fc(x))


class _Gradient(nn.Module):
    """The gradient of an energy, as force fields give it."""

    def __init__(self) -> None:
        super().__init__()
        self.energy = nn.Linear(4, 1)

    def forward(self, x: Tensor) -> Tensor:
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            return torch.autograd.grad(self.energy(x.tanh()).sum(), x)[0]


REFUSED: dict[str, tuple[Callable[[], nn.Module], Callable[[], Any], str]] = {
    "two heads": (
        lambda: Network(lambda m, h: (m.fc(h) + m.other(h)) / 2, other=nn.Linear(8, 3)), x,
        "must come from one layer, got 'fc', 'other' joined by add; name",
    ),
    "a gate": (
        lambda: Network(lambda m, h: m.fc(h) * m.gate(h).sigmoid(), gate=nn.Linear(8, 1)), x,
        "must come from one layer, got 'fc', 'gate' joined by sigmoid",
    ),
    "a residual": (
        lambda: Network(lambda m, h: h + m.other(h), other=nn.Linear(8, 8)), x,
        "got 'body', 'other' joined by relu, add",
    ),
    "the input is added": (_Residual, x, "output of 'fc' times one constant, got add after it"),
    "a rectifier": (
        lambda: Network(lambda m, h: m.act(m.fc(h)), act=nn.ReLU()), x,
        r"output of 'fc' times one constant, got relu \('act'\) after it; end the model with the layer",
    ),
    "a rectifier that does nothing here": (_Positive, x, "got relu after it"),
    "a bound far away": (lambda: Network(lambda m, h: m.fc(h).clamp(-5000, 5000)), x, "got clamp after it"),
    "a soft cap": (lambda: Network(lambda m, h: 30 * torch.tanh(m.fc(h) / 30)), x, "got tanh after it"),
    "a norm": (
        lambda: Network(lambda m, h: m.norm(m.fc(h)), norm=nn.LayerNorm(3)), x,
        r"got native_layer_norm \('norm'\) with 'norm.bias', 'norm.weight' after it",
    ),
    "a factor for each class": (
        lambda: Network(lambda m, h: m.fc(h) * torch.tensor([1.0, 2.0, 3.0])), x, "got mul after it",
    ),
    "a constant is added": (lambda: Network(lambda m, h: m.fc(h) + 1), x, "got add after it"),
    "padded": (lambda: Network(lambda m, h: F.pad(m.fc(h), (1, 0))), x, "got constant_pad_nd after it"),
    "sorted": (lambda: Network(lambda m, h: m.fc(h).sort().values), x, "got sort after it"),
    "one element twice": (lambda: Network(lambda m, h: m.fc(h)[:, [0, 0]]), x, "got index after it"),
    "a mean": (lambda: Network(lambda m, h: m.fc(h).mean(0)), x, "got mean after it"),
    "probabilities that are averaged": (
        lambda: Network(lambda m, h: m.fc(h).softmax(-1).mean(0)), x, "got softmax, mean after it"
    ),
    "probabilities that are scaled": (lambda: Network(lambda m, h: 2 * m.fc(h).softmax(-1)), x, "got softmax after it"),
    "one layer twice": (
        lambda: Network(lambda m, h: torch.stack([m.fc(h), m.fc(2 * h)])), x,
        "'fc' must be called once in a forward, got 2 calls",
    ),
    "one layer twice, of which one is read": (
        lambda: Network(lambda m, h: (m.fc(h), m.fc(2 * h))[1]), x,
        "'fc' must be called once in a forward, got 2 calls",
    ),
    "a function with a weight": (
        lambda: Network(lambda m, h: F.linear(h, m.fc.weight)), x,
        "call of a layer, got 'fc.weight' after 'body', used by relu, mm without such a call",
    ),
    "nothing but a weight": (
        lambda: nn.LSTM(4, 3, batch_first=True), lambda: torch.randn(2, 5, 4),
        "call of a layer, got .*'weight_ih_l0'.* without such a call",
    ),
    "no layer": (nn.Identity, x, "none among 0 called Linear layers"),
    "without gradients": (
        lambda: Network(torch.no_grad()(lambda m, h: m.fc(h))), x, "none among 2 called Linear.* without gradients",
    ),
    "pooled positions": (
        lambda: segmenter(nn.AdaptiveAvgPool2d(1), nn.Flatten()), images, r"output of '2' .* got mean \('3'\)"
    ),
    "resized, then rectified": (
        lambda: segmenter(nn.Upsample(scale_factor=2), nn.ReLU()), images,
        r"got upsample_nearest2d \('3'\), relu \('4'\)",
    ),
    "resized, then bounded": (
        lambda: segmenter(nn.Upsample(scale_factor=2, mode="bilinear"), nn.Hardtanh(-900, 900)), images, "hardtanh",
    ),
    "resized, then scaled": (
        lambda: nn.Sequential(resized(mode="bilinear"), _Twice()), images, "got upsample_bilinear2d",
    ),
    "no values": (lambda: nn.Linear(4, 3, device="meta"), lambda: torch.empty(2, 4, device="meta"), "meta device"),
    "derivatives of its layers": (lambda: _Gradient(), x, r"history of its layers' outputs.*differentiated Tensor"),
    "inputs that do not fit": (lambda: nn.Linear(3, 2), x, "rejects example_inputs .* mat1 and mat2"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_where_there_is_none(case: str) -> None:
    make, inputs, message = REFUSED[case]
    with pytest.raises(InvalidValueError, match=f"last_layer: .*{message}"):
        last_layer(make(), inputs())


def test_output_names_another_one() -> None:
    network = Network(lambda m, h: {"out": m.fc(h), "more": (h, m.other(h))}, other=nn.Linear(8, 2))
    assert last_layer(network, x()) == "fc"
    assert last_layer(network, x(), output="more.1") == "other"
    with pytest.raises(InvalidValueError, match="'absent' is not in the model's output"):
        last_layer(network, x(), output="absent")


def test_only_modules() -> None:
    with pytest.raises(InvalidTypeError, match="last_layer"):
        last_layer(lambda value: value, x())  # type: ignore[arg-type]


def test_nothing_changes() -> None:
    network = nn.Sequential(nn.BatchNorm1d(4), nn.Dropout(), nn.Linear(4, 3).requires_grad_(False), _Random())
    network[1].eval()
    before, flags = copy.deepcopy(network.state_dict()), [module.training for module in network.modules()]
    attributes = [set(vars(module)) for module in network.modules()]
    hooks = [dict(module._forward_hooks) for module in network.modules()]
    states = torch.get_rng_state(), random.getstate()
    assert last_layer(network, x_once := torch.ones(5, 4)) == "2"
    assert torch.equal(states[0], torch.get_rng_state())
    assert states[1] == random.getstate()
    assert [module.training for module in network.modules()] == flags
    assert [set(vars(module)) for module in network.modules()] == attributes
    assert [dict(module._forward_hooks) for module in network.modules()] == hooks
    assert not any(parameter.requires_grad for parameter in network[2].parameters())
    assert all(torch.equal(before[key], value) for key, value in network.state_dict().items())
    assert not x_once.requires_grad
    assert torch.is_grad_enabled()


def test_without_gradients_around() -> None:
    with torch.no_grad():
        assert last_layer(Network(lambda m, h: m.fc(h)), x()) == "fc"
    with torch.inference_mode():
        assert last_layer(Network(lambda m, h: m.fc(h)), x()) == "fc"
