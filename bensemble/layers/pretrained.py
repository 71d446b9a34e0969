"""What ``save_pretrained`` of transformers and diffusers gets when it asks a Bayesian model for its state.

``from_pretrained`` builds the deterministic model and takes what the file does not have for new: it would give random
weights, and say so in the log at best. So a user who calls ``save_pretrained`` is told what to call instead.
transformers' Trainer calls it as well, for checkpoints that it reads back with ``load_state_dict``: it gets the state,
with a tensor of its own for every tie, because safetensors holds no shared ones and transformers knows their old names
only.
"""

from __future__ import annotations

from types import FrameType
from typing import Any

from torch import Tensor

from ..errors import CheckpointError
from ..torch_internals import callers

__all__ = ["adapt_to_save_pretrained"]


def adapt_to_save_pretrained(destination: dict[str, Any], own: set[str]) -> None:
    """Do what the text above says; nothing where no ``save_pretrained`` asks.

    Args:
        destination: The state so far.
        own: The keys in it that belong to the posteriors of the layer that is saved now.

    Raises:
        CheckpointError: A user called ``save_pretrained``.
    """
    asking = _who_asks() if own else None
    if asking is None or asking.f_code.co_name != "save_pretrained":
        return
    if not _is_within(asking, "transformers.trainer"):
        raise CheckpointError(
            f"save_pretrained: '{min(own)}' belongs to a posterior, which from_pretrained cannot read; save the plain "
            "network, to_deterministic(bnn).save_pretrained(folder), or the posterior, bensemble.save(bnn, path)."
        )
    taken = {tensor.data_ptr() for key, tensor in destination.items() if key not in own and isinstance(tensor, Tensor)}
    for key in own:
        if destination[key].data_ptr() in taken:
            destination[key] = destination[key].clone()


def _who_asks() -> FrameType | None:
    """The first caller outside of this package that is no part of ``nn.Module``."""
    own = (__package__, "torch.nn.modules.")
    return next((frame for frame in callers() if not _module(frame).startswith(own)), None)


def _is_within(frame: FrameType | None, module: str) -> bool:
    while frame is not None and _module(frame) != module:
        frame = frame.f_back
    return frame is not None


def _module(frame: FrameType) -> str:
    return str(frame.f_globals.get("__name__", ""))
