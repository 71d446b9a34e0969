"""torch.compile, torch.export and torch.onnx.export of converted models."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounterWithBackend

from bensemble import named_posteriors, sampling
from convert import bayesify

from .architectures import bert, encoder, recurrent, resnet

Build = Callable[[], tuple[nn.Module, tuple[Tensor, ...]]]
each_model = pytest.mark.parametrize("build", [resnet, bert, encoder], ids=lambda build: build.__name__)


@pytest.fixture(autouse=True)
def _fresh_compiler() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@each_model
@pytest.mark.parametrize("grad", [False, True])
@pytest.mark.long
def test_compiled_whole_in_mean_mode(build: Build, grad: bool) -> None:
    model, inputs = build()
    bnn = bayesify(model.eval())
    compiled = torch.compile(bnn, fullgraph=True, backend="aot_eager")
    with torch.set_grad_enabled(grad):
        torch.testing.assert_close(compiled(*inputs), model(*inputs))


@pytest.mark.long
@each_model
def test_compiled_whole_in_train_mode_draws_fresh_noise_at_every_call(build: Build) -> None:
    model, inputs = build()
    bnn = bayesify(model).train()
    for module in bnn.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 0.0  # the same function at every call
    compiled = torch.compile(bnn, fullgraph=True, backend="aot_eager")
    outputs = [compiled(*inputs) for _ in range(4)]
    for i, one in enumerate(outputs):
        assert all(not torch.equal(one, other) for other in outputs[:i])
    outputs[0].square().sum().backward()
    for name, posterior in named_posteriors(bnn):
        assert posterior.mu.grad is not None, name
        assert posterior.rho.grad is not None, name
        assert bool(posterior.rho.grad.any()), name


@pytest.mark.long
@pytest.mark.parametrize("build", [resnet, bert, encoder, recurrent], ids=lambda build: build.__name__)
@pytest.mark.parametrize("training", [False, True], ids=["eval_no_grad", "train"])
@pytest.mark.filterwarnings("ignore:The .grad attribute")  # Dynamo asks for it where its graph breaks
def test_a_model_compiled_before_samples_as_the_eager_one(build: Build, training: bool) -> None:
    model, inputs = build()
    bnn = bayesify(model).train(training)
    for module in bnn.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eval()  # the same function at every call
    counter = CompileCounterWithBackend("eager")
    compiled = torch.compile(bnn, fullgraph=build is not recurrent, backend=counter)
    with torch.set_grad_enabled(training):
        without = compiled(*inputs)
        for seed in range(5):
            with sampling(bnn, torch.Generator().manual_seed(seed)):
                torch.testing.assert_close(compiled(*inputs), bnn(*inputs))
                assert not torch.allclose(compiled(*inputs), without)
        assert torch.equal(compiled(*inputs), without) != training
    if build is not recurrent:
        assert counter.frame_count <= 3, "a graph for the samples, not one for each"


@pytest.mark.long
def test_training_noise_of_a_compiled_model_has_the_right_spread() -> None:
    """One Linear, 2,000 calls: the standard error of a standard deviation is sd / sqrt(2 n)."""
    bnn, x = bayesify(nn.Linear(4, 3), init_sigma=0.2), torch.randn(1, 4)
    compiled = torch.compile(bnn, fullgraph=True, backend="aot_eager")
    with torch.no_grad():
        draws = torch.cat([compiled(x) for _ in range(2000)])
    expected = 0.2 * torch.sqrt(x.square().sum() + 1.0)
    assert bool(((draws.std(0) - expected).abs() < 5 * expected / 4000**0.5).all())


@each_model
@pytest.mark.parametrize("strict", [False, True])
@pytest.mark.long
def test_exported_in_mean_mode(build: Build, strict: bool) -> None:
    model, inputs = build()
    bnn = bayesify(model.eval())
    program = torch.export.export(bnn, inputs, strict=strict)
    torch.testing.assert_close(program.module()(*inputs), model(*inputs))
    random = [node for node in program.graph.nodes if "rand" in str(node.target) or str(node.target) == "normal"]
    assert not random, "the mean network draws random numbers"


@pytest.mark.long
@pytest.mark.filterwarnings("ignore")  # the exporter warns about itself
@each_model
def test_written_as_onnx_in_mean_mode(build: Build, tmp_path: Path) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    model, inputs = build()
    bnn = bayesify(model.eval())
    state = torch.random.get_rng_state()
    with torch.no_grad():
        torch.onnx.export(bnn, inputs, tmp_path / "model.onnx", dynamo=True, verbose=False)
    assert torch.equal(state, torch.random.get_rng_state())
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx", providers=["CPUExecutionProvider"])
    feed = {spec.name: tensor.numpy() for spec, tensor in zip(session.get_inputs(), inputs, strict=True)}
    (written,) = session.run(None, feed)
    expected = model(*inputs).detach().numpy()
    assert np.abs(written - expected).max() <= 1e-5 * np.abs(expected).max()


def test_compiling_comes_before_or_after_a_copy() -> None:
    model, inputs = resnet()
    bnn = bayesify(model.eval())
    compiled = torch.compile(bnn, backend="eager")
    expected = compiled(*inputs)
    assert torch.equal(copy.deepcopy(bnn)(*inputs), expected)
    assert torch.equal(copy.deepcopy(compiled)(*inputs), expected)
