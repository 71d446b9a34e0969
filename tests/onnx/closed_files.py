"""Networks whose last layer has a posterior, and their files in closed form, for the tests beside."""

import numpy as np
import torch
from torch import nn

import bensemble
from bensemble.basis import Basis
from convert import bayesify
from convert.onnx import export_onnx
from convert.runtime import UncertaintySession


class Head(nn.Module):
    """Tokens, a body and a head; what follows the head is given."""

    def __init__(self, body=nn.Tanh, after=lambda x, y: y):
        super().__init__()
        self.embed, self.body = nn.Embedding(11, 6), body()
        self.head, self.after = nn.Linear(6, 4), after

    def forward(self, x):
        return self.after(x, self.head(self.body(self.embed(x))))


def transformer():
    return nn.TransformerEncoderLayer(6, 2, 12, batch_first=True, dropout=0.0)


class Pixels(nn.Module):
    def __init__(self, after=lambda x, y: y):
        super().__init__()
        self.body, self.head, self.after = nn.Conv2d(2, 5, 3, padding=1), nn.Conv2d(5, 3, 1), after

    def forward(self, x):
        return {"out": self.after(x, self.head(torch.tanh(self.body(x))))}


class Dense(nn.Module):
    def __init__(self, width=4, after=lambda y: y):
        super().__init__()
        self.body, self.head, self.after = nn.Sequential(nn.Linear(5, 7), nn.Tanh()), nn.Linear(7, width), after

    def forward(self, x):
        return self.after(self.head(self.body(x)))


def of(model, rotated=True):
    """A posterior of the last layer in a basis of its own, with many sigmas."""
    bnn = bayesify(model.eval(), include="head")
    bnn.head.is_last = True
    weight, bias = bnn.head._posterior("weight"), bnn.head._posterior("bias")
    outer, inner = (torch.linalg.qr(torch.randn(n, n))[0] for n in bnn.head.w_mu.shape[:2])
    if rotated:
        weight.set_basis(Basis(outer, inner))
        bias.set_basis(Basis(outer))
    with torch.no_grad():
        for posterior in bnn.head.posteriors():
            posterior.rho.uniform_(-3, -1)
    return bnn


def exported(path, model, example, **options):
    """The report and the session of an uncertainty file."""
    report = export_onnx(model, path, example, outputs="uncertainty", **options)
    return report, UncertaintySession(path)


def agree(answer, prediction, names=None):
    """The outputs of a file are those of a prediction."""
    for name in names or answer:
        expected = getattr(prediction, name).numpy()
        assert answer[name].shape == expected.shape
        np.testing.assert_allclose(answer[name], expected, atol=1e-5 * max(1.0, abs(expected).max()), err_msg=name)


def sampled(net):
    bnn = bayesify(net)
    with torch.no_grad():
        for _, posterior in bensemble.named_posteriors(bnn):
            posterior.rho.uniform_(-4, -3)
    return bnn
