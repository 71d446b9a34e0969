"""Names, structures and dynamic axes: what goes into a file and what comes out."""

from collections import namedtuple

import pytest
import torch
from onnx_models import Answer, OnShape, Recurrent, Structured, TinyText, TwoInputs, assert_same, mlp, run_file
from torch import nn
from torch.export import Dim

from convert.onnx import export_onnx

Pair = namedtuple("Pair", "first second")


def shapes(report):
    return {entry.name: entry.shape for entry in (*report.inputs, *report.outputs)}


def test_two_inputs_carry_the_names_of_forwards_arguments(tmp_path):
    model, path = TwoInputs().eval(), tmp_path / "m.onnx"
    report = export_onnx(model, path, (torch.randn(1, 4), torch.randn(1, 2)))
    assert shapes(report) == {"image": ("batch", 4), "table": ("batch", 2), "output": ("batch", 3)}
    image, table = torch.randn(5, 4), torch.randn(5, 2)
    assert_same(run_file(path, image=image, table=table)["output"], model(image, table))


@pytest.mark.parametrize(
    "part", [lambda x: x[:, :, :4], lambda x: x[..., ::2], lambda x: x[:, :1, :4].expand(-1, 3, 4, 8)]
)
def test_the_example_may_be_a_part_of_a_tensor(part, tmp_path):
    model, x = nn.Sequential(nn.Flatten(), nn.Linear(96, 2)), part(torch.randn(2, 3, 8, 8))
    export_onnx(model, tmp_path / "m.onnx", x)
    assert_same(run_file(tmp_path / "m.onnx", input=x)["output"], model(x))


@pytest.mark.slow
def test_a_mapping_is_called_by_name_and_constants_stay(tmp_path):
    model, path = TinyText().eval(), tmp_path / "m.onnx"
    report = export_onnx(model, path, {"attention_mask": torch.ones(1, 6), "input_ids": torch.ones(1, 6).long()})
    assert [entry.name for entry in report.inputs] == ["attention_mask", "input_ids"]
    report = export_onnx(model, path, {"input_ids": torch.ones(1, 6).long(), "labels": None})
    assert [entry.name for entry in report.inputs] == ["input_ids"]


@pytest.mark.slow
def test_text_varies_in_batch_and_sequence_and_exports_without_its_cache(tmp_path):
    model, path = TinyText().eval(), tmp_path / "m.onnx"
    ids = torch.randint(0, 20, (1, 7))
    report = export_onnx(model, path, {"input_ids": ids, "attention_mask": torch.ones_like(ids)})
    assert shapes(report) == {
        "input_ids": ("batch", "sequence"),
        "attention_mask": ("batch", "sequence"),
        "logits": ("batch", 3),
        "hidden_states_0": ("batch", "sequence", 8),
        "hidden_states_1": ("batch", "sequence", 8),
    }
    assert model.config.use_cache is True
    ids = torch.randint(0, 20, (3, 11))
    mask = (torch.arange(11) < torch.tensor([[11], [4], [1]])).long()
    found, expected = run_file(path, input_ids=ids, attention_mask=mask), model(ids, mask)
    assert_same(found["logits"], expected["logits"])
    assert_same(found["hidden_states_1"], expected["hidden_states"][1])


@pytest.mark.slow
def test_a_sequence_as_long_as_the_model_allows_still_varies(tmp_path):
    model, path = TinyText(most=16).eval(), tmp_path / "m.onnx"
    export_onnx(model, path, {"input_ids": torch.randint(0, 20, (2, 16))})
    ids = torch.randint(0, 20, (2, 5))
    assert_same(run_file(path, input_ids=ids)["logits"], model(ids)["logits"])


def test_a_sequence_that_the_model_fixes_is_fixed_in_the_file(tmp_path):
    model = nn.Sequential(nn.Embedding(20, 4), nn.Flatten(), nn.Linear(12, 2))
    report = export_onnx(model, tmp_path / "m.onnx", torch.randint(0, 20, (2, 3)))
    assert shapes(report)["input"] == ("batch", 3)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "layers", "length"), [(nn.LSTM, 2, "sequence"), (nn.GRU, 1, "sequence"), (nn.RNN, 1, 6)]
)
def test_recurrent_text_varies_in_length_where_the_exporter_can(tmp_path, kind, layers, length):
    model, path = Recurrent(kind, layers).eval(), tmp_path / "m.onnx"
    report = export_onnx(model, path, torch.randint(0, 20, (1, 6)))
    assert shapes(report) == {"ids": ("batch", length), "output": ("batch", length, 2)}
    ids = torch.randint(0, 20, (3, 6 if length == 6 else 9))
    assert_same(run_file(path, ids=ids)["output"], model(ids))


@pytest.mark.slow
def test_integer_inputs_of_two_lengths_have_two_names(tmp_path):
    class Pointwise(nn.Module):
        def __init__(self):
            super().__init__()
            self.words = nn.Embedding(20, 4)

        def forward(self, text, reply):
            return self.words(text).mean(1) + self.words(reply).mean(1)

    inputs = torch.randint(0, 20, (2, 6)), torch.randint(0, 20, (2, 4))
    report = export_onnx(Pointwise(), tmp_path / "m.onnx", inputs)
    assert shapes(report)["text"] == ("batch", "sequence")
    assert shapes(report)["reply"] == ("batch", "reply_sequence")


@pytest.mark.slow
def test_states_in_a_tuple_are_inputs_and_outputs_of_their_own(tmp_path):
    model, path = nn.LSTM(4, 8), tmp_path / "m.onnx"
    state = torch.randn(1, 2, 8), torch.randn(1, 2, 8)
    axes = {"input": {1: "batch"}, "hx_0": {1: "batch"}, "hx_1": {1: "batch"}}
    report = export_onnx(model, path, (torch.randn(3, 2, 4), state), dynamic_shapes=axes)
    assert shapes(report) == {
        "input": (3, "batch", 4),
        "hx_0": (1, "batch", 8),
        "hx_1": (1, "batch", 8),
        "output_0": (3, "batch", 8),
        "output_1_0": (1, "batch", 8),
        "output_1_1": (1, "batch", 8),
    }
    x, state = torch.randn(3, 5, 4), (torch.randn(1, 5, 8), torch.randn(1, 5, 8))
    found, (out, (_, cell)) = run_file(path, input=x, hx_0=state[0], hx_1=state[1]), model(x, state)
    assert_same(found["output_0"], out)
    assert_same(found["output_1_1"], cell)


STRUCTURES = {
    "a tensor": (lambda x, y: y, {"output": 0}),
    "a tuple of one": (lambda x, y: (y,), {"output": 0}),
    "a tuple": (lambda x, y: (y, y + 1), {"output_0": 0, "output_1": 1}),
    "a named tuple": (lambda x, y: Pair(y, y + 1), {"first": 0, "second": 1}),
    "a mapping": (lambda x, y: {"logits": y, "loss": None, "aux": [y + 1]}, {"logits": 0, "aux_0": 1}),
    "a dataclass": (lambda x, y: Answer(y, [y + 1]), {"logits": 0, "features_0": 1}),
    "the input itself": (lambda x, y: {"x": x, "y": y}, {"x_out": None, "y": 0}),
    "one tensor twice": (lambda x, y: {"a": y, "b": y}, {"a": 0, "b": 0}),
}


@pytest.mark.slow
@pytest.mark.parametrize("case", STRUCTURES)
def test_outputs_are_named_after_keys_fields_and_positions(tmp_path, case):
    make, expected = STRUCTURES[case]
    model, path = Structured(make).eval(), tmp_path / "m.onnx"
    report = export_onnx(model, path, torch.randn(2, 4))
    assert [entry.name for entry in report.outputs] == list(expected)
    x = torch.randn(3, 4)
    found = run_file(path, x=x)
    for name, offset in expected.items():
        assert_same(found[name], x if offset is None else model.layer(x) + offset)


@pytest.mark.parametrize(
    ("output", "name"), [("aux.0", "aux_0"), ("logits", "logits"), (lambda found: found["aux"][0], "output")]
)
def test_output_selects_one(tmp_path, output, name):
    model, path = Structured(STRUCTURES["a mapping"][0]).eval(), tmp_path / "m.onnx"
    report = export_onnx(model, path, torch.randn(2, 4), output=output)
    assert [entry.name for entry in report.outputs] == [name]
    x = torch.randn(3, 4)
    assert_same(run_file(path, x=x)[name], model.layer(x) + (0 if name == "logits" else 1))


def test_names_can_be_chosen(tmp_path):
    model, path, x = mlp().eval(), tmp_path / "m.onnx", torch.randn(3, 4)
    export_onnx(model, path, torch.randn(2, 4), input_names=["pixels"], output_names=["scores"])
    assert_same(run_file(path, pixels=x)["scores"], model(x))


@pytest.mark.slow
def test_names_that_the_graph_uses_inside_make_way(tmp_path):
    class Clash(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Parameter(torch.randn(4))
            self.output = nn.Linear(4, 4)

        def forward(self, linear):
            return self.output(self.output(linear) + self.linear)

    model, path, x = Clash(), tmp_path / "m.onnx", torch.randn(3, 4)
    export_onnx(model, path, torch.randn(2, 4), output_names=["output.weight"])
    assert_same(run_file(path, linear=x)["output.weight"], model(x))


class Pictures(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 2, 3)

    def forward(self, pictures):
        return self.conv(pictures.permute(0, 3, 1, 2).float() / 255).mean((2, 3))


def test_the_height_of_a_picture_of_bytes_is_no_sequence(tmp_path):
    report = export_onnx(Pictures(), tmp_path / "m.onnx", torch.zeros(2, 8, 9, 3, dtype=torch.uint8))
    assert shapes(report)["pictures"] == ("batch", 8, 9, 3)


@pytest.mark.slow
def test_dynamic_shapes_replace_the_rule_for_the_inputs_they_name(tmp_path):
    model, path = nn.Conv2d(1, 2, 3), tmp_path / "m.onnx"
    axes = {"input": {0: "batch", 2: "height", -1: "width"}}
    report = export_onnx(model, path, torch.randn(2, 1, 8, 8), dynamic_shapes=axes)
    assert shapes(report)["input"] == ("batch", 1, "height", "width")
    x = torch.randn(3, 1, 11, 5)
    assert_same(run_file(path, input=x)["output"], model(x))
    report = export_onnx(model, path, torch.randn(2, 1, 8, 8), dynamic_shapes={"input": {}})
    assert shapes(report) == {"input": (2, 1, 8, 8), "output": (2, 2, 6, 6)}
    assert list(report.latency_ms) == [0]


def test_bounds_of_a_dimension_are_kept_and_stored(tmp_path):
    model, path = OnShape(lambda size: size > 8).eval(), tmp_path / "m.onnx"
    report = export_onnx(model, path, torch.randn(2, 4), dynamic_shapes={"x": {0: Dim("batch", max=8)}})
    assert report.metadata["bensemble.range.batch"] == "1 to 8"
    x = torch.randn(8, 4)
    assert_same(run_file(path, x=x)["output"], model(x))


def test_a_tied_weight_is_stored_once(tmp_path):
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.words = nn.Embedding(64, 32)
            self.head = nn.Linear(32, 64, bias=False)
            self.head.weight = self.words.weight

        def forward(self, ids):
            return self.head(self.words(ids))

    model, path = Tied(), tmp_path / "m.onnx"
    report = export_onnx(model, path, torch.randint(0, 64, (1, 5)))
    assert report.parameters == 64 * 32
    ids = torch.randint(0, 64, (3, 7))
    assert_same(run_file(path, ids=ids)["output"], model(ids))


@pytest.mark.slow
@pytest.mark.parametrize("example", [1, 2])
def test_a_model_may_squeeze_a_batch_of_one(tmp_path, example):
    class Squeezing(nn.Conv2d):
        def forward(self, x):
            return super().forward(x).squeeze()

    model, path = Squeezing(1, 3, 8), tmp_path / "m.onnx"
    assert shapes(export_onnx(model, path, torch.randn(example, 1, 8, 8)))["output"] == ("batch", 3)
    for batch in (1, 4):
        x = torch.randn(batch, 1, 8, 8)
        assert_same(run_file(path, x=x)["output"], model(x))


@pytest.mark.slow
def test_outputs_without_a_batch_and_inputs_without_use(tmp_path):
    class Constant(nn.Module):
        def __init__(self):
            super().__init__()
            self.answer = nn.Parameter(torch.randn(3))

        def forward(self, x, ignored):
            return self.answer

    report = export_onnx(Constant(), tmp_path / "m.onnx", (torch.randn(2, 4), torch.randn(2, 5)))
    assert shapes(report) == {"x": ("batch", 4), "ignored": ("batch", 5), "output": (3,)}
