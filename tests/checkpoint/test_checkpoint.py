"""``save`` and ``load``: what comes back, and what is refused."""

import copy
import json
import pickle
import re
import struct

import pytest
import torch
from torch import nn

import bensemble
from bensemble.errors import CheckpointError, InvalidValueError
from convert import bayesify

pytest.importorskip("safetensors")


class Network(nn.Module):
    """Local twins, sampled weights, norms and a tied head."""

    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(10, 6)
        self.attention = nn.MultiheadAttention(6, 2, batch_first=True)
        self.norm = nn.LayerNorm(6)
        self.recurrent = nn.GRU(6, 6, batch_first=True)
        self.head = nn.Linear(6, 10)
        self.head.weight = self.embedding.weight

    def forward(self, tokens):
        x = self.embedding(tokens)
        x = self.norm(x + self.attention(x, x, x, need_weights=False)[0])
        return self.head(self.recurrent(x)[0])


@pytest.fixture
def tokens():
    return torch.randint(0, 10, (2, 5))


@pytest.fixture
def path(tmp_path):
    return tmp_path / "model.safetensors"


def _trained(prior="empirical"):
    bnn = bayesify(Network(), prior=prior)
    with torch.no_grad():
        for _, posterior in bensemble.named_posteriors(bnn):
            posterior.rho.add_(torch.randn_like(posterior.rho))
    bnn.attention.out_proj._set_mask("weight", torch.randint(0, 2, (6, 6)).float())
    return bnn.eval()


@pytest.mark.parametrize("prior", ["empirical", "pretrained", "normal", "ard"])
@pytest.mark.parametrize("into", ["a fresh deterministic model", "the Bayesian model"])
def test_everything_comes_back(path, tokens, prior, into):
    bnn = _trained(prior)
    bensemble.save(bnn, path)
    fresh = Network() if into.startswith("a fresh") else bayesify(Network())
    loaded = bensemble.load(path, fresh)
    assert loaded is fresh
    state = loaded.state_dict()
    assert list(state) == list(bnn.state_dict())
    assert all(torch.equal(value, state[name]) for name, value in bnn.state_dict().items())
    torch.testing.assert_close(bensemble.kl_divergence(loaded), bensemble.kl_divergence(bnn), rtol=0, atol=0)
    assert torch.equal(loaded.eval()(tokens), bnn(tokens))
    assert loaded.head.w_mu is loaded.embedding.weight_mu
    assert loaded.head.w_rho is loaded.embedding.weight_rho
    for model in (bnn, loaded):
        with bensemble.sampling(model, torch.Generator().manual_seed(0)):
            model.sampled = model(tokens)
    assert torch.equal(bnn.sampled, loaded.sampled)


class Recycled(nn.Module):
    """One module under two names."""

    def __init__(self, shared=True):
        super().__init__()
        layer = nn.Linear(3, 3)
        self.layers = nn.ModuleList([layer, nn.LSTMCell(3, 3), layer if shared else nn.Linear(3, 3)])


@pytest.mark.parametrize("convert", [lambda model: model, bayesify], ids=["deterministic", "Bayesian"])
def test_a_module_under_two_names_comes_back(path, convert):
    bnn = bayesify(Recycled(), prior="pretrained")
    bensemble.prune(bnn, sparsity=0.5)
    bensemble.save(bnn, path)
    loaded = bensemble.load(path, convert(Recycled()))
    assert loaded.layers[0] is loaded.layers[2]
    assert list(loaded.state_dict()) == list(bnn.state_dict())
    assert all(torch.equal(value, loaded.state_dict()[name]) for name, value in bnn.state_dict().items())


def test_a_module_under_two_names_does_not_fit_two_modules(path):
    bensemble.save(bayesify(Recycled()), path)
    with pytest.raises(CheckpointError, match=r"'layers\.2\.weight' is in the model but not in the file"):
        bensemble.load(path, Recycled(shared=False))


def test_the_same_model_gives_the_same_bytes(path):
    bnn = _trained()
    bensemble.save(bnn, path)
    first = path.read_bytes()
    bensemble.save(copy.deepcopy(bnn), path)
    assert path.read_bytes() == first


def _refused(path, model, match):
    before = copy.deepcopy(model.state_dict())
    types = [type(module) for module in model.modules()]
    with pytest.raises(CheckpointError, match=match):
        bensemble.load(path, model)
    assert [type(module) for module in model.modules()] == types
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_a_checkpoint_of_another_model_lists_every_mismatch(path):
    bensemble.save(_trained(), path)
    _refused(path, nn.Sequential(nn.Linear(3, 2)), r"(?s)no weight 'embedding.weight'.*|'0.weight' is in the model")
    wider = Network()
    wider.norm = nn.LayerNorm((5, 6))
    _refused(path, wider, r"'norm.weight' is \(5, 6\)")
    untied = Network()
    untied.head.weight = nn.Parameter(torch.randn(10, 6))
    _refused(path, untied, "one shared weight in the file, but not in the model")


def test_a_pickle_with_code_is_refused_and_not_run(path, tmp_path):
    class Bomb:
        def __reduce__(self):
            return (open, (str(tmp_path / "exploded"), "w"))

    path.write_bytes(pickle.dumps({"weight": Bomb()}))
    _refused(path, Network(), "damaged or not a safetensors file")
    assert not (tmp_path / "exploded").exists()


def test_weights_of_torch_are_told_where_to_go(path):
    torch.save(Network().state_dict(), path)
    _refused(path, Network(), "Weights of torch.save go into the model with load_state_dict")


@pytest.mark.parametrize("keep", [0, 1, 7, 8, 9, 100, 2000, -1])
def test_a_truncated_file_is_refused(path, keep):
    bensemble.save(_trained(), path)
    path.write_bytes(path.read_bytes()[:keep])
    _refused(path, Network(), "damaged")


def _rewrite_header(path, change, change_tensors=lambda data, outer: None):
    """Change the bensemble header inside a safetensors file, and the bytes of the tensors."""
    data = path.read_bytes()
    length = struct.unpack("<Q", data[:8])[0]
    outer = json.loads(data[8 : 8 + length])
    outer["__metadata__"]["bensemble"] = change(outer["__metadata__"]["bensemble"])
    text, tensors = json.dumps(outer).encode(), bytearray(data[8 + length :])
    change_tensors(tensors, outer)
    path.write_bytes(struct.pack("<Q", len(text)) + text + tensors)


def _first_version(text):
    """A header of the first format, which had no digest."""
    fields = json.loads(text)
    del fields["digest"]
    return json.dumps({**fields, "version": 1})


def test_a_checkpoint_of_the_first_version_loads(path, tokens):
    bnn = _trained()
    bensemble.save(bnn, path)
    _rewrite_header(path, _first_version)
    assert torch.equal(bensemble.load(path, Network()).eval()(tokens), bnn(tokens))


@pytest.mark.parametrize("where", [-1, -40, -2000])
def test_one_flipped_bit_among_the_weights_is_refused(path, where):
    bensemble.save(_trained(), path)
    data = bytearray(path.read_bytes())
    data[where] ^= 1
    path.write_bytes(data)
    _refused(path, Network(), "is damaged, got other bytes than were saved; get the file again")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("name", ["attention.out_proj.weight_mu", "recurrent.weight_hh_l0_rho", "norm.bias"])
def test_weights_that_are_no_numbers_are_neither_saved_nor_loaded(path, value, name):
    bnn = _trained()
    bensemble.save(bnn, path)
    old = path.read_bytes()
    with torch.no_grad():
        bnn.get_parameter(name).view(-1)[1] = value
    with pytest.raises(CheckpointError, match=f"save: '{name}' is not finite, got NaN or infinity.*; go back to"):
        bensemble.save(bnn, path)
    assert path.read_bytes() == old

    def broken(data, outer):
        start = outer[name]["data_offsets"][0] + 4
        data[start : start + 4] = struct.pack("<f", value)

    _rewrite_header(path, _first_version, broken)
    _refused(path, Network(), f"does not fit Network: '{name}' is not finite, got NaN or infinity")


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda text: text.replace('"version":2', '"version":99'), "format version 99"),
        (lambda text: text[:-5], "is damaged"),
        (lambda text: "[" * 100_000, "is damaged"),
        (lambda text: text.replace('"version":2', '"version":2,"version":2'), "a key occurs twice"),
        (lambda text: text.replace('"normal"', '"os.system"'), "a prior of unknown type"),
        (lambda text: text.replace('"local"', '"magic"'), "bad tiers"),
        (lambda text: text.replace("embedding.weight", "embedding..weight"), "not a parameter name"),
        (lambda text: text.replace("embedding.weight", "encoder.weight"), "other bytes than were saved"),
        (lambda text: _first_version(text).replace("embedding.weight", "my.weight"), "no weight 'my.weight'"),
        (lambda text: text.replace('"digest":"', '"digest":"0'), "other bytes than were saved"),
        (lambda text: re.sub('"digest":"[^"]*"', '"digest":7', text), "digest is not a text"),
        (lambda text: json.dumps({"version": 1}), "its fields are not those"),
        (lambda text: "null", "has no version"),
    ],
)
def test_a_damaged_header_is_refused(path, change, match):
    bensemble.save(_trained(), path)
    _rewrite_header(path, change)
    _refused(path, Network(), match)


def test_a_plain_safetensors_file_names_the_cure(path):
    from safetensors.torch import save_file

    save_file({"weight": torch.zeros(2)}, path)
    _refused(path, Network(), "load_state_dict")
    _refused(path.with_name("missing"), Network(), "is not a file")


def test_saving_refuses_what_it_cannot_keep_and_leaves_the_old_file(path):
    with pytest.raises(CheckpointError, match="has no posteriors"):
        bensemble.save(nn.Linear(2, 2), path)

    class Flat:
        def kl(self, mu, sigma):
            return mu.sum() * 0

    bensemble.save(_trained(), path)
    old = path.read_bytes()
    with pytest.raises(CheckpointError, match=r"the prior of '\S+' must be one of bensemble.priors, got Flat"):
        bensemble.save(bayesify(Network(), prior=Flat()), path)
    assert path.read_bytes() == old
    with pytest.raises(InvalidValueError, match="does not exist"):
        bensemble.save(_trained(), path.parent / "nowhere" / "model.safetensors")
    assert [p.name for p in path.parent.iterdir()] == [path.name]


class RandomFeatures(nn.Module):
    """Its constructor draws what no state dict holds; another buffer is computed."""

    def __init__(self, frequencies=None):
        super().__init__()
        self.register_buffer("drawn", torch.randn(3, 4) if frequencies is None else frequencies, persistent=False)
        self.register_buffer("lowest", torch.full((2,), -torch.inf), persistent=False)
        self.layer = nn.Linear(4, 2)

    def forward(self, x):
        return self.layer((x @ self.drawn).cos()) + self.lowest.exp()


def test_loading_warns_of_buffers_that_no_file_holds_and_that_came_out_otherwise(path):
    model = RandomFeatures()
    bensemble.save(bayesify(model), path)
    rounded = bensemble.load(path, RandomFeatures(model.drawn * (1 + 1e-6)))  # as quietly as the same values
    assert rounded.layer.w_mu.equal(model.layer.weight)
    with pytest.warns(UserWarning, match=r"load: buffer 'drawn' has other values .*persistent=False"):
        bensemble.load(path, RandomFeatures())
