"""The sample of the zoo that every test run checks: each model for another way in which networks hold their weights."""

from __future__ import annotations

#: Library -> names. `make zoo` runs all.
SAMPLE = {
    # Squeeze and excitation; windows and functional attention; segmentation; detection; video.
    "torchvision": [
        "mobilenet_v3_small",
        "swin_t",
        "lraspp_mobilenet_v3_large",
        "ssdlite320_mobilenet_v3_large",
        "mc3_18",
    ],
    # Fused projections; standardised convolutions; branches merged at deployment; windows and convolutions; tables.
    "timm": ["test_vit", "test_nfnet", "test_byobnet", "test_maxvit", "levit_128s"],
    # A tied head; Conv1D; relative positions; experts in one tensor; a scan; images; weight norm; cross attention.
    "transformers": ["bert", "gpt2", "t5", "mixtral", "mamba", "vit", "wav2vec2", "whisper"],
}
