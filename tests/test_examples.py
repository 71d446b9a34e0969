"""Every example runs as a new user would run it."""

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
EXAMPLES = sorted((ROOT / "examples").glob("*.py"))
#: Libraries that stay out of the tests' environment, by `pip install --target`; see the Makefile.
TRAINERS, ZOO = Path(sys.prefix) / "trainers", Path(sys.prefix) / "zoo"
NEEDS = {
    "pretrained_digits": ("digit_recognizer", "tests/real/requirements.txt"),
    "lightning_module": ("lightning", "tests/trainers/requirements.txt"),
    "hf_trainer": ("transformers", "tests/trainers/requirements.txt"),
    "lora_classifier": ("peft", "tests/trainers/requirements.txt"),
    "token_uncertainty": ("transformers", "tests/trainers/requirements.txt"),
    "strangers": ("torchvision", "tests/zoo/sample-requirements.txt"),
}
#: The start of an example on a torchvision that may be built for another torch.
PREPARED = """
import runpy, sys
from tests.zoo.libraries.torchvision_import import prepare
sys.argv = sys.argv[1:]
prepare()
runpy.run_path(sys.argv[0], run_name="__main__")
"""
#: Most lines of an example.
LENGTHS = {"lightning_module": 40, "elastic_digits": 85, "lora_classifier": 105, "serve": 121}


def run(script, *arguments, folder):
    """The output of a script in a folder, or a failure that shows what it wrote."""
    start = ["-c", PREPARED] if script.stem in NEEDS and NEEDS[script.stem][0] == "torchvision" else []
    path = python_path(ROOT, ZOO) if start else python_path(TRAINERS)
    done = subprocess.run(
        [sys.executable, *start, str(script), *map(str, arguments)],
        cwd=folder,
        env={**os.environ, "OMP_NUM_THREADS": "1", "MPLBACKEND": "agg", "SOURCE_DATE_EPOCH": "0", "PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def python_path(*folders):
    return os.pathsep.join([*(str(f) for f in folders if f.exists()), os.environ.get("PYTHONPATH", "")]).rstrip(":")


def skip_without(example):
    package, requirements = NEEDS.get(example, (None, None))
    if (
        package
        and importlib.util.find_spec(package) is None
        and not any((folder / package).exists() for folder in (TRAINERS, ZOO))
    ):
        pytest.skip(f"{package} is not here: pip install --no-deps -r {requirements}")


#: Run by tests of their own: below, in engines/test_elastic.py and in test_serving.py.
APART = ("unet", "elastic_digits", "lora_classifier", "token_uncertainty", "serve")


@pytest.mark.slow
@pytest.mark.parametrize(
    "example",
    [
        pytest.param(e, id=e.stem, marks=[pytest.mark.libraries if e.stem in NEEDS else pytest.mark.documents])
        for e in EXAMPLES
        if e.stem not in APART
    ],
)
def test_an_example_runs(example, tmp_path):
    skip_without(example.stem)
    assert run(example, folder=tmp_path).strip()


@pytest.mark.slow
@pytest.mark.documents
def test_the_map_of_the_unet_is_unsure_where_it_is_wrong(tmp_path):
    output = run(ROOT / "examples" / "unet.py", folder=tmp_path)
    losses = [float(loss) for loss in re.findall(r"loss ([\d.]+)", output)]
    assert losses[-1] < losses[0] / 2
    right, wrong = (re.search(rf"where {name} +([\d.]+) +([\d.]+)", output) for name in ("right", "wrong"))
    assert float(wrong[1]) > 3 * float(right[1])
    assert float(wrong[2]) > 3 * float(right[2])
    assert (tmp_path / "unet.png").stat().st_size > 1000


@pytest.mark.slow
@pytest.mark.libraries
def test_lora_gets_a_posterior_and_a_last_layer(tmp_path):
    skip_without("lora_classifier")
    output = run(ROOT / "examples" / "lora_classifier.py", folder=tmp_path)
    nll = {name: float(value) for name, value in re.findall(r"(?m)^(\w.*?) +accuracy .* NLL ([\d.]+),", output)}
    assert nll["last layer"] < nll["adapter alone"]
    assert nll["posterior of LoRA"] <= nll["adapter alone"]  # of three digits
    assert (tmp_path / "lora.onnx").stat().st_size > 1000


@pytest.mark.slow
@pytest.mark.libraries
def test_tokens_after_a_strange_beginning_are_less_sure(tmp_path):
    skip_without("token_uncertainty")
    output = run(ROOT / "examples" / "token_uncertainty.py", folder=tmp_path)
    known, strange = map(float, re.findall(r"mean entropy ([\d.]+)", output))
    assert strange > 2 * known


@pytest.mark.slow
@pytest.mark.libraries
def test_the_kl_counts_once_for_an_optimizer_step(tmp_path):
    skip_without("hf_trainer")
    output = run(ROOT / "tests" / "trainers" / "kl_steps.py", ROOT / "examples" / "hf_trainer.py", folder=tmp_path)
    moved = re.findall(r"moved ([\d.]+)", output)
    assert len(moved) == 3
    assert len(set(moved)) == 1
    assert float(moved[0]) > 0


def test_there_are_examples_and_they_are_short():
    assert len(EXAMPLES) >= 19
    for example in EXAMPLES:
        assert len(example.read_text().splitlines()) <= LENGTHS.get(example.stem, 79), example.name
