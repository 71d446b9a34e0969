"""One Python client of the files: ``client.py onnxruntime|openvino|tract FOLDER OUT``; a line of JSON for each file.

It runs in an environment that has nothing but numpy and that client.
"""

import json
import sys
from pathlib import Path

import numpy as np


def onnxruntime(path, arrays, names):
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.log_severity_level = 4
    session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return dict(zip(names, session.run(names, arrays), strict=True))


def openvino(path, arrays, names):
    import openvino as ov

    compiled = ov.Core().compile_model(ov.Core().read_model(path), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    found = compiled(arrays)
    return {name: found[name] for name in names}


def tract(path, arrays, names):
    import tract as runtime

    model = runtime.onnx().load(str(path))
    kinds = {"float32": "f32", "float16": "f16", "int64": "i64"}
    for place, array in enumerate(arrays.values()):
        model.set_input_fact(place, ",".join([*map(str, array.shape), kinds[str(array.dtype)]]))
    found = model.into_model().into_runnable().run(list(arrays.values()))  # in the order of the file, without names
    return {name: value.to_numpy() for name, value in zip(names, found, strict=True)}


def coded(array):
    flat = array.view("uint16") if array.dtype == "float16" else array
    return {"dtype": str(array.dtype), "shape": list(array.shape), "data": flat.ravel().tolist()}


def decoded(value):
    half = value["dtype"] == "float16"
    flat = np.array(value["data"], dtype="uint16" if half else value["dtype"])
    return (flat.view("float16") if half else flat).reshape(value["shape"])


def main(client, folder, out):
    run = {"onnxruntime": onnxruntime, "openvino": openvino, "tract": tract}[client]
    with open(out, "w") as lines:
        for entry in json.loads((folder / "files.json").read_text()):
            line = {"file": entry["file"]}
            try:
                arrays = {value["name"]: decoded(value) for value in entry["inputs"]}
                found = run(folder / entry["file"], arrays, [value["name"] for value in entry["outputs"]])
                line["outputs"] = {name: coded(np.asarray(array)) for name, array in found.items()}
            except Exception as err:
                line["error"] = " ".join(str(err).split())[:2000] or type(err).__name__
            lines.write(json.dumps(line) + "\n")
            lines.flush()


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), sys.argv[3])
