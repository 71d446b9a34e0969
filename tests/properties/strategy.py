"""The hypothesis strategy for recipes: each draw shrinks towards fewer, plainer and narrower blocks."""

from __future__ import annotations

from hypothesis import strategies as st

from .recipes import (
    ATTENTION,
    CELLS,
    CONVOLUTIONS,
    MATRICES,
    RECURRENT,
    RESIZING,
    SQUARE,
    SQUARE_WIRINGS,
    TIES,
    TO_VECTOR,
    Block,
    Layout,
    Recipe,
    layout_after,
    layouts,
)

__all__ = ["recipes"]

WIDTHS = (4, 8)
MOST_BLOCKS = 4

#: Blocks that only move what they get, and have no weights to norm, freeze or cast.
BARE = (*TO_VECTOR, "patches", "again", "positions")

#: Blocks that torch does not compute in half precision.
IN_FULL = ("orthogonal", "spectral_norm")


@st.composite
def recipes(draw: st.DrawFn) -> Recipe:
    """Random recipes; what is listed first is what hypothesis shrinks to."""
    source = draw(st.sampled_from(["vector", "sequence", "tokens", "image", "sequence", "tokens", "signal", "image"]))
    recipe = Recipe(source, draw(st.sampled_from(WIDTHS)))
    passed, blocks = layouts(recipe), list[Block]()
    for _ in range(draw(st.integers(1, MOST_BLOCKS))):
        blocks.append(draw(_blocks(passed, blocks)))
        passed.append(layout_after(passed[-1], blocks[-1]))
    heads = ["linear", "hidden", "normed", "functional", "pair"]
    if source == "tokens" and passed[-1] == passed[0]:
        heads += ["tied"] * 4
    return Recipe(
        source,
        recipe.width,
        tuple(blocks),
        head=draw(st.sampled_from(heads)),
        prior=draw(st.sampled_from(["empirical", "normal", "pretrained", "ard"])),
        estimator=draw(st.sampled_from(["local", "local", "weights"])),
        zeros=draw(st.sampled_from(["channels", "channels", "entries", "threshold"])),
        seed=draw(st.integers(0, 999)),
    )


@st.composite
def _blocks(draw: st.DrawFn, passed: list[Layout], before: list[Block]) -> Block:
    layout = passed[-1]
    kind = draw(st.sampled_from(_kinds(passed, before)))
    if kind in BARE:
        return Block(kind, layout.width)
    wirings = ["plain", "residual", "branches", "gate", "twice"]
    wirings += [] if kind in SQUARE else ["cat"]
    wirings = ["plain", "branches"] if kind in RESIZING else wirings
    wiring = draw(st.sampled_from(wirings))
    same = kind in SQUARE or wiring in SQUARE_WIRINGS
    return Block(
        kind,
        layout.width if same else draw(st.sampled_from(WIDTHS)),
        wiring=wiring,
        norm=draw(st.sampled_from(["none", "none", "layer", "batch", "group"])),
        activation=draw(st.sampled_from(["none", "relu", "gelu", "silu", "tanh", "prelu"])),
        bias=draw(st.sampled_from([True, True, False])),
        dropout=draw(st.sampled_from([False, False, False, True])),
        frozen=draw(st.sampled_from(["none"] * 7 + ["all", "matrices", "vectors"])),
        dtype=draw(st.sampled_from(["float32"] * 8 + ["float64", "float64" if kind in IN_FULL else "bfloat16"])),
    )


def _kinds(passed: list[Layout], before: list[Block]) -> list[str]:
    """What may come next; what a census needs more of is listed more than once."""
    layout = passed[-1]
    if layout.is_map:
        kinds = list(CONVOLUTIONS) if layout.size > 2 else [kind for kind in CONVOLUTIONS if kind != "strided"]
        if any(block.kind == "transposed" for block in before):
            kinds.remove("transposed")
        kinds += ["mean", "flatten", "patches", "patches"]
    elif layout.width > max(WIDTHS):  # a flattened map
        kinds = ["linear", "functional", "lstm_cell"]
    elif layout.kind == "vector":
        kinds = [*MATRICES, *CELLS, *TIES, *TIES]
    else:
        kinds = [*MATRICES, *CELLS, *TIES, *ATTENTION, *ATTENTION, *RECURRENT, "positions", "mean", "mean"]
    if before and before[-1].kind not in BARE and passed[-1] == passed[-2]:
        kinds += ["again"] * max(2, len(kinds) // 6)
    return kinds
