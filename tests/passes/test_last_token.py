"""What of a prefill is computed for the last token alone."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import tvm

from morendo.ir.dialect import attrs_of, op_name, shape_of
from morendo.ir.evaluate import evaluate
from morendo.ir.text import bindings_of, parse_module
from morendo.passes.base import Context
from morendo.passes.specialize_phases import SpecializePhases

HEADER = """
from typing import TypeVar
from tvm.script import ir as I, relax as R
from morendo.ir.dialect import M

n = TypeVar("n")
@I.ir_module
class Module:
    @R.function
    def main(input_ids: R.Tensor((1, n), dtype="int64"), position_ids: R.Tensor((1, n), dtype="int64")):
        with R.dataflow():
"""  # noqa: E501
FOOTER = "            R.output(result)\n        return result\n"
EMBEDDED = 'x = M.embedding(input_ids, weight="table", rows=32, features=8)'
HEADS = "R.shape([1, n, 2, 4])"
ROPE = 'position_ids, inv_freq="inv_freq", rotary_dim=4'
BLOCK = [
    EMBEDDED,
    'side = M.fused_linear(x, weights=["w1"], out_features=[8], in_features=8)',
    'q = M.fused_linear(x, weights=["w2"], out_features=[8], in_features=8)',
    "parts = R.split(q, 2, axis=-1)",
    "first = parts[0]",
    "second = parts[1]",
    "swapped = R.concat((second, first), axis=-1)",
    f"values = R.reshape(swapped, {HEADS})",
    f"heads = R.reshape(q, {HEADS})",
    f"turned = M.rope(heads, {ROPE})",
    "attended = M.attention(turned, turned, values, layer=0, scale=0.5)",
    "flat = R.reshape(attended, R.shape([1, n, 8]))",
]
"""A feed-forward block stands beside the attention."""
LAST_BLOCK = [
    *BLOCK,
    'o = M.fused_linear(flat, side, weights=["w3"], out_features=[8], in_features=8)',
    'where = R.astype(R.reshape(position_ids, R.shape([1, n, 1])), dtype="float32")',
    "there = R.add(o, where)",
    "half = parts[0]",
    "cut = R.concat((half, half), axis=-1)",
    "both = R.add(there, cut)",
    'result = M.fused_linear(both, x, weights=["w4"], out_features=[8], in_features=8)',
]
"""Parts of a tuple and positions are read behind it; their last token cannot be taken out."""
TWO_BLOCKS = [
    *BLOCK,
    f"keys = R.reshape(flat, {HEADS})",
    "again = M.attention(turned, keys, keys, layer=1, scale=0.5)",
    "end = R.reshape(again, R.shape([1, n, 8]))",
    'result = M.fused_linear(end, side, weights=["w4"], out_features=[8], in_features=8)',
]


def specialized(lines: list[str]) -> tvm.IRModule:
    text = HEADER + "".join(f"            {line}\n" for line in lines) + FOOTER
    return SpecializePhases().apply(parse_module(text), Context())


def means(module: tvm.IRModule, function: str, ids: np.ndarray, cache: dict) -> np.ndarray:
    rng = np.random.default_rng(0)
    weights: Any = {f"w{i}": rng.standard_normal((8, 8)).astype(np.float32) for i in range(1, 5)}
    weights["table"] = rng.standard_normal((32, 8)).astype(np.float32)
    weights["inv_freq"] = np.array([1.0, 0.1], np.float32)
    start = next(iter(cache.values()))[0].shape[1] if cache else 0
    inputs = [ids[None], np.arange(start, start + len(ids))[None]]
    return evaluate(module[function], inputs, weights, cache=cache)


def attentions(module: tvm.IRModule, function: str) -> list[bool]:
    """Whether only the last token attends, attention by attention."""
    values = [binding.value for binding in bindings_of(module[function])]
    return [attrs_of(value)["last"] for value in values if op_name(value) == "cached_attention"]


def test_what_no_attention_reads_is_of_the_last_token() -> None:
    module = specialized(LAST_BLOCK)
    bindings = bindings_of(module["prefill"])
    linears = [b for b in bindings if op_name(b.value) == "fused_linear"]
    tokens = {attrs_of(b.value)["weights"][0]: shape_of(b.var.ty)[1] for b in linears}
    assert {name for name, count in tokens.items() if count == 1} == {"w1", "w3", "w4"}
    assert attentions(module, "prefill") == [True]
    assert attentions(module, "score") == attentions(module, "decode") == [False]


def test_an_attention_that_another_one_reads_has_all_tokens() -> None:
    assert attentions(specialized(TWO_BLOCKS), "prefill") == [False, True]


@pytest.mark.parametrize("lines", [LAST_BLOCK, TWO_BLOCKS], ids=["one", "two"])
def test_it_means_the_last_row_of_all_tokens(lines: list[str]) -> None:
    module, ids = specialized(lines), np.array([3, 1, 4, 1, 5, 9, 2, 6])
    caches: list[dict] = [{}, {}]
    for part in (ids[:5], ids[5:6], ids[6:]):
        last = means(module, "prefill", part, caches[0])
        whole = means(module, "score", part, caches[1])
        assert last.shape == (1, 1, 8)
        np.testing.assert_allclose(last, whole[:, -1:], rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(caches[0][0][0], caches[1][0][0])


def test_a_result_of_all_tokens_is_cut() -> None:
    module = specialized([EMBEDDED.replace("x =", "result =")])
    assert shape_of(module["prefill"].ret_ty) == [1, 1, 8]
