"""One model of an ensemble, and the cheapest way to its samples that is right."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from ..errors import OutOfMemoryError
from ..models.batches import Inputs, batch_size, call, to_device
from ..models.outputs import OutputSelector, select_output
from ..models.state import is_compiled
from ..noise.stack import open_frame
from .local_samples import LocalSamples
from .moment_model import MomentModel
from .prefix import Prefix
from .rows import NotByRowError
from .weight_samples import WeightSamples

__all__ = ["Member"]


class Member:
    """A model and its samples.

    Args:
        model: Bayesian or plain, in evaluation mode, or a moment model; a plain one gives one sample.
        num_samples: Samples of a Bayesian model.
        generator: Source of the noise.
        several: Whether there may be more than one batch.
        joint: Whether a sample must be one function for all examples.

    Attributes:
        method: How samples were made so far; see :class:`bensemble.Prediction`.
    """

    def __init__(
        self, model: nn.Module, num_samples: int, generator: torch.Generator | None, several: bool, joint: bool
    ) -> None:
        self._weights = WeightSamples(model, num_samples, generator, several)
        self.model, self.device, self.count = model, self._weights.device, self._weights.count
        self.bayesian = self._weights.bayesian or isinstance(model, MomentModel)
        self.method = "weights" if self._weights.bayesian else "deterministic"
        if isinstance(model, MomentModel):
            self.count, self.method = model.num_points, "moments"
        self._local: LocalSamples | None = None
        if not joint and self._weights.generator is not None and self.count > 1:
            self._local = LocalSamples(model, self.count, self._weights.generator)
        self._share_prefix = self._weights.count > 1 and not is_compiled(model)

    def outputs(self, inputs: Inputs, output: OutputSelector | None) -> Iterator[Tensor]:
        """The output of each sample for one batch."""
        inputs = to_device(inputs, self.device)
        try:
            yield from self._local_outputs(inputs, output) or self._outputs(inputs, output)
        except (torch.OutOfMemoryError, RuntimeError, MemoryError) as err:
            if isinstance(err, RuntimeError) and not _is_about_memory(err):
                raise
            raise OutOfMemoryError(
                f"predict: {batch_size(inputs)} examples in one forward do not fit into memory; pass chunk_size with "
                "fewer, and keep_samples=False where the samples are not needed."
            ) from err

    def _outputs(self, inputs: Inputs, output: OutputSelector | None) -> Iterator[Tensor]:
        """By weight samples, the points of a moment model, or the one output of a plain one."""
        if isinstance(self.model, MomentModel):
            yield from (select_output(point, output) for point in call(self.model.points, inputs))
            return
        prefix = Prefix(self.device) if self._share_prefix else None
        for number in range(self.count):
            frame = self._weights.frame(number)

            def forward() -> Tensor:
                return select_output(call(self.model, inputs), output)

            if frame is None:
                yield forward()
                continue
            with open_frame(frame):
                found = forward() if prefix is None else prefix.run(frame, forward)
            self._share_prefix = prefix is not None and prefix.useful
            yield found

    def _local_outputs(self, inputs: Inputs, output: OutputSelector | None) -> list[Tensor] | None:
        """By per-example noise, None where that is not proven to be right."""
        if self._local is None or self._weights.generator is None:
            return None
        state = self._weights.generator.get_state()
        try:
            found = self._local.outputs(inputs, output)
        except NotByRowError:
            self._weights.generator.set_state(state)
            self._local = None
            return None
        self.method = "local"
        return found


def _is_about_memory(error: RuntimeError) -> bool:
    """PyTorch has a class of its own for this on accelerators only."""
    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)
