"""Files that answer with their uncertainty: what was asked, the networks that are traced, what the file computes.

The order of an export is in ``convert.onnx.export``. How such a file is read without torch is in ``convert.runtime``.
"""
