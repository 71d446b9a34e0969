"""The demo from end to end on the digits of scikit-learn, and what its parts promise."""

import ast
import re
import subprocess
import sys
from io import StringIO
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from rich.console import Console
from torch import nn

import bensemble
import convert.demo
import convert.runtime
from bensemble.errors import InvalidValueError
from convert.demo import run_demo
from convert.demo.answers import in_words
from convert.demo.contest import as_good_as_best, difference, score
from convert.demo.data import load_digits, load_mnist
from convert.demo.network import DigitNet
from convert.demo.page import text
from convert.demo.story import Pace
from convert.runtime import Answer, UncertaintySession

pytestmark = pytest.mark.xdist_group("demo")  # its fixtures are made once


@pytest.fixture(scope="module")
def told(tmp_path_factory):
    """The folder of a small demo, and what it said; with its random state and threads before and after."""
    folder, said = tmp_path_factory.mktemp("demo") / "new" / "folder", StringIO()
    before = torch.get_rng_state(), torch.get_num_threads()
    run_demo(output=folder, console=Console(file=said, width=120), pace=Pace(families=2, members=2, epochs=6))
    after = torch.get_rng_state(), torch.get_num_threads()
    return folder, said.getvalue(), before, after


@pytest.fixture(scope="module")
def page(told):
    return (told[0] / "index.html").read_text()


def cells(page, row):
    """The numbers of a row of the first table that has it, a column each, and whether they are marked as the best."""
    found, *_ = re.findall(rf'<tr><th scope="row">{re.escape(row)}</th>(.*?)</tr>', page)
    numbers = re.findall(r"<td( class=best)?>([\d.,]+)", found)
    return [float(number.replace(",", "")) for _, number in numbers], [bool(best) for best, _ in numbers]


@pytest.mark.slow
@pytest.mark.documents
def test_the_page_stands_alone(page):
    assert re.findall(r'src="([^"]{0,22})', page) == ["data:image/png;base64,"] * 42
    assert page.count("<svg") == 3
    assert "#010203" not in page, "the ink of a diagram is not that of the page"
    assert not re.search(r'(href|src)="https?:', page)
    assert "$" not in page


@pytest.mark.slow
@pytest.mark.documents
def test_novelty_tells_photographs_better_than_an_ensemble(page):
    numbers, best = cells(page, "AUROC, photographs")
    one, _, _, novelty, ensemble = numbers
    assert novelty > max(one, ensemble, 0.99)
    assert best[3]
    refused, _ = cells(page, "photographs refused")
    assert refused[3] > 90 > refused[4]
    assert all(share < 3 for share in cells(page, "digits refused")[0]), "the threshold is chosen on digits like these"


@pytest.mark.slow
@pytest.mark.documents
def test_the_ways_share_their_networks(page):
    for row in ("accuracy", "NLL, nats", "ECE", "Brier"):
        _, _, last, novelty, _ = cells(page, row)[0]
        assert last == novelty
    assert cells(page, "accuracy")[0][0] == cells(page, "accuracy")[0][1]
    one, warm, last, novelty, _ = cells(page, "file, kB")[0]
    assert one == warm < last < novelty


@pytest.mark.slow
@pytest.mark.documents
def test_two_images_get_two_answers(page):
    quotes = re.findall(r"<blockquote( class=strange)?>(.*?)</blockquote>", page)
    assert quotes[0] == (" class=strange", "I have never seen such a thing.")
    assert re.fullmatch(r"An? \d(, an? \d)* or an? \d\.", quotes[1][1])
    assert not quotes[1][0]


@pytest.mark.slow
@pytest.mark.documents
def test_the_uncertainty_file_gives_the_answers(told, page):
    images = load_digits()
    session = UncertaintySession(told[0] / "sure.onnx")
    assert {"probs", "entropy", "prediction_set", "novelty", "novelty_pvalue"} <= set(session.outputs)
    answer = session(images.test[0].numpy())
    strange = session(images.strangers["photographs"].numpy())
    assert strange.reject().mean() > 0.9
    assert answer.reject().mean() < 0.03
    first = re.search(r"The first digits of the test</h3>(.*?)</div>", page).group(1)
    captions = re.findall(r"<figcaption[^>]*>(.*?)</figcaption>", first)
    assert captions == [in_words(answer[i], short=True) for i in range(10)]
    bnn = bensemble.load(told[0] / "last-layer.safetensors", DigitNet(8)).eval()
    novelty = bensemble.Novelty.load(told[0] / "novelty.safetensors", bnn)
    expected = bensemble.predict(bnn, images.test[0], likelihood="categorical", novelty=novelty)
    np.testing.assert_allclose(answer.probs, expected.probs, atol=1e-5)
    np.testing.assert_allclose(answer.novelty, expected.novelty, atol=1e-4)


@pytest.mark.slow
@pytest.mark.documents
def test_repaired_networks_lose_less_than_pruned_ones(told):
    rows = re.findall(r"^(whole|90% of the weights|50% of the channels)\D+([\d.]+).*?([\d.]+)$", told[1], re.MULTILINE)
    sizes = {name: float(size) for name, size, _ in rows}
    right = {name: float(accuracy) for name, _, accuracy in rows}
    assert len(rows) == 3
    assert min(right.values()) > right["whole"] - 0.03
    assert sizes["90% of the weights"] < sizes["50% of the channels"] < sizes["whole"]


@pytest.mark.slow
@pytest.mark.documents
def test_it_leaves_random_state_and_threads_alone(told):
    _, _, (state, threads), (state_after, threads_after) = told
    assert torch.equal(state, state_after)
    assert threads == threads_after


def test_digits_are_split_by_writer_and_scaled_by_the_training_set():
    images = load_digits()
    assert [len(part[1]) for part in (images.train, images.val, images.cal, images.test)] == [897, 200, 200, 500]
    assert images.strangers["photographs"].shape == (520, 1, 8, 8)
    held_out = torch.cat([images.val[0], images.cal[0], images.test[0]])
    assert len(held_out.flatten(1).unique(dim=0)) == 900, "an image is in two parts"
    assert images.side == 8
    assert abs(float(images.train[0].mean())) < 1e-5
    assert abs(float(images.train[0].std()) - 1) < 1e-5
    assert "897 to train on" in repr(images)


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
    assert [len(part[1]) for part in (images.train, images.val, images.cal, images.test)] == [100, 1000, 1000, 50]
    assert images.strangers["photographs"].shape == (520, 1, 28, 28)
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


def test_strangers_are_made_of_the_test_digits():
    images = load_digits()
    digits = images.test[0]
    shuffled, negatives, turned = (images.strangers[name] for name in ("shuffled pixels", "negatives", "upside down"))
    assert torch.equal(shuffled.flatten(1).sort().values, digits.flatten(1).sort().values)
    assert not torch.equal(shuffled, digits)
    torch.testing.assert_close(negatives + digits, torch.full_like(digits, float((negatives + digits)[0, 0, 0, 0])))
    assert torch.equal(turned[..., 0, 0], digits[..., -1, -1])


def prediction(probs, novelty):
    """What the demo reads of a prediction."""
    return SimpleNamespace(
        probs=probs, num_samples=1, novelty=novelty, entropy=torch.special.entr(probs).sum(-1),
    )  # fmt: skip


def test_scores_agree_with_their_definitions():
    torch.manual_seed(1)
    probs, digits = torch.randn(200, 10).mul(3).softmax(-1), torch.randint(10, (200,))
    test = prediction(probs, torch.arange(200.0))
    strange = prediction(torch.full((50, 10), 0.1), torch.full((50,), 99.5))
    told = {"cal": test, "test": test, "tiles": strange}
    found = score(told, digits)
    assert found["accuracy"] == pytest.approx(float((probs.argmax(-1) == digits).double().mean()))
    assert found["NLL, nats"] == pytest.approx(-float(probs[torch.arange(200), digits].log().double().mean()), rel=1e-5)
    truth = nn.functional.one_hot(digits, 10)
    assert found["Brier"] == pytest.approx(float((probs - truth).square().sum(1).mean()), rel=1e-5)
    assert found["AUROC, tiles"] == 1.0  # a uniform prediction has the highest entropy there is
    assert found["tiles refused"] == 1.0
    assert found["digits refused"] == pytest.approx(0.005)  # one of 200: p = 2/201; the next has 3/201
    by_novelty = score(told, digits, novelty=True)
    assert by_novelty["AUROC, tiles"] == pytest.approx(0.5)
    assert by_novelty["tiles refused"] == 0.0
    confidence, right = probs.max(-1).values, (probs.argmax(-1) == digits).float()
    bins = (confidence * 15).long().clamp_max(14)
    ece = sum(abs(float((confidence - right)[bins == b].sum())) for b in range(15)) / 200
    assert found["ECE"] == pytest.approx(ece, abs=1e-5)


def test_probabilities_that_round_above_one_are_binned():
    probs = torch.zeros(4, 10)
    probs[:, 0] = 1 + 1e-7
    told = dict.fromkeys(("cal", "test"), prediction(probs, torch.zeros(4)))
    assert score(told, torch.zeros(4).long())["ECE"] == pytest.approx(0.0, abs=1e-6)


def test_as_good_as_means_within_two_paired_errors():
    numbers = {"a": [0.1, 0.5, 0.9], "b": [0.2, 0.61, 1.0], "c": [0.2, 0.4, 1.0]}
    figures = {way: {"NLL, nats": values} for way, values in numbers.items()}
    assert difference(figures, "NLL, nats", "a", "b")[0] == 1  # always lower, by about the same
    assert difference(figures, "NLL, nats", "b", "a")[0] == -1
    assert difference(figures, "NLL, nats", "c", "a")[0] == 0
    assert as_good_as_best(figures, "NLL, nats") == {"a", "c"}


def test_answers_name_the_digits_in_question():
    arrays = {
        "probs": np.eye(10, dtype=np.float32)[[8, 3]] * 0.6 + 0.04,
        "prediction_set": np.array([[False] * 8 + [True, True], [False] * 10]),
        "novelty_pvalue": np.array([0.5, 0.5]),
    }
    answer = Answer(arrays, tuple("0123456789"), 1, {"novelty_pvalue": 0.01})
    assert in_words(answer[0]) == "An 8 or a 9."
    assert in_words(answer[0], short=True) == "8 9"
    assert in_words(answer[1]).startswith("A 3 or a")  # an empty set names the two likeliest
    refused = Answer(arrays, tuple("0123456789"), 1, {"novelty_pvalue": 0.6})
    assert in_words(refused[0]) == "I have never seen such a thing."
    assert in_words(refused[0], short=True) == "never seen"


def test_words_of_the_page_are_escaped():
    assert text("a < b, `x & y`") == "<p>a &lt; b, <code>x &amp; y</code></p>"


PUBLIC = {
    "bensemble": {*bensemble.__all__, "plots"},
    "convert": set(convert.__all__),
    "convert.runtime": set(convert.runtime.__all__),
}


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
