"""Example inputs written on the command line: shapes, named shapes, or an .npz file.

    1x3x224x224                 one float32 tensor
    input_ids=2x128:int64       an argument of forward, by name, with its dtype
    batch.npz                   the arrays of a file: by name, or in order where they are arr_0, arr_1, ...

Floating values are standard normal. Integers are smaller than the smallest embedding of the model and than 100; they
are 0 or 1 in a model without one. Booleans, and integers of a name that ends in `mask`, are ones. The values come from
a generator of their own, so torch's random state does not change.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .failures import WrongUsage

__all__ = ["InputText", "in_order", "load_file", "make_inputs", "parse_input", "tensors"]

DTYPES = ("float32", "float64", "float16", "bfloat16", "int64", "int32", "int16", "int8", "uint8", "bool")

#: A name, sizes with 'x' between them, and a dtype; the name and the dtype may be left out.
FORM = re.compile(rf"(?:(?P<name>\w+)=)?(?P<shape>[1-9][0-9]*(?:x[1-9][0-9]*)*)(?::(?P<dtype>{'|'.join(DTYPES)}))?")


@dataclass(frozen=True)
class InputText:
    """One ``--input``: a shape, or a file."""

    name: str | None = None  # the argument of forward; None for the next one in order
    shape: tuple[int, ...] = ()
    dtype: str = "float32"
    file: Path | None = None


def parse_input(text: str) -> InputText:
    """Read one ``--input``."""
    if text.endswith(".npz"):
        return InputText(file=Path(text))
    match = FORM.fullmatch(text.strip())
    if match is None:
        raise WrongUsage(
            f"input: {text!r} is not a shape of positive sizes; write 1x3x224x224, input_ids=2x128:int64 or batch.npz; "
            f"dtypes are {', '.join(DTYPES)}."
        )
    shape = tuple(int(size) for size in match["shape"].split("x"))
    return InputText(match["name"], shape, match["dtype"] or "float32")


def make_inputs(texts: Sequence[InputText] | None, model: Any, seed: int = 0) -> Any:
    """Inputs for one call of a model: a tensor, a tuple or a mapping; None without texts."""
    if not texts:
        return None
    import torch

    generator = torch.Generator().manual_seed(seed)
    pairs: list[tuple[str | None, Any]] = []
    for text in texts:
        if text.file is None:
            pairs.append((text.name, _random(text, model, generator)))
        else:
            arrays = tensors(load_file(text.file, "input"), text.file, "input", model)
            pairs += [(None if in_order(arrays) else name, array) for name, array in arrays.items()]
    named = {name: value for name, value in pairs if name is not None}
    if named and len(named) < len(pairs):
        raise WrongUsage("input: some are named and some not, or a name comes twice; write each once, as name=shape.")
    unnamed = tuple(value for _, value in pairs)
    return named or (unnamed[0] if len(unnamed) == 1 else unnamed)


def load_file(path: Path, verb: str) -> dict[str, Any]:
    """The numeric arrays of an .npz file."""
    from bensemble.errors import InvalidValueError, one_line

    from ..archives import load_arrays

    try:
        return load_arrays(path)
    except Exception as err:
        raise InvalidValueError(
            f"{verb}: '{path}' is not a file of numeric arrays ({one_line(err)}); write it with numpy.savez."
        ) from err


def tensors(arrays: dict[str, Any], path: Path, verb: str, model: Any = None) -> dict[str, Any]:
    """The arrays of a file as tensors; float64 becomes float32, unless a model itself computes in float64."""
    import torch

    from bensemble.errors import InvalidValueError, one_line

    try:
        found = {name: torch.from_numpy(array) for name, array in arrays.items()}
    except Exception as err:
        raise InvalidValueError(
            f"{verb}: '{path}' is not a file of numeric arrays ({one_line(err)}); write it with numpy.savez."
        ) from err
    if model is not None and any(parameter.dtype == torch.float64 for parameter in model.parameters()):
        return found
    return {name: t.float() if t.dtype == torch.float64 else t for name, t in found.items()}


def in_order(arrays: dict[str, Any]) -> bool:
    """Whether numpy.savez got the arrays without names: then it calls them arr_0, arr_1, ..."""
    return list(arrays) == [f"arr_{i}" for i in range(len(arrays))]


def _random(text: InputText, model: Any, generator: Any) -> Any:
    import torch
    from torch import nn

    dtype = getattr(torch, text.dtype)
    if dtype.is_floating_point:
        return torch.randn(text.shape, generator=generator).to(dtype)
    if dtype == torch.bool or (text.name or "").endswith("mask"):
        return torch.ones(text.shape, dtype=dtype)
    sizes = [module.num_embeddings for module in model.modules() if isinstance(module, (nn.Embedding, nn.EmbeddingBag))]
    below = min(*sizes, 100) if sizes else 2  # every embedding has these rows
    return torch.randint(0, below, text.shape, generator=generator).to(dtype)
