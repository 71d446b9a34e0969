"""Every refusal of the conversion: its message, and that the model is left as it was."""

from __future__ import annotations

import copy
import re
import tempfile
from collections.abc import Callable

import pytest
import torch
from torch import nn
from zoo.checks import Fingerprint

import bensemble
from bensemble import BayesianLinear, BensembleError, ConversionError, InvalidTypeError, InvalidValueError
from bensemble.priors import Normal
from convert import bayesify, plan, to_deterministic

from .networks import small

NAN = float("nan")
VALUE, TYPE = InvalidValueError, InvalidTypeError


def sparse() -> nn.Module:
    model = small()
    model[3].weight = nn.Parameter(model[3].weight.detach().to_sparse())
    return model


def quantised_dynamically() -> nn.Module:
    return nn.Sequential(nn.Conv2d(1, 1, 1), torch.ao.nn.quantized.dynamic.Linear(3, 3))


def quantised_statically() -> nn.Module:
    return nn.Sequential(nn.Conv2d(1, 1, 1), torch.ao.nn.quantized.Linear(3, 3))


def lazy() -> nn.Module:
    return nn.Sequential(nn.Linear(3, 3), nn.LazyLinear(2))


MODELS: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "lazy": (lazy, r"2 problems\.\n  - '1\.bias' of LazyLinear has no shape yet; run one forward of the model first\."),
    "lazy_norm": (
        lambda: nn.Sequential(nn.LazyBatchNorm1d(), nn.Linear(3, 3)),
        r"'0\.weight' of LazyBatchNorm1d has no",
    ),
    "sparse": (sparse, r"'3\.weight' is sparse, got layout torch\.sparse_coo; call \.to_dense\(\) on it first\."),
    "dynamic": (quantised_dynamically, r"'1' is quantised, got Linear; convert before you quantise\."),
    "static": (quantised_statically, r"'1' is quantised, got Linear; convert before you quantise\."),
}


@pytest.mark.parametrize(("build", "message"), MODELS.values(), ids=MODELS)
@pytest.mark.parametrize("function", [plan, bayesify], ids=["plan", "bayesify"])
@pytest.mark.filterwarnings("ignore")
def test_parameters_that_cannot_have_a_posterior(build, message: str, function) -> None:
    model = build()
    kinds = [type(module) for module in model.modules()]
    keywords = {"inplace": True} if function is bayesify else {}
    with pytest.raises(ConversionError, match=f"(?s){function.__name__}: .*{message}"):
        function(model, **keywords)
    assert [type(module) for module in model.modules()] == kinds


def test_a_network_that_can_be_quantised_is_not_quantised() -> None:
    model = nn.Sequential(nn.Linear(2, 2), torch.ao.nn.quantized.FloatFunctional())
    assert isinstance(bayesify(model)[0], BayesianLinear)


def test_the_cures_work() -> None:
    model = lazy()
    model(torch.randn(1, 3))
    assert bayesify(model)[1].w_mu.shape == (2, 3)
    dense = sparse()
    dense[3].weight = nn.Parameter(dense[3].weight.detach().to_dense())
    assert bayesify(dense)[3].w_mu.shape == (2, 16)


@pytest.fixture
def _process_group():
    folder = tempfile.TemporaryDirectory()
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder.name}/store", rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()
    folder.cleanup()


@pytest.mark.usefixtures("_process_group")
@pytest.mark.filterwarnings("ignore")
def test_sharded_parameters_and_their_cure() -> None:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh("cpu", (1,))
    with pytest.raises(ConversionError, match=r"'0\.weight' is sharded, got DTensor; bayesify first, then shard\."):
        bayesify(fully_shard(nn.Sequential(nn.Linear(3, 2)), mesh=mesh))
    bnn = fully_shard(bayesify(nn.Sequential(nn.Linear(3, 2), nn.GRU(2, 2))), mesh=mesh)
    bnn(torch.randn(4, 3))[0].square().sum().backward()
    assert bnn[0].w_rho.grad is not None


@pytest.mark.usefixtures("_process_group")
def test_a_distributed_wrapper_and_its_cure() -> None:
    parallel = nn.parallel.DistributedDataParallel(small())
    for model in (parallel, nn.Sequential(parallel)):
        with pytest.raises(
            ConversionError, match=r"is a DistributedDataParallel, .*; bayesify its \.module, then wrap"
        ):
            bayesify(model)
    again = nn.parallel.DistributedDataParallel(bayesify(parallel.module))
    again(torch.randn(2, 3, 4, 4)).square().sum().backward()
    assert all(parameter.grad is not None for parameter in again.parameters())


NOTHING: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "no_parameters": (nn.ReLU, r"nothing to convert in ReLU: it has no parameters\. print\(plan\(mo"),
    "embedding": (lambda: nn.Embedding(3, 2), r"nothing to convert in Embedding: an embedding\."),
    "frozen": (lambda: nn.Linear(3, 2).requires_grad_(False), r"nothing to convert in Linear: frozen; name it"),
    "norms": (lambda: nn.Sequential(nn.LayerNorm(3)), r"nothing to convert in Sequential: a norm\."),
    "converted": (lambda: bayesify(small()), r"nothing is left to convert in Sequential; it is Bayesian already"),
    "script": (lambda: torch.jit.script(nn.Linear(3, 2)), r"nothing to convert in \w+: compiled by TorchScript\."),
}  # fmt: skip


@pytest.mark.parametrize(("build", "message"), NOTHING.values(), ids=NOTHING)
@pytest.mark.filterwarnings("ignore:.*torch.jit")
def test_nothing_to_convert(build, message: str) -> None:
    with pytest.raises(ConversionError, match=f"bayesify: {message}"):
        bayesify(build())


def test_a_forward_set_on_the_model_is_named_where_it_reaches_nothing() -> None:
    """A copy of the function still holds the layer of the original."""
    model = small()
    layers = list(model)
    model.forward = lambda x: nn.Sequential(*layers)(x)
    with pytest.raises(ConversionError, match=r"nothing to convert in Sequential: the forward set on the model itself"):
        bayesify(model, example_inputs=torch.randn(2, 3, 4, 4))


def test_frozen_all_through_and_named() -> None:
    assert bayesify(nn.Linear(3, 2).requires_grad_(False), include=nn.Linear).w_mu.shape == (2, 3)


@pytest.mark.parametrize("value", [None, 3, "model.pt", {}, nn.Linear], ids=str)
@pytest.mark.parametrize("function", [plan, bayesify, to_deterministic], ids=lambda function: function.__name__)
def test_something_that_is_no_module(value: object, function) -> None:
    kind = type(value).__name__
    with pytest.raises(InvalidTypeError, match=rf"{function.__name__}: model must be a torch\.nn\.Module, got {kind}"):
        function(value)
    if function is bayesify:
        with pytest.raises(InvalidTypeError, match=rf"bayesify: model must be a torch\.nn\.Module, got {kind}"):
            bayesify(value, plan=plan(small()))  # type: ignore[type-var]


ARGUMENTS: dict[str, tuple[dict, type[BensembleError], str]] = {
    "sigma_zero": ({"init_sigma": 0.0}, VALUE, r"init_sigma must be finite and above 0, got 0\.0"),
    "sigma_negative": ({"init_sigma": -0.1}, VALUE, r"init_sigma must be finite and above 0, got -0\.1"),
    "sigma_nan": ({"init_sigma": float("nan")}, VALUE, r"init_sigma must be finite and above 0, got nan"),
    "sigma_infinite": ({"init_sigma": float("inf")}, VALUE, r"init_sigma must be finite .*got inf"),
    "sigma_text": ({"init_sigma": "small"}, TYPE, r"init_sigma must be a number, got 'small'"),
    "sigma_flag": ({"init_sigma": True}, TYPE, r"init_sigma must be a number, got True"),
    "sigma_of_one": ({"init_sigma": lambda n, w: -1.0 if n == "3.bias" else 1.0}, VALUE, r"'3\.bias' must be"),
    "sigma_tensor": ({"init_sigma": lambda n, w: w}, VALUE, r"'0\.weight' must be finite and above 0 every"),
    "sigma_shape": ({"init_sigma": lambda n, w: torch.ones(7)}, VALUE, r"shape \(4, 3, 3, 3\), got \(7,\)"),
    "sigma_nothing": ({"init_sigma": lambda n, w: "x"}, TYPE, r"init_sigma of '0\.weight' must be a number"),
    "prior_name": ({"prior": "horseshoe"}, VALUE, r"prior must be one of normal, .*, got 'horseshoe'"),
    "prior_kind": ({"prior": 3}, TYPE, r"prior must be one of .* or log_prob\(w\), got 3"),
    "prior_function": ({"prior": lambda n, w: None}, TYPE, r"prior must be one of .* got None"),
    "prior_sigma_zero": ({"prior": "normal", "prior_sigma": 0.0}, VALUE, r"prior_sigma must be finite and ab"),
    "prior_sigma_nan": ({"prior": "normal", "prior_sigma": NAN}, VALUE, r"prior_sigma must be finite"),
    "prior_sigma_text": ({"prior": "pretrained", "prior_sigma": "1"}, TYPE, r"prior_sigma must be a number"),
    "empirical_sigma": ({"prior_sigma": 1.0}, VALUE, r"prior_sigma belongs to .*'normal' and 'pretrained'"),
    "ard_sigma": ({"prior": "ard", "prior_sigma": 1.0}, VALUE, r"got 1\.0 with prior='ard'; leave"),
    "object_sigma": ({"prior": Normal(), "prior_sigma": 1.0}, VALUE, r"leave prior_sigma out"),
    "estimator": ({"estimator": "flipout"}, VALUE, r"estimator must be 'local' .*, got 'flipout'"),
    "variance": ({"variance_dtype": torch.float16}, VALUE, r"variance_dtype must be .* got torch\.float16; squares"),
}  # fmt: skip


@pytest.mark.parametrize(("arguments", "error", "message"), ARGUMENTS.values(), ids=ARGUMENTS)
def test_arguments_that_cannot_work(arguments: dict, error: type[BensembleError], message: str) -> None:
    model = small()
    before = Fingerprint(model)
    with pytest.raises(error, match=f"bayesify: .*{message}"):
        bayesify(model, inplace=True, **arguments)
    before.compare(model, "refused", identity=True)


BACK: dict[str, tuple[dict, type[BensembleError], str]] = {
    "threshold_negative": ({"threshold": -1.0}, VALUE, r"threshold must be .*got -1\.0"),
    "threshold_nan": ({"threshold": NAN}, VALUE, r"threshold must be .*got nan"),
    "sparsity_one": ({"sparsity": 1.0}, VALUE, r"sparsity must be .*got 1\.0"),
    "sparsity_negative": ({"sparsity": -0.1}, VALUE, r"sparsity must be .*got -0\.1"),
    "two_criteria": ({"sparsity": 0.5, "threshold": 1.0}, VALUE, r"threshold.*sparsity|sparsity.*threshold"),
    "granularity": ({"sparsity": 0.5, "granularity": "row"}, VALUE, r"granularity must be .*got 'row'"),
    "mask_name": ({"masks": {"9.weight": torch.ones(2, 16)}}, VALUE, r"'9\.weight'"),
    "mask_shape": ({"masks": {"3.weight": torch.ones(2)}}, VALUE, r"'3\.weight' .*\(2, 16\), got \(2,\)"),
    "mask_values": ({"masks": {"3.weight": torch.full((2, 16), 0.5)}}, VALUE, r"'3\.weight' .*zeros and ones"),
}  # fmt: skip


@pytest.mark.parametrize(("arguments", "error", "message"), BACK.values(), ids=BACK)
def test_ways_back_that_cannot_work(arguments: dict, error: type[BensembleError], message: str) -> None:
    bnn = bayesify(small())
    before = Fingerprint(bnn)
    with pytest.raises(error, match=message):
        to_deterministic(bnn, inplace=True, **arguments)
    before.compare(bnn, "refused", identity=True)


def test_a_deterministic_model_has_no_way_back() -> None:
    message = "to_deterministic: Sequential has no Bayesian layers, got a deterministic model; it can be used as it is."
    with pytest.raises(ConversionError, match=re.escape(message)):
        to_deterministic(small())


def test_at_most_ten_problems_are_listed() -> None:
    model = nn.Sequential(*[nn.LazyLinear(2) for _ in range(8)])
    with pytest.raises(ConversionError, match=r"bayesify: 16 problems\.\n(  - .*\n){10}  \.\.\. and 6 more$"):
        bayesify(model)


def test_a_refused_copy_leaves_no_trace() -> None:
    model = small()
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(InvalidValueError):
        bayesify(model, init_sigma=-1)
    assert list(model.state_dict()) == list(before)


def test_a_layer_that_stands_for_nothing_has_no_way_back() -> None:
    class Doubled(BayesianLinear):
        """A forward of its own, which a plain Linear would not have."""

        def forward(self, input):
            return 2 * super().forward(input)

    model = nn.Sequential(Doubled(3, 2))
    with pytest.raises(ConversionError, match="to_deterministic: '0' is a Doubled, which stands for no deterministic"):
        to_deterministic(model)
    assert type(model[0]) is Doubled


class Sealing(type):
    """A metaclass that allows no subclasses."""

    def __new__(cls, name, bases, namespace):
        if any(isinstance(base, Sealing) for base in bases):
            raise TypeError("sealed")
        return super().__new__(cls, name, bases, namespace)


class Sealed(nn.Module, metaclass=Sealing):
    """A weight in a class that cannot be extended."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(3, 3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x @ self.weight


def test_a_class_that_cannot_be_extended() -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.Sequential(Sealed()))
    before = Fingerprint(model)
    with pytest.raises(ConversionError, match=r"bayesify: '1\.0' is a Sealed, whose class cannot be extended \(sealed"):
        bayesify(model, inplace=True)
    before.compare(model, "refused", identity=True)
    assert [name for name, _ in bensemble.named_posteriors(bayesify(model, exclude=Sealed))] == ["0.weight", "0.bias"]


def test_a_plain_tensor_is_no_weight() -> None:
    bnn = bayesify(nn.Linear(3, 2))
    with pytest.raises(InvalidTypeError, match=r"'weight' of BayesianLinear must be an nn.Parameter, got a"):
        bnn.weight = torch.zeros(2, 3)
    assert isinstance(bnn.w_mu, nn.Parameter)


def test_what_was_chosen_decides_what_is_left() -> None:
    bnn = bayesify(nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 2)), include="0")
    with pytest.raises(ConversionError, match=r"nothing to convert in Sequential: .*not included"):
        bayesify(bnn, include="0")
    with pytest.raises(ConversionError, match="nothing is left to convert"):
        bayesify(bayesify(bnn))
