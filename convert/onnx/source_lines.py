"""The lines of the model's code that the nodes of a graph come from, for errors."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import onnx

from bensemble.errors import VerificationError

__all__ = ["last_line", "located", "source_lines"]

#: Where torch's exporter keeps the stack of the Python call behind a node.
STACK = "pkg.torch.onnx.stack_trace"


def last_line(stack: str) -> str:
    """The innermost line of a stack, of code outside of torch where there is some; "" without one."""
    places = re.findall(r'File "([^"]+)", line (\d+), in \w+\n\s*([^\n]+)', stack)
    own = [place for place in places if "site-packages/torch/" not in place[0]] or places
    return f"{own[-1][0].rsplit('/', 1)[-1]}:{own[-1][1]} `{own[-1][2].strip()}`" if own else ""


def source_lines(proto: onnx.ModelProto) -> dict[str, str]:
    """The line behind each node, by its name."""
    stacks = {node.name: prop.value for node in proto.graph.node for prop in node.metadata_props if prop.key == STACK}
    return {name: line for name, stack in stacks.items() if (line := last_line(stack))}


@contextmanager
def located(lines: Mapping[str, str]) -> Iterator[None]:
    """Add the line to a VerificationError in which ONNX Runtime names a node."""
    try:
        yield
    except VerificationError as err:
        node = re.search(r"Name:'([^']+)'", str(err))
        if node is None or node[1] not in lines:
            raise
        raise VerificationError(f"{err} It comes from {lines[node[1]]}, which may hold for some sizes only.") from err
