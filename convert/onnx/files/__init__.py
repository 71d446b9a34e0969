"""Any ONNX file: read, run, measured, compared and reported on.

Nothing here imports the modules that write files, in the folder above and the folders beside this one.
"""
