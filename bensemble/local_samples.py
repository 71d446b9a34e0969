r"""Per-example noise where it gives the same marginals as weight samples, at a fraction of their cost.

A layer that sees one vector per example once may draw its output instead of its weights: for each example the outputs
of :math:`h W^T + b` with Gaussian weights are independent Gaussians (Kingma, Salimans & Welling 2015, section 2.3). So
one forward carries many samples of every example, as rows of one batch, and the first layer, whose input is the same
for all samples, computes mean and variance once. What is lost is the joint distribution of several examples.

This is exact only where each Bayesian layer is called once, with one row per example, no weight is shared or read in
another way, and no operation mixes examples or asks how many there are. :class:`~bensemble.rows.Rows` proves it for
the very forward that is used; a forward of two rows first shows what the network does with another number of them.
Everything that is not proven is refused with :class:`~bensemble.rows.NotByRowError`; weight samples are taken then.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from .batches import Inputs, batch_size, call, device_of
from .frames import Frame, open_frame
from .gaussian import precise
from .kernels import LinearOp
from .layers.linear_op import LinearOpLayer
from .modes import is_compiled, random_state
from .outputs import OutputSelector, is_named_tuple, select_output
from .posterior import Posterior, layer_posteriors
from .rows import NotByRowError, Rows

__all__ = ["LocalSamples"]

#: About how many rows one forward carries: enough to be efficient, few enough to stay in the cache.
ROWS = 1024


class LocalSamples:
    """Samples of a model by per-example noise.

    Args:
        model: A Bayesian model in evaluation mode.
        num_samples: Number of samples.
        generator: Source of the noise.
    """

    def __init__(self, model: nn.Module, num_samples: int, generator: torch.Generator) -> None:
        self._model, self._count, self._generator, self._device = model, num_samples, generator, device_of(model)
        self._variances: dict[tuple[int, str], Tensor] = {}
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
            self._trace = self._run(_tiled(inputs, 0, 2), 2, 1, output, {})[1]
        found: list[Tensor] = []
        shared: dict[int, tuple[Tensor, Tensor]] = {}
        while len(found) < self._count:
            samples = min(max(ROWS // max(rows, 1), 1), self._count - len(found))
            value, trace = self._run(_tiled(inputs, rows, samples), rows, samples, output, shared)
            if trace != self._trace:
                raise NotByRowError("what the network does depends on the number of examples")
            found.extend(value.unflatten(0, (samples, rows)))
        if not torch.equal(state, random_state(self._device)):
            raise NotByRowError("the network draws random numbers of its own")
        return found

    def _run(
        self, inputs: Any, rows: int, samples: int, output: OutputSelector | None, shared: dict[int, Any]
    ) -> tuple[Tensor, list[Any]]:
        """The output for the samples of every row, and what was done to get it."""
        trace: list[Any] = []
        frame = _LocalFrame(self._model, rows, samples, self._generator, self._variances, shared)
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


class _LocalFrame(Frame):
    """Draws the outputs of linear layers, and refuses everything else that has a posterior."""

    def __init__(
        self,
        model: nn.Module,
        rows: int,
        samples: int,
        generator: torch.Generator,
        variances: dict[tuple[int, str], Tensor],
        shared: dict[int, tuple[Tensor, Tensor]],
    ) -> None:
        super().__init__({id(layer): layer for layer, _ in layer_posteriors(model)}, {})
        self._rows, self._samples, self._generator = rows, samples, generator
        self._variances, self._shared = variances, shared
        self._seen: set[int] = set()

    def run(self, layer: LinearOpLayer, input: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """One draw of the layer's output for each row."""
        if not isinstance(input, Rows) or input.ndim != 2 or args or kwargs:
            raise NotByRowError("a Bayesian layer sees more than one vector per example")
        if not isinstance(layer.operation(input.value), LinearOp):
            raise NotByRowError(f"{type(layer).__name__} uses a weight in several places")
        keys = {id(p.mu) for p in layer._posteriors()}
        if self._seen & keys:
            raise NotByRowError("a posterior is used twice")
        self._seen |= keys
        input.history.append(id(layer))
        if not input.fresh:
            mean, deviation = self._moments(layer, input.value)
        else:
            if id(layer) not in self._shared:
                self._shared[id(layer)] = self._moments(layer, input.value[: self._rows])
            mean, deviation = self._shared[id(layer)]
        noise = torch.randn(
            (len(input), mean.shape[-1]),
            generator=self._generator,
            device=self._generator.device,
            dtype=deviation.dtype,
        ).to(mean.device)
        parts = noise.unflatten(0, (-1, len(mean)))
        drawn = torch.addcmul(precise(mean), deviation, parts).to(mean.dtype)
        return Rows.wrap(drawn.flatten(0, 1), False, input.history)

    def _moments(self, layer: LinearOpLayer, input: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of the layer's output."""
        weight, bias = layer._posterior("weight"), layer._posterior("bias")
        if weight is None:
            raise NotByRowError("a layer has no posterior for its weight")
        mean = layer.linear_op(weight.mean(), bias.mean() if bias else layer._parameters.get("bias"), input)
        with torch.autocast(input.device.type, enabled=False):
            bias_variance = self._variance(bias) if bias else None
            variance = layer.linear_op(self._variance(weight), bias_variance, precise(input).square())
        return mean, variance.sqrt_()

    def _variance(self, posterior: Posterior) -> Tensor:
        """The sigma^2 of a posterior, once for all batches."""
        key = (id(posterior.layer), posterior.stem)
        if key not in self._variances:
            self._variances[key] = posterior.variance()
        return self._variances[key]

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
