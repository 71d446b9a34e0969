"""Novelty in uncertainty files: what ``Novelty`` says of the same inputs, and what is refused."""

import json

import numpy as np
import onnx
import pytest
import torch
from closed_files import Dense, Head, agree, exported, of, sampled, transformer
from drawn_networks import drawn_networks
from torch import nn

from bensemble import fit_novelty, predict
from bensemble.errors import InvalidTypeError, InvalidValueError
from bensemble.likelihoods import Categorical
from convert.onnx import export_onnx
from convert.onnx.uncertainty.novelty import FileNovelty
from convert.runtime import Monitor


@pytest.fixture(scope="module")
def familiar():
    """A trained network with its data: two classes around two points."""
    torch.manual_seed(0)
    y = torch.arange(900) % 2
    x = torch.randn(900, 5) + 2 * y[:, None]
    net = Dense(2)
    optimizer = torch.optim.Adam(net.parameters(), 0.01)
    for _ in range(60):
        optimizer.zero_grad()
        nn.functional.cross_entropy(net(x[:500]), y[:500]).backward()
        optimizer.step()
    fresh = torch.randn(400, 5) + 2 * y[:400, None]
    return net.eval(), [(x[:500], y[:500])], [(x[500:], y[500:])], torch.cat([fresh, 5 + 3 * torch.randn(50, 5)])


def same_novelty(session, prediction, x):
    """Scores agree, and p-values do but where a score is as good as a held-out one."""
    answer = session(x.numpy())
    scores, pvalues = prediction.novelty.numpy(), prediction.novelty_pvalue.numpy()
    np.testing.assert_allclose(answer.novelty, scores, atol=1e-5 * scores.std(), rtol=1e-5)
    assert np.mean(abs(answer.novelty_pvalue - pvalues) > 1e-6) < 0.02
    assert abs(answer.novelty_pvalue - pvalues).max() < 3 * prediction.smallest_pvalue


EACH = {"joint": False, "projection": None}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("plain", {}),
        ("closed", {"projection": 1}),
        ("samples", {"projection": 3}),
        ("closed", EACH),
        ("samples", {}),
        ("ensemble", EACH),
    ],
)
def test_novelty_is_in_the_file(familiar, kind, options, tmp_path):
    net, train, heldout, x = familiar
    make = {"plain": lambda: net, "closed": lambda: of(net), "samples": lambda: sampled(net)}
    models = [of(net), of(net)] if kind == "ensemble" else [make[kind]()]
    novelty = [fit_novelty(model, train, heldout, layers=["body.0", "body"], **options) for model in models]
    model, novelty = (models, novelty) if kind == "ensemble" else (models[0], novelty[0])
    report, session = exported(tmp_path / "a.onnx", model, x[:1], likelihood="categorical", novelty=novelty)
    seeded = torch.Generator().manual_seed(0)
    prediction = predict(model, x, 16, likelihood="categorical", novelty=novelty, generator=seeded)
    same_novelty(session, prediction, x)
    if kind == "samples":
        prediction = predict(drawn_networks(model, tmp_path / "a.onnx"), x, likelihood="categorical")
    agree(session(x.numpy()), prediction, ("probs", "entropy", "mutual_information"))
    assert session.metadata["bensemble.method"] == ("closed" if kind in ("closed", "ensemble") else "samples")
    assert "novelty_pvalue" in str(report)
    if kind == "plain":
        assert sum(1 for node in onnx.load(tmp_path / "a.onnx").graph.node if node.op_type == "Tanh") == 1


@pytest.mark.parametrize("count", [30, 1022, 1023, 1024, 1025, 3000])
def test_many_held_out_scores_are_searched_in_two_steps(familiar, count):
    net, train, _, x = familiar
    y = torch.arange(count) % 2
    novelty = fit_novelty(net, train, [(torch.randn(count, 5) + 2 * y[:, None], y)])
    scores = torch.cat([novelty.score(x).float(), torch.tensor([-1e9, 1e9, torch.inf])])
    found = FileNovelty(novelty, [net], [net]).outputs([scores])["novelty_pvalue"]
    torch.testing.assert_close(found, novelty.pvalue(scores), atol=1.1 / (count + 1), rtol=0)
    assert float((found - novelty.pvalue(scores)).abs().median()) < 1e-6


@pytest.mark.slow
def test_an_input_that_is_no_number_is_a_stranger(familiar, tmp_path):
    net, train, heldout, x = familiar
    novelty = fit_novelty(net, train, heldout)
    _, session = exported(tmp_path / "a.onnx", net, x[:1], likelihood="categorical", novelty=novelty)
    for value in (np.nan, np.inf, 1e30):
        assert session(np.full((1, 5), value, np.float32)).novelty_pvalue[0] <= novelty.smallest_pvalue * 1.01


class Twice(nn.Module):
    """A parametrized layer that is called twice, and ``len`` of a tensor, which must not fix the batch."""

    def __init__(self):
        super().__init__()
        self.body, self.head = nn.utils.parametrizations.weight_norm(nn.Linear(6, 6)), nn.Linear(6, 3)

    def forward(self, x):
        h = self.body(self.body(x).tanh()).reshape(len(x) * 2, 3)
        return self.head(h.tanh().reshape(len(x), 6))


@pytest.mark.slow
@pytest.mark.parametrize("method", ["closed", "samples"])
def test_layers_called_twice_and_lengths_vary_with_the_batch(tmp_path, method):
    x, y = torch.randn(60, 6), torch.arange(60) % 3
    bnn = of(Twice(), rotated=False)
    novelty = fit_novelty(bnn, [(x[:30], y[:30])], [(x[30:], y[30:])], layers=["body"])
    options = {"method": method} | ({"num_samples": 2} if method == "samples" else {})
    _, session = exported(tmp_path / "a.onnx", bnn, x[:8], likelihood="categorical", novelty=novelty, **options)
    np.testing.assert_allclose(session(x[:5].numpy()).novelty, novelty.score(x[:5]), atol=3e-5)
    assert "len" not in globals()


@pytest.mark.slow
def test_novelty_of_tokens_is_one_number_for_each(tmp_path):
    net, y = Head(transformer).eval(), torch.randint(4, (40, 5))
    x = torch.randint(1, 11, (40, 5))
    novelty = fit_novelty(net, [(x[:20], y[:20])], [(x[20:], y[20:])], likelihood=Categorical(-1))
    _, session = exported(tmp_path / "a.onnx", of(net), x[:1], likelihood=Categorical(-1), novelty=novelty)
    found = session(x.numpy())
    assert found.novelty.shape == found.entropy.shape == (40, 5)
    np.testing.assert_allclose(found.novelty, novelty.score(x), atol=3e-5)


class Register(Head):
    """A first token of its own, which the output leaves out, so that a layer has other positions than the output."""

    def forward(self, x):
        h = self.embed(torch.cat([torch.zeros_like(x[:, :1]), x], 1))
        return self.head(self.body(h)[:, 1:])


@pytest.mark.slow
def test_novelty_of_layers_with_other_positions_holds_for_other_batches(tmp_path):
    net, y = Register(lambda: nn.Linear(6, 6)).eval(), torch.randint(4, (40, 5))
    x = torch.randint(1, 11, (40, 5))
    novelty = fit_novelty(net, [(x[:20], y[:20])], [(x[20:], y[20:])], likelihood=Categorical(-1))
    _, session = exported(tmp_path / "a.onnx", of(net), x[:4], likelihood=Categorical(-1), novelty=novelty)
    np.testing.assert_allclose(session(x.numpy()).novelty, novelty.score(x), atol=3e-5)


@pytest.mark.slow
def test_a_monitor_watches_novelty(familiar, tmp_path):
    net, train, heldout, x = familiar
    novelty = fit_novelty(net, train, heldout)
    _, session = exported(tmp_path / "a.onnx", net, x[:1], likelihood="categorical", novelty=novelty)
    assert len(session.reference["novelty"]) == 101
    calm, shifted = Monitor(session), Monitor(session)
    calm.update(session(heldout[0][0].numpy()))
    shifted.update(session((heldout[0][0] * 2 + 3).numpy()))
    assert not calm.verdict().drifted
    assert shifted.verdict().drifted
    assert shifted.verdict().measure == "novelty"
    stored = json.loads(session.metadata["bensemble.novelty"])
    assert stored["num_data"] == 400


def refused(error, message, *args, **options):
    with pytest.raises(error, match=message):
        export_onnx(*args, outputs="uncertainty", likelihood="categorical", **options)


def test_what_has_no_closed_form_is_refused(familiar, tmp_path):
    net, train, heldout, x = familiar
    path = tmp_path / "a.onnx"
    refused(InvalidValueError, "needs a model whose last layer alone", sampled(net), path, x[:1], method="closed")
    refused(InvalidValueError, "method must be 'closed', 'samples' or None", of(net), path, x[:1], method="exact")
    novelty = fit_novelty(net, train, heldout)
    refused(InvalidValueError, "belongs to another model", of(Dense(2)), path, x[:1], novelty=novelty)
    refused(InvalidTypeError, "must come from fit_novelty", of(net), path, x[:1], novelty="yes")
    refused(InvalidValueError, "one for each of the 2 models", [of(net), of(net)], path, x[:1], novelty=novelty)
    with pytest.raises(InvalidValueError, match="novelty must come with outputs='uncertainty'"):
        export_onnx(of(net), path, x[:1], novelty=novelty)
    assert not path.exists()
