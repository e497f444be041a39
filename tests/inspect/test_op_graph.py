"""The ops of IR text as a graph, which the page draws and Model Explorer gets."""

from __future__ import annotations

import json

import pytest

from morendo.ir.errors import InputError
from morendo.view.op_graph import Input, graph_text, ops_of
from morendo.view.texts import functions_of

FUNCTION = """\
@R.function
def main(ids: R.Tensor((1, n), dtype="int64")) -> R.Tensor((1, n, 8), dtype="float32"):
    with R.dataflow():
        lv: R.Tensor((1, n, 8), dtype="float32") = M.embedding(ids, weight="e", rows=16, features=8)
        lv1: R.Tuple(R.Tensor((1, n, 8), dtype="int8"), R.Tensor((1, n, 1), dtype="float32")) = \
M.rms_norm_quantize(lv, weight="model.layers.3.norm.weight", eps=1e-06)
        lv2: R.Tensor((1, n, 8), dtype="int8") = lv1[0]
        lv3: R.Tensor((1, n, 1), dtype="float32") = lv1[1]
        lv4: R.Tensor((1, n, 8), dtype="float32") = M.quantized_linear(lv2, lv3, lv, \
weights=["model.layers.3.a.weight", "model.layers.3.b.weight"], out_features=[32, 32], \
in_features=64, format="q4g32")
        lv5: R.Tensor((1, n, 8), dtype="float32") = R.add(lv4, R.const(1.0, "float32"))
        lv6: R.Tuple(R.Tensor((1, n, 8), dtype="float32"), R.Tensor((1, n, 8), dtype="int8")) = \
(lv5, lv2)
        lv7: R.Tensor((1, n, 8), dtype="float32") = R.multiply(lv6[0], lv6[1])
        lv8: R.Tensor((1, n, 8), dtype="float32") = M.rms_norm(lv7, weight="model.norm.weight")
        gv: R.Tensor((1, n, 8), dtype="float32") = lv8
        R.output(gv)
    return gv
"""


def test_ops_have_what_they_read():
    ops = {op.var: op for op in ops_of(FUNCTION, "here")}
    assert list(ops) == ["ids", "lv", "lv1", "lv4", "lv5", "lv7", "lv8"]
    assert ops["ids"].op == "input"
    assert ops["lv1"].types == ("[1, tokens, 8] int8", "[1, tokens, 1] float32")
    linear = ops["lv4"]
    assert linear.op == "quantized_linear"
    assert linear.inputs == (Input("lv1", 0), Input("lv1", 1), Input("lv"))
    assert linear.weights == ("model.layers.3.a.weight", "model.layers.3.b.weight")
    assert linear.bits == 5.0, "4, a byte for 32 weights and zero points, and a float a row of 64"
    assert linear.attrs == {"out_features": "[32, 32]", "in_features": "64", "format": "q4g32"}
    assert ops["lv5"].attrs == {"arguments": "R.const(1.0, 'float32')"}
    assert ops["lv7"].inputs == (Input("lv5"), Input("lv1", 0))
    assert ops["lv"].bits == 32


def test_ops_belong_to_layers():
    layers = {op.var: op.layer for op in ops_of(FUNCTION, "here")}
    assert layers == {
        "ids": None, "lv": None, "lv1": 3, "lv4": 3, "lv5": 3, "lv7": 3, "lv8": None,
    }  # fmt: skip


def test_weights_are_named_before_they_are_names(compiled):
    text = dict(functions_of((compiled[1] / "00_input.py").read_text()))["main"]
    ops = ops_of(text, "input")
    assert [op.var for op in ops if op.op == "input"] == ["input_ids", "position_ids"]
    weights = [name for op in ops for name in op.weights]
    assert len(set(weights)) == 4 * 9 + 3
    assert weights[0] == weights[-1] == "model.embed_tokens.weight", "the table is the head"
    assert len(weights) == 4 * 9 + 3 + 1
    assert {op.layer for op in ops} == {None, 0, 1, 2, 3}
    permuted = next(op for op in ops if op.weights == ("model.layers.2.mlp.up_proj.weight",))
    assert (permuted.op, permuted.layer, permuted.attrs) == ("permute_dims", 2, {"axes": "None"})
    slices = [op.layer for op in ops if op.op == "expand_dims" and op.attrs == {"axis": "[1]"}]
    assert slices == [0, 0, 1, 1, 2, 2, 3, 3], "of the tables of cosines and sines"


def test_every_input_is_an_op_before_it(compiled):
    for path in sorted(compiled[1].glob("0[0-7]_*.py")):
        for name, text in functions_of(path.read_text()):
            known: set[str] = set()
            ops = ops_of(text, name)
            for op in ops:
                assert {each.var for each in op.inputs} <= known, (path.name, op)
                known.add(op.var)
            read = {each.var for op in ops for each in op.inputs}
            assert known - read == {ops[-1].var}, "only the result is read by nobody"


def test_the_page_gets_each_edge_once():
    linear = json.loads(graph_text(ops_of(FUNCTION, "here")))[3]
    assert linear["inputs"] == ["lv1", "lv"]
    assert linear["layer"] == 3


def test_what_is_no_graph_has_no_ops():
    assert ops_of("@T.prim_func\ndef kernel(x):\n    pass\n", "here") == []


@pytest.mark.parametrize("text", ["@R.function\ndef main(:\n", "@R.function\nx = 1\n"])
def test_what_is_not_ir_is_refused(text):
    with pytest.raises(InputError, match=r"not the text of a function .*at stage 3; write"):
        ops_of(text, "stage 3")
