"""The direction of imports: convert imports bensemble, never the reverse, and bensemble needs torch alone."""

import ast
import importlib.util
import os
import pickle
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

import bensemble
from convert import bayesify

ROOT = Path(bensemble.__file__).parent
FORBIDDEN = ("convert", "onnx", "onnxruntime", "onnxscript", "torch.fx", "torch.onnx")
#: What a function may import when it is called, and only inside that function.
ON_CALL = {"matplotlib", "safetensors", "transformers"}


def python(code, *arguments, cwd=None, safe_path=True):
    """Run code in a fresh interpreter, which does not see the current folder."""
    flags = ["-P"] if safe_path and sys.version_info >= (3, 11) else []
    return subprocess.run(
        [sys.executable, *flags, "-c", code, *map(str, arguments)], capture_output=True, text=True, cwd=cwd, check=False
    )


def runs_later(node):
    """Whether the code of a node runs when a function is called, or for type checkers only."""
    if isinstance(node, ast.If):
        return isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"
    return isinstance(node, (ast.FunctionDef, ast.Lambda))


def imported_names(tree):
    """(module name, whether at module level) for every absolute import of a file."""
    inside = {id(node) for part in ast.walk(tree) if runs_later(part) for node in ast.walk(part)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        else:
            continue
        for name in names:
            yield name, id(node) not in inside


def is_below(name, packages):
    return any(name == package or name.startswith(f"{package}.") for package in packages)


def module_names(package):
    """(name, path) of every module; `python -m bensemble` is left out, which is the command line of convert."""
    root = Path(importlib.util.find_spec(package).origin).parent
    for path in sorted(root.rglob("*.py")):
        parts = path.relative_to(root.parent).with_suffix("").parts
        if path.name == "__main__.py":
            continue
        yield ".".join(parts[:-1] if parts[-1] == "__init__" else parts), path


def test_no_file_of_bensemble_names_what_it_must_not_import():
    allowed = {"torch", "bensemble", *sys.stdlib_module_names}
    for name, path in module_names("bensemble"):
        for imported, at_import in imported_names(ast.parse(path.read_text())):
            top = imported.split(".")[0]
            assert not is_below(imported, FORBIDDEN), f"{name} imports {imported}"
            assert top in allowed or (top in ON_CALL and (not at_import or name.endswith("hf_conv1d"))), (
                f"{name} imports {imported}"
            )
    assert sum(1 for _ in module_names("bensemble")) > 20


def test_bensemble_imports_its_own_modules_relatively():
    for package in ("bensemble", "convert"):
        for name, path in module_names(package):
            guest = name.startswith("convert.demo")  # which imports public names, as users do
            for imported, _ in imported_names(ast.parse(path.read_text())):
                assert imported.split(".")[0] != package or guest, f"{name} imports {imported}"


@pytest.mark.slow
def test_a_fresh_process_that_imports_all_of_bensemble_loads_nothing_else():
    modules = [name for name, _ in module_names("bensemble") if not name.endswith("hf_conv1d")]
    code = f"""
import sys, importlib
import torch  # torch itself may import torch.fx: what bensemble adds is what counts
before = set(sys.modules)
for name in {modules!r}:
    importlib.import_module(name)
print(*sorted(set(sys.modules) - before))
"""
    result = python(code)
    assert result.returncode == 0, result.stderr
    added = result.stdout.split()
    assert not [name for name in added if is_below(name, FORBIDDEN)]
    assert not [name for name in added if is_below(name, ("numpy", "safetensors", "transformers", "rich", "typer"))]
    assert "bensemble.layers.swap" in added


@pytest.mark.parametrize("how", ["pickle", "torch.save"])
@pytest.mark.slow
def test_a_pickled_bayesian_model_loads_where_convert_cannot_be_imported(tmp_path, how):
    model = bayesify(
        nn.Sequential(nn.Linear(4, 4), nn.TransformerEncoderLayer(4, 2, 8, batch_first=True), nn.GRU(4, 4))
    )
    bensemble.prune(model, threshold=5.0)
    x = torch.randn(2, 3, 4)
    with bensemble.sampling(model, torch.Generator().manual_seed(0)):
        expected = model.eval()(x)[0]
    path = tmp_path / "model"
    if how == "pickle":
        path.write_bytes(pickle.dumps((model, x, expected)))
        load = f"pickle.load(open({str(path)!r}, 'rb'))"
    else:
        torch.save((model, x, expected), path)
        load = f"torch.load({str(path)!r}, weights_only=False)"
    code = f"""
import pickle, sys
sys.modules["convert"] = None  # importing it raises ImportError
try:
    import convert
except ImportError:
    pass
else:
    raise SystemExit("convert could be imported")
import torch
model, x, expected = {load}
import bensemble
with bensemble.sampling(model, torch.Generator().manual_seed(0)):
    torch.testing.assert_close(model(x)[0], expected)
model.train()(x)[0].sum().backward()
assert bensemble.kl_divergence(model).isfinite()
print("loaded", sum(1 for _ in bensemble.named_posteriors(model)))
"""
    result = python(code, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert result.stdout.split() == ["loaded", str(sum(1 for _ in bensemble.named_posteriors(model)))]


#: A package that is missing, what is called, and what the error says.
MISSING = (
    ("safetensors", "bensemble.save(bnn, 'x')", "save: needs safetensors, which is not installed; .*'.[io]'"),
    ("safetensors", "bensemble.load('x', nn.Linear(2, 2))", "load: needs safetensors, .*'.[io]'"),
    ("matplotlib", "bensemble.plots.set_sizes(torch.ones(3, 2).bool())", "plots: needs matplotlib, .*'.[plots]'"),
    ("onnx", "convert.export_onnx", "convert.onnx: needs onnx, .*'.[onnx]'"),
    ("onnx", "convert.compress", "convert.onnx: needs onnx, .*'.[onnx]'"),
    ("numpy", "convert.inspect_onnx", "convert.onnx: needs numpy, .*'.[onnx]'"),
    ("onnxruntime", "convert.OnnxModel('x')", "OnnxModel: needs onnxruntime, .*'.[onnx]'"),
    ("onnxruntime", "UncertaintySession('x')", "UncertaintySession: needs onnxruntime, .* pip install onnxruntime"),
    ("torchmetrics", "import convert.demo", "convert.demo: needs torchmetrics, .*'.[demo]'"),
)

#: Each case in a fork of a process that has imported torch alone.
FORKS = """
import os, sys, torch
def run(package, call):
    sys.modules[package] = None
    import bensemble, bensemble.plots, convert
    from torch import nn
    if package != "numpy":
        from convert.runtime import UncertaintySession
    bnn = convert.bayesify(nn.Linear(2, 2))
    try:
        exec(call)
    except ImportError as err:
        print(err, flush=True)

for number, (package, call) in enumerate(zip(sys.argv[1::2], sys.argv[2::2])):
    child = os.fork()
    if not child:
        os.dup2(os.open(str(number), os.O_CREAT | os.O_WRONLY), 1)
        run(package, call)
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0, (package, call)
"""


@pytest.fixture(scope="module")
def said(tmp_path_factory):
    """What each call says without its package."""
    folder = tmp_path_factory.mktemp("missing")
    (folder / "x").write_bytes(b"")
    result = python(FORKS, *[word for package, call, _ in MISSING for word in (package, call)], cwd=folder)
    assert result.returncode == 0, result.stderr
    return {case[:2]: (folder / str(number)).read_text() for number, case in enumerate(MISSING)}


@pytest.mark.slow
@pytest.mark.xdist_group("missing packages")  # its fixture is made once
@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.parametrize(("package", "call", "message"), MISSING)
def test_a_package_that_is_not_installed_is_named_with_its_extra(said, package, call, message):
    found = said[package, call]
    assert re.search(message.replace("[", r"\[").replace("]'", r"\]'"), found), found
    assert "\n" not in found.strip()
