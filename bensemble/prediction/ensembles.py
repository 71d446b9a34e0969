"""The models of an ensemble, each with its samples: by weight samples, or the one output of a plain one."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from ..errors import OutOfMemoryError
from ..models.batches import Inputs, batch_size, call, to_device
from ..models.forwards import is_about_memory, naming_batch
from ..models.outputs import OutputSelector, select_output
from ..noise.stack import holding
from ..torch_internals import is_compiled
from .linearized import linearized
from .prefix import Prefix
from .weight_samples import WeightSamples

__all__ = ["Member", "memory_errors"]


class Member:
    """A model and its samples.

    Args:
        model: Bayesian or plain, in evaluation mode; a plain one gives one sample.
        num_samples: Samples of a Bayesian model.
        generator: Source of the noise.
        several: Whether there may be more than one batch.
        linearize: Whether the samples are those of the network that is linear in its weights.

    Attributes:
        count: How many samples.
        method: How they are made; see :class:`bensemble.Prediction`.
    """

    def __init__(
        self,
        model: nn.Module,
        num_samples: int,
        generator: torch.Generator | None,
        several: bool,
        linearize: bool = False,
    ) -> None:
        self._weights = WeightSamples(model, num_samples, generator, several)
        self.model, self.device, self.count = model, self._weights.device, self._weights.count
        self.bayesian = self._weights.bayesian
        self._linearize = linearize
        self.method = ("linearized" if linearize else "weights") if self.bayesian else "deterministic"
        self._share_prefix = self._weights.count > 1 and not linearize and not is_compiled(model)

    def outputs(self, inputs: Inputs, output: OutputSelector | None) -> Iterator[Tensor]:
        """The output of each sample for one batch."""
        inputs = to_device(inputs, self.device)
        with memory_errors(inputs), naming_batch("predict", self.model, inputs):
            yield from self._outputs(inputs, output)

    def _outputs(self, inputs: Inputs, output: OutputSelector | None) -> Iterator[Tensor]:
        def forward() -> Tensor:
            return select_output(call(self.model, inputs), output)

        prefix = Prefix(self.device) if self._share_prefix else None
        for number in range(self.count):
            held = self._weights.sample(number)
            if held is None:
                yield forward()
                continue
            if self._linearize:
                yield linearized(held, forward)
                continue
            with holding(held):
                found = forward() if prefix is None else prefix.run(held, forward)
            self._share_prefix = prefix is not None and prefix.useful
            yield found


@contextmanager
def memory_errors(inputs: Inputs) -> Iterator[None]:
    """Say what to do where a forward does not fit into memory."""
    try:
        yield
    except Exception as err:
        if not is_about_memory(err):
            raise
        raise OutOfMemoryError(
            f"predict: {batch_size(inputs)} examples in one forward do not fit into memory; pass chunk_size with "
            "fewer, and keep_samples=False where the samples are not needed."
        ) from err
