r"""Training by the evidence lower bound, with settings that work: fine-tuning, and learning what to prune.

Both functions minimise the negative bound per term,

.. math:: L = E_q[-\log p(y | x, w)] + \frac{\beta_t}{N} KL(q \,\|\, p)

with Adam, learning rates that fall linearly to 0, and a separate rate for rho. For another optimizer, a scheduler or
mixed precision write your own loop with :func:`~bensemble.elbo_loss`, as in the README.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sized
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from .checks import check_count, check_number, check_takes
from .errors import InvalidTypeError, InvalidValueError
from .likelihoods import Likelihood, required
from .models.batches import Unpack, batch_size, device_of, read_batches
from .models.forwards import forward
from .models.outputs import OutputSelector
from .objective import elbo_loss, kl_divergence, kl_warmup, param_groups
from .posteriors import check_bayesian, named_posteriors
from .pruning.channels import ChannelGroups
from .pruning.masks import prune, pruned_share, pruning_masks
from .pruning.schedule import gradual_sparsity

__all__ = ["Epoch", "fine_tune", "gradual_sparsity", "learn_to_prune"]


@dataclass(frozen=True)
class Epoch:
    """One pass over the training data.

    Attributes:
        number: Number of the epoch, from 1.
        nll: Mean negative log likelihood per term, measured with noise, in nats.
        kl: KL of the whole model at the end, in nats.
        beta: Weight of the KL at the end.
        sparsity: Share of the posterior's weights that are pruned at the end.

    Example:
        >>> bensemble.recipes.fine_tune(bnn, loader, likelihood="categorical", epochs=1, after_epoch=print)
        epoch 1: NLL ..., KL ... nats at beta 1, 0.0% pruned
    """

    number: int
    nll: float
    kl: float
    beta: float
    sparsity: float

    def __str__(self) -> str:
        return (
            f"epoch {self.number}: NLL {self.nll:.4g}, KL {self.kl:.4g} nats at beta {self.beta:.3g}, "
            f"{self.sparsity:.1%} pruned"
        )


def fine_tune(
    bnn: nn.Module,
    loader: Iterable[Any],
    *,
    likelihood: Likelihood | str,
    epochs: int,
    num_data: int | None = None,
    lr: float = 1e-4,
    rho_lr: float = 1e-2,
    beta: float = 1.0,
    warmup: float = 0.0,
    output: OutputSelector | None = None,
    unpack: Unpack | None = None,
    after_epoch: Callable[[Epoch], Any] | None = None,
) -> None:
    """Train all parameters of a Bayesian model in place; afterwards the model is in evaluation mode.

    For uncertainty around a trained network use the defaults, with the beta that ``fit_posterior`` has chosen. Noise
    changes BatchNorm statistics: call ``torch.optim.swa_utils.update_bn(loader, bnn)`` afterwards.

    Args:
        bnn: A model with Bayesian layers.
        loader: Batches ``(inputs, target)`` with a known length: a DataLoader, or a list.
        likelihood: What the outputs mean, such as ``"categorical"``.
        epochs: Passes over the loader.
        num_data: Number of terms of the likelihood in the whole training set. Default: the number of examples times
            the terms per example (pixels, tokens) of the first batch.
        lr: Learning rate of everything but rho.
        rho_lr: Learning rate of rho.
        beta: Weight of the KL after the warm-up.
        warmup: Share of the training in which the weight of the KL rises from 0.
        output: Which part of a structured output.
        unpack: ``callable(batch) -> (inputs, target)`` for batches of another form.
        after_epoch: Called with an :class:`Epoch`, such as ``print``; it may change the model.

    Raises:
        InvalidTypeError, InvalidValueError: An argument cannot work, the model has no posteriors, batches have no
            targets, or the loss is not finite.

    Example:
        >>> fit = bensemble.fit_posterior(bnn, loader, likelihood="categorical", val_loader=val_loader)
        >>> bensemble.recipes.fine_tune(bnn, loader, likelihood="categorical", epochs=1, beta=fit.beta)
    """
    resolved, batches = _checked("fine_tune", bnn, loader, likelihood, epochs)
    check_number("fine_tune", "beta", beta, least=0)
    check_number("fine_tune", "warmup", warmup, least=0, most=1)
    if num_data is not None:
        check_number("fine_tune", "num_data", num_data, above=0)
    if after_epoch is not None:
        check_takes("fine_tune", "after_epoch", after_epoch, "epoch")
    optimizer = torch.optim.Adam(param_groups(bnn, lr, rho_lr))
    step, total, device = 0, epochs * batches, device_of(bnn)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda at: max(0.0, 1 - at / total))
    for number in range(1, epochs + 1):
        bnn.train()
        losses = []
        for inputs, target in read_batches(loader, unpack, device, bnn):
            if target is None:
                raise InvalidValueError("fine_tune: loader must give targets, got a batch without; pass unpack=.")
            if num_data is None:
                num_data = _num_terms(loader, resolved, inputs, target)
            nll, kl = resolved.nll(forward("fine_tune", bnn, inputs, output), target), kl_divergence(bnn)
            now = beta * kl_warmup(step, total, warmup)
            loss = elbo_loss(nll, kl, num_data, now)
            if not bool(loss.isfinite()):
                raise InvalidValueError(
                    f"fine_tune: the loss must be finite, got {float(loss.detach())} in step {step + 1} of {total}; "
                    "lower lr, or look for inputs that are not finite."
                )
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            losses.append(nll.detach())
            step += 1
        bnn.eval()
        if after_epoch is not None:
            nlls = torch.stack([value.float() for value in losses])
            after_epoch(Epoch(number, float(nlls.mean()), float(kl.detach()), now, pruned_share(bnn)))


def learn_to_prune(
    bnn: nn.Module,
    loader: Iterable[Any],
    *,
    likelihood: Likelihood | str,
    epochs: int,
    num_data: int | None = None,
    lr: float = 1e-3,
    rho_lr: float = 1e-2,
    beta: float = 1.0,
    warmup: float = 0.3,
    sparsity: float | None = None,
    granularity: str | ChannelGroups = "weight",
    output: OutputSelector | None = None,
    unpack: Unpack | None = None,
    after_epoch: Callable[[Epoch], Any] | None = None,
) -> None:
    """Train a Bayesian model so that the signal-to-noise ratio of weights that the data does not need falls to 0.

    The recipe is the prior ``"ard"``, which has no scale to choose; a KL that rises over the first 30 % of the steps,
    so that sigma grows before means are pulled to zero; and ten times the learning rate for rho. Afterwards call
    ``to_deterministic(bnn, threshold=0.83)``, and ``update_bn`` if the network has BatchNorm.

    With ``sparsity``, weights are also pruned after every epoch, by :func:`gradual_sparsity`; masks stay in force while
    the other weights train on.

    Args:
        bnn: A Bayesian model, ``bayesify(model, prior="ard", estimator="weights")``.
        loader: Batches, as for :func:`fine_tune`.
        likelihood: What the outputs mean.
        epochs: Passes over the loader.
        num_data: Number of terms of the likelihood in the training set, as for :func:`fine_tune`.
        lr: Learning rate of everything but rho.
        rho_lr: Learning rate of rho.
        beta: Weight of the KL after the warm-up: 1 for much data, less for little.
        warmup: Share of the training in which the weight of the KL rises from 0.
        sparsity: Share of the weights to prune during training; None prunes nothing.
        granularity: What is pruned during training, as for :func:`bensemble.prune`.
        output: Which part of a structured output.
        unpack: ``callable(batch) -> (inputs, target)`` for batches of another form.
        after_epoch: Called with an :class:`Epoch`, after the pruning of that epoch.

    Raises:
        InvalidTypeError, InvalidValueError: As for :func:`fine_tune`; or a prior is centred on trained weights and
            keeps them from becoming zero.

    Example:
        >>> sparse = convert.bayesify(model, prior="ard", estimator="weights")
        >>> bensemble.recipes.learn_to_prune(sparse, loader, likelihood="categorical", epochs=2)  # better 20
        >>> pruned = convert.to_deterministic(sparse, threshold=0.83)
    """
    _checked("learn_to_prune", bnn, loader, likelihood, epochs)
    if sparsity is not None:
        pruning_masks(bnn, sparsity=sparsity, granularity=granularity)  # raises before the training if it must
    for name, posterior in named_posteriors(bnn):
        mean = getattr(posterior.prior, "mean", 0.0)
        if isinstance(mean, Tensor) and bool(mean.any()):
            raise InvalidValueError(
                f"learn_to_prune: '{name}' must have a prior around zero, got one centred on other values; "
                "use bayesify(model, prior='ard'), or bensemble.set_prior."
            )

    def end(epoch: Epoch) -> None:
        if sparsity is not None:
            prune(bnn, sparsity=gradual_sparsity(epoch.number, epochs, sparsity, warmup), granularity=granularity)
        if after_epoch is not None:
            after_epoch(Epoch(epoch.number, epoch.nll, epoch.kl, epoch.beta, pruned_share(bnn)))

    fine_tune(
        bnn, loader, likelihood=likelihood, epochs=epochs, num_data=num_data, lr=lr, rho_lr=rho_lr, beta=beta,
        warmup=warmup, output=output, unpack=unpack, after_epoch=end,
    )  # fmt: skip


def _checked(
    verb: str, bnn: nn.Module, loader: Any, likelihood: Likelihood | str, epochs: int
) -> tuple[Likelihood, int]:
    """The likelihood and the number of batches, after the other arguments are checked."""
    check_bayesian(verb, bnn)
    resolved = required(verb, likelihood)
    check_count(verb, "epochs", epochs)
    if isinstance(loader, (Tensor, tuple, Mapping, Iterator)) or not isinstance(loader, Sized):
        raise InvalidTypeError(
            f"{verb}: loader must give batches and have a length, got {type(loader).__name__}; pass a DataLoader or a "
            "list of batches."
        )
    if not len(loader):
        raise InvalidValueError(f"{verb}: loader must give at least one batch, got none.")
    return resolved, len(loader)


def _num_terms(loader: Any, likelihood: Likelihood, inputs: Any, target: Any) -> int:
    """Terms of the likelihood in the training set, with as many per example as in this batch."""
    terms, size = likelihood.num_terms(target), getattr(loader, "batch_size", None)
    try:
        examples = len(loader.dataset)
    except (AttributeError, TypeError):
        return max(terms * len(loader), 1)
    # The loader knows its examples also where axis 0 of the inputs is time.
    size = min(size, examples) if isinstance(size, int) else batch_size((inputs, target))
    return max(round(terms * examples / size), 1)
