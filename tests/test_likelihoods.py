import itertools
import math

import pytest
import torch
from torch import nn
from torch.distributions import Bernoulli as TorchBernoulli
from torch.distributions import Categorical as TorchCategorical
from torch.distributions import Normal
from torch.testing import assert_close

from bensemble.errors import InvalidTypeError, InvalidValueError
from bensemble.likelihoods import Bernoulli, Categorical, Gaussian, GaussianHead, Likelihood, resolve


def softplus_split(output):
    return output[:, :2], nn.functional.softplus(output[:, 2:])


def cases(dtype=torch.float64):
    """Likelihood, outputs, target, and the distribution that torch would use."""
    logits = torch.randn(6, 4, dtype=dtype)
    image = torch.randn(2, 3, 5, 4, dtype=dtype)
    noise = torch.rand(4, dtype=dtype) + 0.5
    return [
        (Categorical(), logits, torch.randint(4, (6,)), TorchCategorical(logits=logits)),
        (Categorical(dim=1), image, torch.randint(3, (2, 5, 4)), TorchCategorical(logits=image.movedim(1, -1))),
        (Categorical(dim=-1), image, torch.randint(4, (2, 3, 5)), TorchCategorical(logits=image)),
        (Bernoulli(), logits, torch.rand(6, 4).round(), TorchBernoulli(logits=logits)),
        (Gaussian(0.3), logits, torch.randn(6, 4, dtype=dtype), Normal(logits, 0.3)),
        (Gaussian(noise), logits, torch.randn(6, 4, dtype=dtype), Normal(logits, noise)),
        (
            GaussianHead(),
            logits,
            torch.randn(6, 2, dtype=dtype),
            Normal(logits[:, :2], (logits[:, 2:] / 2).exp()),
        ),
        (
            GaussianHead(split=-2),
            torch.cat([image, image], -2),
            torch.randn(2, 3, 5, 4, dtype=dtype),
            Normal(image, (image / 2).exp()),
        ),
        (GaussianHead(softplus_split), logits, torch.randn(6, 2, dtype=dtype), Normal(*softplus_split(logits))),
    ]


CASES = range(9)


@pytest.mark.parametrize("index", CASES)
def test_terms_are_the_negative_log_density_of_torch(index):
    likelihood, output, target, reference = cases()[index]
    expected = -reference.log_prob(target.to(output.dtype) if index > 2 else target)
    assert_close(likelihood.terms(output, target), expected.flatten())
    assert_close(likelihood.nll(output, target), expected.mean())
    assert likelihood.num_terms(target) == expected.numel()


@pytest.mark.parametrize("index", CASES)
def test_expectation_and_spread_are_those_of_torch(index):
    likelihood, output, _, reference = cases()[index]
    if isinstance(reference, TorchCategorical):
        dim = likelihood.axis(output)
        assert_close(likelihood.expect(output), reference.probs.movedim(-1, dim))
        assert_close(likelihood.spread(output), reference.entropy())
    elif isinstance(reference, TorchBernoulli):
        assert_close(likelihood.expect(output), reference.probs)
        assert_close(likelihood.spread(output), reference.entropy())
    else:
        assert_close(likelihood.expect(output), reference.mean)
        assert_close(likelihood.spread(output), reference.variance)


@pytest.mark.parametrize(
    ("likelihood", "size"),
    [
        (Categorical(), 3),
        (Bernoulli(), 3),
        (Gaussian(0.3), 3),
        (GaussianHead(), 4),
        (GaussianHead(lambda o: (o[:, :2], nn.functional.softplus(o[:, 2:]))), 4),
        (GaussianHead(lambda o: (o[:, :2], nn.functional.softplus(o[:, 2:]))), 3),
    ],
)
def test_the_probe_squares_to_the_fisher_information(likelihood, size):
    """Averaged over every combination of signs, v v^T is the expected Hessian of the negative log likelihood."""
    output = torch.randn(1, size, dtype=torch.float64)
    mean = likelihood.expect(output)
    draws = 2 * mean.numel() if isinstance(likelihood, GaussianHead) else mean.numel()
    total, count = torch.zeros(size, size, dtype=torch.float64), 0
    for combination in itertools.product([-1.0, 1.0], repeat=draws):
        left = list(combination)
        probe = likelihood.probe(
            output, lambda t, left=left: t.new_tensor([left.pop() for _ in t.flatten()]).view_as(t)
        )
        total += probe.T @ probe
        count += 1
    assert_close(total / count, expected_hessian(likelihood, output))


def expected_hessian(likelihood, output):
    """E over targets of the Hessian, exact: sums over classes, three-point Gauss-Hermite for the Gaussians."""

    def hessian(target):
        return torch.autograd.functional.hessian(lambda o: likelihood.terms(o, target).sum(), output)[0, :, 0]

    mean, spread = likelihood.expect(output), likelihood.spread(output)
    if isinstance(likelihood, Categorical):
        return sum(mean[0, c] * hessian(torch.tensor([c])) for c in range(mean.shape[1]))
    if isinstance(likelihood, Bernoulli):
        return hessian(torch.zeros_like(mean))  # does not depend on the target
    total = 0.0
    for nodes in itertools.product([(-math.sqrt(3), 1 / 6), (0.0, 2 / 3), (math.sqrt(3), 1 / 6)], repeat=mean.numel()):
        shift = mean.new_tensor([node for node, _ in nodes]).view_as(mean)
        total = total + math.prod(w for _, w in nodes) * hessian(mean + shift * spread.sqrt())
    return total


def test_ignored_positions_do_not_count():
    logits = torch.randn(2, 4, 3, requires_grad=True)
    target = torch.tensor([[0, 1, -100, 2], [-100, -100, 0, 1]])
    likelihood = Categorical(dim=-1)
    assert likelihood.num_terms(target) == 5
    assert_close(likelihood.nll(logits, target), nn.functional.cross_entropy(logits.transpose(1, 2), target))
    nothing = likelihood.nll(logits, torch.full((2, 4), -100))
    nothing.backward()
    assert nothing == 0
    assert logits.grad.abs().max() == 0
    assert Categorical(dim=-1, ignore_index=2).num_terms(target.clamp_min(0)) == 7


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_outputs_are_computed_in_float32(dtype):
    for likelihood, output, target, _ in cases():
        half = output.to(dtype)
        assert likelihood.terms(half, target).dtype == torch.float32
        assert_close(likelihood.terms(half, target), likelihood.terms(half.float(), target), rtol=0, atol=0)
        assert likelihood.expect(half).dtype == likelihood.spread(half).dtype == torch.float32


def test_minus_infinity_is_a_legal_logit():
    logits = torch.tensor([[0.0, 0.0, -math.inf]])
    assert_close(Categorical().spread(logits), torch.tensor([math.log(2)]))


def test_saturated_logits_stay_finite():
    logits = torch.tensor([[300.0, -300.0], [-1e4, 1e4]])
    signs = torch.ones_like
    for likelihood in [Categorical(), Bernoulli()]:
        assert likelihood.spread(logits).isfinite().all()
        assert likelihood.probe(logits, signs).isfinite().all()


@pytest.mark.parametrize(
    ("likelihood", "output", "target", "message"),
    [
        (Categorical(), torch.randn(2, 3), torch.rand(2), r"must hold class indices, got float32; use \.long\(\)"),
        (Categorical(), torch.randn(2, 3), torch.ones(2).bool(), "must hold class indices, got bool"),
        (Categorical(), torch.randn(2, 3), torch.zeros(2, 1).long(), r"must have shape \(2,\).* got \(2, 1\)"),
        (Categorical(), torch.randn(2, 3), torch.tensor([0, 3]), r"must lie in 0\.\.2, or be -100.* got 0\.\.3"),
        (Categorical(), torch.randn(2, 3), torch.tensor([0, -1]), r"got -1\.\.0"),
        (Categorical(), torch.randn(2, 3), [0, 1], "target must be a tensor, got list"),
        (Categorical(), torch.randn(2, 3, 4), torch.zeros(2, 3).long(), r"dim must be given.*\(2, 3, 4\)"),
        (Categorical(), torch.randn(3), torch.tensor(0), r"logits for each example, got shape \(3,\); .*x\[None\]"),
        (Categorical(dim=0), torch.randn(2, 3), torch.zeros(3).long(), r"\(dim\) must not be the batch axis, got 0"),
        (Categorical(dim=-2), torch.randn(2, 3), torch.zeros(3).long(), "must not be the batch axis, got -2"),
        (Categorical(dim=3), torch.randn(2, 3), torch.zeros(2).long(), "must be an axis of the outputs, got 3"),
        (Categorical(dim=True), torch.randn(2, 3), torch.zeros(2).long(), "must be an axis of the outputs, got True"),
        (Categorical(), torch.randn(2, 1), torch.zeros(2).long(), r"two classes or more.*\(2, 1\); use Bernoulli"),
        (Bernoulli(), torch.randn(2, 1), torch.zeros(2), r"shape \(2, 1\) of the predictions, got \(2,\)"),
        (Bernoulli(), torch.randn(2), torch.tensor([0.0, 2.0]), r"must lie in 0\.\.1, got 0\.\.2"),
        (Bernoulli(), torch.randn(2), torch.tensor([0.0, math.nan]), r"must lie in 0\.\.1"),
        (Gaussian(1.0), torch.randn(2, 1), torch.randn(2), r"shape \(2, 1\) of the predictions, got \(2,\)"),
        (Gaussian(1.0), torch.randn(2), torch.tensor([0.0, math.nan]), "Gaussian: target must hold finite"),
        (GaussianHead(), torch.randn(2, 4), torch.randn(2, 4), r"shape \(2, 2\) of the predictions, got \(2, 4\)"),
        (GaussianHead(), torch.randn(2, 3), torch.randn(2, 1), "as many log variances, got 3"),
        (GaussianHead(), torch.randn(2, 3, 2), torch.randn(2, 1), r"split must be given.*\(2, 3, 2\)"),
        (GaussianHead(0), torch.randn(2, 4), torch.randn(1, 4), r"\(split\) must not be the batch axis, got 0"),
        (GaussianHead(lambda o: o), torch.randn(2, 4), torch.randn(2, 4), "must return a pair .* got a tensor"),
        (GaussianHead(), torch.randn(2, 2), torch.tensor([[math.inf], [0]]), "GaussianHead: target must hold finite"),
    ],
)
def test_targets_and_outputs_that_do_not_fit_are_refused(likelihood, output, target, message):
    with pytest.raises((InvalidTypeError, InvalidValueError), match=message):
        likelihood.nll(output, target)


@pytest.mark.parametrize("sigma", [0.0, -1.0, math.nan, math.inf, torch.tensor([1.0, 0.0])])
def test_gaussian_noise_must_be_positive_and_finite(sigma):
    with pytest.raises(InvalidValueError, match="Gaussian: sigma must be finite and above 0"):
        Gaussian(sigma)


@pytest.mark.parametrize("sigma", ["1", None, True])
def test_gaussian_noise_must_be_a_number(sigma):
    with pytest.raises(InvalidTypeError, match="Gaussian: sigma must be a number or a tensor"):
        Gaussian(sigma)


def test_probabilities_are_not_taken_for_logits():
    logits = 3 * torch.randn(64, 4)
    Categorical().check(logits)
    Categorical().check(logits.log_softmax(1))
    Bernoulli().check(logits)
    Gaussian(1.0).check(logits.softmax(1))
    for dtype in [torch.float32, torch.float16, torch.bfloat16]:
        with pytest.raises(InvalidValueError, match=r"Categorical: outputs must be logits.*remove the softmax"):
            Categorical().check(logits.softmax(1).to(dtype))
    with pytest.raises(InvalidValueError, match=r"Categorical: outputs must be logits"):
        Categorical(dim=1).check(torch.randn(2, 3, 4, 4).softmax(1))
    with pytest.raises(InvalidValueError, match=r"Bernoulli: outputs must be logits.*remove the sigmoid"):
        Bernoulli().check(logits.sigmoid())


def test_a_few_logits_may_look_like_probabilities():
    Categorical().check(torch.tensor([[0.25, 0.75]]))
    Bernoulli().check(torch.tensor([[0.01, 0.99]]))
    Bernoulli().check(torch.full((100,), 0.3))


def test_strings_are_shortcuts():
    assert resolve("categorical") == Categorical()
    assert resolve("bernoulli") == Bernoulli()
    assert resolve("gaussian_head") == GaussianHead()
    assert resolve(None) is None
    assert resolve(likelihood := Categorical(dim=1)) is likelihood
    with pytest.raises(InvalidValueError, match=r"'gaussian' must say its noise; pass Gaussian\(sigma\)"):
        resolve("gaussian")
    with pytest.raises(InvalidValueError, match="must be one of categorical, bernoulli, gaussian_head, got 'poisson'"):
        resolve("poisson")
    with pytest.raises(InvalidTypeError, match="must be a string, a Likelihood or None, got"):
        resolve(Categorical)


def test_a_likelihood_without_a_probe_names_the_other_curvature():
    class Poisson(Likelihood):
        def terms(self, output, target):
            return nn.functional.poisson_nll_loss(output, target, reduction="none").flatten()

        def expect(self, output):
            return output.exp()

        spread = expect

    assert Poisson().num_terms(torch.zeros(3)) == 3
    Poisson().check(torch.zeros(3))
    with pytest.raises(InvalidTypeError, match=r"Poisson does not define probe.*use curvature='fisher'"):
        Poisson().probe(torch.zeros(3), torch.ones_like)
