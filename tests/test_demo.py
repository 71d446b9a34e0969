"""The demo from end to end on the digits of scikit-learn, and what its parts promise."""

import ast
import re
import subprocess
import sys
from io import StringIO
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from rich.console import Console
from torch import nn

import bensemble
import convert.demo
from bensemble.errors import InvalidValueError
from convert import bayesify
from convert.demo import run_demo
from convert.demo.contest import accuracy, agreement, by_size, by_snr, entropy, score
from convert.demo.data import load_digits, load_mnist
from convert.demo.network import DigitNet, Draws
from convert.demo.page import text

pytestmark = pytest.mark.xdist_group("demo")  # its fixtures are made once


@pytest.fixture(scope="module")
def told(tmp_path_factory):
    """The folder of a demo, and what it said; with its random state and threads before and after."""
    folder, said = tmp_path_factory.mktemp("demo") / "new" / "folder", StringIO()
    before = torch.get_rng_state(), torch.get_num_threads()
    run_demo(output=folder, console=Console(file=said, width=120))
    after = torch.get_rng_state(), torch.get_num_threads()
    return folder, said.getvalue(), before, after


@pytest.mark.slow
def test_the_page_stands_alone_and_shows_everything(told):
    folder, _, _, _ = told
    page = (folder / "index.html").read_text()
    sources = re.findall(r'src="([^"]{0,30})', page)
    assert len(sources) == 6
    assert all(source.startswith("data:image/png;base64,") for source in sources)
    assert "http" not in page.replace("http-equiv", "")
    for word in (
        "accuracy",
        "NLL",
        "ECE",
        "Brier",
        "AUROC",
        "weights",
        "ONNX file",
        "latency",
        "deterministic",
        "pruned",
    ):
        assert word in page
    assert "$" not in page


@pytest.mark.slow
def test_the_files_run_and_the_table_is_told(told):
    folder, said, _, _ = told
    images = load_digits()
    pixels, digits = images.test
    right = {}
    for name in ("deterministic", "bayesian", "pruned"):
        session = onnxruntime.InferenceSession(folder / f"{name}.onnx", providers=["CPUExecutionProvider"])
        (outputs,) = session.run(None, {"images": pixels.numpy()})
        right[name] = float((outputs.argmax(-1) == digits.numpy()).mean())
    assert right["deterministic"] > 0.93
    assert right["bayesian"] > right["deterministic"] - 0.01
    assert right["pruned"] > right["deterministic"] - 0.02
    assert said.count("agrees      on the digit of 600 of 600 test images") == 3
    assert re.search(rf"accuracy\W+{right['deterministic']:.2%}\W+\d", said)
    assert re.search(rf"accuracy.*{right['pruned']:.2%}", said)
    removed = float(re.search(r"([\d.]+) % removed", said).group(1))
    assert removed > 90
    assert (folder / "pruned.onnx").stat().st_size < (folder / "deterministic.onnx").stat().st_size
    bnn = bensemble.load(folder / "bayesian.safetensors", DigitNet(8)).eval()
    p = bensemble.predict(bnn, pixels, 16, likelihood="categorical", generator=torch.Generator().manual_seed(0))
    assert re.search(rf"accuracy.*{float((p.mean.argmax(-1) == digits).float().mean()):.2%}", said)


@pytest.mark.slow
def test_it_leaves_random_state_and_threads_alone(told):
    _, _, (state, threads), (state_after, threads_after) = told
    assert torch.equal(state, state_after)
    assert threads == threads_after


def test_digits_are_split_by_writer_and_scaled_by_the_training_set():
    images = load_digits()
    assert [len(part[1]) for part in (images.train, images.val, images.test)] == [897, 300, 600]
    assert images.unfamiliar.shape == (520, 1, 8, 8)
    assert images.side == 8
    assert abs(float(images.train[0].mean())) < 1e-5
    assert abs(float(images.train[0].std()) - 1) < 1e-5
    assert "897 train" in repr(images)


def test_mnist_is_read_from_an_npz_file(tmp_path):
    rng = np.random.default_rng(0)
    arrays = {
        "x_train": rng.integers(0, 256, (2100, 28, 28), dtype=np.uint8),
        "y_train": rng.integers(0, 10, 2100, dtype=np.uint8),
        "x_test": rng.integers(0, 256, (50, 28, 28), dtype=np.uint8),
        "y_test": rng.integers(0, 10, 50, dtype=np.uint8),
    }
    np.savez(tmp_path / "mnist.npz", **arrays)
    images = load_mnist(tmp_path / "mnist.npz")
    assert [len(part[1]) for part in (images.train, images.val, images.test)] == [100, 2000, 50]
    assert images.unfamiliar.shape == (520, 1, 28, 28)
    assert torch.equal(images.test[1], torch.tensor(arrays["y_test"]).long())


@pytest.mark.parametrize("content", [None, b"no archive", "x_train"])
def test_other_files_are_refused_before_anything_happens(content, tmp_path):
    path = tmp_path / "data.npz"
    if content == "x_train":
        np.savez(path, x_train=np.zeros((3, 28, 28)))
    elif content is not None:
        path.write_bytes(content)
    with pytest.raises(InvalidValueError, match=r"demo: '.*data\.npz' must be an \.npz file with x_train"):
        run_demo(output=tmp_path / "out", data=path, console=Console(file=StringIO()))


def test_an_output_that_is_a_file_is_refused(tmp_path):
    (tmp_path / "taken").write_text("")
    with pytest.raises(InvalidValueError, match=r"demo: output '.*taken' must be a folder"):
        run_demo(output=tmp_path / "taken", console=Console(file=StringIO()))


def test_scores_agree_with_their_definitions():
    torch.manual_seed(1)
    probs, digits, strange = (
        torch.randn(200, 10).mul(3).softmax(-1),
        torch.randint(10, (200,)),
        torch.full((50, 10), 0.1),
    )
    found = score(probs, digits, strange)
    assert found.accuracy == pytest.approx(float((probs.argmax(-1) == digits).double().mean()))
    assert found.nll == pytest.approx(-float(probs[torch.arange(200), digits].log().double().mean()), rel=1e-5)
    truth = nn.functional.one_hot(digits, 10)
    assert found.brier == pytest.approx(float((probs - truth).square().sum(1).mean()), rel=1e-5)
    assert found.auroc == 1.0  # a uniform prediction has the highest entropy there is
    assert score(probs, digits, probs).auroc == pytest.approx(0.5)
    confidence, right = probs.max(-1).values, (probs.argmax(-1) == digits).float()
    bins = (confidence * 15).long().clamp_max(14)
    ece = sum(abs(float((confidence - right)[bins == b].sum())) for b in range(15)) / 200
    assert found.ece == pytest.approx(ece, abs=1e-5)


def test_probabilities_that_round_above_one_are_binned():
    probs = torch.zeros(4, 10)
    probs[:, 0] = 1 + 1e-7
    assert score(probs, torch.zeros(4).long(), probs).ece == pytest.approx(0.0, abs=1e-6)


def test_entropy_is_in_nats():
    assert float(entropy(torch.full((10,), 0.1))) == pytest.approx(np.log(10))
    assert float(entropy(torch.tensor([1.0, 0.0]))) == 0.0


def test_draws_are_the_samples_of_the_posterior():
    bnn = bayesify(nn.Sequential(nn.Flatten(), nn.Linear(4, 3)), init_sigma=0.5).eval()
    draws = Draws(bnn, 400, torch.Generator().manual_seed(0))
    assert {type(module).__name__ for module in draws.modules()} == {
        "Draws",
        "ModuleList",
        "Sequential",
        "Flatten",
        "Linear",
    }
    weights = torch.stack([member[1].weight for member in draws.members])
    error = 0.5 / 400**0.5
    torch.testing.assert_close(weights.mean(0), bnn[1].w_mu, atol=5 * error, rtol=0)
    x = torch.randn(2, 4)
    torch.testing.assert_close(draws(x), torch.stack([member(x).softmax(-1) for member in draws.members]).mean(0))


def test_agreement_counts_images_with_the_same_class(tmp_path):
    from convert import export_onnx

    network = nn.Linear(3, 4)
    images = torch.randn(30, 3)
    export_onnx(network, tmp_path / "a.onnx", images[:2])
    assert agreement(tmp_path / "a.onnx", network, images) == 30
    other = nn.Linear(3, 4)
    same = int((other(images).argmax(-1) == network(images).argmax(-1)).sum())
    assert agreement(tmp_path / "a.onnx", other, images) == same
    assert same < 30


def test_curves_start_at_the_network_itself():
    torch.manual_seed(2)
    network = nn.Sequential(nn.Flatten(), nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3)).eval()
    images, digits = torch.randn(100, 1, 2, 2), torch.randint(3, (100,))
    start = accuracy(network, images, digits)
    for curve in (by_size(network, images, digits), by_snr(bayesify(network), images, digits)):
        assert curve[0] == (0.0, start)
        assert [share for share, _ in curve] == sorted(share for share, _ in curve)
    assert not any(name.endswith("_mask") for name, _ in network.named_buffers())


def test_words_of_the_page_are_escaped():
    assert text("a < b, `x & y`") == "<p>a &lt; b, <code>x &amp; y</code></p>"


PUBLIC = {"bensemble": {*bensemble.__all__, "plots"}, "convert": set(convert.__all__)}


def private_imports(source):
    """What a guest must not import: anything of the two packages but public names, from the package itself."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names if alias.name.split(".")[0] in PUBLIC]
        elif isinstance(node, ast.ImportFrom) and node.level > 1:
            found += [f"{'.' * node.level}{node.module or ''}"]
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module.split(".")[0] in PUBLIC:
            allowed = PUBLIC.get(node.module, set())
            found += [f"{node.module}.{alias.name}" for alias in node.names if alias.name not in allowed]
    return found


def test_the_demo_uses_public_names_only():
    folder = Path(convert.demo.__file__).parent
    found = {path.name: private_imports(path.read_text()) for path in folder.glob("*.py")}
    assert len(found) > 5
    assert not any(found.values()), found


@pytest.mark.parametrize(
    ("line", "found"),
    [
        ("from bensemble import predict, plots", []),
        ("from .data import Images", []),
        ("from ..copying import copy_model", ["..copying"]),
        ("from bensemble.errors import shown", ["bensemble.errors.shown"]),
        ("from convert import copying, plan", ["convert.copying"]),
        ("import convert.graph", ["convert.graph"]),
    ],
)
def test_private_imports_are_seen(line, found):
    assert private_imports(line) == found


@pytest.mark.slow
def test_missing_packages_are_named():
    code = "import sys; sys.modules['sklearn'] = None; import convert.demo"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "convert.demo: needs sklearn, which is not installed" in done.stderr
