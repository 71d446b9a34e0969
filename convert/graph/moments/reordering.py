"""Max pooling before monotone activations: the same function, whose moments are cheaper and closer.

``max(relu(a), relu(b)) = relu(max(a, b))`` for any activation that never falls. Behind the pooling it has fewer
elements to work on, and pooling takes Gaussians, as its formula supposes, in place of rectified ones.
"""

from __future__ import annotations

from torch import fx
from torch._ops import OpOverload

__all__ = ["pool_first"]

MONOTONE = {"aten::relu", "aten::sigmoid", "aten::tanh"}
POOLING = {"aten::max_pool1d", "aten::max_pool2d", "aten::max_pool3d"}


def pool_first(graph: fx.Graph) -> None:
    """Move each monotone activation behind the max pooling that alone reads it; in place."""
    for pooling in list(graph.nodes):
        activation = pooling.args[0] if _is(pooling, POOLING) else None
        if isinstance(activation, fx.Node) and _is(activation, MONOTONE) and len(activation.users) == 1:
            pooling.replace_input_with(activation, activation.args[0])
            pooling.replace_all_uses_with(activation)
            activation.args = (pooling,)
            pooling.append(activation)


def _is(node: fx.Node, names: set[str]) -> bool:
    return isinstance(node.target, OpOverload) and node.target._schema.name in names
