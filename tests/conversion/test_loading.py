"""Original checkpoints in converted models: nested, assigned, behind the prefixes of wrappers, with one warning."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import pytest
import torch
from patterns.architectures import Mixed
from patterns.tied import LanguageModel
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from bensemble import named_posteriors, sampling
from bensemble.pruning.masks import prune
from convert import bayesify, to_deterministic

from .networks import TextModel, small, tokens

WARNING = r"load_state_dict: '.*' comes from a deterministic checkpoint; the means are replaced and the sigmas kept"


def rhos(model: nn.Module) -> dict[str, Tensor]:
    return {name: posterior.rho.detach().clone() for name, posterior in named_posteriors(model)}


@pytest.mark.parametrize("build", [TextModel, Mixed, LanguageModel, small], ids=lambda build: build.__name__)
@pytest.mark.parametrize("assign", [False, True], ids=["copied", "assigned"])
def test_an_original_checkpoint_replaces_the_means_with_one_warning(
    build: Callable[[], nn.Module], assign: bool
) -> None:
    trained, bnn = build(), bayesify(build())
    before = rhos(bnn)
    with pytest.warns(UserWarning, match=WARNING) as caught:
        result = bnn.load_state_dict(trained.state_dict(), strict=True, assign=assign)
    assert len(caught) == 1
    assert not result.missing_keys
    assert not result.unexpected_keys
    weights = dict(trained.named_parameters(remove_duplicate=False))
    for name, posterior in named_posteriors(bnn):  # torch unties what it assigns, in the source as well
        assert torch.equal(posterior.mu, weights[name])
        assert torch.equal(posterior.rho, before.get(name, before.get("embedding.weight")))
        assert isinstance(posterior.mu, nn.Parameter)
    back = to_deterministic(bnn)
    assert all(torch.equal(value, trained.state_dict()[key]) for key, value in back.state_dict().items())


WRAPPERS: dict[str, Callable[[nn.Module], nn.Module]] = {
    "module.": nn.DataParallel,
    "_orig_mod.": lambda model: torch.compile(model, backend="eager"),
    "averaged": AveragedModel,
    "nested": lambda model: nn.Sequential(nn.Identity(), nn.DataParallel(model)),
}


@pytest.mark.slow
@pytest.mark.parametrize("wrap", WRAPPERS.values(), ids=WRAPPERS)
@pytest.mark.parametrize("converted_first", [True, False])
def test_behind_the_prefix_of_a_wrapper(wrap: Callable[[nn.Module], nn.Module], converted_first: bool) -> None:
    trained, other = TextModel().eval(), TextModel().eval()
    bnn = wrap(bayesify(other)) if converted_first else bayesify(wrap(other))
    with pytest.warns(UserWarning, match=WARNING) as caught:
        bnn.load_state_dict(wrap(trained).state_dict(), strict=True)
    assert len(caught) == 1
    index = tokens()
    assert torch.equal(bnn.eval()(index), trained(index))


def test_into_a_part_of_a_model() -> None:
    trained, bnn = TextModel(), bayesify(TextModel())
    head = bnn.head.w_mu.detach().clone()
    with pytest.warns(UserWarning, match=WARNING):
        bnn.blocks.load_state_dict(trained.blocks.state_dict())
    assert torch.equal(bnn.blocks[1].value.w_mu, trained.blocks[1].value.weight)
    assert torch.equal(bnn.head.w_mu, head)


def test_two_loads_are_two_warnings() -> None:
    trained, bnn = small(), bayesify(small())
    for _ in range(2):
        with pytest.warns(UserWarning, match=WARNING):
            bnn.load_state_dict(trained.state_dict())


def test_a_bayesian_checkpoint_restores_everything_without_a_warning() -> None:
    bnn = bayesify(TextModel(), prior="pretrained", init_sigma=0.2)
    prune(bnn, sparsity=0.3)
    other = bayesify(TextModel(), prior="pretrained")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        other.load_state_dict(bnn.state_dict(), strict=True)
    assert set(other.state_dict()) == set(bnn.state_dict())
    index = tokens()
    for mode in (bnn, other):
        mode.eval()
    assert torch.equal(bnn(index), other(index))
    with sampling(bnn, torch.Generator().manual_seed(0)), sampling(other, torch.Generator().manual_seed(0)):
        assert torch.equal(bnn(index), other(index))
    for (name, one), (_, two) in zip(named_posteriors(bnn), named_posteriors(other), strict=True):
        assert one.kl().item() == two.kl().item(), name


def test_masks_hold_when_an_original_checkpoint_comes_in() -> None:
    trained, bnn = small(), bayesify(small())
    prune(bnn, sparsity=0.5)
    masks = {name: posterior.mask.clone() for name, posterior in named_posteriors(bnn) if posterior.mask is not None}
    with pytest.warns(UserWarning, match=WARNING):
        bnn.load_state_dict(trained.state_dict())
    for name, posterior in named_posteriors(bnn):
        if name in masks:
            assert torch.equal(posterior.mask, masks[name])
            assert torch.equal(posterior.mean(), dict(trained.named_parameters())[name] * masks[name])
    back = to_deterministic(bnn)
    assert float((back[3].weight == 0).float().mean()) > 0.2


def test_mixed_checkpoints_of_partly_converted_models() -> None:
    partly = bayesify(small(), include="0", init_sigma=0.3)
    bnn = bayesify(small())
    with pytest.warns(UserWarning, match=r"'3\.weight' comes from a deterministic checkpoint"):
        bnn.load_state_dict(partly.state_dict(), strict=True)
    assert torch.equal(bnn[0].w_rho, partly[0].w_rho)
    assert torch.equal(bnn[3].w_mu, partly[3].weight)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda state: state.pop("3.weight"), r"Missing key\(s\) in state_dict: .*3\."),
        (lambda state: state.update(extra=torch.zeros(1)), r"Unexpected key\(s\) in state_dict: \"extra\""),
        (lambda state: state.update({"3.weight": torch.zeros(5, 5)}), r"size mismatch for 3\."),
    ],
    ids=["missing", "unexpected", "shape"],
)
@pytest.mark.filterwarnings("ignore:load_state_dict:UserWarning")
def test_a_checkpoint_that_does_not_fit_is_refused_as_by_torch(change, message: str) -> None:
    state = small().state_dict()
    change(state)
    with pytest.raises(RuntimeError, match=message):
        bayesify(small()).load_state_dict(state, strict=True)


@pytest.mark.filterwarnings("ignore:load_state_dict:UserWarning")
def test_not_strict_says_what_was_missing() -> None:
    state = small().state_dict()
    del state["3.bias"]
    result = bayesify(small()).load_state_dict(state, strict=False)
    assert result.missing_keys == ["3.b_mu", "3.b_rho"]


def test_the_state_dict_that_is_loaded_is_not_changed() -> None:
    state = small().state_dict()
    keys = list(state)
    with pytest.warns(UserWarning, match=WARNING):
        bayesify(small()).load_state_dict(state)
    assert list(state) == keys


# -- before there are any weights


def test_a_model_on_the_meta_device_is_filled_later() -> None:
    with torch.device("meta"):
        empty = Mixed()
    bnn = bayesify(empty)
    assert {p.device.type for p in bnn.parameters()} == {"meta"}
    full = bayesify(Mixed().eval(), init_sigma=0.1)
    filled = bnn.to_empty(device="cpu").eval()
    filled.load_state_dict(full.state_dict())
    x = torch.randn(2, 3, 4)
    assert torch.equal(filled(x), full(x))
    with torch.device("meta"):
        assigned = bayesify(Mixed()).eval()
    assigned.load_state_dict(full.state_dict(), assign=True)
    with sampling(full, torch.Generator().manual_seed(1)), sampling(assigned, torch.Generator().manual_seed(1)):
        assert torch.equal(assigned(x), full(x))


@pytest.mark.filterwarnings("ignore:load_state_dict:UserWarning")
def test_sigmas_on_the_meta_device_cannot_be_kept() -> None:
    with torch.device("meta"):
        bnn = bayesify(small())
    with pytest.raises(RuntimeError, match=r"Missing key\(s\) in state_dict: .*0\.w_rho"):
        bnn.load_state_dict(small().state_dict(), assign=True)


@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode])
def test_models_made_of_inference_tensors(context) -> None:
    with torch.inference_mode():
        model = Mixed().eval()
    x = torch.randn(2, 3, 4)
    with context():
        bnn = bayesify(model)
        assert torch.equal(bnn(x), model(x))
        with sampling(bnn):
            assert torch.equal(bnn(x), bnn(x))
            assert not torch.equal(bnn(x), model(x))
        assert not torch.equal(bnn.train()(x), bnn(x))


def test_one_sample_in_and_out_of_inference_mode() -> None:
    bnn, x = bayesify(Mixed().eval()), torch.randn(2, 3, 4)
    with sampling(bnn, torch.Generator().manual_seed(0)):
        with torch.inference_mode():
            first = bnn(x)
        with torch.no_grad():
            assert torch.equal(first, bnn(x))
        torch.testing.assert_close(first, bnn(x))
        bnn(x).sum().backward()
    assert bnn.raw_rho.grad is not None


class SavesByName(nn.Linear):
    """As the Linear of torch_geometric, which writes its parameters into the state dict itself."""

    def _save_to_state_dict(self, destination: dict[str, Tensor], prefix: str, keep_vars: bool) -> None:
        for name in ("weight", "bias"):
            value = getattr(self, name)
            destination[prefix + name] = value if keep_vars else value.detach()


@pytest.mark.parametrize("training", [False, True])
def test_a_class_that_saves_by_name_keeps_its_posterior(training: bool) -> None:
    bnn = bayesify(nn.Sequential(SavesByName(3, 4), nn.Linear(4, 2))).train(training)
    prune(bnn, sparsity=0.5)
    for _, posterior in named_posteriors(bnn):
        nn.init.normal_(posterior.rho)
    saved = bnn.state_dict()
    assert {key for key in saved if key.startswith("0.")} >= {"0.weight_mu", "0.weight_rho", "0.weight_mask", "0.bias"}
    assert "0.weight" not in saved
    other = bayesify(nn.Sequential(SavesByName(3, 4), nn.Linear(4, 2)))
    prune(other, sparsity=0.1)
    other.load_state_dict(saved)
    for (_, one), (_, two) in zip(named_posteriors(bnn), named_posteriors(other), strict=True):
        assert torch.equal(one.mu, two.mu)
        assert torch.equal(one.rho, two.rho)
    back = to_deterministic(bnn)
    assert list(back.state_dict()) == ["0.weight", "0.bias", "1.weight", "1.bias"]
