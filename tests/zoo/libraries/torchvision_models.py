"""Every model that torchvision registers: classification, quantisable, segmentation, detection, video, optical flow."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any
from unittest import mock

import torch

from ..entries import Entry, Example
from .torchvision_import import prepare

prepare()

from torchvision import models  # noqa: E402
from torchvision.models.video import mvit  # noqa: E402

#: Smallest side that the model accepts, where 64 is too small for it.
SIDES = {"inception_v3": 299, "quantized_inception_v3": 299, "maxvit_t": 224, "vit_h_14": 56}
#: Too large to run beside another model.
LARGE = {"regnet_y_128gf", "vit_h_14", "vit_l_16", "vit_l_32", "regnet_y_32gf", "regnet_x_32gf"}

TWO_STAGE = {"min_size": 96, "max_size": 96, "box_score_thresh": 0.0, "box_detections_per_img": 8}
TWO_STAGE |= {f"rpn_{when}_nms_top_n_{mode}": 50 for when in ("pre", "post") for mode in ("train", "test")}
TWO_STAGE |= {"box_batch_size_per_image": 16, "rpn_batch_size_per_image": 32}
ONE_STAGE = {"min_size": 96, "max_size": 96, "score_thresh": 0.0, "detections_per_img": 8, "topk_candidates": 100}
SSD = {"score_thresh": 0.0, "detections_per_img": 8, "topk_candidates": 100}


def entries() -> Iterator[Entry]:
    """One entry per registered model."""
    for name in models.list_models():
        family, build = _builder(name)
        yield Entry("torchvision", name, family, partial(build, name), alone=name in LARGE)


def _builder(name: str) -> tuple[str, Callable[[str], Example]]:
    module = models.get_model_builder(name).__module__.removeprefix("torchvision.models.")
    area = module.split(".")[0]
    builders = {"segmentation": _segmentation, "detection": _detection, "video": _video, "optical_flow": _flow}
    return module, builders.get(area, _classification)


def _classification(name: str) -> Example:
    side = SIDES.get(name, 64)
    options: dict[str, Any] = {"num_classes": 10}
    if name.startswith("vit_"):
        options["image_size"] = side
    if "inception" in name or "googlenet" in name:
        options |= {"init_weights": False}
        if not name.startswith("quantized"):
            options |= {"aux_logits": True}
    if name.startswith("quantized"):
        options |= {"quantize": False}
    return Example(models.get_model(name, weights=None, **options), torch.randn(2, 3, side, side))


def _segmentation(name: str) -> Example:
    model = models.get_model(name, weights=None, weights_backbone=None, num_classes=5)
    return Example(model, torch.randn(2, 3, 64, 64))


def _detection(name: str) -> Example:
    options = TWO_STAGE if "rcnn" in name else SSD if name.startswith("ssd") else ONE_STAGE
    classes = 2 if "keypoint" in name else 5
    model = models.get_model(name, weights=None, weights_backbone=None, num_classes=classes, **options)
    images = [torch.rand(3, 96, 96), torch.rand(3, 80, 96)]
    return Example(model, (images,), train_inputs=(images, [_target(image, classes) for image in images]))


def _target(image: torch.Tensor, classes: int) -> dict[str, torch.Tensor]:
    """Two objects with boxes, masks and keypoints."""
    height, width = image.shape[1:]
    masks = torch.zeros(2, height, width, dtype=torch.uint8)
    masks[:, 10:50, 10:60] = 1
    keypoints = torch.cat([torch.rand(2, 17, 2) * 40 + 12, torch.ones(2, 17, 1)], dim=2)
    boxes = torch.tensor([[8.0, 8.0, 64.0, 64.0], [20.0, 16.0, 80.0, 72.0]])
    return {"boxes": boxes, "labels": torch.tensor([1, classes - 1]), "masks": masks, "keypoints": keypoints}


def _video(name: str) -> Example:
    if name.startswith("mvit"):  # the builders fix the size of the video; the class does not
        size = {"spatial_size": (64, 64), "temporal_size": 4}
        original = mvit._mvit
        with mock.patch.object(mvit, "_mvit", lambda **o: original(**o | size)):
            return Example(models.get_model(name, weights=None, num_classes=5), torch.randn(2, 3, 4, 64, 64))
    if name == "s3d":
        return Example(models.get_model(name, weights=None, num_classes=5), torch.randn(1, 3, 14, 224, 224))
    return Example(models.get_model(name, weights=None, num_classes=5), torch.randn(2, 3, 4, 48, 48))


def _flow(name: str) -> Example:
    inputs = {"image1": torch.rand(1, 3, 128, 128), "image2": torch.rand(1, 3, 128, 128), "num_flow_updates": 2}
    return Example(models.get_model(name, weights=None), inputs)
