"""What has to hold for every network, each a function that raises AssertionError with the finding.

Checks of the zoo and of the patterns run on random networks too; here is what needs a recipe, or an oracle of its
own: the KL of torch.distributions, the sizes of the noise, masks through training, files.
"""

from __future__ import annotations

import copy
import logging
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
from patterns.checks import (
    checkpoint_is_assigned,
    converts_with_example_inputs,
    copies_inside_contexts_are_ordinary,
    every_posterior_is_noisy_in_train_mode,
    in_place_keeps_every_object,
)
from torch import Tensor, nn
from torch.distributions import Normal, kl_divergence
from zoo.checks import (
    check_noise_agrees,
    deepcopy_and_pickle_agree,
    every_posterior_moves_the_output,
    gradients_arrive,
    held_sample_is_used_everywhere,
    mean_is_bit_equal,
    plan_accounts_for_everything,
    posteriors_match_parameters,
    source_is_untouched,
    train_mode_is_noisy,
    way_back_is_exact,
)
from zoo.fingerprint import Fingerprint
from zoo.forward import distance, first_difference, run, scale
from zoo.subject import projection, training

import bensemble
import convert
from bensemble import named_posteriors, sampling
from bensemble.errors import VerificationError
from bensemble.layers import LinearOpLayer
from bensemble.pruning import apply_masks

from .recipes import Recipe
from .subject import RandomSubject, prepare

__all__ = ["PROPERTIES", "ROTATING", "check_recipe"]

#: Standard errors that a mean square of standard normal numbers may be off; 1e-9 of all fair ones are.
STANDARD_ERRORS = 6.0


def check_recipe(recipe: Recipe, onnx: bool) -> None:
    """Every property of one network, of those in ROTATING one in turn.

    Args:
        recipe: The network.
        onnx: Whether to write it as an ONNX file too, which takes longer than everything else.
    """
    subject = prepare(recipe)
    before = Fingerprint(subject.source)
    for check in (*PROPERTIES, *ROTATING[recipe.seed % len(ROTATING)], gradients_arrive):
        check(subject)
    if onnx:
        onnx_runtime_agrees(subject)
    source_is_untouched(subject, before)


def kl_is_that_of_torch(subject: RandomSubject) -> None:
    """After a move of every mean and rho, the KL is that of torch.distributions for the prior that was asked for."""
    bnn, source = copy.deepcopy(subject.bnn), dict(subject.source.named_parameters())
    generator = torch.Generator().manual_seed(4)
    expected, started = 0.0, subject.posteriors
    with torch.no_grad():
        for name, posterior in named_posteriors(bnn):
            start = nn.functional.softplus(started[name].rho.double())
            for tensor, by in ((posterior.mu, 0.1), (posterior.rho, 0.5)):
                tensor.mul_(1 + by * torch.randn(tensor.shape, generator=generator).to(tensor))
            now = Normal(posterior.mu.double(), nn.functional.softplus(posterior.rho.double()))
            expected += float(kl_divergence(now, _prior(subject.recipe.prior, source[name].double(), start, now)).sum())
    found = float(bensemble.kl_divergence(bnn).detach())
    assert abs(found - expected) <= 1e-4 * abs(expected), f"KL is {found}, torch.distributions says {expected}"


def _prior(name: str, trained: Tensor, start: Tensor, now: Normal) -> Normal:
    """What the name of a prior means for a weight with its sigma at the start and its posterior now."""
    if name == "pretrained":
        return Normal(trained, start)
    if name == "empirical":
        return Normal(0.0, (trained.square() + start.square()).mean().sqrt())
    return Normal(0.0, 1.0 if name == "normal" else (now.mean.square() + now.variance).sqrt())


def samples_have_the_size_of_sigma(subject: RandomSubject) -> None:
    """Held samples are sigma away from their means, sigma = softplus(rho)."""
    squares = []
    with sampling(subject.bnn, torch.Generator().manual_seed(5)), torch.no_grad():
        for name, posterior in subject.posteriors.items():
            if posterior.mu.dtype == torch.bfloat16:
                continue  # rounding is part of the noise there
            path, _, leaf = name.rpartition(".")
            held = getattr(subject.bnn.get_submodule(path), leaf)
            sigma = nn.functional.softplus(posterior.rho)
            squares.append(((held - posterior.mu) / sigma).square().double().flatten())
    _assert_mean_square_of_one(squares, "samples")


def local_noise_has_its_size(subject: RandomSubject) -> None:
    """In training each call of a layer with local noise is op(x^2, sigma^2) around op(x, mu), in its variance."""
    calls: list[tuple[LinearOpLayer, Tensor, Tensor]] = []
    handles = [
        layer.register_forward_hook(lambda m, args, out: calls.append((m, args[0].detach(), out.detach().clone())))
        for layer in subject.bnn.modules()
        if isinstance(layer, LinearOpLayer) and layer.w_mu.dtype != torch.bfloat16
    ]
    with training(subject.bnn):
        run(subject.bnn, subject.train_inputs, grad=True)  # without gradients other code runs
    for handle in handles:
        handle.remove()
    squares = []
    for layer, x, y in calls:
        if layer.estimator != "local":
            continue
        layer = copy.deepcopy(layer)
        layer._forward_hooks.clear()
        sigmas = {p.name: nn.functional.softplus(p.rho.detach()) for p in layer.posteriors()}
        plain = convert.to_deterministic(layer)
        with torch.no_grad():
            mean = plain(x)
            for name, parameter in plain.named_parameters():
                parameter.copy_(sigmas[name].square() if name in sigmas else torch.zeros_like(parameter))
            variance = plain(x.square())
        seen = variance > 1e-12  # dead inputs make no noise
        squares.append(((y - mean)[seen].square() / variance[seen]).double())
    _assert_mean_square_of_one(squares, "activations")


def _assert_mean_square_of_one(squares: list[Tensor], what: str) -> None:
    count = sum(map(len, squares))
    if count < 100:
        return
    mean = float(torch.cat(squares).mean())
    off = abs(mean - 1.0) / (2.0 / count) ** 0.5
    assert off < STANDARD_ERRORS, f"noise of {what}: mean square {mean:.3f}, {off:.1f} standard errors off"


def original_checkpoint_loads(subject: RandomSubject) -> None:
    """The source's state dict loads strictly into a Bayesian model with other weights; sigma stays."""
    bnn = subject.converted(subject.stranger())
    rho = {name: p.rho.detach().clone() for name, p in named_posteriors(bnn)}
    bnn.load_state_dict(subject.source.state_dict(), strict=True)
    difference = first_difference(subject.outputs, run(bnn, subject.example.inputs))
    assert difference is None, difference
    moved = [name for name, p in named_posteriors(bnn) if not torch.equal(p.rho, rho[name])]
    assert not moved, f"rho of {moved[:4]} changed"


def masks_hold(subject: RandomSubject) -> None:
    """Pruned weights are zero in the mean, in samples and in copies, and stay so through a training step."""
    bnn, masks = copy.deepcopy(subject.bnn), subject.masks()
    apply_masks(bnn, masks)
    _assert_pruned(bnn, masks)
    optimizer = torch.optim.Adam(bensemble.param_groups(bnn, lr=1e-3, rho_lr=1e-2))
    with training(bnn):
        loss = projection(run(bnn, subject.train_inputs, grad=True))
        assert loss is not None
        bensemble.elbo_loss(loss, bensemble.kl_divergence(bnn), num_data=1000).backward()
    grads = [p.grad for p in bnn.parameters() if p.grad is not None]
    assert all(bool(torch.isfinite(grad).all()) for grad in grads), "a gradient is not finite"
    optimizer.step()
    optimizer.zero_grad()
    fresh = copy.deepcopy(subject.bnn)  # of other weights, and without masks
    fresh.load_state_dict(bnn.state_dict(), strict=True)
    outputs = run(bnn, subject.example.inputs)
    for what, model in (("itself", bnn), ("deepcopy", copy.deepcopy(bnn)), ("state dict", fresh)):
        _assert_pruned(model, masks)
        difference = first_difference(outputs, run(model, subject.example.inputs))
        assert difference is None, f"{what}: {difference}"
    # Up to rounding: torch multiplies in another order by weights that need a gradient.
    back = run(convert.to_deterministic(bnn), subject.example.inputs)
    _assert_close(outputs, back, subject.rounding, "way back after training")


def _assert_pruned(bnn: nn.Module, masks: dict[str, Tensor]) -> None:
    with torch.no_grad():
        for name, posterior in named_posteriors(bnn):
            mask = masks.get(name)
            assert (posterior.mask is None) == (mask is None), f"mask of {name}"
            if mask is None:
                continue
            path, _, leaf = name.rpartition(".")
            layer = bnn.get_submodule(path)
            mean = getattr(layer, leaf).clone()
            with sampling(layer):
                drawn = getattr(layer, leaf).clone()
            for what, value in (("mean", mean), ("sample", drawn)):
                assert not bool(value[mask == 0].any()), f"the {what} of {name} is not zero where it is pruned"
            assert torch.equal(mean[mask == 1], posterior.mu[mask == 1]), f"the mean of {name} where it is kept"


def pruned_way_back_is_exact(subject: RandomSubject) -> None:
    """Zeros exactly where the masks say, everything else as in the source; types, names and ties as well."""
    masks, source = subject.masks(), dict(subject.source.named_parameters())
    pruned = subject.pruned(subject.bnn)
    for name, parameter in pruned.named_parameters():
        expected = source[name] if name not in masks else source[name] * masks[name].to(source[name])
        assert torch.equal(parameter, expected), f"{name} is not the masked weight"
    with torch.no_grad():
        for name, parameter in pruned.named_parameters():
            parameter.copy_(source[name])
    Fingerprint(subject.source).compare(pruned, "pruned", identity=False)
    once, kept = subject.pruned(subject.bnn), subject.pruned(subject.bnn, keep_masks=True)
    inputs = subject.example.inputs
    _assert_close(run(once, inputs), run(kept, inputs), subject.rounding, "keep_masks")


def compaction_is_exact(subject: RandomSubject) -> None:
    """The compacted network computes the same at another batch size, and no graph of it had to be given up."""
    pruned, inputs = subject.pruned(subject.bnn), subject.other_inputs
    told = _Warnings()
    logger = logging.getLogger("bensemble.compact")
    logger.addHandler(told)
    try:
        small = convert.compact(pruned, subject.example.inputs)
    finally:
        logger.removeHandler(told)
    assert not told.messages, f"compact warned: {told.messages}"
    _assert_close(run(pruned, inputs), run(small, inputs), subject.rounding, "compacted")


class _Warnings(logging.Handler):
    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.messages: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.messages.append(record.getMessage() + (f" ({record.exc_info[1]!r})" if record.exc_info else ""))


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
    """The file of the mean network, or of the pruned and compacted one, in ONNX Runtime at another batch size."""
    import onnxruntime

    if subject.rounding > 1e-5 or any(block.kind == "projected_lstm" for block in subject.recipe.blocks):
        return  # ONNX Runtime has no bfloat16 kernels for the CPU, and ONNX no LSTM with a projection
    model = subject.bnn
    if subject.recipe.seed % 2:
        model = convert.compact(subject.pruned(subject.bnn), subject.example.inputs)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        try:
            convert.export_onnx(model, path, subject.example.inputs)
        except VerificationError as err:
            if "Could not find an implementation" in str(err) and torch.float64 in _dtypes(model):
                return  # refused, and rightly so: ONNX Runtime has not every operator in float64
            raise
        session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        found = session.run(None, {session.get_inputs()[0].name: subject.other_inputs.numpy()})
    expected = run(model, subject.other_inputs)
    _assert_close(
        expected,
        {name: torch.from_numpy(value) for name, value in zip(expected, found, strict=True)},
        1e-4,  # export_onnx has verified 1e-5 at its own inputs
        "ONNX Runtime",
    )


def _dtypes(model: nn.Module) -> set[torch.dtype]:
    return {tensor.dtype for tensor in (*model.parameters(), *model.buffers())}


def _assert_close(expected: dict[str, Tensor], found: dict[str, Tensor], rounding: float, what: str) -> None:
    assert list(expected) == list(found), f"{what}: outputs {list(found)}"
    for path, value in expected.items():
        off, largest = distance(value, found[path]), scale(value)
        assert off <= rounding * max(largest, 1e-3), f"{what}: {path} is off by {off:.3g}, largest value {largest:.3g}"


#: For every network.
PROPERTIES: list[Callable[[RandomSubject], None]] = [
    mean_is_bit_equal,
    posteriors_match_parameters,
    plan_accounts_for_everything,
    kl_is_that_of_torch,
    held_sample_is_used_everywhere,
    samples_have_the_size_of_sigma,
    local_noise_has_its_size,
    train_mode_is_noisy,
    deepcopy_and_pickle_agree,
    original_checkpoint_loads,
    checkpoint_comes_back,
    way_back_is_exact,
    masks_hold,
    pruned_way_back_is_exact,
    compaction_is_exact,
]

#: One row for each network, by its seed: they say in detail what the others imply.
ROTATING: list[list[Callable[[RandomSubject], None]]] = [
    [every_posterior_moves_the_output, check_noise_agrees],
    [every_posterior_moves_the_output, every_posterior_is_noisy_in_train_mode],
    [copies_inside_contexts_are_ordinary, converts_with_example_inputs],
    [checkpoint_is_assigned, in_place_keeps_every_object],
]
