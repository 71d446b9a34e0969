"""Parts of a model that the example inputs do not reach, such as the heads of other tasks.

No graph shows what they read. So they stay as they are, and so does every layer whose number of outputs goes into one
of their sizes: they may read it, also flattened. What they may read in parts or side by side with others, a note says.
"""

from __future__ import annotations

from typing import Any

from torch import nn

from ...planning.entries import Entry
from ...planning.probe import probe_calls
from .atoms.flow import Flow

__all__ = ["keep_for_unreached"]


def keep_for_unreached(flow: Flow, model: nn.Module, inputs: Any) -> None:
    """Pin what parameters may read that neither evaluation nor training reaches, and note it."""
    shown = {id(leaf.tensor) for leaf in flow.leaves.values() if leaf.uses}
    left = {name: parameter for name, parameter in model.named_parameters() if id(parameter) not in shown}
    if not left:
        return
    analysis = probe_calls("compact", model, [Entry(inputs)])
    left = {name: p for name, p in left.items() if analysis.known and id(p) not in analysis.seen}
    # A token beside weights that run, such as one for masked positions, is no layer that reads something.
    layers = [p for name, p in left.items() if not _is_token(p) or not analysis.calls[name.rpartition(".")[0]]]
    for reader in flow.readers:
        count = reader.outputs.numel()
        if any(size % count == 0 for parameter in layers for size in parameter.shape):
            flow.atoms.pin(reader.outputs, "what these example inputs do not reach may read it")
    if left:
        names = ", ".join(f"'{name}'" for name in list(left)[:3]) + (" and more" if len(left) > 3 else "")
        flow.notes.append(
            f"{names} not reached by these example inputs: layers of sizes that fit stay as they are; delete what no "
            "call uses, and check the others"
        )


def _is_token(parameter: nn.Parameter) -> bool:
    return sum(size > 1 for size in parameter.shape) < 2
