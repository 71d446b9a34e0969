"""Models whose last layer alone is Bayesian."""

import torch
from torch import nn

from bensemble.likelihoods import Categorical
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
    """A segmenter with a 1x1 convolution as its head; what follows it is given."""

    def __init__(self, after=lambda y: y):
        super().__init__()
        self.body, self.head, self.after = nn.Conv2d(2, 5, 3, padding=1), nn.Conv2d(5, 3, 1), after

    def forward(self, x):
        return self.after(self.head(torch.tanh(self.body(x))))


def enlarged(y):
    return nn.functional.interpolate(y, size=(4, 5), mode="bilinear")


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
    "resized pixels": (
        lambda: Pixels(enlarged),
        "head",
        lambda n: torch.randn(n, 2, 3, 2),
        Categorical(dim=1),
        lambda n: (n, 4, 5),
        3,
    ),
}


def kronecker_covariance(layer):
    """Sigma of (weight, bias), dense, in the plain basis, from the eigenvectors and rho."""
    weight, bias = layer._posterior("weight"), layer._posterior("bias")
    rotation = torch.kron(weight.basis.outer, weight.basis.inner)
    w = rotation @ torch.diag(weight.scale().flatten().square()) @ rotation.t()
    b = bias.basis.outer @ torch.diag(bias.scale().square()) @ bias.basis.outer.t()
    return torch.block_diag(w, b).detach()


def logits_of(output):
    return output["logits"] if isinstance(output, dict) else output
