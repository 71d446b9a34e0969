"""The ONNX files of the demo, and what ONNX Runtime makes of them."""

from __future__ import annotations

from pathlib import Path

import onnxruntime
import torch
from torch import Tensor, nn

from ..surgery.collapsing import to_deterministic

__all__ = ["Draws", "agreement"]


class Draws(nn.Module):
    """The average of a few draws from the posterior, as one plain network: probabilities instead of logits.

    Args:
        bnn: A Bayesian network that gives logits.
        num_samples: How many draws; file size and latency grow with it.
        generator: Source of the noise.
    """

    def __init__(self, bnn: nn.Module, num_samples: int, generator: torch.Generator) -> None:
        super().__init__()
        draws = (to_deterministic(bnn, sample=True, generator=generator) for _ in range(num_samples))
        self.members = nn.ModuleList(draws)

    def forward(self, images: Tensor) -> Tensor:
        """Probabilities, shape (B, C)."""
        return torch.stack([member(images).softmax(-1) for member in self.members]).mean(0)


@torch.no_grad()
def agreement(path: Path, network: nn.Module, images: Tensor) -> int:
    """For how many images the file, run by ONNX Runtime, names the same class as the network itself."""
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    (entry,) = session.get_inputs()
    same = 0
    for batch in images.split(500):
        (outputs,) = session.run(None, {entry.name: batch.numpy()})
        same += int((torch.from_numpy(outputs).argmax(-1) == network.eval()(batch).argmax(-1)).sum())
    return same
