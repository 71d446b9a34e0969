"""The draws of a file, as ONNX Runtime forms them from its constants, in deterministic networks: an oracle."""

import dataclasses
import re
from pathlib import Path

import onnx
import onnxruntime
import torch
from torch import Tensor, nn

import bensemble
from convert import to_deterministic
from convert.onnx.files.proto import captured


def drawn_networks(bnn: nn.Module, path: Path, member: str = "") -> list[nn.Module]:
    """K networks, each with one draw of a file; ``predict`` takes them as an ensemble."""
    networks: dict[int, nn.Module] = {}
    for name, value in stored_draws(path).items():
        weight, k = re.fullmatch(r"(.+)\.draw(\d+)", name).groups()
        if weight.startswith(member):
            network = networks.setdefault(int(k), to_deterministic(bnn).eval())
            with torch.no_grad():
                network.get_parameter(weight.removeprefix(member)).copy_(value)
    return [networks[k] for k in range(len(networks))]


def stored_draws(path: Path) -> dict[str, Tensor]:
    """The draws by their names in the graph, from a model of the constant nodes alone."""
    proto = onnx.load(path)
    constant = {tensor.name for tensor in proto.graph.initializer}
    nodes = []
    for node in proto.graph.node:
        if constant.issuperset(captured(node)):
            nodes.append(node)
            constant.update(node.output)
    names = [name for node in nodes for name in node.output if re.search(r"\.draw\d+$", name)]
    shapes = {v.name: v for v in onnx.shape_inference.infer_shapes(proto).graph.value_info}
    graph = onnx.helper.make_graph(nodes, "draws", [], [shapes[n] for n in names], proto.graph.initializer)
    model = onnx.helper.make_model(graph, opset_imports=proto.opset_import, ir_version=proto.ir_version)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return dict(zip(names, map(torch.from_numpy, session.run(names, {})), strict=True))


def for_anyone(calibration: bensemble.Calibration) -> bensemble.Calibration:
    """A calibration that another posterior's predictions may use, such as those of the draws of a file."""
    return dataclasses.replace(calibration, fingerprint=None, num_samples=None, method=None)
