"""Smaller files: int8 by onnxruntime's quantizer, and sparse storage.

Everything here takes an ONNX model and gives another one. Removing weights from the network happens before the export.
"""
