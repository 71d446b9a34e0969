"""Tiny configurations of transformers, by what kind of network they are."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
import transformers
from transformers import PreTrainedConfig
from transformers.models.auto import modeling_auto

from ..entries import Entry, Example
from .torchvision_import import prepare
from .transformers_shrink import lookup, tiny_config

prepare()
transformers.logging.set_verbosity_error()

#: Kind -> model types.
KINDS = {
    "encoder": "albert bert big_bird bros camembert canine convbert data2vec-text deberta deberta-v2 distilbert dpr"
    " electra ernie esm eurobert flaubert fnet funnel gte ibert layoutlm longformer luke markuplm"
    " megatron-bert mobilebert modernbert mpnet mra nomic_bert nystromformer rembert roberta"
    " roberta-prelayernorm roc_bert roformer splinter squeezebert tapas xlm xlm-roberta xlm-roberta-xl xlnet xmod yoso",
    "decoder": "apertus arcee bert-generation biogpt bitnet bloom codegen cohere cohere2 cpmant ctrl diffllama doge"
    " ernie4_5 exaone4 falcon fuyu gemma gemma2 gemma3_text glm glm4 gpt2 gpt_bigcode gpt_neo gpt_neox"
    " gpt_neox_japanese gptj granite helium hyperclovax imagegpt llama mistral modernbert-decoder mpt nanochat olmo"
    " olmo2 olmo3 openai-gpt opt persimmon phi phi3 qwen2 qwen3 seed_oss smollm3 stablelm starcoder2 trocr vaultgemma"
    " xglm",
    "encoder-decoder": "bart bigbird_pegasus blenderbot blenderbot-small encoder-decoder fsmt led longt5 m2m_100 marian"
    " mbart mt5 mvp pegasus pegasus_x plbart prophetnet t5 t5gemma udop umt5",
    "mixture of experts": "afmoe aria_text cohere2_moe deepseek_v2 deepseek_v3 exaone_moe flex_olmo glm4_moe gpt_oss"
    " granitemoe granitemoeshared jetmoe laguna llama4_text mimo_v2_flash minimax minimax_m2 mixtral nllb-moe olmoe"
    " phimoe qwen2_moe qwen3_moe qwen3_vl_moe_text solar_open switch_transformers",
    "state space": "bamba falcon_h1 falcon_mamba granitemoehybrid jamba lfm2 mamba mamba2 nemotron_h olmo_hybrid"
    " qwen3_next recurrent_gemma rwkv zamba",
    "vision": "aimv2_vision_model beit bit convnext convnextv2 data2vec-vision deit dinov2 dinov2_with_registers"
    " dinov3_convnext dinov3_vit efficientnet focalnet glpn hgnet_v2 ijepa internvl_vision levit"
    " mlcd_vision_model mobilenet_v1 mobilenet_v2 mobilevit mobilevitv2 pixtral poolformer pvt pvt_v2 regnet resnet"
    " sam_vision_model segformer swiftformer swin swin2sr swinv2 timesformer upernet videomae vit vit_mae vit_msn"
    " vitdet vivit vjepa2 yolos",
    "detection": "conditional_detr dab-detr deformable_detr detr maskformer rt_detr table-transformer",
    "audio": "audio-spectrogram-transformer dac data2vec-audio encodec hubert pop2piano"
    " seamless_m4t sew sew-d speech_to_text speecht5 unispeech unispeech-sat univnet vits wav2vec2 wav2vec2-bert"
    " wav2vec2-conformer wavlm whisper",
    "images and text": "aimv2 altclip blip chinese_clip clip clipseg flava git groupvit idefics2 kosmos-2.5 llava"
    " owlvit owlv2 paligemma qwen2_vl siglip vilt visual_bert",
    "time series": "patchtsmixer patchtst timesfm",
}
#: Heads in order of preference, as mappings of transformers.models.auto.
HEADS = (
    "SEQ_TO_SEQ_CAUSAL_LM",
    "SPEECH_SEQ_2_SEQ",
    "MASKED_LM",
    "CAUSAL_LM",
    "IMAGE_CLASSIFICATION",
    "CTC",
    "AUDIO_CLASSIFICATION",
    "OBJECT_DETECTION",
    "DEPTH_ESTIMATION",
    "SEMANTIC_SEGMENTATION",
    "VIDEO_CLASSIFICATION",
    "TIME_SERIES_PREDICTION",
)
TOWERS = {"clip", "siglip", "siglip2", "metaclip_2"}


@dataclass(frozen=True)
class Special:
    """What one model type needs beyond the rule.

    Attributes:
        settings: For :func:`tiny_config`.
        inputs: Replaces the inputs of the rule.
    """

    settings: dict[str, Any] = field(default_factory=dict)
    inputs: Callable[[], dict[str, Any]] | None = None


def given(**settings: Any) -> Special:
    return Special(settings)


def ids(length: int = 12, vocabulary: int = 90) -> torch.Tensor:
    return torch.randint(4, vocabulary, (2, length))


def video(frames: int, side: int = 32, name: str = "pixel_values") -> Callable[[], dict[str, Any]]:
    return lambda: {name: torch.randn(2, frames, 3, side, side)}


def wave(*shape: int) -> Callable[[], dict[str, Any]]:
    return lambda: {"input_values": torch.randn(shape)}


def text_with_image() -> dict[str, Any]:
    """Sixteen image tokens and some text, with the image that they stand for."""
    tokens = torch.cat([torch.full((2, 16), 5), 6 + ids(6, 70)], dim=1)
    return {"input_ids": tokens, "pixel_values": torch.randn(2, 3, 32, 32)}


def text_in_boxes() -> dict[str, Any]:
    return {"input_ids": ids(), "bbox": torch.randint(0, 20, (2, 12, 4))}


PYRAMID = {"hidden_sizes": [8, 16, 24, 32], "num_attention_heads": [1, 2, 2, 4]}
WINDOWS = {"embed_dim": 24, "depths": [1, 1], "num_heads": [2, 4], "image_size": 64, "patch_size": 4, "window_size": 4}
SERIES = {"context_length": 32, "prediction_length": 4, "num_input_channels": 2, "patch_length": 8, "patch_stride": 8}
HYBRID = {"mamba_n_heads": 8, "mamba_d_head": 8, "mamba_d_state": 16}

SPECIAL: dict[str, Special] = {
    "audio-spectrogram-transformer": Special({"max_length": 64}, wave(2, 64, 16)),
    "bamba": given(**HYBRID),
    "bit": given(num_groups=4),
    "bros": Special(
        {"hidden_size": 64, "dim_bbox_sinusoid_emb_2d": 16, "dim_bbox_sinusoid_emb_1d": 2, "dim_bbox_projection": 16},
        lambda: {"input_ids": ids(), "bbox": torch.rand(2, 12, 8)},
    ),
    "codegen": given(rotary_dim=4),
    "dac": Special({"decoder_hidden_size": 64, "hidden_size": 1024}, wave(2, 1, 512)),
    "deepseek_v2": given(num_key_value_heads=4, num_experts_per_tok=2),
    "deepseek_v3": given(num_key_value_heads=4),
    "efficientnet": given(width_coefficient=0.5, depth_coefficient=0.3, hidden_dim=640),
    "encodec": Special({}, wave(2, 1, 640)),
    "esm": given(vocab_size=33, token_dropout=False, pad_token_id=1),
    "glpn": given(**PYRAMID, decoder_hidden_size=8),
    "gptj": given(rotary_dim=4),
    "granitemoehybrid": given(**HYBRID),
    "hgnet_v2": given(hidden_sizes=[128, 512, 1024, 2048]),
    "levit": given(
        hidden_sizes=[16, 24, 32], num_attention_heads=[1, 2, 2], key_dim=[8, 8, 8], image_size=64, patch_size=16
    ),
    "llava": Special({"image_token_id": 5}, text_with_image),
    "mamba2": given(num_heads=8, head_dim=8, n_groups=1, state_size=16),
    "mobilevitv2": given(
        image_size=64, base_attn_unit_dims=[16, 16, 16], n_attn_blocks=[1, 1, 1], width_multiplier=0.5
    ),
    "patchtsmixer": Special(SERIES, lambda: {"past_values": torch.randn(2, 32, 2)}),
    "patchtst": Special(SERIES, lambda: {"past_values": torch.randn(2, 32, 2)}),
    "pvt": given(**PYRAMID, image_size=64),
    "pvt_v2": given(**PYRAMID, image_size=64),
    "qwen2_vl": given(
        text_config__rope_parameters={"rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 1e4}
    ),
    "rt_detr": given(decoder_in_channels=[32, 32, 32], encoder_hidden_dim=32),
    "rwkv": given(rescale_every=0),  # it rescales its weights in place, past sigma, which only half precision needs
    "siglip": given(text_config__projection_size=32),
    "speech_to_text": Special(
        {"input_feat_per_channel": 16, "conv_channels": 32, "max_source_positions": 64},
        lambda: {"input_features": torch.randn(2, 48, 16), "decoder_input_ids": ids(7), "use_cache": False},
    ),
    "swin": given(**WINDOWS),
    "swin2sr": given(embed_dim=24, depths=[1, 1], num_heads=[2, 2], window_size=4),
    "swinv2": given(**WINDOWS),
    "timesfm": Special(
        {"patch_length": 8, "context_length": 32, "horizon_length": 8},
        lambda: {"past_values": torch.randn(2, 32), "freq": torch.tensor([0, 1])},
    ),
    "timesformer": Special({"num_frames": 2}, video(2)),
    "udop": Special(
        {}, lambda: {"input_ids": ids(), "bbox": torch.rand(2, 12, 4), "decoder_input_ids": ids(7), "use_cache": False}
    ),
    "videomae": Special({"num_frames": 2}, video(2)),
    "vits": given(speaking_rate=1e6, upsample_initial_channel=32),  # random durations would be astronomical
    "vivit": Special({"num_frames": 2, "tubelet_size": [2, 8, 8]}, video(2)),
    "vjepa2": Special(
        {"crop_size": 32, "frames_per_clip": 2, "pred_hidden_size": 16, "pred_num_attention_heads": 2}
        | {"pred_num_hidden_layers": 1, "num_pooler_layers": 1},
        video(2, name="pixel_values_videos"),
    ),
    "wav2vec2-bert": Special({"vocab_size": 30}, lambda: {"input_features": torch.randn(2, 24, 160)}),
    "wav2vec2-conformer": given(vocab_size=30),
    "xmod": given(default_language="en_XX"),
    "zamba": given(attention_head_dim=16, attention_hidden_size=64),
}


def entries() -> Iterator[Entry]:
    """One entry per model type."""
    for kind, types in KINDS.items():
        for model_type in types.split():
            yield Entry("transformers", model_type, kind, partial(example, model_type))


def example(model_type: str) -> Example:
    """The tiny model of a type with inputs that its forward takes."""
    special = SPECIAL.get(model_type, Special())
    config = tiny_config(model_type, **special.settings)
    model = _class(model_type, config)(config)
    if special.inputs is not None:
        return Example(model, special.inputs())
    return Example(model, _inputs(model, config))


def _class(model_type: str, config: PreTrainedConfig) -> Any:
    if model_type not in TOWERS:
        for head in HEADS:
            mapping = getattr(modeling_auto, f"MODEL_FOR_{head}_MAPPING")
            if type(config) in mapping:
                found = mapping[type(config)]
                return found[0] if isinstance(found, tuple) else found
    found = modeling_auto.MODEL_MAPPING[type(config)]
    return found[0] if isinstance(found, tuple) else found


def _inputs(model: Any, config: PreTrainedConfig) -> dict[str, Any]:
    parameters, main = inspect.signature(model.forward).parameters, model.main_input_name
    inputs: dict[str, Any] = {}
    if "input_ids" in parameters:
        inputs["input_ids"] = ids(12, min(lookup(config, "vocab_size", default=90), 90))
        if "attention_mask" in parameters:
            inputs["attention_mask"] = torch.ones(2, 12, dtype=torch.long)
    reads_images = main == "pixel_values" or lookup(config, "image_token_id", "image_token_index") is None
    if "pixel_values" in parameters and reads_images:
        side = lookup(config, "image_size", default=32)
        side = side[0] if isinstance(side, (list, tuple)) else side
        channels = lookup(config, "num_channels", "in_channels", "in_chans", default=3)
        inputs["pixel_values"] = torch.randn(2, channels, min(side, 64), min(side, 64))
    if main == "input_values":
        inputs["input_values"] = torch.randn(2, 8000)
    if main == "input_features":
        inputs["input_features"] = torch.randn(2, *_spectrogram(config))
    if getattr(config, "is_encoder_decoder", False) and "decoder_input_ids" in parameters:
        inputs["decoder_input_ids"] = ids(7, min(lookup(config, "vocab_size", default=90), 90))
    if "use_cache" in parameters:
        inputs["use_cache"] = False
    return inputs


def _spectrogram(config: PreTrainedConfig) -> tuple[int, int]:
    bins = lookup(config, "num_mel_bins", "feature_size", "n_mels", default=16)
    frames = 2 * lookup(config, "max_source_positions", default=32)
    return (bins, frames) if config.model_type == "whisper" else (frames, bins)
