"""Sampling contexts: nested, in threads, under activation checkpointing; and the draw of one training forward."""

from __future__ import annotations

import threading

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bensemble import sampling
from convert import bayesify


def test_contexts_nest_by_part(bnn: nn.Module, x: Tensor) -> None:
    with sampling(bnn, torch.Generator().manual_seed(0)), torch.no_grad():
        outer = bnn(x)
        weight = bnn.attention.in_proj_weight.clone()
        with sampling(bnn.gru, torch.Generator().manual_seed(1)):
            assert torch.equal(bnn.attention.in_proj_weight, weight)
            assert not torch.equal(bnn(x), outer)
        assert torch.equal(bnn(x), outer)
    assert torch.equal(bnn(x), bnn(x))


def test_threads_do_not_see_each_other(bnn: nn.Module, x: Tensor) -> None:
    def sample(seed: int) -> Tensor:
        with sampling(bnn, torch.Generator().manual_seed(seed)), torch.no_grad():
            return bnn(x)

    expected = {seed: sample(seed) for seed in range(4)}
    wrong: list[int] = []
    together = threading.Barrier(4)

    def work(seed: int) -> None:
        for _ in range(20):
            together.wait()
            with sampling(bnn, torch.Generator().manual_seed(seed)), torch.no_grad():
                together.wait()  # all four contexts are open now
                if not torch.equal(bnn(x), expected[seed]):
                    wrong.append(seed)
                together.wait()

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_one_forward_of_a_sampled_layer_reads_one_draw(x: Tensor) -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.randn(4, 4))

        def forward(self, data: Tensor) -> Tensor:
            return F.linear(data, self.weight) - F.linear(data, self.weight)

    class TwoNames(Twice):
        def __init__(self) -> None:
            super().__init__()
            self.other = self.weight

        def forward(self, data: Tensor) -> Tensor:
            return F.linear(data, self.weight) - F.linear(data, self.other)

    bnn = bayesify(Twice()).train()
    assert not bool(bnn(x).any())
    assert not bool(bayesify(TwoNames()).train()(x).any())
    assert not torch.equal(bnn.weight + 0, bnn.weight + 0), "two reads outside of a forward are two draws"
