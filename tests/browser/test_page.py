"""A person draws on the page and drops files on it; what it says is what Python says of the same pixels."""

import shutil

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_sample_images

from convert.runtime import UncertaintySession

from .drawings import DIGITS, SCRIBBLES, smooth
from .person import CHROMIUM, SITE, Person, browser, served

STRANGE = "I have never seen such a thing."


@pytest.fixture(scope="module")
def chromium():
    pytest.importorskip("playwright", reason="playwright is not here: make browser-test")
    if not (SITE / "ort.wasm.min.mjs").exists():
        pytest.skip("build/browser is not here: make browser-test")
    if CHROMIUM is None:
        pytest.skip("Chromium is not installed")
    with browser() as found:
        yield found


@pytest.fixture
def errors():
    """What the page throws or logs as an error; a test that expects none is done with an empty list."""
    return []


@pytest.fixture
def person(chromium, errors):
    with served(SITE) as address, chromium.new_context() as context:
        page = context.new_page()
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.on("console", lambda line: errors.append(line.text) if line.type == "error" else None)
        page.goto(address)
        yield Person(page)
        assert not errors


def agrees(person):
    """The numbers of the page are those of the session without torch, for the pixels that the page shows."""
    answer = UncertaintySession(SITE / "digits.onnx")(person.pixels)
    for name, shown in person.numbers.items():
        np.testing.assert_allclose(shown, answer[name].ravel(), rtol=0, atol=1e-5)
    assert (person.words == STRANGE) == bool(answer.reject()[0])


def picture(path, pixels):
    """Write pixels of shape (height, width) or (height, width, 3) as a PNG."""
    Image.fromarray(pixels).save(path)
    return path


@pytest.mark.parametrize("digit", DIGITS)
def test_a_drawn_digit_is_recognised(person, digit):
    person.draw(smooth(DIGITS[digit]))
    assert f" {digit}" in person.words
    assert person.numbers["probs"].argmax() == digit
    agrees(person)


@pytest.mark.parametrize("size", [0.3, 0.6])
def test_size_and_place_do_not_matter(person, size):
    person.draw([stroke * size + 5 for stroke in smooth(DIGITS[3])])
    assert person.words == "A 3."


def test_a_scribble_is_strange(person):
    person.draw(smooth(SCRIBBLES[0]))
    assert person.words == STRANGE
    agrees(person)


@pytest.mark.parametrize("which", [0, 1])
def test_a_photograph_is_strange(person, tmp_path, which):
    person.drop(picture(tmp_path / "photograph.png", load_sample_images().images[which]))
    assert person.words == STRANGE
    agrees(person)


@pytest.mark.parametrize("paper", [255, 0])
def test_a_picture_of_a_digit_is_recognised_on_any_paper(person, tmp_path, paper):
    canvas = np.full((200, 300, 3), paper, np.uint8)
    for x, y in np.concatenate(smooth(DIGITS[7], steps=40)):
        canvas[int(y) + 20 : int(y) + 34, int(x) + 120 : int(x) + 134] = 200 - paper * 150 // 255
    person.page.set_input_files("#choose", picture(tmp_path / "seven.png", canvas))
    person.wait()
    assert " 7" in person.words
    agrees(person)


def test_the_answer_follows_the_pen(person):
    person.draw(smooth(DIGITS[1]))
    first = person.numbers
    box = person.page.locator("#sheet").bounding_box()
    person.page.mouse.move(box["x"] + 20, box["y"] + 20)
    person.page.mouse.down()
    person.page.mouse.move(box["x"] + box["width"] - 20, box["y"] + box["height"] - 20, steps=5)
    person.wait()  # the pen is still down
    assert not np.array_equal(person.numbers["probs"], first["probs"])
    person.page.mouse.up()
    agrees(person)


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("notes.txt", b"a digit", "“notes.txt” is no picture. Drop a PNG or JPEG."),
        ("broken.png", b"\x89PNG no", "“broken.png” cannot be read as a picture."),
        ("large.png", bytes(20_000_001), "“large.png” is larger than 20 MB. Drop a smaller one."),
        ("bomb.png", np.zeros((8000, 8000), np.uint8), "“bomb.png” has 64 million pixels. Drop a smaller one."),
        ("empty.png", np.zeros((20, 20), np.uint8), "There is nothing on this picture."),
    ],
)
def test_a_bad_drop_gets_a_plain_message(person, tmp_path, name, content, says):
    if isinstance(content, bytes):
        (tmp_path / name).write_bytes(content)
    else:
        picture(tmp_path / name, content)  # the 64 million pixels take less than a megabyte
    person.drop(tmp_path / name)
    assert person.words == says
    assert person.page.get_attribute("#answer", "class") == "empty"
    person.draw(smooth(DIGITS[3]))  # and the page goes on
    assert person.words == "A 3."


def test_what_the_page_says_comes_from_the_sidecar(chromium, tmp_path):
    """Other classes and another level in the sidecar: other words for the same drawing."""
    site = shutil.copytree(SITE, tmp_path / "site")
    sidecar = (site / "digits.onnx.json").read_text()
    changed = sidecar.replace('"3"', '"eel"').replace('"novelty_pvalue": 0.01', '"novelty_pvalue": 1.0')
    for text, words in ((sidecar.replace('"3"', '"eel"'), "An eel."), (changed, STRANGE)):
        (site / "digits.onnx.json").write_text(text)
        with served(site) as address, chromium.new_context() as context:
            page = context.new_page()
            page.goto(address)
            person = Person(page)
            person.draw(smooth(DIGITS[3]))
            assert person.words == words
            assert "eel" in page.inner_text("#bars")


@pytest.mark.parametrize(
    ("file", "says"),
    [("digits.onnx.json", "digits.onnx.json is not here"), ("digits.onnx", "digits.onnx is not the file that")],
)
def test_a_file_that_is_missing_or_another_one_is_named(chromium, tmp_path, file, says):
    site = shutil.copytree(SITE, tmp_path / "site")
    if file.endswith("json"):
        (site / file).unlink()
    else:
        (site / file).write_bytes(b"another")
    with served(site) as address, chromium.new_context() as context:
        page = context.new_page()
        page.goto(address)
        person = Person(page)
        assert person.words.startswith(says)


@pytest.mark.parametrize("width", [390, 1280])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_page_fits_its_window(chromium, width, scheme):
    with (
        served(SITE) as address,
        chromium.new_context(viewport={"width": width, "height": 800}, color_scheme=scheme) as context,
    ):
        page = context.new_page()
        page.goto(address)
        person = Person(page)
        person.draw(smooth(DIGITS[8]))
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        ink = page.eval_on_selector("#sheet", "c => getComputedStyle(c).color")
        assert ink == {"light": "rgb(27, 33, 48)", "dark": "rgb(231, 234, 240)"}[scheme]
