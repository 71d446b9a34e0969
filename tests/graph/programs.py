"""Random small networks as lists of steps, and a brute-force answer to which of their channels can go.

A step makes a new value from earlier ones. The module that runs a program is ordinary code that torch.fx can trace.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import torch
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

#: Activations that are constant nowhere but on constants.
SMOOTH = ("sigmoid", "tanh", "silu")

#: Kinds of steps with a weight.
CONVOLUTIONS = ("conv", "grouped", "depthwise")

#: Kinds that the oracle does not know.
WITHOUT_ORACLE = ("relu", "relu6", "grouped", "shuffle", "average")


@dataclass(frozen=True)
class Step:
    """One operation.

    Attributes:
        kind: conv, depthwise, grouped, norm, an activation, add, mul, cat, gate, shuffle, maximum, average.
        sources: Indices of the values that it reads.
        width: Channels of the result.
        padded: For convolutions: 3x3 with zero padding instead of 1x1.
    """

    kind: str
    sources: tuple[int, ...]
    width: int
    padded: bool = False


@dataclass(frozen=True)
class Program:
    """Steps that start from an image of two channels, a readout of the last value, and the seed of the weights."""

    steps: tuple[Step, ...]
    readout: str
    seed: int

    def widths(self) -> list[int]:
        """Channels of every value; value 0 is the input."""
        return [2, *(step.width for step in self.steps)]


class Network(nn.Module):
    """Runs a program."""

    def __init__(self, program: Program) -> None:
        super().__init__()
        self.program = program
        generator = torch.Generator().manual_seed(program.seed)
        widths = program.widths()
        self.layers = nn.ModuleList()
        for step in program.steps:
            self.layers.append(_layer(step, [widths[k] for k in step.sources], generator))
        features = widths[-1] * (1 if program.readout == "mean" else 4)
        self.hidden = nn.Identity()
        if program.readout == "hidden":
            self.hidden = nn.Sequential(nn.Linear(features, 5), nn.ReLU())
            _fill(self.hidden[0], generator, share=0.5)
            features = 5
        self.head = nn.Linear(features, 2)
        _fill(self.head, generator, share=0.3)

    def values(self, x: Tensor) -> list[Tensor]:
        """Every value of the program."""
        found = [x]
        for step, layer in zip(self.program.steps, self.layers, strict=True):
            found.append(self._run(step, layer, [found[k] for k in step.sources]))
        return found

    def _run(self, step: Step, layer: nn.Module, given: list[Tensor]) -> Tensor:
        if step.kind == "add":
            return given[0] + given[1]
        if step.kind == "mul":
            return given[0] * given[1]
        if step.kind == "cat":
            return torch.cat(given, 1)
        if step.kind == "gate":
            return given[0] * F.adaptive_avg_pool2d(given[1], 1)
        if step.kind == "shuffle":
            batch, channels, height, width = given[0].shape
            pairs = given[0].reshape(batch, 2, channels // 2, height, width)
            return pairs.transpose(1, 2).flatten(1, 2)
        return layer(given[0])

    def readout(self, last: Tensor) -> Tensor:
        """What the head reads."""
        if self.program.readout == "mean":
            return last.mean((2, 3))
        return self.hidden(torch.flatten(F.adaptive_avg_pool2d(last, 2), 1))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.readout(self.values(x)[-1]))


def _layer(step: Step, widths: list[int], generator: torch.Generator) -> nn.Module:
    if step.kind in CONVOLUTIONS:
        groups = {"conv": 1, "grouped": 2, "depthwise": widths[0]}[step.kind]
        kernel, padding = (3, 1) if step.padded else (1, 0)
        layer = nn.Conv2d(widths[0], step.width, kernel, padding=padding, groups=groups)
        if float(torch.rand((), generator=generator)) < 0.5:
            layer.bias = None
        _fill(layer, generator, share=0.5)
        return layer
    if step.kind == "norm":
        norm = nn.BatchNorm2d(step.width)
        for tensor, low, high in ((norm.weight, 0.5, 1.5), (norm.bias, -1, 1), (norm.running_mean, -1, 1)):
            tensor.data = torch.rand(step.width, generator=generator) * (high - low) + low
        norm.running_var = torch.rand(step.width, generator=generator) + 0.5
        return norm
    modules = {"sigmoid": nn.Sigmoid, "tanh": nn.Tanh, "silu": nn.SiLU, "relu": nn.ReLU, "relu6": nn.ReLU6}
    if step.kind in modules:
        return modules[step.kind]()
    pools = {"maximum": nn.MaxPool2d, "average": nn.AvgPool2d}
    return pools[step.kind](3, 1, padding=1) if step.kind in pools else nn.Identity()


def _fill(layer: nn.Conv2d | nn.Linear, generator: torch.Generator, share: float) -> None:
    """Random weights; rows, columns and single entries are zero with the given share."""
    weight = torch.randn(layer.weight.shape, generator=generator)
    rows, columns = (torch.rand(size, generator=generator) < share / 2 for size in weight.shape[:2])
    entries = torch.rand(weight.shape[:2], generator=generator) < share / 2
    weight[rows[:, None] | columns[None, :] | entries] = 0
    layer.weight.data = weight
    if layer.bias is not None:
        layer.bias.data = torch.randn(layer.bias.shape, generator=generator)


@st.composite
def programs(draw: st.DrawFn, more: tuple[str, ...] = (), most_steps: int = 6) -> Program:
    """Random programs; ``more`` names kinds of steps that the oracle does not know."""
    widths = [2]
    steps: list[Step] = []
    for _ in range(draw(st.integers(1, most_steps))):
        steps.append(draw(_steps(widths, more)))
        widths.append(steps[-1].width)
    readouts = ["mean", "flatten", *(["hidden"] if more else [])]
    return Program(tuple(steps), draw(st.sampled_from(readouts)), draw(st.integers(0, 10**6)))


@st.composite
def _steps(draw: st.DrawFn, widths: list[int], more: tuple[str, ...]) -> Step:
    first = draw(st.integers(max(0, len(widths) - 3), len(widths) - 1))
    width = widths[first]
    same = [k for k in range(len(widths)) if widths[k] == width and k != first]
    kinds = ["conv", "conv", "norm", draw(st.sampled_from(SMOOTH)), "gate", "depthwise", "maximum"]
    kinds += ["add", "mul"] if same else []
    kinds += ["cat"] if width < 3 else []
    kinds += [kind for kind in more if width % 2 == 0 or kind not in ("grouped", "shuffle")]
    kind = draw(st.sampled_from(kinds))
    padded = draw(st.booleans())
    if kind == "conv":
        return Step(kind, (first,), draw(st.integers(1, 3)), padded)
    if kind == "grouped":
        return Step(kind, (first,), draw(st.sampled_from([2, 4])), padded)
    if kind in ("add", "mul"):
        return Step(kind, (first, draw(st.sampled_from(same))), width)
    if kind == "gate":
        return Step(kind, (first, draw(st.sampled_from([*same, first]))), width)
    if kind == "cat":
        other = draw(st.sampled_from([k for k in range(len(widths)) if widths[k] + width <= 4]))
        return Step(kind, (first, other), width + widths[other])
    return Step(kind, (first,), width, padded)


# -- the oracle


def fewest_channels(network: Network) -> int:
    """The smallest number of channels, over all values, that reproduces the network; by trying all choices.

    What is constant is measured: the same for all inputs, positions and image sizes. A choice keeps channels of each
    value so that steps on equal shapes keep equal ones, every value keeps one, and each convolution that reads a value
    without some channel can do without: no weight that stays, or a constant that a bias takes, or, under zero padding,
    one that another constant channel takes.
    """
    program = network.program
    constants = _constants(network)
    groups = _groups(program)
    best = sum(map(len, groups))
    for choice in itertools.product((False, True), repeat=len(groups)):
        size = sum(len(group) for group, keeps in zip(groups, choice, strict=True) if keeps)
        if size < best:
            kept = {
                element: number
                for number, (group, keeps) in enumerate(zip(groups, choice, strict=True))
                for element in group
                if keeps
            }
            if _feasible(network, kept, constants):
                best = size
    return best


def _groups(program: Program) -> list[set[tuple[int, int]]]:
    """Channels (value, index) that only go together, collected by the values that they connect."""
    widths = program.widths()
    together: list[set[tuple[int, int]]] = [{(v, c)} for v, width in enumerate(widths) for c in range(width)]

    def unite(a: tuple[int, int], b: tuple[int, int]) -> None:
        first = next(s for s in together if a in s)
        second = next(s for s in together if b in s)
        if first is not second:
            first |= second
            together.remove(second)

    for index, step in enumerate(program.steps, start=1):
        if step.kind == "conv":
            continue
        offset = 0
        for source in step.sources:
            for c in range(widths[source]):
                unite((source, c), (index, c + offset))
            offset += widths[source] if step.kind == "cat" else 0
    return together


def _constants(network: Network) -> list[list[float | None]]:
    """For every channel of every value its constant, or None."""
    generator = torch.Generator().manual_seed(1)
    network = network.double()
    runs = []
    with torch.no_grad():
        for size in (6, 9):
            runs.append(network.values(torch.randn(4, 2, size, size, generator=generator, dtype=torch.float64) * 2))
    found = []
    for values in zip(*runs, strict=True):
        rows = torch.cat([value.transpose(0, 1).flatten(1) for value in values], 1)
        spread = rows.amax(1) - rows.amin(1)
        found.append([float(row[0]) if s < 1e-9 else None for row, s in zip(rows, spread, strict=True)])
    network.float()
    return found


def _feasible(network: Network, kept: dict[tuple[int, int], int], constants: list[list[float | None]]) -> bool:
    """Whether the kept sets reproduce the network.

    ``kept`` tells the set of every kept channel. Some of them may be fillers that hold anything: nobody needs them.
    """
    program = network.program
    widths = program.widths()
    last = len(widths) - 1
    if any(all((v, c) not in kept for c in range(width)) for v, width in enumerate(widths)):
        return False
    right = set(kept.values())
    convolutions = [
        (index, step, layer)
        for index, (step, layer) in enumerate(zip(program.steps, network.layers, strict=True), start=1)
        if step.kind == "conv"
    ]
    while True:
        wrong = {
            kept[index, row]
            for index, step, layer in convolutions
            for row in range(step.width)
            if kept.get((index, row)) in right
            and not _row_is_right(step, layer.weight.detach()[row], kept, right, constants[step.sources[0]])
        }
        if not wrong:
            break
        right -= wrong
    head = network.head.weight.detach().reshape(2, widths[last], -1).abs().sum((0, 2))
    needed = [(0, 0), (0, 1), *((last, c) for c in range(widths[last]) if head[c] and constants[last][c] is None)]
    return all(kept.get(element) in right for element in needed)


def _row_is_right(
    step: Step, row: Tensor, kept: dict[tuple[int, int], int], right: set[int], constants: list[float | None]
) -> bool:
    """Whether an output of a convolution gets all that it reads: from channels that are right, or from constants."""
    source = step.sources[0]
    there = [kept.get((source, c)) in right for c in range(len(constants))]
    carrier = any(here and value not in (None, 0.0) for here, value in zip(there, constants, strict=True))
    for here, value, taps in zip(there, constants, row, strict=True):
        if here or value == 0.0 or not taps.any():
            continue
        if value is None or (step.padded and not carrier):
            return False
    return True
