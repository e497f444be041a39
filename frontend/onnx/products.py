"""Products with stored matrices, and rows of stored tables."""

from __future__ import annotations

from typing import Any

from tvm import relax

from morendo.ir import dialect

from .graph import Node
from .lengths import PROBES
from .node_attrs import checked_attrs
from .translate import Translator
from .weights import Blocks, Plain


def _one(node: Node, value: Any) -> dict[str, Any]:
    return {node.outputs[0]: value}


def gather(t: Translator, node: Node) -> dict[str, Any]:
    """Rows of a table by token id."""
    table, ids = node.inputs[:2]
    shape = t.lengths.at(PROBES[0]).shape(table) if table not in t.lengths.activations else ()
    if int(node.attrs.get("axis", 0)) != 0 or len(shape) != 2 or ids not in t.values:
        raise t.graph.error(f"{node.label} picks parts of an activation")
    return _one(node, _rows(t, node, _turned(t, table, False), shape, ids))


def _rows(t: Translator, node: Node, recipe: Any, shape: tuple[int, ...], ids: str) -> Any:
    """Embed ids of any shape of n elements."""
    flat = t.emit(relax.op.reshape(t.values[ids], [1, t.tokens]))
    weight = t.weight(recipe, node)
    call = dialect.call("embedding", flat, weight=weight, rows=shape[0], features=shape[1])
    return t.emit(relax.op.reshape(t.emit(call), t.dims(node.outputs[0])))


def gather_blocks(t: Translator, node: Node) -> dict[str, Any]:
    """Rows of a table that is stored as codes."""
    attrs = checked_attrs(
        t.graph, node, bits=4, block_size=128, gather_axis=[0], quantize_axis=1
    )  # fmt: skip
    table, ids, scales = node.inputs[:3]
    if int(attrs["quantize_axis"]) not in (1, -1):
        raise t.graph.error(f"{node.label} with blocks across rows cannot be compiled")
    rows = t.lengths.at(PROBES[0]).shape(table)[0]
    columns = t.lengths.at(PROBES[0]).shape(node.outputs[0])[-1]
    recipe = Blocks(
        _stored(t, node, table), _stored(t, node, scales), _stored(t, node, node.input(3)),
        rows, columns, int(attrs["bits"]), int(attrs["block_size"]),
    )  # fmt: skip
    _check_blocks(t, node, recipe)
    return _one(node, _rows(t, node, recipe, (rows, columns), ids))


def _check_blocks(t: Translator, node: Node, recipe: Blocks) -> None:
    if recipe.bits not in (4, 8):
        raise t.graph.error(f"{node.label} with {recipe.bits} bits cannot be read (need 4 or 8)")
    if not recipe.is_filled(t.lengths):
        raise t.misfit(node)


def _stored(t: Translator, node: Node, name: str) -> str:
    """The stored tensor behind reshapes."""
    while name in t.graph.producers and t.graph.producers[name].op in ("Reshape", "Identity"):
        name = t.graph.producers[name].inputs[0]
    if name and name not in t.graph.initializers:
        raise t.graph.error(f"{node.label} reads {name!r}, which is not stored")
    return name


def _turned(t: Translator, name: str, transposed: bool) -> Plain:
    """A stored matrix, or its transpose, whichever way the graph turns it on the way."""
    producer = t.graph.producers.get(name)
    while producer is not None and producer.op in ("Transpose", "Identity"):
        transposed ^= producer.op == "Transpose"
        name = producer.inputs[0]
        producer = t.graph.producers.get(name)
    return Plain(name, transposed)


def matmul(t: Translator, node: Node) -> dict[str, Any]:
    """A product with a weight; two activations are an attention's, found before."""
    checked_attrs(t.graph, node)
    x, matrix = node.inputs
    known = x in t.values and matrix in t.lengths.static
    known = known and (matrix not in t.lengths.varying or t.lengths.constant(matrix) is not None)
    if not known or len(t.lengths.at(PROBES[0]).shape(matrix)) != 2:
        raise t.graph.error(f"{node.label} is no product of an activation and a matrix")
    return _one(node, _product(t, node, t.values[x], _turned(t, matrix, True)))


def _product(t: Translator, node: Node, x: Any, recipe: Any) -> Any:
    """X W^T of a weight [N, K]."""
    turned = t.emit(relax.op.permute_dims(t.param(recipe, node), [1, 0]))
    return t.emit(relax.op.matmul(x, turned))


def gemm(t: Translator, node: Node) -> dict[str, Any]:
    """A product with a weight, and a bias."""
    attrs = checked_attrs(t.graph, node, alpha=[1.0], beta=[1.0], transA=[0], transB=0)
    x, matrix = node.inputs[:2]
    if x not in t.values or matrix not in t.lengths.static:
        raise t.graph.error(f"{node.label} is no product of an activation and a matrix")
    y = _product(t, node, t.values[x], _turned(t, matrix, not attrs["transB"]))
    return _one(node, biased(t, node, y, node.input(2)))


def biased(t: Translator, node: Node, x: Any, bias: str) -> Any:
    """x + bias where a bias is given."""
    return t.emit(relax.op.add(x, t.tensor(bias, node, "bias"))) if bias else x


def matmul_nbits(t: Translator, node: Node) -> dict[str, Any]:
    """A product with a matrix of 4- or 8-bit codes."""
    attrs = checked_attrs(
        t.graph, node, K=int, N=int, bits=4, block_size=int, accuracy_level=None,
        weight_prepacked=[0],
    )  # fmt: skip
    if node.input(4):
        raise t.graph.error(
            f"{node.label} with g_idx cannot be compiled",
            hint="export the model without activation order",
        )
    recipe = Blocks(
        _stored(t, node, node.input(1)), _stored(t, node, node.input(2)),
        _stored(t, node, node.input(3)), int(attrs["N"]), int(attrs["K"]), int(attrs["bits"]),
        int(attrs["block_size"]),
    )  # fmt: skip
    _check_blocks(t, node, recipe)
    y = _product(t, node, t.values[node.inputs[0]], recipe)
    return _one(node, biased(t, node, y, node.input(5)))
