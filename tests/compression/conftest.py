"""Searches without the exporter."""

from __future__ import annotations

import pytest

from convert.compression import files as compression_files

from .in_memory import Files


@pytest.fixture
def in_memory(monkeypatch):
    files = Files()
    monkeypatch.setattr(compression_files, "export_onnx", files.export)
    monkeypatch.setattr(compression_files, "OnnxModel", lambda path, like: files.networks[path])
    monkeypatch.setattr(compression_files, "compare_onnx", files.compare)
