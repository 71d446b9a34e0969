"""Modules around modules."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.checkpoint import checkpoint, checkpoint_sequential

from .table import pattern

LOST_BY_DEEPCOPY = "torch's own deepcopy leaves attributes of a compiled module out"


def block() -> nn.Sequential:
    return nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 5))


@pattern("DataParallel: keys start with module.")
def data_parallel():
    return nn.DataParallel(block()), (torch.randn(3, 5),)


@pattern("AveragedModel: the wrapped copy and a counter buffer")
def averaged():
    model = AveragedModel(block(), multi_avg_fn=get_ema_multi_avg_fn(0.9))
    model.update_parameters(block())
    return model, (torch.randn(3, 5),)


@pattern("torch.compile wraps the model and forwards its attributes", known={"way_back_is_exact": LOST_BY_DEEPCOPY})
def compiled():
    return torch.compile(block(), backend="eager"), (torch.randn(3, 5),)


class CompiledChild(nn.Module):
    """Only a part is compiled."""

    def __init__(self) -> None:
        super().__init__()
        self.body = torch.compile(block(), backend="eager")
        self.head = nn.Linear(5, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x))


@pattern("a compiled child inside an ordinary model", known={"way_back_is_exact": LOST_BY_DEEPCOPY})
def compiled_child():
    return CompiledChild(), (torch.randn(3, 5),)


@pattern("Module.compile compiles in place", known={"way_back_is_exact": LOST_BY_DEEPCOPY})
def compiled_in_place():
    model = block()
    model.compile(backend="eager")
    return model, (torch.randn(3, 5),)


class Scripted(nn.Module):
    """A TorchScript child between ordinary layers."""

    def __init__(self) -> None:
        super().__init__()
        self.before, self.after = nn.Linear(5, 5), nn.Linear(5, 2)
        self.middle = torch.jit.script(nn.Linear(5, 5))

    def forward(self, x: Tensor) -> Tensor:
        return self.after(self.middle(self.before(x)))


class Checkpointed(nn.Module):
    """Activation checkpointing: the recomputation has to see the noise of the forward."""

    def __init__(self, reentrant: bool) -> None:
        super().__init__()
        self.stem = nn.Linear(5, 5)
        self.attention = nn.MultiheadAttention(5, 1, batch_first=True)
        self.body = block()
        self.reentrant = reentrant

    def mix(self, x: Tensor) -> Tensor:
        return self.body(self.attention(x, x, x, need_weights=False)[0])

    def forward(self, x: Tensor) -> Tensor:
        return checkpoint(self.mix, self.stem(x), use_reentrant=self.reentrant)


@pattern("reentrant activation checkpointing")
def checkpoint_reentrant():
    return Checkpointed(True), (torch.randn(2, 3, 5),)


@pattern("non-reentrant activation checkpointing")
def checkpoint_non_reentrant():
    return Checkpointed(False), (torch.randn(2, 3, 5),)


class CheckpointedPart(nn.Module):
    """Runs a part of its own forward again, which reads weights that the rest has read before."""

    def __init__(self, reentrant: bool | None) -> None:
        super().__init__()
        self.mixing, self.other = nn.Parameter(torch.randn(5, 5)), nn.Parameter(torch.randn(5, 5))
        self.linear = nn.Linear(5, 5)
        self.reentrant = reentrant

    def part(self, x: Tensor) -> Tensor:
        return torch.tanh(self.linear(torch.tanh(x @ self.mixing) @ self.other)) @ self.mixing @ self.other

    def forward(self, x: Tensor) -> Tensor:
        x = x @ self.mixing
        return self.part(x) if self.reentrant is None else checkpoint(self.part, x, use_reentrant=self.reentrant)


REFUSED = {"gradients_arrive": "weights drawn for a whole forward are not drawn again for a part: SamplingError"}


@pattern("a module that checkpoints a part of its own forward", known=REFUSED)
def checkpoint_part():
    return CheckpointedPart(False), (torch.randn(3, 5),)


@pattern("a module that checkpoints a part of its own forward, reentrant", known=REFUSED)
def checkpoint_part_reentrant():
    return CheckpointedPart(True), (torch.randn(3, 5),)


class CheckpointedChain(nn.Module):
    """Segments of a Sequential are recomputed."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.chain = nn.Linear(5, 5), nn.Sequential(*[nn.Linear(5, 5) for _ in range(4)])

    def forward(self, x: Tensor) -> Tensor:
        return checkpoint_sequential(self.chain, 2, self.stem(x), use_reentrant=False)


@pattern("checkpoint_sequential")
def checkpoint_chain():
    return CheckpointedChain(), (torch.randn(3, 5),)


class Vmapped(nn.Module):
    """A vmap over the batch inside forward."""

    def __init__(self) -> None:
        super().__init__()
        self.body = block()
        self.conv = nn.Conv1d(1, 2, 3)

    def forward(self, x: Tensor) -> Tensor:
        return torch.func.vmap(lambda row: self.conv(self.body(row)[None]), randomness="different")(x)


@pattern("torch.func.vmap inside forward")
def vmapped():
    return Vmapped(), (torch.randn(3, 5),)


@pattern(
    "a torch.fx GraphModule as the model, with a raw Parameter at its root: it copies and pickles itself",
    known={"way_back_is_exact": "every GraphModule has a class of its own, its copies too"},
)
def graph_module():
    return torch.fx.symbolic_trace(RootParameter()), (torch.randn(3, 5),)


class RootParameter(nn.Module):
    """A Parameter and a Linear."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(5, 5))
        self.linear = nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x @ self.weight)


class FunctionalPart(nn.Module):
    """Reads the weight of a child, and a matrix of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.query, self.mix, self.out = nn.Linear(5, 5), nn.Parameter(torch.randn(5, 5)), nn.Linear(5, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(nn.functional.linear(x, self.query.weight, self.query.bias) @ self.mix)


@pattern(
    "a GraphModule that reads weights below plain containers, as feature extractors of vision transformers do",
    known={"way_back_is_exact": "every GraphModule has a class of its own, its copies too"},
)
def graph_module_of_parts():
    model = nn.Sequential(nn.Sequential(FunctionalPart(), FunctionalPart()), nn.Linear(5, 3))
    return torch.fx.symbolic_trace(model), (torch.randn(3, 5),)


class Parallel(nn.Module):
    """Wrapped twice."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.DataParallel(AveragedModel(block()))

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x)


@pattern("wrappers in wrappers")
def nested_wrappers():
    return Parallel(), (torch.randn(3, 5),)


@pattern(
    "a TorchScript child stays deterministic",
    stays=("middle.weight",),
    known={"in_place_keeps_every_object": "TorchScript keeps its forward as an attribute once it was called"},
)
def script_child():
    return Scripted(), (torch.randn(3, 5),)
