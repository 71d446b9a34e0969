"""A Kronecker-factored posterior of the last layer, and predictions in closed form."""

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import bensemble
from bensemble import BayesianConv2d, BayesianLinear, fit_posterior, predict
from bensemble.basis import Basis
from bensemble.errors import InvalidValueError
from bensemble.fitting import kronecker
from bensemble.gaussian import rho_from_sigma
from bensemble.likelihoods import Categorical, Gaussian
from bensemble.posteriors import bayesian_layers
from bensemble.prediction.closed import closed_form
from bensemble.priors import ARD
from convert import bayesify


class Tokens(nn.Module):
    """A token classifier: one transformer layer and a head, classes last."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(11, 6)
        self.body = nn.TransformerEncoderLayer(6, 2, 12, batch_first=True, dropout=0.0)
        self.head = nn.Linear(6, 4)

    def forward(self, x):
        return {"logits": self.head(self.body(self.embed(x))) / 1.5}


class Pixels(nn.Module):
    """A segmenter with a 1x1 convolution as its head."""

    def __init__(self):
        super().__init__()
        self.body, self.head = nn.Conv2d(2, 5, 3, padding=1), nn.Conv2d(5, 3, 1)

    def forward(self, x):
        return self.head(torch.tanh(self.body(x)))


def mlp():
    return nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 4))


def of(model, name):
    """The model with a posterior of its last layer, of many sigmas, and that layer."""
    model = bayesify(model.eval(), include=name)
    layer = model.get_submodule(name)
    layer.is_last = True
    with torch.no_grad():
        for posterior in layer.posteriors():
            posterior.rho.uniform_(-3, -1)
    return model, layer


CASES = {
    "MLP": (mlp, "2", lambda n: torch.randn(n, 5), Categorical(), lambda n: (n,), 4),
    "tokens": (Tokens, "head", lambda n: torch.randint(0, 11, (n, 3)), Categorical(dim=-1), lambda n: (n, 3), 4),
    "pixels": (Pixels, "head", lambda n: torch.randn(n, 2, 3, 2), Categorical(dim=1), lambda n: (n, 3, 2), 3),
}


@pytest.fixture(params=CASES)
def case(request):
    make, name, inputs, likelihood, targets, classes = CASES[request.param]
    torch.manual_seed(3)
    model, layer = of(make().double(), name)
    x, y = inputs(40), torch.randint(0, classes, targets(40))
    if x.is_floating_point():
        x = x.double()
    fit_posterior(model, [(x[:20], y[:20]), (x[20:], y[20:])], likelihood=likelihood, beta=1.0)
    return model, layer, x, y, likelihood


def kronecker_covariance(layer):
    """Sigma of (weight, bias), dense, in the plain basis, from the eigenvectors and rho."""
    weight, bias = layer._posterior("weight"), layer._posterior("bias")
    rotation = torch.kron(weight.basis.outer, weight.basis.inner)
    w = rotation @ torch.diag(weight.scale().flatten().square()) @ rotation.t()
    b = bias.basis.outer @ torch.diag(bias.scale().square()) @ bias.basis.outer.t()
    return torch.block_diag(w, b).detach()


def jacobian(layer, model, x, pick):
    """The Jacobian of the chosen outputs in (weight, bias) at the means, (outputs, weights)."""
    out = pick(model(x))
    rows = [
        torch.cat([g.flatten() for g in torch.autograd.grad(o, (layer.w_mu, layer.b_mu), retain_graph=True)])
        for o in out.flatten()
    ]
    return torch.stack(rows)


def logits_of(output):
    return output["logits"] if isinstance(output, dict) else output


def test_the_covariance_of_the_outputs_is_j_sigma_jt(case):
    model, layer, x, _, _ = case
    form = closed_form(model, None)  # raw outputs keep the common direction
    outputs = form.outputs(form.record(x[:2], None))
    jac = jacobian(layer, model, x[:2], logits_of)
    dense = torch.diagonal(jac @ kronecker_covariance(layer) @ jac.t()).view_as(outputs.variance)
    torch.testing.assert_close(outputs.variance, dense, rtol=1e-6, atol=0)
    weight, seen = layer._posterior("weight"), form.record(x[:2], None).input.movedim(layer.channel_axis, -1)
    met = (seen.reshape(-1, seen.shape[-1]) @ weight.basis.inner).abs().amax(0) > 1e-3  # LayerNorm leaves one out
    assert int((~met).sum()) <= 1
    for row, column in torch.cartesian_prod(torch.arange(len(weight.mu)), met.nonzero().flatten()).tolist():
        with torch.no_grad():
            layer.w_rho[row, column] += 0.1  # about 10 % of one eigenvalue
            changed = form.outputs(form.record(x[:2], None)).variance
            layer.w_rho[row, column] -= 0.1
        assert float((changed / dense - 1).abs().max()) > 1e-6


def test_the_curvature_is_the_product_of_a_and_g(case):
    model, layer, x, _, likelihood = case
    seen = []
    hook = layer.register_forward_hook(lambda m, a, y: seen.append((a[0].detach(), y)))
    raw = logits_of(model(x))
    hook.remove()
    (phi, _), axis = seen[0], likelihood.axis(raw)
    rows = phi.movedim(layer.channel_axis, -1).reshape(-1, layer.w_mu.shape[1])
    probs = raw.softmax(axis).movedim(axis, -1).reshape(-1, layer.w_mu.shape[0]).detach()
    factor = 1 / 1.5 if isinstance(model, Tokens) else 1.0
    g = factor**2 * (torch.diag_embed(probs) - probs[:, :, None] * probs[:, None, :]).mean(0)
    weight, count = layer._posterior("weight"), len(rows)
    width = float(weight.mu.detach().square().mean().sqrt())
    dense = torch.kron(g, rows.t() @ rows) + torch.eye(weight.mu.numel()) / width**2
    torch.testing.assert_close(
        kronecker_covariance(layer)[: weight.mu.numel(), : weight.mu.numel()], dense.inverse(), rtol=1e-5, atol=1e-9
    )
    bias = (count * g + torch.eye(len(g)) / width**2).inverse()
    torch.testing.assert_close(
        kronecker_covariance(layer)[weight.mu.numel() :, weight.mu.numel() :], bias, rtol=1e-5, atol=1e-9
    )


def test_closed_predictions_agree_with_many_weight_samples(case):
    model, layer, x, _, likelihood = case
    raw = predict(model, x[:6], output=logits_of)
    layer.is_last = False
    sampled = predict(model, x[:6], 1500, output=logits_of, generator=torch.Generator().manual_seed(0))
    assert (raw.method, sampled.method) == ("closed", "weights")
    assert float(((raw.mean - sampled.mean) / sampled.mcse).abs().max()) < 5
    assert float((raw.std / sampled.std - 1).abs().max()) < 5 / math.sqrt(2 * 1500)
    layer.is_last = True
    closed = predict(model, x[:6], likelihood=likelihood, output=logits_of)
    layer.is_last = False
    sampled = predict(model, x[:6], 1500, likelihood=likelihood, output=logits_of)
    assert float((closed.probs - sampled.probs).abs().max()) < 0.02
    assert float((closed.mutual_information - sampled.mutual_information).abs().max()) < 0.02
    assert bool((closed.mcse == 0).all())


def test_a_batch_a_loader_and_chunks_give_the_same(case):
    model, _, x, y, likelihood = case
    options = {"likelihood": likelihood, "output": logits_of}
    one = predict(model, x, **options)
    for other in (
        predict(model, [(x[:7], y[:7]), (x[7:], y[7:])], **options),
        predict(model, x, chunk_size=9, **options),
    ):
        torch.testing.assert_close(other.probs, one.probs)
        torch.testing.assert_close(other.mutual_information, one.mutual_information)


def test_the_common_direction_of_the_logits_does_not_count():
    model, layer = of(mlp(), "2")
    x = torch.randn(5, 5)
    before = predict(model, x, likelihood="categorical").probs
    outer = torch.linalg.qr(torch.cat([torch.ones(4, 1), torch.randn(4, 3)], 1))[0]  # first column: all logits alike
    for posterior in layer.posteriors():
        posterior.set_basis(Basis(outer, torch.eye(7) if posterior.name == "weight" else None))
    with torch.no_grad():
        for posterior in layer.posteriors():
            posterior.rho[1:] = -30.0
            posterior.rho[0] = 3.0
    alike = predict(model, x, likelihood="categorical")
    torch.testing.assert_close(alike.probs, model(x).softmax(1).detach())
    assert float(alike.mutual_information.max()) < 1e-5
    assert not torch.allclose(before, alike.probs, atol=1e-6)


def test_regression_is_exact():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 1)).double()
    model, layer = of(net, "2")
    x, y = torch.randn(50, 3).double(), torch.randn(50, 1).double()
    report = fit_posterior(model, [(x, y)], likelihood=Gaussian(0.5), beta=1.0)
    assert report.structure == "kronecker"
    p = predict(model, x, likelihood=Gaussian(0.5))
    phi = net[:2](x).detach()
    width = float(layer.w_mu.detach().square().mean().sqrt())
    covariance = (phi.t() @ phi / 0.25 + torch.eye(8) / width**2).inverse()
    bias = 1 / (50 / 0.25 + 1 / width**2)
    torch.testing.assert_close(p.std[:, 0], ((phi @ covariance * phi).sum(1) + bias).sqrt())
    torch.testing.assert_close(p.total_std.square(), p.std.square() + 0.25)


def test_ignored_positions_do_not_count():
    torch.manual_seed(0)
    make, name, inputs, likelihood, *_ = CASES["tokens"]
    net, x, y = make(), inputs(30), torch.randint(0, 4, (30, 3))
    y[:, 2] = -100
    x2, y2 = x.clone(), y.clone()
    found = []
    for targets in (y2, y2[:, :2]):
        model, layer = of(net, name)
        output = logits_of if targets.shape[1] == 3 else lambda out: out["logits"][:, :2]
        fit_posterior(model, [(x2, targets)], likelihood=likelihood, beta=1.0, output=output)
        found.append([p.sigma().detach() for p in layer.posteriors()])
    for with_ignored, without in zip(*found, strict=True):
        torch.testing.assert_close(with_ignored, without, rtol=1e-4, atol=1e-6)


def test_an_ensemble_of_last_layers_is_the_mean_of_its_members():
    x = torch.randn(6, 5)
    members = []
    for seed in range(3):
        torch.manual_seed(seed)
        model, _ = of(mlp(), "2")
        members.append(model)
    one = [predict(m, x, likelihood="categorical") for m in members]
    together = predict(members, x, likelihood="categorical")
    assert together.method == "closed"
    torch.testing.assert_close(together.probs, torch.stack([p.probs for p in one]).mean(0))
    torch.testing.assert_close(together.expected_entropy, torch.stack([p.expected_entropy for p in one]).mean(0))
    assert bool((together.mutual_information > torch.stack([p.mutual_information for p in one]).mean(0)).all())


@pytest.mark.parametrize("members", [1, 2])
def test_a_temperature_divides_the_gaussian_of_the_logits(members):
    x, models, cold = torch.randn(300, 5), [], []
    for _ in range(members):
        models.append(of(mlp(), "2")[0])
        cold.append(copy.deepcopy(models[-1]))
        with torch.no_grad():
            (last,) = [m for _, m in bayesian_layers(cold[-1])]
            last.w_mu /= 2.5
            last.b_mu /= 2.5
            for posterior in last.posteriors():
                posterior.rho.copy_(rho_from_sigma(posterior.scale() / 2.5))
    prediction = predict(models, x, likelihood="categorical")
    target = torch.multinomial((prediction.probs.log() * 1.5).softmax(1), 1)[:, 0]
    tempered = bensemble.calibrate(prediction, target, temperature=2.5).apply(prediction)
    expected = predict(cold, x, likelihood="categorical")
    for name in ("probs", "entropy", "mutual_information", "std"):
        torch.testing.assert_close(getattr(tempered, name), getattr(expected, name), rtol=1e-4, atol=1e-5)
    fitted = bensemble.calibrate(prediction, target)

    def nll(temperature):
        probs = bensemble.calibrate(prediction, target, temperature=temperature).apply(prediction).probs
        return float(F.nll_loss(probs.log(), target))

    assert nll(fitted.temperature) <= min(nll(fitted.temperature * by) for by in (0.9, 1.1)) + 1e-7


def test_a_temperature_that_wide_logits_do_not_determine_stays_moderate():
    torch.manual_seed(0)
    model, layer = of(mlp(), "2")
    with torch.no_grad():
        layer.b_rho.copy_(rho_from_sigma(torch.full_like(layer.b_rho, 4.0)))
    held_out = predict(model, torch.randn(200, 5), likelihood="categorical")
    calibration = bensemble.calibrate(held_out, held_out.probs.argmax(1), alpha=0.1)  # no errors, and no warning
    least = 0.25 * math.sqrt(math.pi / 8 * float(held_out.logit_variance.median()))
    assert least > 0.4
    assert calibration.temperature == pytest.approx(least, rel=0.01)


def test_a_model_whose_outputs_are_more_than_the_last_layer_is_sampled():
    class Shifted(nn.Module):
        def __init__(self):
            super().__init__()
            self.body, self.head = nn.Linear(5, 7), nn.Linear(7, 4)

        def forward(self, x):
            return torch.relu(self.head(self.body(x)))

    model, _ = of(Shifted(), "head")
    assert predict(model, torch.randn(9, 5), likelihood="categorical").method == "weights"


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_finds_its_outputs_in_large_batches(dtype):
    model, _ = of(mlp(), "2")
    p = predict(model.to(dtype), torch.randn(3000, 5).to(dtype), likelihood="categorical", keep_samples=False)
    assert p.method == "closed"


def test_a_pruned_last_layer_is_sampled():
    model, _ = of(mlp(), "2")
    bensemble.prune(model, sparsity=0.5)
    assert predict(model, torch.randn(9, 5), likelihood="categorical").method == "weights"


def test_the_report_compares_with_one_temperature_on_data_that_chose_nothing():
    torch.manual_seed(0)
    x = torch.randn(600, 5)
    y = (x @ torch.randn(5, 4) + torch.randn(600, 4)).argmax(1)
    net = mlp()
    optimizer = torch.optim.Adam(net.parameters(), 0.02)
    for _ in range(300):
        optimizer.zero_grad()
        F.cross_entropy(net(x[:200]), y[:200]).backward()
        optimizer.step()
    model, _ = of(net, "2")
    report = fit_posterior(model, [(x[:200], y[:200])], likelihood="categorical", val_loader=[(x[200:], y[200:])])
    found = report.comparison
    assert found.tempered < found.network
    assert report.structure == "kronecker"
    assert found.gain == pytest.approx(found.tempered - found.fitted, abs=1e-6)
    assert "one temperature" in str(report)
    assert report.num_passes == 1


@pytest.mark.parametrize("structure", ["kronecker", "diagonal"])
def test_a_network_that_is_too_sure_loses_nothing_to_one_temperature(structure):
    torch.manual_seed(0)
    x = torch.randn(1200, 5)
    y = (x @ torch.randn(5, 4) + torch.randn(1200, 4)).argmax(1)
    (x, x_val), (y, y_val) = x.split(600), y.split(600)
    net = mlp()
    optimizer = torch.optim.Adam(net.parameters(), 0.02)
    for _ in range(100):
        optimizer.zero_grad()
        F.cross_entropy(net(x), y).backward()
        optimizer.step()
    with torch.no_grad():
        for parameter in net[-1].parameters():
            parameter *= 6
        tempered = min(float(F.cross_entropy(net(x_val) / t, y_val)) for t in torch.linspace(1, 12, 100))
    model, layer = of(net, "2")
    held_out = {"val_loader": [(x_val[:250], y_val[:250]), (x_val[250:], y_val[250:])], "structure": structure}
    report = fit_posterior(model, [(x, y)], likelihood="categorical", **held_out)
    assert report.nll < tempered + 0.002
    assert report.bias_sigma > 0
    assert f"{report.bias_sigma:.3g} more for the biases" in str(report)
    probs = predict(model, x_val, likelihood="categorical").probs
    assert float(F.nll_loss(probs.log(), y_val)) == pytest.approx(report.nll, abs=1e-5)
    bias = layer._posterior("bias").scale().square()
    assert bool((bias >= 0.999 * report.bias_sigma**2).all())


def test_without_a_bias_the_weights_alone_are_chosen():
    torch.manual_seed(0)
    model, _ = of(nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 4, bias=False)), "2")
    data = [(torch.randn(40, 5), torch.randint(0, 4, (40,)))]
    report = fit_posterior(model, data, likelihood="categorical", val_loader=data)
    assert report.bias_sigma == 0
    assert "biases" not in str(report)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: BayesianConv2d(2, 3, 3), "does not apply one weight matrix"),
        (lambda: BayesianLinear(3, 2, prior=ARD()), "needs a normal prior"),
    ],
)
def test_a_structure_that_does_not_fit_is_refused(make, message):
    model = nn.Sequential(make())
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(InvalidValueError, match=message):
        fit_posterior(model, [], likelihood="categorical", structure="kronecker")
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_the_empirical_fisher_stays_diagonal():
    model, layer = of(mlp(), "2")
    data = [(torch.randn(9, 5), torch.randint(0, 4, (9,)))]
    report = fit_posterior(model, data, likelihood="categorical", curvature="fisher", beta=1.0)
    assert report.structure == "diagonal"
    assert layer._posterior("weight").basis is None
    with pytest.raises(InvalidValueError, match="needs curvature='ggn'"):
        fit_posterior(model, data, likelihood="categorical", curvature="fisher", structure="kronecker")


def test_a_network_too_wide_is_refused_with_the_number(monkeypatch):
    monkeypatch.setattr(kronecker, "MOST_INPUTS", 6)
    model, _ = of(mlp(), "2")
    with pytest.raises(InvalidValueError, match="7 inputs and 4 outputs, and 6"):
        fit_posterior(model, [], likelihood="categorical", structure="kronecker")


def test_plain_sigmas_bring_the_plain_basis_back(case):
    model, layer, *_ = case
    bensemble.set_posterior(model, {name: 0.1 for name, _ in bensemble.named_posteriors(model)})
    assert all(p.basis is None for p in layer.posteriors())


@pytest.mark.parametrize("prior", ["ard", "pretrained"])
def test_a_prior_that_a_rotation_would_change_is_refused(case, prior):
    model, layer, *_ = case
    before = layer.w_prior_sigma.clone() if hasattr(layer, "w_prior_sigma") else layer.prior_sigma
    with pytest.raises(InvalidValueError, match="rotated basis"):
        bensemble.set_prior(model, prior)
    assert torch.equal(torch.as_tensor(layer.prior_sigma), torch.as_tensor(before))
    bensemble.set_prior(model, "empirical")
    assert bool(bensemble.kl_divergence(model).isfinite())


def test_a_fit_that_fails_leaves_the_basis(case):
    model, layer, x, *_ = case
    before = {key: tensor.clone() for key, tensor in layer.state_dict().items()}
    with pytest.raises(InvalidValueError):
        fit_posterior(model, [(x * float("nan") if x.is_floating_point() else x, None)], likelihood=Categorical(dim=1))
    after = layer.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(tensor, before[key]) for key, tensor in after.items())
