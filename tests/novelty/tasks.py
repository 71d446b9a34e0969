"""Small networks and data sets that the tests of novelty share."""

import torch
from torch import nn

CLASSES = 3


def blobs(n, features=6, seed=0, dtype=torch.float64):
    """Points around three centres, and their classes."""
    centres = 3 * torch.randn(CLASSES, features, generator=torch.Generator().manual_seed(7), dtype=dtype)
    source = torch.Generator().manual_seed(seed)
    y = torch.randint(0, CLASSES, (n,), generator=source)
    return centres[y] + torch.randn(n, features, generator=source, dtype=dtype), y


def batches(data, size=50):
    return [tuple(parts) for parts in zip(*(tensor.split(size) for tensor in data), strict=True)]


def mlp(features=6, width=9, outputs=CLASSES):
    return nn.Sequential(
        nn.Linear(features, width), nn.ReLU(), nn.Linear(width, 5), nn.Tanh(), nn.Linear(5, outputs)
    ).double()


def auroc(familiar, strange):
    """The share of pairs in which the stranger has the larger score."""
    return float((strange.flatten()[:, None] > familiar.flatten()[None]).double().mean())


def naive_distance(train, labels, rows, leading=None):
    """The formula with inverses and one loop over classes, in float64; exact in some leading directions if asked."""
    mean, means = train.mean(0), {int(c): train[labels == c].mean(0) for c in labels.unique()}
    spread = torch.stack([x - means[int(c)] for x, c in zip(train, labels, strict=True)])
    one = torch.eye(train.shape[1]).double()
    inside = one
    if leading is not None and min(leading, len(means) - 1) + leading < len(one):
        among = torch.linalg.svd(torch.stack(list(means.values())) - mean).Vh[: min(leading, len(means) - 1)]
        inside = among.T @ among
        left = one - inside
        others = torch.linalg.svd(left @ (spread.T @ spread / len(spread) + 1e-9 * one) @ left).Vh[:leading]
        inside = inside + others.T @ others
        means = {c: mean + inside @ (m - mean) for c, m in means.items()}

    def inverse(centred):
        covariance = centred.T @ centred / len(centred)
        covariance = covariance + 0.01 * covariance.diagonal().mean() * one
        outside = one - inside
        if outside.trace() > 1e-6:
            variance = (outside @ covariance).trace() / outside.trace()
            covariance = inside @ covariance @ inside + variance * outside
        return torch.linalg.inv(covariance)

    within, overall = inverse(spread), inverse(train - mean)
    nearest = [min(float((x - m) @ within @ (x - m)) for m in means.values()) for x in rows]
    far = [float((x - mean) @ overall @ (x - mean)) for x in rows]
    return torch.tensor(nearest, dtype=torch.float64) - torch.tensor(far, dtype=torch.float64)


def standardised(values, heldout):
    return (values - heldout.mean()) / heldout.std(correction=0)


def naive_score(features, logits, data, held, new, energy=True, joint=True, leading=None):
    """The score of new inputs from the features of each layer, written out."""
    if joint:
        features = [lambda x, each=features: torch.cat([f(x) for f in each], -1)]
    pairs = [[naive_distance(f(data[0]), data[1], f(x), leading) for x in (held, new)] for f in features]
    sums = [sum(standardised(pair[i], pair[0]) for pair in pairs) for i in (0, 1)]
    score = standardised(sums[1], sums[0])
    if not energy:
        return score
    energies = [-logits(x).exp().sum(1).log() for x in (held, new)]
    return score + standardised(energies[1], energies[0])
