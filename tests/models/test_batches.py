from collections import OrderedDict, UserDict, namedtuple
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_sequence
from torch.testing import assert_close
from torch.utils.data import DataLoader, Dataset, TensorDataset

from bensemble.errors import InvalidTypeError, InvalidValueError
from bensemble.models.batches import (
    batch_size,
    call,
    device_of,
    is_loader,
    read_batches,
    split_batch,
    split_inputs,
    to_device,
)
from bensemble.models.outputs import select_output

X, Y = torch.arange(12.0).reshape(4, 3), torch.arange(4)
Pair = namedtuple("Pair", ["left", "right"])


@dataclass
class Outputs:
    loss: Tensor | None = None
    logits: Tensor | None = None
    hidden: tuple[Tensor, ...] = ()


@dataclass
class ModelOutput(OrderedDict):
    """A mapping that is a dataclass as well, as in transformers."""

    logits: Tensor | None = None

    def __post_init__(self):
        self["logits"] = self.logits


class Echo(nn.Module):
    def forward(self, *args, **kwargs):
        return args, kwargs


class TwoInputs(Dataset):
    def __len__(self):
        return 4

    def __getitem__(self, index):
        return (X[index], X[index] + 1), Y[index]


@pytest.mark.parametrize(
    ("inputs", "expected"),
    [
        (X, ((X,), {})),
        ((X, Y), ((X, Y), {})),
        ({"a": X}, ((), {"a": X})),
        (UserDict(a=X), ((), {"a": X})),
    ],
)
def test_call_follows_the_kind_of_the_inputs(inputs, expected):
    args, kwargs = call(Echo(), inputs)
    assert len(args) == len(expected[0])
    assert all(a is b for a, b in zip(args, expected[0], strict=True))
    assert kwargs.keys() == expected[1].keys()
    assert all(kwargs[key] is expected[1][key] for key in kwargs)


def test_call_passes_a_packed_sequence_as_one_argument():
    packed = pack_sequence([X, X[:2]])
    assert call(Echo(), packed)[0] == (packed,)
    assert batch_size(packed) == 2
    assert isinstance(to_device(packed, torch.device("cpu")), PackedSequence)


@pytest.mark.parametrize("inputs", [[X, X], 3, "text", None])
def test_call_refuses_other_inputs(inputs):
    with pytest.raises(InvalidTypeError, match=f"inputs: must be a tensor.* got .*{type(inputs).__name__}"):
        call(Echo(), inputs)


def test_tuple_and_list_batches_give_inputs_and_target():
    for batch in [(X, Y), [X, Y], (X, Y, "more"), Pair(X, Y)]:
        inputs, target = split_batch(batch)
        assert inputs is X
        assert target is Y
    assert split_batch([X]) == (X, None)
    assert split_batch(X) == (X, None)


def test_the_default_collate_of_nested_tuples_is_read_as_several_arguments():
    inputs, target = split_batch(next(iter(DataLoader(TwoInputs(), batch_size=4))))
    assert isinstance(inputs, tuple)
    assert_close(inputs[1], X + 1)
    assert_close(target, Y)


@pytest.mark.parametrize("kind", [dict, UserDict])
@pytest.mark.parametrize("key", ["labels", "label"])
def test_mapping_batches_give_their_labels_as_target(kind, key):
    inputs, target = split_batch(kind({"input_ids": X, key: Y}))
    assert target is Y
    assert set(inputs) == {"input_ids"}
    assert split_batch(kind({"input_ids": X}))[1] is None


def test_unpack_overrides_the_rules():
    assert split_batch({"x": X, "labels": 0, "t": Y}, lambda b: (b["x"], b["t"])) == (X, Y)
    assert isinstance(split_batch((Y, X), lambda b: ([b[1], b[1]], b[0]))[0], tuple)


@pytest.mark.parametrize(
    ("batch", "unpack", "message"),
    [
        ({"labels": Y, "label": Y}, None, "both 'labels' and 'label'"),
        ([], None, "a batch is empty"),
        (7, None, "got int; pass unpack="),
        ((X, Y), lambda b: X, r"unpack: must return a pair .*shape \(4, 3\)"),
        ((X, Y), lambda b: (X, Y, X), "unpack: must return a pair .*a tuple of 3"),
    ],
)
def test_batches_that_cannot_be_read_are_refused(batch, unpack, message):
    with pytest.raises((InvalidTypeError, InvalidValueError), match=message):
        split_batch(batch, unpack)


def test_loaders_are_told_from_inputs():
    assert not any(map(is_loader, [X, (X,), {"a": X}, UserDict(a=X), Pair(X, Y)]))
    assert all(map(is_loader, [DataLoader(TensorDataset(X)), [X, X], iter([X])]))
    for wrong in [X.numpy(), "path", 3, None]:
        with pytest.raises(InvalidTypeError, match=r"inputs: must be a tensor.*torch\.as_tensor"):
            is_loader(wrong)


def test_a_dataset_is_told_to_be_wrapped():
    with pytest.raises(InvalidTypeError, match="got TensorDataset; wrap a Dataset in a DataLoader, which gives"):
        is_loader(TensorDataset(X, Y))


def test_to_device_reaches_every_tensor_and_keeps_containers():
    meta = torch.device("meta")
    moved = to_device({"a": [X, (Y, "text")], "b": Pair(X, None)}, meta)
    assert moved["a"][0].device == moved["a"][1][0].device == moved["b"].left.device == meta
    assert isinstance(moved["b"], Pair)
    assert moved["a"][1][1] == "text"
    assert type(to_device(UserDict(a=X), meta)) is dict
    batches = list(read_batches([(X, Y), (X, Y)], None, meta))
    assert len(batches) == 2
    assert batches[0][1].device == meta


def test_device_of_falls_back_to_the_cpu():
    assert device_of(nn.Linear(2, 2, device="meta")).type == "meta"
    assert device_of(nn.BatchNorm1d(2, affine=False, device="meta")).type == "meta"
    assert device_of(nn.ReLU()).type == "cpu"


def test_batch_size_is_axis_0_of_the_first_tensor_with_axes():
    assert batch_size(X) == batch_size((torch.tensor(1.0), X)) == batch_size({"a": "text", "b": [X]}) == 4
    with pytest.raises(
        InvalidValueError, match=r"must hold a tensor with a batch axis, got .*; make tensors of arrays"
    ):
        batch_size({"a": torch.tensor(1.0)})


@pytest.mark.parametrize("inputs", [X, (X, Y), {"a": X, "b": (Y, "text")}, Pair(X, Y)])
def test_split_inputs_gives_every_example_once(inputs):
    pieces = list(split_inputs(inputs, 3))
    assert [batch_size(piece) for piece in pieces] == [3, 1]
    assert all(type(piece) is type(inputs) for piece in pieces)
    rebuilt = [
        piece if isinstance(piece, Tensor) else next(iter(call(Echo(), piece)[0] or [piece["a"]])) for piece in pieces
    ]
    assert_close(torch.cat(rebuilt), X)
    assert next(split_inputs(inputs, 4)) is inputs


def test_split_inputs_refuses_tensors_of_different_length():
    with pytest.raises(InvalidValueError, match="must have the 4 examples of the first"):
        list(split_inputs((X, X[:2]), 3))


@pytest.mark.parametrize(
    ("output", "selector"),
    [
        (X, None),
        ({"loss": torch.tensor(0.0), "logits": X}, None),
        (OrderedDict(out=X, aux=X + 1), None),
        (Outputs(loss=torch.tensor(0.0), logits=X), None),
        (ModelOutput(logits=X), None),
        ((X, Y), None),
        ({"nested": [{"deep": X}], "ids": Y}, None),
        ((X + 1, X), 1),
        ([X + 1, X], -1),
        ({"a": X, "b": X + 1}, "a"),
        (Outputs(logits=X + 1, hidden=(X + 2, X)), "hidden.1"),
        (Outputs(logits=X + 1, hidden=(X + 2, X)), "hidden.-1"),
        ({"a.b": X, "a": {"b": X + 1}}, "a.b"),
        ({"a": {"b": X}}, "a.b"),
        ({0: X, 1: X + 1}, 0),
        (Pair(X + 1, X), "right"),
        (Pair(X + 1, X), 1),
        ((X + 1, X), lambda o: o[1]),
        (X + 1, lambda o: o - 1),
    ],
)
def test_select_output_finds_the_tensor(output, selector):
    assert_close(select_output(output, selector), X)


@pytest.mark.parametrize(
    ("output", "selector", "message"),
    [
        ((X, {"b": X}), None, r"got '0' \(4, 3\) float32, '1\.b' \(4, 3\) float32; select one with output="),
        (Pair(X, X), None, r"got 'left' \(4, 3\) float32, 'right'"),
        (Y, None, r"must return one floating tensor, got '' \(4,\) int64"),
        ("text", None, "no tensor in str"),
        ({"logits": Y}, None, "'logits' must give a floating tensor.*int64"),
        ((X, Y), 1, "1 must give a floating tensor, got a tensor"),
        ((X, Y), 2, r"2 is not in the model's output, which has '0' \(4, 3\) float32, '1' \(4,\) int64"),
        ((X, Y), -3, "-3 is not in"),
        ({"a": X}, "c", r"'c' is not in the model's output, which has 'a' \(4, 3\)"),
        ({"a": X}, 0, "0 is not in"),
        ({"a": {"b": X}}, "a.c", "'a.c' is not in"),
        (X, "a", "'a' selects nothing, because the model returns one tensor"),
        (X, 0, "0 selects nothing"),
        (X, lambda o: 3, "the callable must give a floating tensor, got int"),
        ((X, X), 1.5, "must be a key, an index or a callable, got 1.5"),
        ((X, X), True, "must be a key, an index or a callable, got True"),
        ([X] * 12, None, "and 2 more"),
    ],
)
def test_select_output_refuses_with_paths_and_shapes(output, selector, message):
    with pytest.raises((InvalidTypeError, InvalidValueError), match=message):
        select_output(output, selector)
