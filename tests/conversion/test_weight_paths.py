"""Which Parameters are weights of a linear operation: Trails on the operations of a hand-written program."""

from __future__ import annotations

import pytest

from convert.planning.weight_paths import LINEAR_OPERATIONS, Trails, data_arguments, plain_name

W, V, TABLE = 1, 2, 3  # identities of Parameters

#: Steps (operation, operands, operands that are data, result); "w", "v" and "table" are Parameters, "size" carries
#: nothing, "x" is data. Then what each Parameter is noted with, and which of them are altered on the way.
PROGRAMS = {
    "product": ([("matmul", "x w", "", "y")], {W: {"matmul"}}, set()),
    "moved_first": (
        [("transpose", "w", "", "a"), ("getitem", "a", "", "b"), ("bmm", "x b", "", "y")],
        {W: {"bmm"}},
        set(),
    ),
    "standardised": ([("sub", "w", "", "a"), ("conv2d", "x a", "x", "y")], {W: {"conv2d"}}, {W}),
    "added": ([("add", "x table", "", "y")], {TABLE: {"add"}}, set()),
    "expanded_to_the_batch": ([("expand", "w size", "", "a"), ("bmm", "x a", "", "y")], {W: {"bmm"}}, set()),
    "product_of_two": ([("mm", "w v", "", "a"), ("linear", "x a", "x", "y")], {W: {"linear"}, V: {"linear"}}, {W, V}),
    "query_of_attention": (
        [("linear", "table w", "table", "q"), ("matmul", "q x", "", "y")],
        {TABLE: {"input of linear"}, W: {"linear"}},
        set(),
    ),
    "expert_by_index": ([("getitem", "w x", "", "a"), ("bmm", "x a", "", "y")], {W: {"getitem", "bmm"}}, set()),
    "row_by_index": (
        [("getitem", "table x", "", "a"), ("linear", "a w", "a", "y"), ("matmul", "y x", "", "z")],
        {TABLE: {"getitem"}, W: {"linear"}},
        set(),
    ),
    "film": ([("index_select", "table x", "", "a"), ("mul", "a x", "", "y")], {TABLE: {"index_select"}}, set()),
    "parametrized_by_a_layer": (
        [("linear", "w v", "w", "a"), ("add", "w a", "", "b"), ("linear", "x b", "x", "y")],
        {W: {"input of linear", "add", "linear"}, V: {"linear"}},
        {W},
    ),
    "written_in_place": ([("clone", "w", "", "a"), ("fill", "a", "", "a"), ("mm", "x a", "", "y")], {W: {"mm"}}, {W}),
    "memory": (
        [("scaled_dot_product_attention", "x w v", "", "y")],
        {W: {"scaled_dot_product_attention"}, V: {"scaled_dot_product_attention"}},
        set(),
    ),
    "positions_as_a_mask": (
        [("scaled_dot_product_attention", "x x x table", "table", "y")],
        {TABLE: {"input of scaled_dot_product_attention"}},
        set(),
    ),
    "shape_only": ([("new_zeros", "w", "", "a"), ("mm", "x a", "", "y")], {}, set()),
    "result_is_data": ([("mm", "x w", "", "y"), ("add", "y table", "", "z")], {W: {"mm"}, TABLE: {"add"}}, set()),
}


@pytest.mark.parametrize(("program", "operations", "altered"), PROGRAMS.values(), ids=PROGRAMS)
def test_programs(program: list, operations: dict[int, set[str]], altered: set[int]) -> None:
    trails = Trails({}, set())
    for value, parameter in (("w", W), ("v", V), ("table", TABLE), ("size", None)):
        trails.start(value, parameter)
    for name, operands, data, result in program:
        trails.apply(name, operands.split(), data.split(), [result])
    assert trails.operations == operations
    assert trails.altered == altered


@pytest.mark.parametrize(
    ("name", "plain"),
    [
        ("__rmatmul__", "matmul"),
        ("mul_", "mul"),
        ("__imul__", "mul"),
        ("_native_multi_head_attention", "native_multi_head_attention"),
        ("spmm", "mm"),
    ],
)
def test_names_lose_their_decoration(name: str, plain: str) -> None:
    assert plain_name(name) == plain
    assert plain in LINEAR_OPERATIONS


CALLS = {
    "linear": (("linear", ["x", "w", "b"], {}), ["x"]),
    "linear_by_name": (("linear", [], {"input": "x", "weight": "w"}), ["x"]),
    "unpacked": (("lstm", ["x", ("h", "c"), ["w"], True, 1, 0.0, False, False, True], {}), ["x", ("h", "c")]),
    "packed": (("gru", ["x", "sizes", "h", ["w"], True, 1, 0.0, False, False], {}), ["x", "sizes", "h"]),
    "attention": (("multi_head_attention_forward", [], {"query": "q", "key": "k", "in_proj_weight": "w"}), ["q", "k"]),
    "mask": (("scaled_dot_product_attention", ["q", "k", "v"], {"attn_mask": "table"}), ["table"]),
    "bias": (("addmm", ["b", "x", "w"], {}), ["b"]),
    "product": (("matmul", ["x", "w"], {}), []),
    "other": (("add", ["x", "w"], {"input": "x"}), []),
}


@pytest.mark.parametrize(("call", "data"), CALLS.values(), ids=CALLS)
def test_what_an_operation_takes_as_data(call: tuple, data: list) -> None:
    assert data_arguments(*call) == data
