"""Compaction over real architectures: the masked network against the compacted one, and what is left of it.

``make compaction-sweep`` runs all of it in the environment of the zoo and prints a table; it takes an hour of one core.
``python -m tests.graph.sweep resnet18 vit_tiny_patch16_224`` runs a part.
"""

from __future__ import annotations

import copy
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from convert import compact
from tests.zoo.libraries.torchvision_import import prepare

from .masking import LAYERS, kill_attention_and_neurons, shift_norms, zero_channels

#: Largest |compacted - masked| over the largest |masked|.
TOLERANCE = 1e-5

#: The mask of transformers: half of the heads and of the hidden neurons of every block.
DEAD_HEADS = "heads, neurons"

#: Percent of the parameters that may be left, by architecture: tied halves, then independent masks.
TARGETS = {
    ("resnet18", "tied 50 %"): 26,
    ("mobilenet_v2", "tied 50 %"): 35,
    ("densenet121", "tied 50 %"): 29,
    ("efficientnet_b0", "tied 50 %"): 43,
    ("googlenet", "tied 50 %"): 15,
    ("shufflenet_v2_x0_5", "tied 50 %"): 51,
    **{("resnet18", f"random {share} %"): left for share, left in ((30, 70), (50, 46), (80, 12))},
    **{("mobilenet_v2", f"random {share} %"): left for share, left in ((30, 61), (50, 37), (80, 11))},
}

TORCHVISION = (
    *("resnet18", "resnext50_32x4d", "densenet121", "googlenet", "inception_v3", "mobilenet_v2", "mobilenet_v3_small"),
    *("efficientnet_b0", "shufflenet_v2_x0_5", "squeezenet1_1", "mnasnet0_5", "regnet_y_400mf", "vgg11_bn", "alexnet"),
)
TIMM = (
    *("legacy_seresnet18", "resnet26t", "ghostnet_100", "res2net50_26w_4s", "cspresnet50", "dla34", "repvgg_a0"),
    *("hrnet_w18_small", "convnext_atto", "tf_efficientnet_lite0", "selecsls42b"),
)
TRANSFORMERS = ("vit_tiny_patch16_224", "deit_tiny_distilled_patch16_224", "swin_tiny_patch4_window7_224")


@dataclass(frozen=True)
class Row:
    """One architecture with one kind of mask."""

    name: str
    mask: str
    form: str
    left: float
    error: float
    seconds: float

    @property
    def passed(self) -> bool:
        """Whether it is exact and small enough."""
        return self.error <= TOLERANCE and (self.target is None or 100 * self.left <= self.target + 3)

    @property
    def target(self) -> int | None:
        """Percent of the parameters, of a transformer of those of its blocks, that may be left, less three."""
        return 57 if self.mask == DEAD_HEADS else TARGETS.get((self.name, self.mask))

    def __str__(self) -> str:
        target = "" if self.target is None else self.target
        return (
            f"| {self.name} | {self.mask} | {self.form} | {100 * self.left:.1f} | {target} | {self.error:.1e} | "
            f"{self.seconds:.0f} | {'' if self.passed else 'MISSED'} |"
        )


def build(name: str) -> nn.Module:
    """The architecture with random weights and shifted norms."""
    prepare()
    torch.manual_seed(0)
    if name in TORCHVISION:
        from torchvision.models import get_model

        more = {"init_weights": True} if name in ("googlenet", "inception_v3") else {}
        model = get_model(name, weights=None, **more)
    else:
        import timm

        model = timm.create_model(name, pretrained=False)
    for layer in model.modules():  # some heads start at zero, and with them every output
        if isinstance(layer, LAYERS) and not layer.weight.any():
            nn.init.normal_(layer.weight, std=0.05)
    shift_norms(model, torch.Generator().manual_seed(1))
    return model.eval()


def masked(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Copies of the model with each kind of mask."""
    network = copy.deepcopy(model)
    zero_channels(network, 0.5)
    yield "tied 50 %", network
    for share in (0.3, 0.5, 0.8):
        network = copy.deepcopy(model)
        zero_channels(network, share, torch.Generator().manual_seed(2))
        yield f"random {round(100 * share)} %", network


def dead_heads(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """A transformer of timm with half of the heads and neurons of every block dead."""
    network = copy.deepcopy(model)
    heads = [(m.proj.weight, m.num_heads) for m in network.modules() if hasattr(m, "num_heads") and hasattr(m, "proj")]
    kill_attention_and_neurons(heads, [m.weight for name, m in network.named_modules() if name.endswith("mlp.fc1")])
    yield DEAD_HEADS, network


def rows(name: str) -> Iterator[Row]:
    """Every mask of one architecture."""
    model = build(name)
    fixed = name in TRANSFORMERS
    example, other = (224, 224) if fixed else (96, 128)
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(2, 3, example, example, generator=generator)
    y = torch.randn(3, 3, other, other, generator=generator)
    for mask, network in (*(dead_heads(model) if fixed else ()), *masked(model)):
        start = time.process_time()
        small = compact(network, x)
        seconds = time.process_time() - start
        block = "blocks." if mask == DEAD_HEADS else ""
        left = _count(small, block) / _count(network, block)
        form = "graph" if isinstance(small, torch.fx.GraphModule) else "class"
        yield Row(name, mask, form, left, _error(small, network, y), seconds)


def _count(model: nn.Module, under: str) -> int:
    return sum(p.numel() for path, p in model.named_parameters() if under in path)


@torch.no_grad()
def _error(small: nn.Module, model: nn.Module, inputs: Tensor) -> float:
    found, expected = small.eval()(inputs), model.eval()(inputs)
    assert (expected - expected[:1]).abs().max() > 1e-3 * expected.abs().max(), (
        "the outputs do not depend on the inputs"
    )
    return float((found - expected).abs().max() / expected.abs().max())


def main(names: list[str]) -> int:
    """Print the table; the number of rows that missed."""
    torch.set_num_threads(1)
    print("| architecture | mask | form | % left | target | error / max | CPU s | |")
    print("|---|---|---|---|---|---|---|---|")
    missed = 0
    for name in names or (*TORCHVISION, *TIMM, *TRANSFORMERS):
        for row in rows(name):
            print(row, flush=True)
            missed += not row.passed
    print(f"{missed} missed")
    return missed


if __name__ == "__main__":
    sys.exit(min(main(sys.argv[1:]), 1))
