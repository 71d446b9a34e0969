"""Activation checkpointing: what runs again during backward sees the noise of its first run, or is refused."""

from __future__ import annotations

import _thread
import threading
import time
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from bensemble import SamplingError, sampling
from convert import bayesify

from .wrappers import Checkpointed, CheckpointedPart

each_kind = pytest.mark.parametrize("reentrant", [True, False], ids=["reentrant", "non_reentrant"])


def gradients_of(model: nn.Module) -> dict[str, Tensor]:
    found = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad(set_to_none=True)
    return found


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


class Case:
    """A checkpointed model, and the gradients that it should have inside a context."""

    def __init__(self, reentrant: bool, training: bool) -> None:
        self.bnn, self.x = bayesify(Checkpointed(reentrant), init_sigma=0.3).train(training), torch.randn(2, 3, 5)
        with sampling(self.bnn, seeded(1)):
            self.bnn.mix(self.bnn.stem(self.x)).square().sum().backward()
        self.expected = gradients_of(self.bnn)

    def loss(self) -> Tensor:
        return self.bnn(self.x).square().sum()

    def check(self) -> None:
        found = gradients_of(self.bnn)
        assert found.keys() == self.expected.keys()
        for name, expected in self.expected.items():
            torch.testing.assert_close(found[name], expected, msg=name)


@pytest.fixture(params=[False, True], ids=["eval", "train"])
def training(request: pytest.FixtureRequest) -> bool:
    return request.param


@each_kind
@pytest.mark.parametrize("held", [True, False])
def test_checkpointing_recomputes_with_the_same_noise(reentrant: bool, held: bool) -> None:
    bnn, x = bayesify(Checkpointed(reentrant)).train(), torch.randn(2, 3, 5)
    gradients = []
    for forward in (bnn, lambda data: bnn.mix(bnn.stem(data))):
        bnn.zero_grad()
        torch.manual_seed(3)
        if held:
            with sampling(bnn, torch.Generator().manual_seed(1)):
                forward(x).square().sum().backward()
        else:
            forward(x).square().sum().backward()
        gradients.append(gradients_of(bnn))
    assert all(grad is not None for grad in gradients[1].values())
    for name, expected in gradients[1].items():
        torch.testing.assert_close(gradients[0][name], expected, msg=name)


@each_kind
def test_a_later_context_inside_changes_nothing(reentrant: bool, training: bool) -> None:
    case = Case(reentrant, training)
    with sampling(case.bnn, seeded(1)):
        loss = case.loss()
        with sampling(case.bnn, seeded(2)):
            loss.backward()
    case.check()


@each_kind
def test_backward_after_the_context_is_refused(reentrant: bool, training: bool) -> None:
    case = Case(reentrant, training)
    with sampling(case.bnn):
        losses = [case.loss(), case.loss()]
    with pytest.raises(
        SamplingError, match=r"backward: a checkpointed forward of \w+ ran in .*, got one that is closed"
    ):
        losses[0].backward()
    with (
        sampling(case.bnn),
        pytest.raises(SamplingError, match=r"call backward\(\) inside the `with` block of its for"),
    ):
        losses[1].backward()


@each_kind
def test_a_forward_without_a_context_may_have_its_backward_in_one(reentrant: bool) -> None:
    case = Case(reentrant, training=True)
    torch.manual_seed(3)
    case.bnn.mix(case.bnn.stem(case.x)).square().sum().backward()
    case.expected = gradients_of(case.bnn)
    torch.manual_seed(3)
    loss = case.loss()
    with sampling(case.bnn):
        loss.backward()
    case.check()


def in_a_thread_of_autograd(work: Callable[[], object]) -> list[BaseException | None]:
    """On an accelerator, backward runs in threads that Python has not started."""
    done: list[BaseException | None] = []

    def run() -> None:
        try:
            work()
            done.append(None)
        except BaseException as err:
            done.append(err)

    _thread.start_new_thread(run, ())
    while not done:
        time.sleep(0.001)
    return done


@each_kind
def test_a_thread_of_autograd_finds_the_context(reentrant: bool, training: bool) -> None:
    case = Case(reentrant, training)
    with sampling(case.bnn, seeded(1)):
        assert in_a_thread_of_autograd(case.loss().backward) == [None]
    case.check()


def test_contexts_of_several_threads_are_not_guessed_at() -> None:
    case, both, done = Case(True, False), threading.Barrier(2), threading.Event()

    def other() -> None:
        with sampling(case.bnn):
            case.loss()
            both.wait()
            done.wait()

    thread = threading.Thread(target=other)
    thread.start()
    with sampling(case.bnn):
        loss = case.loss()
        both.wait()
        (error,) = in_a_thread_of_autograd(loss.backward)
    done.set()
    thread.join()
    assert isinstance(error, SamplingError)
    assert "got 2 in different threads" in str(error)


@each_kind
def test_a_backward_after_the_next_forward_is_refused(reentrant: bool) -> None:
    case = Case(reentrant, False)
    with sampling(case.bnn):
        early = case.loss()
        with sampling(case.bnn):
            case.loss()
        with pytest.raises(SamplingError, match=r"forward of \w+ ran in .* closed; .* before the next forward"):
            early.backward()


@each_kind
def test_training_goes_on_after_an_evaluation_inside_a_context(reentrant: bool) -> None:
    case = Case(reentrant, True)
    with sampling(case.bnn), torch.no_grad():
        case.bnn.mix(case.bnn.stem(case.x))
    torch.manual_seed(3)
    case.bnn.mix(case.bnn.stem(case.x)).square().sum().backward()
    case.expected = gradients_of(case.bnn)
    torch.manual_seed(3)
    case.loss().backward()
    case.check()


@each_kind
def test_a_part_of_a_forward_is_refused_and_the_whole_of_it_is_not(reentrant: bool) -> None:
    bnn, x = bayesify(CheckpointedPart(reentrant), init_sigma=0.3).train(), torch.randn(3, 5)
    with pytest.raises(SamplingError, match=r"part of the forward of CheckpointedPart .* the whole layer"):
        bnn(x).square().sum().backward()
    bnn.zero_grad(set_to_none=True)
    bnn.reentrant = None
    gradients = []
    for forward in (bnn, lambda data: checkpoint(bnn, data, use_reentrant=reentrant)):
        torch.manual_seed(4)
        forward(x.clone().requires_grad_()).square().sum().backward()
        gradients.append(gradients_of(bnn))
    assert len(gradients[0]) == 8
    for name, expected in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], expected, msg=name)
    bnn.reentrant = reentrant
    with sampling(bnn, seeded(1)):
        bnn(x).square().sum().backward()
    held = gradients_of(bnn)
    bnn.reentrant = None
    with sampling(bnn, seeded(1)):
        bnn(x).square().sum().backward()
    for name, expected in gradients_of(bnn).items():
        torch.testing.assert_close(held[name], expected, msg=name)


@pytest.mark.parametrize("read", [lambda bnn: bnn.mixing, lambda bnn: bnn.linear.weight], ids=["sampled", "twin"])
def test_a_step_between_forward_and_backward_is_refused(read) -> None:
    bnn = bayesify(CheckpointedPart(None)).train()
    loss = read(bnn).sum()
    with torch.no_grad():
        for parameter in bnn.parameters():
            parameter.add_(1.0)
    with pytest.raises(SamplingError, match=r"backward: rho of '\w+' was changed in place since the forward; step"):
        loss.backward()
