import json
import struct

import pytest
import torch
from torch import nn

import bensemble
from bensemble.errors import CheckpointError, InvalidTypeError, InvalidValueError
from bensemble.likelihoods import Bernoulli, Categorical, Gaussian
from convert import bayesify

from .tasks import batches, blobs, mlp

X, Y = blobs(90)


def pixels():
    model = nn.Sequential(nn.Conv2d(1, 6, 1), nn.Tanh(), nn.Conv2d(6, 3, 1)).double()
    x, y = torch.randn(30, 1, 4, 3).double(), torch.randint(0, 3, (30, 4, 3))
    return model, [(x, y)], x, Categorical(dim=1, ignore_index=0)


CASES = {
    "classes": lambda: (mlp(), batches((X, Y)), X, Categorical()),
    "labels": lambda: (mlp(outputs=2), [(X, (X[:, :2] > 0).double())], X, Bernoulli()),
    "numbers": lambda: (mlp(outputs=1), [(X, X[:, :1])], X, Gaussian(2.0)),
    "pixels": pixels,
}


@pytest.mark.parametrize("joint", [True, False])
@pytest.mark.parametrize("name", CASES)
def test_a_loaded_novelty_gives_the_same_scores_bit_for_bit(name, joint, tmp_path):
    model, loader, x, likelihood = CASES[name]()
    novelty = bensemble.fit_novelty(model, loader, [x], likelihood=likelihood, projection=4, joint=joint)
    novelty.save(tmp_path / "n.safetensors")
    loaded = bensemble.Novelty.load(tmp_path / "n.safetensors", model)
    assert torch.equal(loaded.score(x), novelty.score(x))
    assert torch.equal(loaded.pvalue(loaded.score(x)), novelty.pvalue(novelty.score(x)))
    assert repr(loaded) == repr(novelty)
    loaded.save(tmp_path / "again.safetensors")
    assert (tmp_path / "again.safetensors").read_bytes() == (tmp_path / "n.safetensors").read_bytes()


def test_the_plain_and_the_bayesified_model_count_as_one(tmp_path):
    model = mlp()
    novelty = bensemble.fit_novelty(model, batches((X, Y)), [X])
    novelty.save(tmp_path / "n")
    bnn = bayesify(model, prior="pretrained")
    assert torch.equal(bensemble.Novelty.load(tmp_path / "n", bnn).score(X), novelty.on(bnn).score(X))
    bensemble.prune(bnn, sparsity=0.5)
    with pytest.raises(CheckpointError, match="belongs to another model, got a Sequential with other means or buffers"):
        bensemble.Novelty.load(tmp_path / "n", bnn)


def test_output_and_unpack_come_along_or_are_given_again(tmp_path):
    class Answers(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = mlp()

        def forward(self, x):
            return {"a": self.inner(x), "b": x}

    def swapped(batch):
        return batch[1], batch[0]

    model = Answers()
    for output in ("a", lambda found: found["a"]):
        novelty = bensemble.fit_novelty(model, [(Y, X)], [(Y, X)], output=output, unpack=swapped)
        novelty.save(tmp_path / "n")
        given = None if isinstance(output, str) else output
        loaded = bensemble.Novelty.load(tmp_path / "n", model, output=given, unpack=swapped)
        assert torch.equal(loaded.score([(Y, X)]), novelty.score([(Y, X)]))
    with pytest.raises(InvalidValueError, match="must return one floating tensor"):
        bensemble.Novelty.load(tmp_path / "n", model).score(X)


@pytest.fixture
def file(tmp_path):
    model = mlp()
    bensemble.fit_novelty(model, batches((X, Y)), [X], joint=False).save(tmp_path / "n")
    return model, tmp_path / "n"


def header_of(path):
    data = path.read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    return json.loads(data[8 : 8 + length]), data[8 + length :]


def rewritten(path, change):
    """The file with another JSON header of ours; the digest no longer fits."""
    outer, rest = header_of(path)
    inner = json.loads(outer["__metadata__"]["bensemble_novelty"])
    change(inner)
    outer["__metadata__"]["bensemble_novelty"] = json.dumps(inner)
    text = json.dumps(outer).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + rest)


def resealed(path, model, change):
    """The file with other tensors and a digest that fits: what somebody with our code can write."""
    novelty = bensemble.Novelty.load(path, model)
    change(novelty)
    novelty.save(path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda h: h.update(version=3), "has format version 3, got a bensemble that reads up to 2; update bensemble"),
        (lambda h: h.update(version=1), "version 1, whose scores have another formula, .* call fit_novelty again"),
        (lambda h: h.pop("seed"), "header of .* is damaged .its fields are not those of a novelty"),
        (lambda h: h.update(seed=-1), "a number is out of range"),
        (lambda h: h.update(num_data=True), "num_data is malformed"),
        (lambda h: h.update(kind="x"), "its likelihood is unknown"),
        (lambda h: h.update(layers=[]), "it has no layers"),
        (lambda h: h["layers"][0].update(width=0), "a layer has no width"),
        (lambda h: h["layers"][0].update(batch="third"), "a layer has no batch axis"),
        (lambda h: h["layers"][0].update(more=1), "a layer is malformed"),
        (lambda h: h.update(projection=0), "projection is malformed"),
        (lambda h: h.update(seed=1), "is damaged, got other bytes than were saved"),
    ],
)
def test_damaged_headers(file, change, message):
    model, path = file
    rewritten(path, change)
    with pytest.raises(CheckpointError, match=message):
        bensemble.Novelty.load(path, model)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda n: n.distances[0].directions.fill_(torch.nan), r"'distances.0.directions' is not finite float64"),
        (lambda n: n.distances[1].scale.zero_(), "a scale is not positive"),
        (lambda n: n.standard.neg_(), "a scale is not positive"),
        (lambda n: n.distances[0].register_buffer("centre", torch.zeros(3)), "size mismatch for distances.0.centre"),
        (lambda n: n.distances[0].register_buffer("more", torch.zeros(3)), "Unexpected key"),
        (lambda n: n.register_buffer("standard", torch.ones(2)), "it has no standardisation"),
        (lambda n: n.register_buffer("heldout", torch.ones(1)), "it has no held-out scores"),
        (lambda n: delattr(n.distances[0], "slopes"), "it has no class means"),
    ],
)
def test_wrong_tensors(file, change, message):
    model, path = file
    resealed(path, model, change)
    with pytest.raises(CheckpointError, match=f"does not hold a novelty .*{message}"):
        bensemble.Novelty.load(path, model)


def test_other_files_and_other_models(file, tmp_path):
    model, path = file
    with pytest.raises(CheckpointError, match="belongs to another model"):
        bensemble.Novelty.load(path, mlp())
    bnn = bayesify(model)
    bensemble.save(bnn, tmp_path / "bnn")
    with pytest.raises(CheckpointError, match="has no header of a novelty"):
        bensemble.Novelty.load(tmp_path / "bnn", model)
    with pytest.raises(CheckpointError, match="is not a file; check the path"):
        bensemble.Novelty.load(tmp_path / "nothing", model)
    path.write_bytes(path.read_bytes()[:-5])
    with pytest.raises(CheckpointError, match="is damaged or not a safetensors file"):
        bensemble.Novelty.load(path, model)
    with pytest.raises(InvalidTypeError, match="load: path must be a string or a Path, got int"):
        bensemble.Novelty.load(3, model)
    with pytest.raises(InvalidValueError, match=r"save: folder .* does not exist"):
        bensemble.fit_novelty(model, batches((X, Y)), [X]).save(tmp_path / "no" / "n")


def test_one_flipped_bit_is_noticed(file):
    model, path = file
    data = bytearray(path.read_bytes())
    data[-40] ^= 1
    path.write_bytes(data)
    with pytest.raises(CheckpointError, match="is damaged, got other bytes than were saved"):
        bensemble.Novelty.load(path, model)
