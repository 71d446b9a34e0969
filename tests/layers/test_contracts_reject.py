"""The contract tests fail where a contract is broken: one wrong layer for each."""

import pytest
import torch
from torch import nn

from bensemble.errors import InvalidTypeError, InvalidValueError
from bensemble.gaussian import rho_from_sigma, sigma_from_rho
from bensemble.layers import BaseBayesianLayer, BayesianConv2d, BayesianLinear, registry
from bensemble.testing import CONTRACTS, check_layer


def with_one_sigma_off(layer, run, key="w_rho"):
    """What ``run`` returns while one sigma of the layer is 10 % larger."""
    rho = layer._parameters[key]
    with torch.no_grad():
        before = rho.clone()
        rho.view(-1)[-1] = rho_from_sigma(1.1 * sigma_from_rho(rho.view(-1)[-1]))
        result = run()
        rho.copy_(before)
    return result


class OneWeightSigmaOff(BayesianLinear):
    def forward(self, x):
        return with_one_sigma_off(self, lambda: super(OneWeightSigmaOff, self).forward(x)) if self.training else x


class OneBiasSigmaOff(BayesianLinear):
    def forward(self, x):
        return with_one_sigma_off(self, lambda: super(OneBiasSigmaOff, self).forward(x), "b_rho")


class OneConvSigmaOff(BayesianConv2d):
    def forward(self, x):
        return with_one_sigma_off(self, lambda: super(OneConvSigmaOff, self).forward(x))


class NotSquared(BayesianLinear):
    """The variance from |x| instead of x^2, the kind of slip that unit inputs do not show."""

    def _local_reparameterization(self, x):
        mean = nn.functional.linear(x, self.w_mu, self.b_mu)
        variance = nn.functional.linear(x.abs(), sigma_from_rho(self.w_rho) ** 2, sigma_from_rho(self.b_rho) ** 2)
        return mean + variance.sqrt() * torch.randn_like(mean)


class Noiseless(BayesianLinear):
    def forward(self, x):
        return nn.functional.linear(x, self.w_mu, self.b_mu)


class OneReadSigmaOff(BayesianLinear):
    def _read_weight(self, name):
        if not self.training or name == "bias":
            return super()._read_weight(name)
        return with_one_sigma_off(self, lambda: super(OneReadSigmaOff, self)._read_weight(name) + 0)


class NoisyInEval(BayesianLinear):
    def forward(self, x):
        return super().forward(x) + 1e-7 * torch.randn(())


class DeafToSampling(BayesianLinear):
    def forward(self, x):
        return self._local_reparameterization(x)


class WithoutGradientOfSigma(BayesianLinear):
    def forward(self, x):
        if not self.training:
            return super().forward(x)
        weight = self.w_mu + sigma_from_rho(self.w_rho).detach() * torch.randn_like(self.w_rho)
        return nn.functional.linear(x, weight, self.b_mu)


class InfiniteGradient(BayesianLinear):
    """sqrt without a guard: 0 * inf where all inputs are 0 and there is no bias."""

    def _local_reparameterization(self, x):
        variance = nn.functional.linear(x.square(), sigma_from_rho(self.w_rho) ** 2)
        return nn.functional.linear(x, self.w_mu) + variance.sqrt() * torch.randn_like(variance)


class MeanOfTheKL(BayesianLinear):
    def kl_divergence(self):
        return super().kl_divergence() / self.w_mu.numel()


class KLWithOneSigmaOff(BayesianLinear):
    def kl_divergence(self):
        return with_one_sigma_off(self, super().kl_divergence).clone()


class Forgetful(BayesianLinear):
    """Zeroes pruned means once and keeps no mask."""

    def _set_mask(self, stem, mask):
        super()._set_mask(stem, mask)
        super()._set_mask(stem, None)


class Regrowing(BayesianLinear):
    """Keeps the mask and does not use it."""

    def _local_reparameterization(self, x):
        return nn.functional.linear(x, self.w_mu, self.b_mu)


class NoisyWherePruned(BayesianLinear):
    def _local_reparameterization(self, x):
        variance = nn.functional.linear(x.square(), sigma_from_rho(self.w_rho) ** 2, sigma_from_rho(self.b_rho) ** 2)
        return nn.functional.linear(x, self.w_mu * self.w_mask, self.b_mu * self.b_mask) + variance.sqrt()


class LosesItsBias(BayesianConv2d):
    def linear_op(self, weight, bias, input):
        return super().linear_op(weight, None, input)


class Masked(nn.Linear):
    """A deterministic type whose own buffer has a name that masks of posteriors take."""

    def __init__(self, *args):
        super().__init__(*args)
        self.register_buffer("w_mask", torch.ones(4, 3))


class BayesianMasked(BayesianLinear, Masked):
    deterministic_class = Masked


class KeepsStateOutside(BayesianLinear):
    def state_dict(self, *args, **kwargs):
        state = super().state_dict(*args, **kwargs)
        state.pop("w_mask", None)
        return state


class SampleOnTheLayer(BayesianLinear):
    """A drawn weight in ``__dict__``, where deepcopy and pickle find it."""

    def forward(self, x):
        self.__dict__.setdefault("drawn", torch.randn(()))
        return super().forward(x) + self.drawn * self.training


class ResetsSigma(BayesianLinear):
    def _load_from_state_dict(self, *args):
        super()._load_from_state_dict(*args)
        nn.init.zeros_(self.w_rho)


class RhoFollowsTheDtype(BayesianLinear):
    def _apply(self, fn, recurse=True):
        return nn.Module._apply(self, fn, recurse)


class Hookless(BayesianLinear):
    def __call__(self, x):
        return self.forward(x)


class LoudRepr(BayesianLinear):
    def extra_repr(self):
        return f"mean of a draw: {float(self.weight.mean().detach()):.3f}"


WRONG = [
    (OneWeightSigmaOff, "noise", "the variance of a training forward is .* standard errors off"),
    (OneBiasSigmaOff, "noise", "the variance of a training forward"),
    (OneConvSigmaOff, "noise", "the variance of a training forward"),
    (NotSquared, "noise", "the variance of a training forward"),
    (Noiseless, "noise", "the variance of a training forward is 0 where"),
    (OneReadSigmaOff, "samples", r"the variance of weight in train\(\)"),
    (NoisyInEval, "mean", r"outputs in eval\(\) and torch.float32 differ: by up to"),
    (DeafToSampling, "held", "two forwards in one sampling context differ"),
    (Noiseless, "held", "Tensor-likes are not close"),
    (LosesItsBias, "held", "Tensor-likes are not close"),
    (WithoutGradientOfSigma, "gradients", r"gradients in train\(\) disagree with finite differences"),
    (InfiniteGradient, "gradients", "gradient of w_rho at sigma .* and inputs times 0 is not finite"),
    (MeanOfTheKL, "kl", "Scalars are not close"),
    (KLWithOneSigmaOff, "kl", "Scalars are not close"),
    (Forgetful, "masks", "Scalars are not close"),
    (Regrowing, "masks", "training brought pruned entries of weight back"),
    (NoisyWherePruned, "masks", r"a training forward has noise of .* where every weight is pruned"),
    (Masked, "round trip", r"keys are \['weight', 'bias'\], not \['weight', 'bias', 'w_mask'\]"),
    (KeepsStateOutside, "copies", "Scalars are not close"),
    (SampleOnTheLayer, "copies", "training forwards before and after state_dict differ"),
    (ResetsSigma, "checkpoint", "sigmas of weight before and after loading differ"),
    (RhoFollowsTheDtype, "dtypes", "rho of weight is torch.bfloat16"),
    (Hookless, "hooks", r"hooks that ran in train\(\): none"),
    (LoudRepr, "quiet", "states of the random generator around repr differ"),
]


@pytest.mark.slow
@pytest.mark.parametrize(("cls", "contract", "complaint"), WRONG, ids=lambda v: getattr(v, "__name__", None))
def test_a_wrong_layer_is_rejected(cls, contract, complaint, monkeypatch):
    monkeypatch.setitem(registry._bayesian, Masked, BayesianMasked)
    if issubclass(cls, BayesianConv2d):
        make_layer, make_input = lambda: cls(2, 3, 2), lambda: torch.randn(2, 2, 2, 3)
    else:
        make_layer, make_input = lambda: cls(3, 4), lambda: torch.randn(5, 3)
    with pytest.raises(
        AssertionError, match=rf"(?s)check_layer: \w*{cls.__name__} breaks 1 of 1 .*{contract}: .*{complaint}"
    ):
        check_layer(make_layer, make_input, contracts=[contract])


def test_every_contract_has_a_wrong_layer():
    assert {contract for _, contract, _ in WRONG} == set(CONTRACTS)


def test_all_broken_contracts_come_in_one_error():
    class Both(Hookless, DeafToSampling):
        pass

    with pytest.raises(AssertionError, match=r"(?s)Both breaks 2 of 3 contracts.\n  held: .*\n  hooks: "):
        check_layer(lambda: Both(3, 4), lambda: torch.randn(5, 3), contracts=["held", "kl", "hooks"])


class SquaredWeights(nn.Linear):
    """A deterministic type that is not linear in its weights."""

    def forward(self, x):
        return nn.functional.linear(x, self.weight.square(), self.bias)


class BayesianSquaredWeights(BayesianLinear, SquaredWeights):
    deterministic_class = SquaredWeights
    estimator = "weights"

    def linear_op(self, weight, bias, input):
        return nn.functional.linear(input, weight.square(), bias)


class TooNoisy(BayesianSquaredWeights):
    def _drawn(self, name, *args):
        drawn = super()._drawn(name, *args)
        return self.w_mu + 1.5 * (drawn - self.w_mu) if name == "weight" else drawn


@pytest.mark.parametrize("cls", [BayesianSquaredWeights, TooNoisy])
def test_the_noise_of_a_layer_that_is_not_linear_in_its_weights_is_compared_by_sampling(cls, monkeypatch):
    monkeypatch.setitem(registry._bayesian, SquaredWeights, cls)

    def check():
        check_layer(*(lambda: SquaredWeights(3, 4), lambda: torch.randn(5, 3)), contracts=["noise"], num_samples=1_000)

    if cls is TooNoisy:
        with pytest.raises(AssertionError, match=r"the mean of a training forward is .* 1000 samples"):
            check()
    else:
        check()


def test_what_cannot_be_checked_is_refused():
    with pytest.raises(InvalidTypeError, match=r"check_layer: make_layer must give .* got ReLU"):
        check_layer(nn.ReLU, lambda: torch.randn(5, 3))
    with pytest.raises(InvalidValueError, match=r"check_layer: contracts must be among mean, .* got 'speed'"):
        check_layer(lambda: BayesianLinear(3, 4), lambda: torch.randn(5, 3), contracts=["speed"])


def test_the_generator_of_the_caller_is_put_back():
    before = torch.get_rng_state()
    check_layer(lambda: BayesianLinear(3, 4), lambda: torch.randn(5, 3), contracts=["held", "dtypes"])
    assert torch.equal(torch.get_rng_state(), before)


class Scale(BaseBayesianLayer):
    """A layer that stands for no deterministic module: only its pair of Parameters is declared."""

    def __init__(self):
        super().__init__()
        self.scale_mu, self.scale_rho = nn.Parameter(torch.randn(3)), nn.Parameter(torch.zeros(3))

    def forward(self, x):
        return x * self.scale_mu


@pytest.mark.filterwarnings("ignore:sampling. Scale declares scale_mu")
def test_a_layer_without_a_deterministic_type_is_checked_too():
    check_layer(Scale, lambda: torch.randn(5, 3), contracts=["mean", "noise", "samples", "kl", "copies", "quiet"])
    with pytest.raises(AssertionError, match="held: samples of different seeds are equal"):
        check_layer(Scale, lambda: torch.randn(5, 3), contracts=["held"])
