"""Real architectures with random weights, and what the sweep of the compaction zeroes in them."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

import bensemble
from convert import bayesify, channel_groups, to_deterministic
from tests.zoo.libraries.torchvision_import import prepare

from .masking import LAYERS, kill_attention_and_neurons, shift_norms, zero_channels

__all__ = ["BY_POSTERIOR", "DEAD_HEADS", "HUGGING_FACE", "TIMM", "TORCHVISION", "TRANSFORMERS"]
__all__ += ["build", "example", "masked"]

#: The mask of transformers: half of the heads and of the hidden neurons of every block.
DEAD_HEADS = "heads, neurons"
#: Half of the channels, heads and neurons of every layer, by the signal-to-noise ratio of those that go together.
BY_POSTERIOR = "posterior 50 %"

TORCHVISION = (
    *("resnet18", "resnext50_32x4d", "densenet121", "googlenet", "inception_v3", "mobilenet_v2", "mobilenet_v3_small"),
    *("efficientnet_b0", "shufflenet_v2_x0_5", "squeezenet1_1", "mnasnet0_5", "regnet_y_400mf", "vgg11_bn", "alexnet"),
)
TIMM = (
    *("legacy_seresnet18", "resnet26t", "ghostnet_100", "res2net50_26w_4s", "cspresnet50", "dla34", "repvgg_a0"),
    *("hrnet_w18_small", "convnext_atto", "tf_efficientnet_lite0", "selecsls42b"),
)
TRANSFORMERS = ("vit_tiny_patch16_224", "deit_tiny_distilled_patch16_224", "swin_tiny_patch4_window7_224")
HUGGING_FACE = ("bert", "gpt2", "vit")


def build(name: str) -> nn.Module:
    """The architecture with random weights and shifted norms, in evaluation."""
    prepare()
    torch.manual_seed(0)
    if name in HUGGING_FACE:
        model = _hugging_face(name)
    elif name in TORCHVISION:
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
    _measure_batch_norms(model.eval(), name)
    return model


@torch.no_grad()
def _measure_batch_norms(model: nn.Module, name: str) -> None:
    """Statistics of what passes, as training would leave them: without, random deep networks forget their inputs."""
    norms = [module for module in model.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    for norm in norms:
        norm.train()
        norm.momentum = 1.0
    if norms:
        model(example(name, other=True))
    model.eval()


def example(name: str, other: bool) -> Any:
    """Inputs: two examples, or three of another size where the architecture takes one."""
    generator = torch.Generator().manual_seed(3 + other)
    batch = 3 if other else 2
    if name in ("bert", "gpt2"):
        return {"input_ids": torch.randint(100, (batch, 11 if other else 7), generator=generator)}
    size = 32 if name == "vit" else 224 if name in TRANSFORMERS else 128 if other else 96
    images = torch.randn(batch, 3, size, size, generator=generator)
    return {"pixel_values": images} if name == "vit" else images


def masked(name: str, model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Copies of the model with each kind of mask."""
    yield BY_POSTERIOR, _pruned_by_posterior(model, example(name, other=False))
    if name in TRANSFORMERS or name in HUGGING_FACE:
        network = copy.deepcopy(model)
        kill_attention_and_neurons(*_heads_and_neurons(network))
        yield DEAD_HEADS, network
    if name in HUGGING_FACE:
        return
    network = copy.deepcopy(model)
    zero_channels(network, 0.5)
    yield "tied 50 %", network
    for share in (0.3, 0.5, 0.8):
        network = copy.deepcopy(model)
        zero_channels(network, share, torch.Generator().manual_seed(2))
        yield f"random {round(100 * share)} %", network


def _pruned_by_posterior(model: nn.Module, inputs: Any) -> nn.Module:
    bnn = bayesify(model, example_inputs=inputs)
    generator = torch.Generator().manual_seed(4)
    with torch.no_grad():
        for _, posterior in bensemble.named_posteriors(bnn):
            posterior.rho.add_(torch.rand(posterior.rho.shape, generator=generator))
    return to_deterministic(bnn, sparsity={"*": 0.5}, granularity=channel_groups(bnn, inputs))


def _hugging_face(name: str) -> nn.Module:
    import transformers as hf

    small: dict[str, Any] = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    if name == "bert":
        return hf.BertModel(hf.BertConfig(vocab_size=100, intermediate_size=128, max_position_embeddings=40, **small))
    if name == "vit":
        return hf.ViTForImageClassification(
            hf.ViTConfig(intermediate_size=128, image_size=32, patch_size=8, num_labels=5, **small)
        )
    tokens = {"bos_token_id": 0, "eos_token_id": 0, "use_cache": False}
    return hf.GPT2LMHeadModel(hf.GPT2Config(vocab_size=100, n_positions=40, n_embd=64, n_layer=2, n_head=4, **tokens))


def _heads_and_neurons(network: nn.Module) -> tuple[list[tuple[Tensor, int]], list[Tensor]]:
    """Weights (outputs, inputs) that read the heads, with their number, and that make the hidden neurons."""
    named = dict(network.named_modules())
    heads = [(m.proj.weight, m.num_heads) for m in named.values() if hasattr(m, "num_heads") and hasattr(m, "proj")]
    heads += [(m.weight, 4) for n, m in named.items() if n.endswith(("attention.output.dense", "o_proj"))]
    heads += [(m.weight.T, 4) for n, m in named.items() if n.endswith("attn.c_proj")]  # Conv1D holds it transposed
    neurons = [m.weight for n, m in named.items() if n.endswith(("mlp.fc1", "intermediate.dense"))]
    return heads, neurons + [m.weight.T for n, m in named.items() if n.endswith("mlp.c_fc")]
