"""Threads that predict with one model, and processes that get it by fork or by pickle."""

from __future__ import annotations

import multiprocessing
import os
import threading

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset

import bensemble
from convert import bayesify

X = torch.linspace(-1, 1, 24).reshape(6, 4)


def network():
    torch.manual_seed(0)
    bnn = bayesify(nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 3)), init_sigma=0.3).eval()
    with torch.no_grad():
        for _, posterior in bensemble.named_posteriors(bnn):
            posterior.rho.add_(0.01 * torch.rand_like(posterior.rho))
    return bnn


def seeded(seed):
    return torch.Generator().manual_seed(seed)


def test_threads_that_predict_get_what_they_would_get_alone():
    bnn, rounds, wrong = network(), 15, []
    alone = [bensemble.predict(bnn, X, 5, generator=seeded(seed)).samples for seed in range(4)]
    assert not torch.equal(alone[0], alone[1])
    barrier = threading.Barrier(4, timeout=120)

    def work(seed):
        for _ in range(rounds):
            barrier.wait()
            found = bensemble.predict(bnn, X, 5, generator=seeded(seed)).samples
            if not torch.equal(found, alone[seed]):
                wrong.append(seed)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    assert not bnn.training


class Noisy(Dataset):
    """Each item is what a Bayesian network makes of the same input, in the worker."""

    def __init__(self, bnn):
        self.bnn = bnn

    def __len__(self):
        return 8

    def __getitem__(self, index):
        with torch.no_grad():
            drawn = self.bnn.train()(X)
            mean = self.bnn.eval()(X)
        return drawn, mean


@pytest.mark.skipif(os.name == "nt", reason="Windows has no fork")
@pytest.mark.parametrize("start", ["fork", pytest.param("spawn", marks=pytest.mark.long)])
def test_workers_of_a_loader_have_noise_of_their_own(start):
    """A second epoch starts them again with seeds from here, however they start: forks show it, and are fast."""
    bnn, epochs = network(), 2 if start == "fork" else 1
    loader = DataLoader(Noisy(bnn), 1, num_workers=2, multiprocessing_context=start)
    with torch.no_grad():
        expected = bnn(X)
    drawn, means = zip(*[(drawn[0], mean[0]) for _ in range(epochs) for drawn, mean in loader], strict=True)
    assert all(torch.equal(mean, expected) for mean in means)
    different = {tuple(noisy.flatten().tolist()) for noisy in drawn}
    assert len(different) == len(drawn) == 8 * epochs, "two workers, or two epochs, drew the same"


def _sampled(bnn, answer):
    answer.put(bnn(X).detach().tolist())


@pytest.mark.skipif(os.name == "nt", reason="Windows has no fork")
@pytest.mark.parametrize("start", ["fork", pytest.param("spawn", marks=pytest.mark.long)])
def test_a_process_that_starts_inside_a_sample(start):
    """A fork holds the sample that its parent held; a pickle is the model by itself, at its mean."""
    bnn, context = network(), multiprocessing.get_context(start)
    with torch.no_grad():
        mean = bnn(X)
        with bensemble.sampling(bnn, seeded(0)):
            held, answer = bnn(X), context.SimpleQueue()
            process = context.Process(target=_sampled, args=(bnn, answer))
            process.start()
            found = torch.tensor(answer.get())
            process.join()
    assert process.exitcode == 0
    assert torch.equal(found, held if start == "fork" else mean)
    assert not torch.equal(held, mean)
