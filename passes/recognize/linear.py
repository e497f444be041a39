"""Matrix products with a weight, and their biases."""

from __future__ import annotations

from typing import Any

from tvm import relax

from morendo.ir.dialect import attrs_of, call, op_name

from .graph import Graph, dims, op_of
from .simplify import permutation


def recognize_linear(graph: Graph, node: relax.Call) -> Any:
    """x @ W^T (W stored [N, K]) or x @ W (stored [K, N], gpt2's Conv1D) as morendo.linear.

        R.matmul(x, R.permute_dims(w))  ->  M.linear(x, weight="w", ...)
        M.linear(x, ...) + b            ->  M.linear(x, bias="b", ...)

    Does not fire when the right operand is no weight.
    """
    if op_of(node) == "relax.matmul":
        return _product(graph, node)
    return _bias(graph, node) if op_of(node) == "relax.add" else None


def _product(graph: Graph, node: relax.Call) -> Any:
    x, matrix = node.args
    turned = graph.call(matrix, "relax.permute_dims")
    straight = turned is not None and permutation(turned) == [1, 0]
    name = graph.weight(turned.args[0] if turned is not None else matrix, rank=2)
    if not name or len(dims(x)) not in (2, 3):
        return None
    linear = call(
        "linear",
        graph.with_batch(x),
        weight=name,
        out_features=dims(node)[-1],
        in_features=dims(x)[-1],
        transposed=not straight,
    )
    graph.count("linear")
    return relax.op.reshape(graph.emit(linear), dims(node))


def _bias(graph: Graph, node: relax.Call) -> Any:
    for product, bias in (node.args, node.args[::-1]):
        name = graph.weight(bias)
        flat = graph.call(product, "relax.reshape")
        linear = graph.value(flat.args[0] if flat is not None else product)
        if not name or op_name(linear) != "linear":
            continue
        attrs = attrs_of(linear)
        if not attrs["bias"] and dims(bias) == [attrs["out_features"]] == dims(node)[-1:]:
            biased = call("linear", *linear.args, **{**attrs, "bias": name})
            return relax.op.reshape(graph.emit(biased), dims(node))
    return None
