"""What the zoo holds: one entry per model, built by a function that a library module provides.

A library module in :mod:`.libraries` defines ``entries() -> Iterator[Entry]``. Building an entry downloads nothing
and reads no file; sizes are small, so that one model takes seconds on one core.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any

from torch import nn

#: Library -> module of :mod:`.libraries` with its entries.
LIBRARIES = {
    "torch": "plain_torch",
    "torchvision": "torchvision_models",
    "timm": "timm_models",
    "transformers": "transformers_models",
    "diffusers": "diffusers_models",
    "others": "other_models",
}


@dataclass(frozen=True)
class Example:
    """A model with inputs that it accepts.

    Attributes:
        model: The network, random weights, any mode.
        inputs: Tensor, tuple or mapping for a forward in eval mode.
        train_inputs: The same for train mode, where it differs.
    """

    model: nn.Module
    inputs: Any
    train_inputs: Any = None


@dataclass(frozen=True)
class Entry:
    """One model of the zoo.

    Attributes:
        library: Key of :data:`LIBRARIES`.
        name: Unique within the library.
        family: What counts as one family, for samples and for the table.
        build: Makes the model and its inputs; called after seeding.
        alone: Too large to share the memory with another process.
        known: Check name -> why this model does not pass it. A check that passes all the same is an error.
    """

    library: str
    name: str
    family: str
    build: Callable[[], Example] = field(repr=False)
    alone: bool = False
    known: dict[str, str] = field(default_factory=dict, repr=False)

    @property
    def key(self) -> str:
        """``library/name``."""
        return f"{self.library}/{self.name}"


def entries(library: str) -> list[Entry]:
    """All entries of one library; ImportError when the library is not installed."""
    module = import_module(f".libraries.{LIBRARIES[library]}", __package__)
    found: Iterator[Entry] = module.entries()
    listed = list(found)
    names = [entry.name for entry in listed]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ValueError(f"{library} lists {twice} twice")
    return listed


def entry(key: str) -> Entry:
    """The entry called ``library/name``."""
    library, _, name = key.partition("/")
    for candidate in entries(library):
        if candidate.name == name:
            return candidate
    raise KeyError(f"no model {name!r} in {library}")
