"""Exact passes over the graph of a model: its capture, and one folder for each pass.

A pass returns another model with the same outputs. What needs ONNX belongs into ``onnx``.
"""
