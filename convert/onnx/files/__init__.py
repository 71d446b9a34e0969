"""ONNX files that exist: read, run, measured, compared and reported on.

Nothing here knows the model that a file was made from. How a file is made and checked is in the folder above.
"""
