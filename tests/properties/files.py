"""What is written and read again: checkpoints, and ONNX files in ONNX Runtime."""

from __future__ import annotations

import copy
import tempfile
from pathlib import Path

import torch
from torch import Tensor, nn
from zoo.forward import first_difference, run
from zoo.subject import training

import bensemble
import convert
from bensemble import named_posteriors, sampling
from bensemble.errors import VerificationError
from bensemble.pruning.masks import apply_masks

from .degenerate import degenerate_inputs, file_agrees_at
from .subject import RandomSubject, assert_close

__all__ = ["checkpoint_comes_back", "onnx_runtime_agrees", "original_checkpoint_loads"]


def original_checkpoint_loads(subject: RandomSubject) -> None:
    """The source's state dict loads strictly into a Bayesian model with other weights; sigma stays."""
    bnn = subject.converted(subject.stranger())
    rho = {name: p.rho.detach().clone() for name, p in named_posteriors(bnn)}
    bnn.load_state_dict(subject.source.state_dict(), strict=True)
    difference = first_difference(subject.outputs, run(bnn, subject.example.inputs))
    assert difference is None, difference
    moved = [name for name, p in named_posteriors(bnn) if not torch.equal(p.rho, rho[name])]
    assert not moved, f"rho of {moved[:4]} changed"


def checkpoint_comes_back(subject: RandomSubject) -> None:
    """``save`` and ``load`` into a fresh model: outputs, sigma, masks, KL, samples and ties are those of before."""
    bnn = copy.deepcopy(subject.bnn)
    apply_masks(bnn, subject.masks())
    with torch.no_grad():
        for _, posterior in named_posteriors(bnn):
            posterior.mu.mul_(1.1)
            posterior.rho.mul_(0.9)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.safetensors"
        bensemble.save(bnn, path)
        loaded = bensemble.load(path, subject.stranger())
    _assert_same_function(bnn, loaded, subject.example.inputs)
    one, other = dict(named_posteriors(bnn)), dict(named_posteriors(loaded))
    assert list(one) == list(other), "other posteriors"
    for name, posterior in one.items():
        twin = other[name]
        assert torch.equal(posterior.rho, twin.rho), f"rho of {name}"
        assert posterior.prunable == twin.prunable, f"prunable of {name}"
        assert len(posterior.ties) == len(twin.ties), f"ties of {name}"
    assert list(bnn.state_dict()) == list(loaded.state_dict()), "keys of the state dict"
    kls = [float(bensemble.kl_divergence(model).detach()) for model in (bnn, loaded)]
    assert kls[0] == kls[1], f"KL {kls[0]} became {kls[1]}"
    with training(bnn), training(loaded):
        difference = first_difference(run(bnn, subject.train_inputs), run(loaded, subject.train_inputs))
    assert difference is None, f"in training: {difference}"


def _assert_same_function(one: nn.Module, other: nn.Module, inputs: Tensor) -> None:
    """The same mean and the same sample for the same generator."""
    difference = first_difference(run(one, inputs), run(other, inputs))
    assert difference is None, f"mean: {difference}"
    drawn = []
    for model in (one, other):
        with sampling(model, torch.Generator().manual_seed(6)):
            drawn.append(run(model, inputs))
    difference = first_difference(*drawn)
    assert difference is None, f"sample: {difference}"


def onnx_runtime_agrees(subject: RandomSubject) -> None:
    """The file of the mean network, or of the pruned and compacted one, at another batch size and degenerate inputs."""
    import onnxruntime

    if subject.rounding > 1e-5 or any(block.kind == "projected_lstm" for block in subject.recipe.blocks):
        return  # ONNX Runtime has no bfloat16 kernels for the CPU, and ONNX no LSTM with a projection
    model = subject.bnn
    if subject.recipe.seed % 2:
        model = convert.compact(subject.pruned(subject.bnn), subject.example.inputs)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        try:
            report = convert.export_onnx(model, path, subject.example.inputs)
        except VerificationError as err:
            missing = ("Could not find an implementation", "does not support double")
            if any(words in str(err) for words in missing) and torch.float64 in _dtypes(model):
                return  # refused, and rightly so: ONNX Runtime has not every operator in float64
            raise
        session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])

    def read(inputs: Tensor) -> list[Tensor]:
        found = session.run(None, {session.get_inputs()[0].name: inputs.numpy()})
        return [torch.from_numpy(value) for value in found]

    expected, tolerance = run(model, subject.other_inputs), 10 * report.tolerance  # verified at inputs of its own
    assert_close(expected, dict(zip(expected, read(subject.other_inputs), strict=True)), tolerance, "ONNX Runtime")
    file_agrees_at(model, degenerate_inputs(subject.other_inputs, subject.recipe.seed), read, tolerance)


def _dtypes(model: nn.Module) -> set[torch.dtype]:
    return {tensor.dtype for tensor in (*model.parameters(), *model.buffers())}
