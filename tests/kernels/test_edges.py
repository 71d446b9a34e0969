"""Empty layers, extreme rho, writes in between, devices without values: what a kernel must survive."""

import copy

import pytest
import torch
from torch import nn

from bensemble import BayesianConv2d, BayesianConvTranspose2d, BayesianLinear, softplus
from bensemble.gaussian import kl_normal, sigma_from_rho
from bensemble.kernels import applies_to, draw_weight, fused_kl, shared_moments
from bensemble.priors import Normal


def test_the_gradient_of_a_drawn_bias_is_left_to_whoever_else_holds_it():
    mu, rho = torch.randn(5).requires_grad_(), torch.full((5,), -3.0).requires_grad_()
    moments, upstream = shared_moments(mu, rho, Normal()), torch.ones(5)
    torch.autograd.grad([draw_weight(moments), moments.kl], (mu, rho), [upstream, torch.ones(())])
    assert torch.equal(upstream, torch.ones(5))


@pytest.mark.filterwarnings("ignore:Initializing zero-element tensors")
@pytest.mark.parametrize("estimator", ["local", "weights"])
@pytest.mark.parametrize(("inputs", "outputs"), [(0, 3), (3, 0)])
def test_a_layer_without_weights_trains(inputs, outputs, estimator):
    layer = BayesianLinear(inputs, outputs, weight_init="normal").train()
    layer.estimator = estimator
    output = layer(torch.randn(4, inputs))
    (output.sum() + layer.kl_divergence()).backward()
    assert output.shape == (4, outputs)
    assert all(p.grad is not None for p in layer.parameters())


@torch.inference_mode()
def _copied(layer):
    return copy.deepcopy(layer)


def test_the_kl_of_tensors_from_inference_mode():
    layer = BayesianLinear(4, 3, prior="pretrained")
    torch.testing.assert_close(_copied(layer).kl_divergence(), layer.kl_divergence())


def test_large_weights_are_drawn_block_by_block():
    mu, rho = torch.zeros(900, 400), torch.full((900, 400), -1.0)
    draws = draw_weight(shared_moments(mu, rho, Normal())) / sigma_from_rho(rho)
    assert draws.numel() > 2 * softplus.BLOCK
    assert abs(float(draws.mean())) < 0.01
    assert abs(float(draws.std()) - 1) < 0.01
    assert len(draws.flatten().unique()) > 0.9 * draws.numel()


def test_a_step_shares_one_pass_over_the_weights():
    """The KL of the forward is handed out, until the weights change or the step has run back."""
    layer = BayesianLinear(20, 10)
    output = layer(torch.randn(4, 20))
    (posterior, _) = layer.posteriors()
    held = shared_moments(posterior.mu, posterior.rho, posterior.prior)
    assert torch.equal(held.kl, posterior.kl())
    assert held is shared_moments(posterior.mu, posterior.rho, posterior.prior)
    output.sum().backward()
    del held
    assert posterior.kl() is not posterior.kl()


def test_a_weight_that_changed_before_the_backward_is_an_error():
    layer = BayesianLinear(20, 10)
    loss = layer.kl_divergence()
    with torch.no_grad():
        layer.w_rho.add_(1.0)
    with pytest.raises(RuntimeError, match="mu or rho of a Bayesian layer was changed in place"):
        loss.backward()


@pytest.mark.parametrize("rho", [-200.0, -60.0, -27.6, 90.0, 200.0])
def test_extreme_rho_gives_finite_values_and_gradients(rho):
    layer = BayesianLinear(5, 3)
    with torch.no_grad():
        layer.w_rho.fill_(rho)
    loss = layer(torch.zeros(4, 5)).sum() + layer(torch.full((4, 5), 1e3)).sum() + layer.kl_divergence()
    loss.backward()
    assert torch.isfinite(loss)
    assert all(torch.isfinite(p.grad).all() for p in layer.parameters())


@pytest.mark.parametrize("sigma", [1e-200, torch.tensor(1e-22), torch.tensor(1e-45)], ids=str)
def test_a_prior_too_narrow_for_float32_has_a_huge_kl(sigma):
    layer = BayesianLinear(5, 3, prior=Normal(sigma))
    kl = layer.kl_divergence()
    kl.backward()
    assert float(kl.detach()) > 1e30


def _partly(rho):
    rho.data[1, 2] = 3.0


@pytest.mark.parametrize(
    "write",
    [
        lambda rho: rho.data.fill_(1.0),
        lambda rho: rho.data.copy_(torch.ones_like(rho)),
        lambda rho: nn.utils.vector_to_parameters(torch.linspace(-3, 0, rho.numel()), [rho]),
        _partly,
    ],
    ids=["fill", "copy", "vector_to_parameters", "one entry"],
)
def test_sigma_is_not_shared_across_a_write_through_data(write):
    layer = BayesianLinear(6, 4, bias=False)
    output = layer(torch.randn(2, 6))  # keeps sigma^2 alive
    write(layer.w_rho)
    expected = kl_normal(layer.w_mu, sigma_from_rho(layer.w_rho), 0.0, 1.0)
    torch.testing.assert_close(layer.kl_divergence(), expected)
    del output


def test_a_kl_without_gradients_is_not_taken_for_one_with_them():
    layer, x = BayesianLinear(40, 30).train(), torch.randn(5, 40)
    with torch.no_grad():
        kept = layer(x), layer.kl_divergence()
    kl = layer.kl_divergence()
    assert not kept[1].requires_grad
    assert torch.equal(kl, kept[1])
    assert torch.autograd.grad(kl, layer.w_rho)[0].norm() > 0


def test_the_kernels_leave_everything_else_to_the_plain_formula():
    x = torch.randn(2, 3)
    assert applies_to(x, None)
    assert applies_to(x.double(), x.double())
    assert applies_to(x.to("meta"))
    assert not applies_to(x, x.double())
    assert not applies_to(x, x.to("meta"))
    assert not applies_to(x.half())
    assert not applies_to(x.bfloat16(), x)
    with torch.no_grad():
        assert applies_to(x)
    with torch.inference_mode():
        assert not applies_to(x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert not applies_to(x)
    seen = []
    torch.vmap(lambda row: seen.append(applies_to(row)) or row)(x)
    assert seen == [False]


@pytest.mark.parametrize(
    "layer",
    [
        BayesianLinear(6, 4),
        BayesianConv2d(6, 4, 3, padding=1),
        BayesianConv2d(6, 4, 3, padding="valid"),
        BayesianConv2d(6, 4, 3, padding="same", bias=False),
        BayesianConv2d(6, 4, 3, padding=1, padding_mode="reflect"),
        BayesianConvTranspose2d(6, 4, 3, stride=2),
    ],
    ids=str,
)
def test_a_masked_layer_trains_by_the_same_distribution(layer: nn.Module):
    """With a mask the plain formula runs; with every weight kept it must give the numbers of the kernel."""
    x = torch.randn(3, 6) if isinstance(layer, nn.Linear) else torch.randn(3, 6, 8, 8)
    torch.manual_seed(1)
    fast = layer(x)
    for posterior in layer.posteriors():
        posterior.set_mask(torch.ones_like(posterior.mu))
    torch.manual_seed(1)
    torch.testing.assert_close(layer(x), fast, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("shape", [(3, 6), (2, 3, 6), (2, 2, 3, 6)])
def test_the_output_can_be_changed_in_place(shape):
    layer, x = BayesianLinear(6, 4), torch.randn(shape)
    torch.manual_seed(1)
    expected = (layer(x) + 1).relu().sum()
    torch.manual_seed(1)
    output = layer(x)
    output += 1
    torch.testing.assert_close(nn.functional.relu(output, inplace=True).sum(), expected)
    output.sum().backward()


def test_the_defaults_of_the_moment_do_not_matter():
    layer, x = BayesianLinear(40, 30), torch.randn(5, 40)
    before = layer.kl_divergence()
    expected = torch.autograd.grad(before, layer.w_rho)[0]
    torch.set_default_dtype(torch.float64)
    try:
        with torch.device("meta"):
            kl = layer.kl_divergence()
            (layer.train()(x).sum() + kl).backward()
    finally:
        torch.set_default_dtype(torch.float32)
    assert kl.item() == pytest.approx(before.item())
    assert torch.equal(torch.autograd.grad(layer.kl_divergence(), layer.w_rho)[0], expected)


@pytest.mark.parametrize("estimator", ["local", "weights"])
@pytest.mark.parametrize("prior", ["normal", "ard", "pretrained"])
def test_a_step_on_a_device_without_values(prior, estimator):
    """The meta device has shapes only: a step that reads a number on its way would fail there."""
    layer, x = BayesianConv2d(6, 8, 3, prior=prior), torch.randn(2, 6, 9, 9, device="meta", requires_grad=True)
    layer = layer.to("meta").train()
    layer.estimator = estimator
    assert applies_to(x, *layer.parameters())
    for create_graph in (False, True):
        loss = layer(x).square().mean() + layer.kl_divergence()
        found = torch.autograd.grad(loss, [x, *layer.parameters()], create_graph=create_graph)
        assert [g.shape for g in found] == [t.shape for t in (x, *layer.parameters())]
        assert all(g.is_meta for g in found)


@pytest.mark.parametrize("rho", [-60.0, -50.01, -49.99, -43.0, 25.0, 95.0])
def test_the_kl_at_extreme_rho_has_the_gradient_of_the_plain_formula(rho):
    mu, rho = torch.ones(4, requires_grad=True), torch.full((4,), rho, requires_grad=True)
    for prior in (Normal(0.7), Normal(torch.tensor(0.7), 2.0)):
        kl, plain = fused_kl(mu, rho, prior), prior.kl(mu, sigma_from_rho(rho))
        torch.testing.assert_close(kl, plain)
        for found, right in zip(*(torch.autograd.grad(loss, (mu, rho)) for loss in (kl, plain)), strict=True):
            torch.testing.assert_close(found, right)
