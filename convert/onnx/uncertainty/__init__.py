"""Files whose outputs are uncertainties: options, the networks that are traced, statistics, passes over the graph.

The order of an export is in ``convert.onnx.assembly``. How such a file is read without torch is in ``convert.runtime``.
"""
