"""The last layers of real architectures, for a process that has torchvision, timm and transformers on its path.

``python -m tests.zoo.last_layers`` prints a line for each model: its name, a tab, and its last layer or the refusal.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from bensemble.errors import InvalidValueError
from convert import last_layer

from .libraries.torchvision_import import prepare

#: Name -> its last layer, or how the refusal goes on after "last_layer: ".
EXPECTED = {
    "torchvision resnet18": "fc",
    "torchvision mobilenet_v3_small": "classifier.3",
    "torchvision swin_t": "head",
    "torchvision fcn_resnet50": "classifier.4",
    "torchvision squeezenet1_0": "the output must be the output of 'classifier.1' times one constant, got relu",
    "torchvision lraspp_mobilenet_v3_large": "the output must come from one layer, got 'classifier.low_classifier', "
    "'classifier.high_classifier' joined by add",
    "timm test_vit": "head",
    "timm test_nfnet": "head.fc",
    "timm test_efficientnet": "classifier",
    "timm levit_128s": "the output must come from one layer, got 'head.linear', 'head_dist.linear' joined by add",
    "transformers BertForSequenceClassification": "classifier",
    "transformers BertForTokenClassification": "classifier",
    "transformers BertForQuestionAnswering": "qa_outputs",
    "transformers BertForMaskedLM": "cls.predictions.decoder",
    "transformers BertModel": "the output must come from one layer, got 'encoder.layer.0.attention.output.dense'",
    "transformers RobertaForSequenceClassification": "classifier.out_proj",
    "transformers GPT2LMHeadModel": "lm_head",
    "transformers GPT2ForSequenceClassification": "score",
    "transformers LlamaForCausalLM": "lm_head",
    "transformers Gemma2ForCausalLM": "the output must be the output of 'lm_head' times one constant, got tanh",
    "transformers T5ForConditionalGeneration": "lm_head",
    "transformers ViTForImageClassification": "classifier",
    "transformers SegformerForSemanticSegmentation": "decode_head.classifier",
}


def models() -> Iterator[tuple[str, nn.Module, Any]]:
    """Every model with its example inputs, under the names of ``EXPECTED``."""
    prepare()
    import timm
    import torchvision

    for name in (name.split()[1] for name in EXPECTED if name.startswith("torchvision")):
        backbone = {"weights_backbone": None} if name.startswith(("fcn", "lraspp")) else {}
        network = torchvision.models.get_model(name, weights=None, num_classes=5, **backbone)
        yield f"torchvision {name}", network, torch.randn(2, 3, 64, 64)
    for name in (name.split()[1] for name in EXPECTED if name.startswith("timm")):
        network = timm.create_model(name)
        yield f"timm {name}", network, torch.randn(2, *network.default_cfg["input_size"])
    yield from transformers_models()


def transformers_models() -> Iterator[tuple[str, nn.Module, Any]]:
    """Tiny models of transformers."""
    import transformers as hf

    hf.logging.set_verbosity_error()
    small = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 40}
    text = {**small, "vocab_size": 99, "max_position_embeddings": 64}
    special = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    decoder = {**text, "num_key_value_heads": 2, **special}
    index, image = {"input_ids": torch.randint(5, 90, (2, 7))}, {"pixel_values": torch.randn(2, 3, 32, 32)}
    gpt2 = hf.GPT2Config(vocab_size=99, n_embd=32, n_layer=2, n_head=2, n_positions=64, **special)
    t5 = hf.T5Config(vocab_size=99, d_model=32, d_kv=16, d_ff=40, num_layers=2, num_heads=2)
    vit = hf.ViTConfig(**small, image_size=32, patch_size=8)
    stages = {"hidden_sizes": [8] * 4, "num_attention_heads": [1] * 4, "depths": [1] * 4, "decoder_hidden_size": 16}
    both = {**index, "decoder_input_ids": index["input_ids"]}
    made = {
        "Bert": (hf.BertConfig(**text), index),
        "Roberta": (hf.RobertaConfig(**text), index),
        "GPT2": (gpt2, index),
        "Llama": (hf.LlamaConfig(**decoder, tie_word_embeddings=True), index),
        "Gemma2": (hf.Gemma2Config(**decoder, head_dim=16), index),
        "T5": (t5, both),
        "ViT": (vit, image),
        "Segformer": (hf.SegformerConfig(**stages), {"pixel_values": torch.randn(1, 3, 64, 64)}),
    }
    for name in (name.split()[1] for name in EXPECTED if name.startswith("transformers")):
        config, inputs = next(value for prefix, value in made.items() if name.startswith(prefix))
        yield f"transformers {name}", getattr(hf, name)(config), inputs


if __name__ == "__main__":
    torch.set_num_threads(1)
    torch.manual_seed(0)
    for name, model, inputs in models():
        try:
            print(f"{name}\t{last_layer(model, inputs)}", flush=True)
        except InvalidValueError as err:
            print(f"{name}\t{str(err).removeprefix('last_layer: ')}", flush=True)
