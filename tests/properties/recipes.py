"""What a random network is made of, as frozen data that prints in a few lines and rebuilds the network.

A recipe starts from a layout (a vector, a sequence, a signal or an image), passes blocks, and ends in a head. Every
block says how wide its result is and how it is wired; :func:`layout_after` follows the layouts.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Any

__all__ = ["TRAITS", "Block", "Layout", "Recipe", "layout_after", "layouts"]

#: Kinds of blocks on images and signals, which keep the number of positions unless they are in RESIZING.
CONVOLUTIONS = (
    *("conv", "pointwise", "grouped", "depthwise", "dilated", "circular", "strided", "transposed"),
    *("weight_norm_conv", "standardized_conv", "functional_conv"),
)
RESIZING = ("strided", "transposed")
#: Kinds on vectors and sequences.
TIES = ("tied", "autoencoder")
REPARAMETRIZED = ("weight_norm", "old_weight_norm", "spectral_norm", "orthogonal")
MATRICES = ("linear", "functional", "experts", "subclass", "bilinear", "parameter_list", *REPARAMETRIZED, *TIES)
CELLS = ("lstm_cell", "gru_cell", "rnn_cell")
#: Kinds on sequences alone.
ATTENTION = ("attention", "encoder", "handmade_attention", "pooled_attention")
RECURRENT = ("lstm", "gru", "rnn", "bidirectional", "projected_lstm")
#: Kinds that make another layout.
TO_VECTOR = ("mean", "flatten")
#: Kinds with as many features after as before.
SQUARE = ("depthwise", "bilinear", "positions", *ATTENTION, *TIES, *TO_VECTOR, "patches", "again")
#: Ways to wire a block that need as many features and positions after as before.
SQUARE_WIRINGS = ("twice", "gate")


class _Brief:
    """Prints like the call that makes it, without what is default."""

    def __repr__(self) -> str:
        told = []
        for spec in fields(self):  # type: ignore[arg-type]
            value = getattr(self, spec.name)
            if value != spec.default:
                told.append(f"{spec.name}={value!r}")
        return f"{type(self).__name__}({', '.join(told)})"


@dataclass(frozen=True, repr=False)
class Block(_Brief):
    """One block: a layer, and what belongs to it.

    Attributes:
        kind: Which layer; see the constants of this module, and "again", the block before it as the same module.
        width: Features of its result.
        wiring: "plain"; "residual", x + f(x); "branches", f(x) + g(x); "cat", [f(x), g(x)]; "twice", f(f(x));
            "gate", x * sigmoid(f(x)).
        norm: "none", "batch", "layer" or "group", behind the layer.
        activation: "none", "relu", "gelu", "silu", "tanh" or "prelu".
        bias: Whether the layer has one.
        dropout: Whether dropout follows.
        frozen: Which of its parameters need no gradient: "none", "all", "matrices" or "vectors".
        dtype: Precision inside the block.
    """

    kind: str
    width: int
    wiring: str = "plain"
    norm: str = "none"
    activation: str = "none"
    bias: bool = True
    dropout: bool = False
    frozen: str = "none"
    dtype: str = "float32"


@dataclass(frozen=True, repr=False)
class Recipe(_Brief):
    """A network, and how it is converted.

    Attributes:
        source: "vector", "sequence", "tokens", "signal" or "image".
        width: Features of the input, or of the embedding.
        blocks: What it passes.
        head: "linear", "hidden" (two layers), "normed" (a batch norm between them), "functional" (raw Parameters),
            "pair" (two outputs) or "tied" (to the embedding).
        prior: Of the conversion.
        estimator: Of the conversion.
        zeros: How it is pruned: "entries", "channels" (whole rows and columns) or "threshold".
        seed: Of weights, inputs and masks.
    """

    source: str
    width: int
    blocks: tuple[Block, ...] = ()
    head: str = "linear"
    prior: str = "empirical"
    estimator: str = "local"
    zeros: str = "channels"
    seed: int = 0


@dataclass(frozen=True)
class Layout:
    """What flows between two blocks: its kind, features, and positions along each further axis."""

    kind: str
    width: int
    size: int

    @property
    def is_map(self) -> bool:
        """Whether the features are axis 1 and positions follow."""
        return self.kind in ("signal", "image")


#: Positions of each kind of input.
SIZES = {"vector": 1, "sequence": 5, "tokens": 5, "signal": 9, "image": 6}


def layouts(recipe: Recipe) -> list[Layout]:
    """The layout before each block, and after the last one."""
    kind = "sequence" if recipe.source == "tokens" else recipe.source
    found = [Layout(kind, recipe.width, SIZES[recipe.source])]
    for block in recipe.blocks:
        found.append(layout_after(found[-1], block))
    return found


def layout_after(before: Layout, block: Block) -> Layout:
    """The layout of what a block makes of another one."""
    if block.kind == "mean":
        return Layout("vector", before.width, 1)
    if block.kind == "flatten":
        positions = before.size**2 if before.kind == "image" else before.size
        return Layout("vector", before.width * positions, 1)
    if block.kind == "patches":
        return Layout("sequence", before.width, before.size**2 if before.kind == "image" else before.size)
    if block.kind == "strided":
        return replace(before, width=block.width, size=(before.size + 1) // 2)
    if block.kind == "transposed":
        return replace(before, width=block.width, size=2 * before.size - 1)
    return replace(before, width=block.width)


def _any(recipe: Recipe, test: Any) -> bool:
    return any(test(block) for block in recipe.blocks)


#: What the census counts: name of a trait -> whether a recipe has it.
TRAITS = {
    "residual": lambda r: _any(r, lambda b: b.wiring == "residual" or b.kind == "encoder"),
    "branching": lambda r: _any(r, lambda b: b.wiring in ("branches", "cat", "gate")),
    "shared": lambda r: _any(r, lambda b: b.wiring == "twice" or b.kind == "again"),
    "tied": lambda r: r.head == "tied" or _any(r, lambda b: b.kind in TIES),
    "attention": lambda r: _any(r, lambda b: b.kind in ATTENTION),
    "recurrent": lambda r: _any(r, lambda b: b.kind in (*RECURRENT, *CELLS)),
    "convolution": lambda r: _any(r, lambda b: b.kind in CONVOLUTIONS),
    "normalised": lambda r: r.head == "normed" or _any(r, lambda b: b.norm != "none" or b.kind == "encoder"),
    "frozen": lambda r: _any(r, lambda b: b.frozen != "none"),
    "mixed dtypes": lambda r: _any(r, lambda b: b.dtype != "float32"),
    "reparametrized": lambda r: _any(r, lambda b: b.kind in (*REPARAMETRIZED, "weight_norm_conv", "standardized_conv")),
    "raw parameters": lambda r: r.head == "functional" or _any(r, lambda b: b.kind in _RAW),
    "dropout": lambda r: _any(r, lambda b: b.dropout),
    "without bias": lambda r: _any(r, lambda b: not b.bias),
}
_RAW = ("functional", "functional_conv", "experts", "handmade_attention", "pooled_attention", "positions")
_RAW += ("parameter_list", "autoencoder")
