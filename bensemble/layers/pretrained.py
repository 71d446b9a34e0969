"""``save_pretrained`` of transformers and diffusers on a Bayesian model: an error, except within the Trainer.

``from_pretrained`` builds the deterministic model and initialises weights that it does not find in the file, so it
would return random weights. A user who calls ``save_pretrained`` gets an error that names the alternatives. The Trainer
of transformers also calls it, for checkpoints that it reads with ``load_state_dict``. It gets the state, with a copy of
every tied tensor: safetensors cannot store shared tensors, and transformers knows ties by their original names only.
"""

from __future__ import annotations

from types import FrameType
from typing import Any

from torch import Tensor

from ..errors import CheckpointError
from ..torch_internals import callers

__all__ = ["adapt_to_save_pretrained"]


def adapt_to_save_pretrained(destination: dict[str, Any], own: set[str]) -> None:
    """Raise or copy ties if ``save_pretrained`` asks for the state dict; otherwise do nothing.

    Args:
        destination: The state dict so far.
        own: The keys in it that belong to the posteriors of the layer being saved.

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
    """The first caller outside of this package and of ``torch.nn.modules``."""
    own = (__package__, "torch.nn.modules.")
    return next((frame for frame in callers() if not _module(frame).startswith(own)), None)


def _is_within(frame: FrameType | None, module: str) -> bool:
    while frame is not None and _module(frame) != module:
        frame = frame.f_back
    return frame is not None


def _module(frame: FrameType) -> str:
    return str(frame.f_globals.get("__name__", ""))
