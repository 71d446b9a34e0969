"""The network of a recipe, as ordinary modules, with inputs for it."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils._pytree import tree_leaves
from zoo.perturbation import enliven

from .layers import ACTIVATIONS, Functional, make_convolution, make_matrix, make_norm
from .recipes import CONVOLUTIONS, MATRICES, SIZES, Block, Layout, Recipe, layout_after, layouts
from .sequences import make_sequence_layer

__all__ = ["Network", "build", "make_inputs"]

CLASSES = 3
WORDS = 11
TWO_LAYERS = ("hidden", "normed")


def build(recipe: Recipe) -> Network:
    """The network in eval mode, with weights that all matter; if it is blind to its inputs they are drawn anew."""
    for attempt in range(10):
        network = _drawn(recipe, 1000 * attempt + recipe.seed)
        with torch.no_grad():
            outputs = tree_leaves(network(make_inputs(recipe, 3)))
        if any(bool((output != output[:1]).any()) for output in outputs):
            return network
    raise ValueError(f"every network of {recipe} is dead")


def _drawn(recipe: Recipe, seed: int) -> Network:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        network = Network(recipe).eval()
        enliven(network, lambda: network(make_inputs(recipe, 16)), seed=seed)
    return network


def make_inputs(recipe: Recipe, batch: int) -> Tensor:
    """A batch for the network."""
    generator = torch.Generator().manual_seed(1000 * recipe.seed + batch)
    size, width = SIZES[recipe.source], recipe.width
    if recipe.source == "tokens":
        return torch.randint(0, WORDS, (batch, size), generator=generator)
    shapes = {"vector": (width,), "sequence": (size, width), "signal": (width, size), "image": (width, size, size)}
    return torch.randn(batch, *shapes[recipe.source], generator=generator)


class Network(nn.Module):
    """Embedding, blocks, head."""

    def __init__(self, recipe: Recipe) -> None:
        super().__init__()
        self.embedding = nn.Embedding(WORDS, recipe.width) if recipe.source == "tokens" else nn.Identity()
        passed, blocks = layouts(recipe), list[nn.Module]()
        for layout, block in zip(passed, recipe.blocks, strict=False):
            blocks.append(blocks[-1] if block.kind == "again" else _wired(layout, block))
        self.blocks = nn.Sequential(*blocks)
        self.head = Head(recipe.head, passed[-1])
        if recipe.head == "tied":
            self.head.last.weight = self.embedding.weight

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        return self.head(self.blocks(self.embedding(x)))


class Head(nn.Module):
    """What makes the outputs of the features."""

    def __init__(self, kind: str, layout: Layout) -> None:
        super().__init__()
        self.kind, self.layout, width = kind, layout, layout.width
        if kind in TWO_LAYERS:
            norm = [nn.BatchNorm1d(6)] if kind == "normed" else []
            self.last = nn.Sequential(nn.Linear(width, 6), *norm, nn.ReLU(), nn.Linear(6, CLASSES))
        elif kind == "functional":
            self.last = Functional(width, CLASSES, bias=True)
        else:
            self.last = nn.Linear(width, WORDS if kind == "tied" else CLASSES)

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        if self.layout.is_map:
            x = x.flatten(2).mean(2)
        elif self.layout.kind == "sequence" and self.kind in (*TWO_LAYERS, "functional"):
            x = x.mean(1)
        return (self.last(x), torch.tanh(x)) if self.kind == "pair" else self.last(x)


def _wired(layout: Layout, block: Block) -> nn.Module:
    """A block with its wiring."""
    after = layout_after(layout, block)
    if block.wiring == "cat":
        halves = [_body(layout, block, block.width // 2) for _ in range(2)]
        wired: nn.Module = Concatenated(*halves, axis=1 if layout.is_map else -1)
    elif block.wiring == "branches":
        wired = Branches(_body(layout, block, block.width), _body(layout, block, block.width))
    else:
        body = _body(layout, block, block.width)
        skip: nn.Module = nn.Identity()
        if layout.width != after.width and layout.is_map:
            skip = make_convolution("pointwise", layout, after.width, bias=False)
        elif layout.width != after.width:
            skip = nn.Linear(layout.width, after.width)
        made = {"plain": lambda: body, "residual": lambda: Residual(body, skip), "twice": lambda: Twice(body)}
        wired = made.get(block.wiring, lambda: Gated(body))()
    for parameter in wired.parameters():
        matrix = parameter.dim() > 1
        if (
            block.frozen == "all"
            or (block.frozen == "matrices" and matrix)
            or (block.frozen == "vectors" and not matrix)
        ):
            parameter.requires_grad_(False)
    return wired


def _body(layout: Layout, block: Block, width: int) -> nn.Module:
    """The layer of a block with norm, activation and dropout, in its precision."""
    after = Layout(layout.kind, width, layout.size)
    parts = [_layer(layout, block, width)]
    if block.norm != "none":
        parts.append(make_norm(block.norm, after))
    if block.activation != "none":
        parts.append(ACTIVATIONS[block.activation]())
    if block.dropout:
        parts.append(nn.Dropout(0.2))
    body = nn.Sequential(*parts) if len(parts) > 1 else parts[0]
    return body if block.dtype == "float32" else Cast(body, getattr(torch, block.dtype))


def _layer(layout: Layout, block: Block, width: int) -> nn.Module:
    if block.kind in ("mean", "flatten", "patches"):
        return Reshaped(block.kind, layout)
    if block.kind in CONVOLUTIONS:
        return make_convolution(block.kind, layout, width, block.bias)
    if block.kind in MATRICES:
        return make_matrix(block.kind, layout.width, width, block.bias)
    return make_sequence_layer(block.kind, layout, width, block.bias)


class Reshaped(nn.Module):
    """A mean over positions, one long vector, or a sequence of positions."""

    def __init__(self, kind: str, layout: Layout) -> None:
        super().__init__()
        self.kind, self.is_map = kind, layout.is_map

    def forward(self, x: Tensor) -> Tensor:
        if self.kind == "flatten":
            return torch.flatten(x, 1)
        if self.kind == "patches":
            return x.flatten(2).transpose(1, 2)
        return x.flatten(2).mean(2) if self.is_map else x.mean(1)


class Residual(nn.Module):
    """skip(x) + f(x)."""

    def __init__(self, body: nn.Module, skip: nn.Module) -> None:
        super().__init__()
        self.body, self.skip = body, skip

    def forward(self, x: Tensor) -> Tensor:
        return self.skip(x) + self.body(x)


class Branches(nn.Module):
    """f(x) + g(x)."""

    def __init__(self, one: nn.Module, other: nn.Module) -> None:
        super().__init__()
        self.one, self.other = one, other

    def forward(self, x: Tensor) -> Tensor:
        return self.one(x) + self.other(x)


class Concatenated(nn.Module):
    """[f(x), g(x)] along the features."""

    def __init__(self, one: nn.Module, other: nn.Module, axis: int) -> None:
        super().__init__()
        self.one, self.other, self.axis = one, other, axis

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.one(x), self.other(x)], self.axis)


class Twice(nn.Module):
    """f(f(x)): one module, called twice."""

    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body = body

    def forward(self, x: Tensor) -> Tensor:
        return self.body(self.body(x))


class Gated(nn.Module):
    """x * sigmoid(f(x))."""

    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body = body

    def forward(self, x: Tensor) -> Tensor:
        return x * F.sigmoid(self.body(x))


class Cast(nn.Module):
    """A part in another precision."""

    def __init__(self, body: nn.Module, dtype: torch.dtype) -> None:
        super().__init__()
        self.body, self.dtype = body.to(dtype), dtype

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x.to(self.dtype)).to(x.dtype)
