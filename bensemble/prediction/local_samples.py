r"""Per-example noise where it gives the same marginals as weight samples, at a fraction of their cost.

A layer that sees one vector per example once may draw its output instead of its weights: for each example the outputs
of :math:`h W^T + b` with Gaussian weights are independent Gaussians (Kingma, Salimans & Welling 2015, section 2.3). So
one forward carries many samples of every example, as rows of one batch, and the first layer, whose input is the same
for all samples, computes mean and variance once. What is lost is the joint distribution of several examples.

This is exact only where each Bayesian layer is called once, with one row per example, no weight is shared or read in
another way, and no operation mixes examples or asks how many there are. :class:`~bensemble.prediction.rows.Rows` proves
it for the very forward that is used; a forward of two rows first shows what the network does with another number of
them. What is not proven is refused with :class:`~bensemble.prediction.rows.NotByRowError`: weight samples are taken.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ..gaussian import precise, quick_normal, variance_from_rho
from ..kernels import LinearOp
from ..layers.linear_op import LinearOpLayer
from ..models.batches import Inputs, batch_size, call, device_of
from ..models.outputs import OutputSelector, is_named_tuple, select_output
from ..models.state import is_compiled, random_state
from ..noise.stack import Frame, open_frame
from ..posterior import Posterior, layer_posteriors
from .rows import NotByRowError, Rows

__all__ = ["LocalSamples"]

#: About how many rows one forward carries: enough to be efficient, few enough for the memory.
ROWS = 4096


class LocalSamples:
    """Samples of a model by per-example noise.

    Args:
        model: A Bayesian model in evaluation mode.
        num_samples: Number of samples.
        generator: Source of the noise.
    """

    def __init__(self, model: nn.Module, num_samples: int, generator: torch.Generator) -> None:
        self._model, self._count, self._generator, self._device = model, num_samples, generator, device_of(model)
        self._layers: dict[int, nn.Module] = {id(layer): layer for layer, _ in layer_posteriors(model)}
        self._moments: dict[int, _Moments] = {}
        self._trace: list[Any] | None = None

    def outputs(self, inputs: Inputs, output: OutputSelector | None) -> list[Tensor]:
        """One output for every sample.

        Raises:
            NotByRowError: The network may mix examples, or share noise between rows.
        """
        if is_compiled(self._model):
            raise NotByRowError("what a compiled model does cannot be seen")
        rows = batch_size(inputs)
        state = random_state(self._device)
        if self._trace is None:
            self._trace = self._run(_tiled(inputs, 0, 2), 0, output, {})[1]
        found: list[Tensor] = []
        shared: dict[int, tuple[Tensor, Tensor]] = {}
        while len(found) < self._count:
            samples = min(max(ROWS // max(rows, 1), 1), self._count - len(found))
            value, trace = self._run(_tiled(inputs, rows, samples), rows, output, shared)
            if trace != self._trace:
                raise NotByRowError("what the network does depends on the number of examples")
            found.extend(value.unflatten(0, (samples, rows)))
        if not torch.equal(state, random_state(self._device)):
            raise NotByRowError("the network draws random numbers of its own")
        return found

    def _run(
        self, inputs: Any, rows: int, output: OutputSelector | None, shared: dict[int, Any]
    ) -> tuple[Tensor, list[Any]]:
        """The output for the samples of every row, and what was done to get it."""
        trace: list[Any] = []
        frame = _LocalFrame(self._layers, rows, self._generator, self._moments, shared)
        try:
            with open_frame(frame):
                found = select_output(
                    call(self._model, _map_tensors(inputs, lambda t: Rows.wrap(t, True, trace))), output
                )
        except NotByRowError:
            raise
        except Exception as error:
            raise NotByRowError(f"the network refuses rows: {error}") from error
        if not isinstance(found, Rows):
            raise NotByRowError("the output is not made of rows")
        return found.value, trace


class _Moments(NamedTuple):
    """Means and variances of the weights of one layer."""

    means: tuple[Tensor, Tensor | None]
    variances: tuple[Tensor, Tensor | None]
    identities: frozenset[int]

    @classmethod
    def of(cls, layer: LinearOpLayer) -> _Moments:
        """Those of a layer."""
        weight, bias = layer._posterior("weight"), layer._posterior("bias")
        if weight is None:
            raise NotByRowError("a layer has no posterior for its weight")
        return cls(
            (weight.mean(), bias.mean() if bias else layer._parameters.get("bias")),
            (_variance(weight), _variance(bias) if bias else None),
            frozenset(id(posterior.mu) for posterior in (weight, bias) if posterior),
        )

    def of_output(self, layer: LinearOpLayer, input: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of what the layer makes of its input."""
        mean = layer.linear_op(*self.means, input)
        with torch.autocast(input.device.type, enabled=False):
            return mean, layer.linear_op(*self.variances, precise(input).square()).sqrt_()


def _variance(posterior: Posterior) -> Tensor:
    variance, mask = variance_from_rho(posterior.rho), posterior.mask
    return variance if mask is None else variance.mul_(mask)


class _LocalFrame(Frame):
    """Draws the outputs of linear layers, and refuses everything else that has a posterior.

    Args:
        layers: The layers by identity.
        rows: Number of examples, after which rows without noise repeat; 0 for a run whose numbers do not matter.
        generator: Source of the noise.
        moments: Those of the weights, once for all batches.
        shared: Mean and deviation of outputs that are the same for all samples, once for a batch.
    """

    def __init__(
        self,
        layers: dict[int, nn.Module],
        rows: int,
        generator: torch.Generator,
        moments: dict[int, _Moments],
        shared: dict[int, tuple[Tensor, Tensor]],
    ) -> None:
        super().__init__(layers, {})
        self._rows, self._generator, self._moments, self._shared = rows, generator, moments, shared
        self._seen: set[int] = set()

    def run(self, layer: LinearOpLayer, input: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """One draw of the layer's output for each row."""
        if not isinstance(input, Rows) or input.ndim != 2 or args or kwargs:
            raise NotByRowError("a Bayesian layer sees more than one vector per example")
        if not isinstance(layer.operation(input.value), LinearOp):
            raise NotByRowError(f"{type(layer).__name__} uses a weight in several places")
        key = id(layer)
        if key not in self._moments:
            self._moments[key] = _Moments.of(layer)
        weights = self._moments[key]
        if self._seen & weights.identities:
            raise NotByRowError("a posterior is used twice")
        self._seen |= weights.identities
        input.history.append(key)
        if not self._rows:
            return Rows.wrap(input.value.new_zeros(len(input), len(weights.means[0])), False, input.history)
        if not input.fresh:
            mean, deviation = weights.of_output(layer, input.value)
        else:
            if key not in self._shared:
                self._shared[key] = weights.of_output(layer, input.value[: self._rows])
            mean, deviation = self._shared[key]
        noise = quick_normal(len(input) * mean.shape[-1], self._generator).to(mean.device, deviation.dtype)
        drawn = torch.addcmul(precise(mean), deviation, noise.view(-1, *mean.shape)).to(mean.dtype)
        return Rows.wrap(drawn.flatten(0, 1), False, input.history)

    def read(self, posterior: Posterior) -> Tensor:
        """Refused: who reads a weight may use it anywhere."""
        raise NotByRowError(f"'{posterior.name}' is read outside of its layer's own operation")

    def sample(self, posterior: Posterior) -> Tensor:
        """Refused: there is no weight sample."""
        raise NotByRowError(f"'{posterior.name}' is read outside of its layer's own operation")


def _tiled(inputs: Inputs, rows: int, samples: int) -> Any:
    """Every tensor ``samples`` times over along axis 0; with 0 rows the first one twice, as a probe."""

    def tile(tensor: Tensor) -> Tensor:
        if not tensor.ndim:
            raise NotByRowError("an input has no axis of examples")
        if not rows:
            return tensor[:1].repeat(2, *(1 for _ in tensor.shape[1:]))
        if tensor.shape[0] != rows:
            raise NotByRowError("inputs have different numbers of examples")
        return tensor.repeat(samples, *(1 for _ in tensor.shape[1:]))

    return _map_tensors(inputs, tile)


def _map_tensors(value: Any, change: Callable[[Tensor], Any]) -> Any:
    """The inputs with every tensor in them changed."""
    if isinstance(value, Tensor):
        return change(value)
    if isinstance(value, Mapping):
        return {key: _map_tensors(item, change) for key, item in value.items()}
    if isinstance(value, (tuple, list)):
        items = [_map_tensors(item, change) for item in value]
        return type(value)(*items) if isinstance(value, tuple) and is_named_tuple(value) else type(value)(items)
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    raise NotByRowError(f"an input is a {type(value).__name__}")
