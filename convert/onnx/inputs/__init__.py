"""How a model is called from a file: its arguments by name, the axes that vary, and the inputs that a file is tried on.

Everything here works on the torch model. ONNX Runtime is met in ``files`` and in ``verification``.
"""
