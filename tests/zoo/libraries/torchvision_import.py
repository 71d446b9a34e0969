"""Importing torchvision beside a torch of another build.

The wheel of the package index is compiled for CUDA; beside a CPU torch its operators do not load, and the import
fails where it registers their meta kernels. Declaring the two schemas first makes every model build, and non-maximum
suppression, which detection models need, is a few lines.
"""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import torch
from torch import Tensor

_library: torch.library.Library | None = None


def prepare() -> None:
    """Declare what the import of torchvision needs; call it before the first import of torchvision or timm."""
    global _library
    if _library is not None or importlib.util.find_spec("torchvision") is None:
        return
    folder = Path(importlib.util.find_spec("torchvision").submodule_search_locations[0])
    (operators,) = folder.glob("_C*.so")  # from 0.29 on it is called _C_stable
    try:
        torch.ops.load_library(str(operators))
        return  # a matching build
    except OSError:
        pass
    _library = torch.library.Library("torchvision", "DEF")
    _library.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    _library.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    _library.impl("nms", _nms, "CPU")
    import torchvision.extension

    # roi_align has bound the old function and keeps to its fallback in Python; only the guard of nms changes.
    torchvision.extension._has_ops = lambda: True
    module = sys.modules["torchvision.ops.roi_align"]
    module._roi_align = module._roi_align.__wrapped__  # the fallback as written, without torch.compile


def _nms(boxes: Tensor, scores: Tensor, iou_threshold: float) -> Tensor:
    """Indices of the boxes that survive greedy non-maximum suppression, best first."""
    order = scores.argsort(descending=True, stable=True)
    sizes = (boxes[:, 2:] - boxes[:, :2]).clamp(min=0).prod(dim=1)
    kept = []
    while order.numel():
        best, order = order[0], order[1:]
        kept.append(best)
        low = torch.maximum(boxes[best, :2], boxes[order, :2])
        high = torch.minimum(boxes[best, 2:], boxes[order, 2:])
        overlap = (high - low).clamp(min=0).prod(dim=1)
        order = order[overlap / (sizes[best] + sizes[order] - overlap) <= iou_threshold]
    return torch.stack(kept) if kept else torch.zeros(0, dtype=torch.int64)
