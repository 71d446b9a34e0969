"""What ``fit_novelty`` returns: the score of an input, and its p-value among held-out familiar inputs."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from ..checks import check_module
from ..errors import InvalidTypeError, InvalidValueError
from ..fingerprints import network_fingerprint
from ..likelihoods import Categorical, Likelihood
from ..models.batches import Inputs, Unpack, check_finite_inputs, device_of, is_loader, read_batches, to_device
from ..models.outputs import OutputSelector
from ..models.state import unwrapped
from ..tables import Printed, text_table
from .classes import kind_of, term_shape
from .distance import RelativeDistance
from .ensembles import NoveltyEnsemble
from .features import FeatureReader, home
from .files import read_novelty, save_novelty
from .pvalues import conformal_pvalue

__all__ = ["Novelty", "terms_of"]


class Novelty(Printed, nn.Module):
    r"""How strange an input is to one network, made by :func:`bensemble.fit_novelty`.

    With the relative Mahalanobis distances :math:`d_l`, one of all layers or one of each, and the energy
    :math:`E = -\log\sum_c e^{z_c}` of the logits z (Liu et al. 2020, "Energy-based Out-of-distribution
    Detection"), the score is

    .. math:: s = \mathrm{std}\Big(\sum_l \mathrm{std}(d_l)\Big) + \mathrm{std}(E)

    where std(v) subtracts the mean of v over held-out terms and divides by its standard deviation. Without classes, for
    Bernoulli and regression, the energy is left out. It has no unit, and grows with strangeness. A stranger is what the
    score tells; for a network's own errors on familiar inputs its entropy is the better number.

    Attributes:
        model: The network, at its posterior means. It is not a submodule.
        reader: Which features are read.
        likelihood: What the outputs mean.
        num_data: Training terms that the Gaussians come from.
        heldout: Scores of the held-out terms in their order, (n,) in float64.

    Example:
        >>> scores = bensemble.fit_novelty(model, loader, val_loader).score(images)
    """

    heldout: Tensor
    standard: Tensor

    def __init__(
        self,
        model: nn.Module,
        reader: FeatureReader,
        distances: Sequence[RelativeDistance],
        likelihood: Likelihood,
        *,
        heldout: Tensor,
        standard: Tensor,
        num_data: int,
        digests: tuple[str, str],
        output: OutputSelector | None = None,
        unpack: Unpack | None = None,
    ) -> None:
        super().__init__()
        self._bound = (model,)  # in a tuple, so that its tensors are not those of the novelty
        self.reader, self.likelihood, self.num_data = reader, likelihood, num_data
        self.fingerprint, self.heldout_digest = digests
        self.output, self.unpack = output, unpack
        self.distances = nn.ModuleList(distances)
        self.register_buffer("heldout", heldout)
        self.register_buffer("standard", standard)  # location and scale of the sum of distances, and of the energy

    @property
    def model(self) -> nn.Module:
        """The network that the novelty is bound to."""
        return self._bound[0]

    @property
    def smallest_pvalue(self) -> float:
        """1/(n + 1) for n held-out terms: no input can get a smaller one."""
        return 1 / (len(self.heldout) + 1)

    @torch.no_grad()
    def score(self, inputs: Inputs | Iterable[Any]) -> Tensor:
        """How strange each input is: the mean network runs once, in evaluation mode.

        Args:
            inputs: A tensor, tuple or mapping for one call, or a loader, whose targets are ignored.

        Returns:
            float64 tensor of shape (B,), or (B, ...) with one score for each token or pixel. On the model's device for
            one call, on the CPU for a loader.

        Raises:
            InvalidValueError: The model has changed since the fit, or inputs or features are not finite.
        """
        self._check(self.model)
        if not is_loader(inputs):
            return self._score(inputs)  # type: ignore[arg-type]
        found = [self._score(x).cpu() for x, _ in read_batches(inputs, self.unpack, device_of(self.model), self.model)]
        if not found:
            raise InvalidValueError("score: inputs must hold at least one batch, got a loader without any.")
        return torch.cat(found)

    @contextmanager
    def listening(
        self, inputs: Inputs, output: OutputSelector | None
    ) -> Iterator[Callable[[Sequence[Tensor]], Tensor] | None]:
        """Score from somebody else's forward: the network runs once, at its means, while this is open.

        Args:
            inputs: What the network is then called with.
            output: Which part of a structured output the caller reads.

        Yields:
            A function of the output, alone in a sequence, that gives what :meth:`score` does; None where the fit read
            another part of the output, so that the network has to run again.
        """
        self._check(self.model)
        if output != self.output:
            yield None
            return
        with self.reader.watching(self.model, to_device(inputs, device_of(self.model))) as found:
            yield lambda outputs: self._scores(outputs[0], self.reader.features(found))

    def pvalue(self, scores: Tensor) -> Tensor:
        """The share of held-out familiar inputs at least as strange, (1 + #{s_i >= s}) / (n + 1), in the shape of s.

        Inputs like the held-out ones get a p-value of at most a with probability a on average over held-out data.
        """
        return conformal_pvalue(self.heldout.sort().values, scores)

    def on(self, model: nn.Module) -> Novelty:
        """The same novelty for another copy of the network, such as the bayesified one; the tensors are shared.

        Raises:
            InvalidValueError: The model has other means or buffers than the one in the fit.
        """
        inner = unwrapped(check_module("novelty", model))
        self._check(inner)
        if inner is self.model:
            return self
        digests = (self.fingerprint, self.heldout_digest)
        return Novelty(
            inner, self.reader, self._distances(), self.likelihood, heldout=self.heldout, standard=self.standard,
            num_data=self.num_data, digests=digests, output=self.output, unpack=self.unpack,
        )  # fmt: skip

    def together(self, others: Sequence[Any]) -> NoveltyEnsemble:
        """The novelty of an ensemble: this one and those of the other members, by their mean score."""
        return NoveltyEnsemble([self, *others])

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the novelty as safetensors, without the model. Needs the ``io`` extra.

        Args:
            path: The file; an existing file is replaced when the new one is complete.

        Raises:
            InvalidValueError: The path cannot be written.
            CheckpointError: Writing failed; the old file is unchanged.
        """
        save_novelty(self, path)

    @staticmethod
    def load(
        path: str | os.PathLike[str], model: nn.Module, *, output: Any = None, unpack: Unpack | None = None
    ) -> Novelty:
        """Read a novelty for the model that it was fitted for.

        Args:
            path: The file. It is never unpickled, and nothing in it is executed.
            model: The network with the means and buffers of the fit, plain or Bayesian.
            output: Which part of a structured output; needed where the fit had a callable, which no file holds.
            unpack: How to split the batches of a loader.

        Raises:
            CheckpointError: The file is missing, damaged, from a newer version, or of another model.
        """
        inner = unwrapped(check_module("load", model))
        found = read_novelty(path, inner)
        return Novelty(
            inner, found.reader, found.distances, found.likelihood, heldout=found.heldout, standard=found.standard,
            num_data=found.num_data, digests=found.digests,
            output=found.output if output is None else output, unpack=unpack,
        ).to(home(device_of(inner)))  # fmt: skip

    def forward(self, rows: Sequence[Tensor], energy: Tensor | None) -> Tensor:
        """The score of some terms from the features of each layer, (N, k), and their energies, (N,)."""
        total = torch.stack([d(r) for d, r in zip(self.distances, rows, strict=True)]).sum(0)
        score = (total - self.standard[0]) / self.standard[1]
        return score if energy is None else score + (energy - self.standard[2]) / self.standard[3]

    def _score(self, inputs: Inputs) -> Tensor:
        model = self.model
        check_finite_inputs("score", inputs)
        return self._scores(*self.reader.read("score", model, to_device(inputs, device_of(model)), self.output))

    def _scores(self, raw: Tensor, features: list[Tensor]) -> Tensor:
        where = self.heldout.device
        shape, terms = terms_of(self.reader, self.likelihood, raw, features)
        parts = [self([r.to(where) for r in rows], None if e is None else e.to(where)) for _, rows, e in terms]
        scores = torch.cat(parts) if parts else self.heldout[:0]
        if not bool(scores.isfinite().all()):
            raise InvalidValueError(
                f"score: features must be finite, got {int((~scores.isfinite()).sum())} of {scores.numel()} scores "
                "that are not; look at the inputs and at half precision."
            )
        found = scores.view(shape)
        return found.float().to(raw.device) if raw.device.type == "mps" else found.to(raw.device)

    def _distances(self) -> list[RelativeDistance]:
        return list(self.distances)  # type: ignore[arg-type]

    def _check(self, model: nn.Module) -> None:
        if network_fingerprint(model) != self.fingerprint:
            raise InvalidValueError(
                f"novelty: it belongs to another model, got a {type(model).__name__} with other means or buffers than "
                "in the fit; call fit_novelty for this one."
            )

    def __repr__(self) -> str:
        lines = [
            f"Novelty of {type(self.model).__name__} ({kind_of(self.likelihood)}), per "
            f"{'position' if self.reader.per_position else 'example'}: {self.num_data:,} training terms",
            f"  {len(self.heldout):,} held-out terms, so p-values of {self.smallest_pvalue:.2g} and above",
        ]
        count, kept, size = max((*d.slopes.shape, len(d.centre)) for d in self._distances())
        how = "one Gaussian" if self.reader.joint else "a Gaussian for each layer, at most"
        lines.append(f"  {count:,} classes, {how} in {kept:,} directions of {size:,}")
        rows = [(layout.name, f"{layout.width:,}") for layout in self.reader.layouts]
        rows = [*rows[:10], (f"... {len(rows) - 19} more", ""), *rows[-9:]] if len(rows) > 20 else rows
        return "\n".join([*lines, *text_table([("layer", "features"), *rows], right=(1,), indent="  ")])

    def __deepcopy__(self, memo: dict[int, Any]) -> Novelty:
        raise InvalidTypeError("deepcopy: a Novelty belongs to its model; copy the model, and use novelty.on(copy).")


def terms_of(reader: FeatureReader, likelihood: Likelihood, raw: Tensor, features: list[Tensor]) -> Any:
    """The shape of the terms, and for small parts of a batch (examples, rows of each layer, energies or None)."""
    shape = term_shape(likelihood, raw)
    energies = None
    if isinstance(likelihood, Categorical):
        energies = -raw.to(home(raw.device)).double().logsumexp(likelihood.axis(raw))

    def parts() -> Any:
        for part, rows in reader.parts(features, shape):
            yield part, rows, None if energies is None else energies[part].flatten()

    return shape, parts()
