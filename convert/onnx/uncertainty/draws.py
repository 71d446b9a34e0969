r"""K weight draws from mean, deviation and one table of standard normal numbers, in torch and as constants of a graph.

With :math:`H = \lceil K / 2 \rceil` pairs, :math:`k < H`, and the numbers t of the table, read around its end,

.. math:: W_k = M + S \circ E_k \qquad W_{H + k} = M - S \circ E_k \qquad E_{k,i} = t_{(o + k s + i) \bmod L}

where o is the place of the weight in the table, the step s is about 0.6 L, and the length L is prime and sixteen times
the most weights that one output sums, so that those of an output have different numbers in the first 16 draws. Beyond
that a number is used again; tables of 1,021 numbers and of one for each weight gave the same errors for LeNet-5. The
table holds the quantiles of the normal distribution in random order, rounded to eight bits: its mean is 0 and its
variance 1, and pairs of opposite sign cancel all that is odd in the noise (antithetic variates; Owen 2013, "Monte Carlo
Theory, Methods and Examples", section 8.2). A file stores M in its own precision, S in float16 and t once; runtimes
form the draws when they load it. In a rotated basis the noise becomes :math:`Q_g (S \circ E_k) Q_a^T` before it is
added.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn

from bensemble.gaussian import precise
from bensemble.posterior import Posterior
from bensemble.posteriors import named_posteriors

__all__ = ["WeightDraws", "draw_name", "form_draws", "weight_draws"]

#: Steps of the table for one standard deviation; the largest number is 127 of them, 4.2 standard deviations.
STEPS = 30
#: Numbers in a table: so many at least, and in multiples of the most weights that one output sums.
LEAST, MULTIPLE = 2039, 16
#: Name in the graph of what all weights share.
SHARED = "draws"


class NoiseTable:
    """The numbers that all draws of a file are made of.

    Args:
        length: How many there are, L.
        reach: Where the last weight ends in a row of them.
        num_samples: Number of draws K.
        generator: Source of their order.

    Attributes:
        count: Number of draws K.
        pairs: Number of rows H.
        width: Entries of a row; the rows lie one after the other in the numbers, repeated.
        numbers: Shape (L,), int8.
    """

    def __init__(self, length: int, reach: int, num_samples: int, generator: torch.Generator) -> None:
        self.count, self.pairs = num_samples, (num_samples + 1) // 2
        self.width = length * math.ceil(reach / length) + round(length * (math.sqrt(5) - 1) / 2)
        levels = (torch.arange(length, dtype=torch.float64) + 0.5) / length
        order = torch.randperm(length, generator=generator, device=generator.device).cpu()
        self.numbers = (STEPS * torch.special.ndtri(levels)).round().clamp(-127, 127).to(torch.int8)[order]

    def rows(self, start: int, size: int) -> Tensor:
        """The numbers of one weight, shape (H, size)."""
        places = start + self.width * torch.arange(self.pairs)[:, None] + torch.arange(size)
        return self.numbers[places % len(self.numbers)]


class WeightDraws:
    """The draws of one weight.

    Args:
        posterior: Its posterior.
        table: Where the noise comes from.
        start: The place of the weight in the table.
    """

    def __init__(self, posterior: Posterior, table: NoiseTable, start: int) -> None:
        self.table, self.start, self.count = table, start, table.count
        with torch.no_grad():
            self.mean, basis, mask = posterior.mean().cpu(), posterior.basis, posterior.mask
            self.basis = None if basis is None else basis.cpu()
            scale = posterior.scale().cpu()
            if self.basis is None and mask is not None:
                scale = scale * mask.cpu()
            self.mask = None if self.basis is None or mask is None else mask.cpu().to(scale.dtype)
            largest = scale.max().clamp_min(torch.finfo(torch.float16).tiny)
            self.spread, self.unit = (scale / largest).half(), largest / STEPS

    @cached_property
    def samples(self) -> list[Tensor]:
        """The K draws, as the graph computes them."""
        mean, shape = precise(self.mean), self.mean.shape
        noise = self.table.rows(self.start, self.mean.numel()).view(-1, *shape)
        moves = self.spread.to(mean.dtype) * self.unit * noise.to(mean.dtype)
        if self.basis is not None:
            moves = torch.stack([self.basis.to_plain(move) for move in moves])
        if self.mask is not None:
            moves = moves * self.mask
        return [w.to(self.mean.dtype) for w in (*(mean + moves), *(mean - moves))][: self.count]

    def nodes(self, stored: str, constants: _Constants) -> Iterator[onnx.NodeProto]:
        """What forms the draws in a graph where ``stored`` is the mean."""
        kind, shape = precise(self.mean).dtype, list(self.mean.shape)
        code, own = _code(kind), _code(self.mean.dtype)
        name = _short(stored)

        def node(operator: str, inputs: Sequence[str], result: str, **settings: Any) -> onnx.NodeProto:
            return helper.make_node(operator, inputs, [f"{name}.{result}"], **settings)

        start, end = (constants.integers([place]) for place in (self.start, self.start + self.mean.numel()))
        yield node("Slice", [f"{SHARED}.rows", start, end, constants.integers([1])], "places")
        stacked = constants.integers([self.table.pairs, *shape])
        yield node("Reshape", [f"{name}.places", stacked], "numbers")
        yield node("Cast", [f"{name}.numbers"], "noise", to=code)
        yield node("Cast", [constants.withheld(f"{name}.spread", self.spread)], "relative", to=code)
        yield node("Mul", [f"{name}.relative", constants.stored(self.unit)], "sigma")
        yield node("Mul", [f"{name}.sigma", f"{name}.noise"], "move")
        move, mean = f"{name}.move", stored
        if self.basis is not None:
            flat = constants.integers([self.table.pairs, shape[0], math.prod(shape[1:])])
            yield node("Reshape", [move, flat], "turned")
            yield node("MatMul", [constants.stored(self.basis.outer), f"{name}.turned"], "outer")
            move = f"{name}.outer"
            if self.basis.inner is not None:
                yield node("MatMul", [move, constants.stored(self.basis.inner.t())], "inner")
                move = f"{name}.inner"
            yield node("Reshape", [move, stacked], "plain")
            move = f"{name}.plain"
        if self.mask is not None:
            yield node("Mul", [move, constants.stored(self.mask)], "kept")
            move = f"{name}.kept"
        if own != code:
            yield node("Cast", [stored], "precise", to=code)
            mean = f"{name}.precise"
        for operator, sign in (("Add", "plus"), ("Sub", "minus")):
            yield node(operator, [mean, move], sign if own == code else f"{sign}.precise")
            if own != code:
                yield node("Cast", [f"{name}.{sign}.precise"], sign, to=own)
        for number, sign in enumerate(("plus", "minus")):
            numbers = range(number * self.table.pairs, (number + 1) * self.table.pairs)
            each = [draw_name(stored, k) if k < self.count else f"{name}.unused" for k in numbers]
            joined = constants.integers([self.table.pairs * (shape or [1])[0], *shape[1:]])
            yield node("Reshape", [f"{name}.{sign}", joined], f"{sign}.joined")
            if shape:
                yield helper.make_node("Split", [f"{name}.{sign}.joined"], each, axis=0, num_outputs=len(each))
                continue
            for k, draw in enumerate(each):
                yield helper.make_node("Gather", [f"{name}.{sign}.joined", constants.stored(torch.tensor(k))], [draw])


def draw_name(name: str, k: int) -> str:
    """The value in a graph that is draw k of a weight."""
    return f"{_short(name)}.draw{k}"


def _short(name: str) -> str:
    """The name of a weight without that of the model in what is traced; names make up much of a small file."""
    return name.removeprefix("network.")


def weight_draws(
    models: Sequence[nn.Module], num_samples: int, generator: torch.Generator
) -> list[dict[str, WeightDraws]]:
    """The draws of every posterior, pruned by the masks.

    Returns:
        For each model its draws by the weights' names in the deterministic model. A tied weight has one name.
    """
    posteriors = [dict(named_posteriors(model)) for model in models]
    sizes = [p.mu.numel() for found in posteriors for p in found.values()]
    if not sizes:
        return [{} for _ in models]
    widest = max(p.mu.shape[1:].numel() for found in posteriors for p in found.values())
    length = _prime(max(LEAST, MULTIPLE * widest))
    starts = [end % length for end in itertools.accumulate(sizes, initial=0)]
    reach = max(start + size for start, size in zip(starts, sizes, strict=False))
    table, places = NoiseTable(length, reach, num_samples, generator), iter(starts)
    return [{name: WeightDraws(p, table, next(places)) for name, p in found.items()} for found in posteriors]


def form_draws(proto: onnx.ModelProto, draws: Mapping[str, WeightDraws]) -> list[onnx.TensorProto]:
    """Put the forming of all draws at the beginning of a graph, in place.

    Args:
        proto: A model that reads the values ``draw_name(...)``.
        draws: The draws by the names of the stored weights, which become the means.

    Returns:
        Constants that are inputs of the graph for now, so that no optimizer computes the draws: table and deviations.
        Whoever has optimized the graph stores them.
    """
    graph = proto.graph
    places = {tensor.name: place for place, tensor in enumerate(graph.initializer)}
    present = {name: drawn for name, drawn in draws.items() if name in places}
    if not present:
        return []
    table, constants = next(iter(present.values())).table, _Constants()
    size, shape = table.pairs * table.width, [table.pairs, table.width]
    repeats, ends = (constants.integers([n]) for n in (math.ceil(size / len(table.numbers)), size))
    zero, target = constants.integers([0]), constants.integers(shape)
    nodes = [
        helper.make_node("Tile", [constants.withheld(f"{SHARED}.table", table.numbers), repeats], [f"{SHARED}.tiles"]),
        helper.make_node("Slice", [f"{SHARED}.tiles", zero, ends], [f"{SHARED}.flat"]),
        helper.make_node("Reshape", [f"{SHARED}.flat", target], [f"{SHARED}.rows"]),
    ]
    for name, drawn in present.items():
        graph.initializer[places[name]].CopyFrom(_tensor(name, drawn.mean))
        nodes += drawn.nodes(name, constants)
    rest = list(graph.node)
    del graph.node[:]
    graph.node.extend([*nodes, *rest])
    graph.initializer.extend(constants.found.values())
    graph.input.extend(
        helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims) for tensor in constants.kept_back
    )
    return constants.kept_back


class _Constants:
    """The constants of a graph under construction, equal ones once.

    Attributes:
        found: Those to be stored.
        kept_back: Those that are inputs for now.
    """

    def __init__(self) -> None:
        self.found: dict[tuple[object, ...], onnx.TensorProto] = {}
        self.kept_back: list[onnx.TensorProto] = []

    def stored(self, value: Tensor) -> str:
        """The name of a constant."""
        array = value.detach().contiguous().numpy()
        key = (str(array.dtype), array.shape, array.tobytes())
        return self.found.setdefault(key, numpy_helper.from_array(array, f"{SHARED}.{len(self.found)}")).name

    def integers(self, values: Sequence[int]) -> str:
        """The name of a constant vector of integers."""
        return self.stored(torch.from_numpy(np.array(values, dtype=np.int64)))

    def withheld(self, name: str, value: Tensor) -> str:
        """The name of a constant that is an input for now."""
        self.kept_back.append(_tensor(name, value))
        return name


def _tensor(name: str, value: Tensor) -> onnx.TensorProto:
    """A tensor of any dtype, bfloat16 included, as it is stored."""
    data = value.detach().contiguous().flatten().view(torch.uint8).numpy().tobytes()
    return TensorProto(name=name, data_type=_code(value.dtype), dims=value.shape, raw_data=data)


def _code(dtype: torch.dtype) -> int:
    """The number of a dtype in ONNX."""
    kinds = {torch.float16: "FLOAT16", torch.bfloat16: "BFLOAT16", torch.float32: "FLOAT", torch.float64: "DOUBLE"}
    return int(TensorProto.DataType.Value(kinds.get(dtype, "INT8")))


def _prime(least: int) -> int:
    """The first prime number from ``least`` on."""
    return next(n for n in itertools.count(least) if all(n % d for d in range(2, math.isqrt(n) + 1)))
