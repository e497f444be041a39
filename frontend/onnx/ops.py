"""What ops of ONNX and of com.microsoft are in Relax, one rule each.

Every rule works on tokens one by one: whatever would mix them, other than an attention, is refused,
since the compiler computes a text in pieces.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from tvm import relax

from .graph import MICROSOFT, Node
from .lengths import PROBES
from .node_attrs import checked_attrs
from .norms import layer_normalization, mean, rms_normalization, skip_layer_norm, skip_rms_norm
from .products import biased, gather, gather_blocks, gemm, matmul, matmul_nbits
from .translate import Translator

Rule = Callable[[Translator, Node], dict[str, Any]]


def _one(node: Node, value: Any) -> dict[str, Any]:
    return {node.outputs[0]: value}


def _elementwise(op: Callable[..., Any]) -> Rule:
    def rule(t: Translator, node: Node) -> dict[str, Any]:
        parts = "bias" if node.kind == "Add" else "weight"
        operands = [t.tensor(name, node, parts) for name in node.inputs if name]
        return _one(node, t.emit(op(*operands)))

    return rule


def _divide(t: Translator, node: Node) -> dict[str, Any]:
    """x / sqrt(y) as x * rsqrt(y), which is what norms are made of."""
    root = t.graph.producers.get(node.inputs[1])
    x = t.tensor(node.inputs[0], node)
    if root is not None and root.kind == "Sqrt" and root.inputs[0] in t.values:
        inverse = t.emit(relax.op.rsqrt(t.values[root.inputs[0]]))
        return _one(node, t.emit(relax.op.multiply(x, inverse)))
    return _one(node, t.emit(relax.op.divide(x, t.tensor(node.inputs[1], node))))


def _reciprocal(t: Translator, node: Node) -> dict[str, Any]:
    return _one(
        node, t.emit(relax.op.divide(relax.const(np.float32(1)), t.tensor(node.inputs[0], node)))
    )


def _same(t: Translator, node: Node) -> dict[str, Any]:
    return _one(node, t.values[node.inputs[0]])


def _cast(t: Translator, node: Node) -> dict[str, Any]:
    """Floats stay float32; token ids may change their width."""
    x = t.values[node.inputs[0]]
    is_float = str(x.ty.dtype).startswith("float")
    if is_float != (int(node.attrs["to"]) in (1, 10, 11, 16)):
        raise t.graph.error(f"{node.label} turns floats and integers into each other")
    return _one(node, x)


def _shaped(t: Translator, node: Node) -> dict[str, Any]:
    """Whatever only changes the shape."""
    x = t.values[node.inputs[0]]
    if _count(t, node.inputs[0]) != _count(t, node.outputs[0]):
        raise t.graph.error(f"{node.label} repeats an activation outside of an attention")
    return _one(node, t.emit(relax.op.reshape(x, t.dims(node.outputs[0]))))


def _count(t: Translator, name: str) -> list[int]:
    return [int(np.prod(t.lengths.at(n).shape(name), dtype=np.int64)) for n in PROBES]


def _transpose(t: Translator, node: Node) -> dict[str, Any]:
    x = t.values[node.inputs[0]]
    axes = node.attrs.get("perm") or list(range(len(x.ty.shape)))[::-1]
    return _one(node, t.emit(relax.op.permute_dims(x, list(axes))))


def _slice(t: Translator, node: Node) -> dict[str, Any]:
    """A part of the features; all of the tokens."""
    name = node.inputs[0]
    if t.lengths.dims(name) == t.lengths.dims(node.outputs[0]) and all(_steps(t, node)):
        return _same(t, node)
    ranges = _ranges(t, node, t.lengths.at(PROBES[0]).shape(name))
    x = t.values[name]
    for axis, (start, stop) in ranges.items():
        if axis in t.token_axes(name):
            raise t.graph.error(
                f"{node.label} takes some of the tokens only",
                hint="export the model so that it gives the logits of every token",
            )
        x = t.sliced(x, axis, start, stop)
    return _one(node, x)


def _steps(t: Translator, node: Node) -> list[bool]:
    steps = t.lengths.constant(node.input(4)) if node.input(4) else np.array([1])
    return [int(s) == 1 for s in (steps if steps is not None else [0])]


def _ranges(t: Translator, node: Node, shape: tuple[int, ...]) -> dict[int, tuple[int, int]]:
    """Axis -> start and stop of a Slice."""
    index = np.arange(int(np.prod(shape)), dtype=np.float32).reshape(shape)
    found: dict[int, tuple[int, int]] = {}
    taken = t.lengths.at(PROBES[0]).run([node], {node.inputs[0]: index}, node.outputs[0])
    if not taken.size or not all(_steps(t, node)):
        raise t.graph.error(f"{node.label} takes every other feature, or none")
    first = np.unravel_index(int(taken.reshape(-1)[0]), shape)
    for axis, (whole, part) in enumerate(zip(shape, taken.shape, strict=True)):
        if whole != part:
            found[axis] = int(first[axis]), int(first[axis]) + part
    return found


def _split(t: Translator, node: Node) -> dict[str, Any]:
    axis = int(node.attrs.get("axis", 0)) % len(t.dims(node.inputs[0]))
    if axis in t.token_axes(node.inputs[0]):
        raise t.graph.error(f"{node.label} splits the tokens")
    found: dict[str, Any] = {}
    start = 0
    for name in node.outputs:
        stop = start + t.lengths.at(PROBES[0]).shape(name)[axis]
        found[name] = t.sliced(t.values[node.inputs[0]], axis, start, stop)
        start = stop
    if start != t.dims(node.inputs[0])[axis]:
        raise t.misfit(node)
    return found


def _concat(t: Translator, node: Node) -> dict[str, Any]:
    axis = int(node.attrs["axis"]) % len(t.dims(node.outputs[0]))
    if axis in t.token_axes(node.outputs[0]):
        raise t.graph.error(f"{node.label} puts tokens together outside of an attention")
    parts = [t.tensor(name, node) for name in node.inputs]
    return _one(node, t.emit(relax.op.concat(parts, axis)))


def _gelu(t: Translator, node: Node) -> dict[str, Any]:
    attrs = checked_attrs(t.graph, node, approximate="none")
    kind = relax.op.nn.gelu if attrs["approximate"] == "none" else relax.op.nn.gelu_tanh
    return _one(node, t.emit(kind(t.values[node.inputs[0]])))


def _with_bias(op: Callable[[Any], Any]) -> Rule:
    def rule(t: Translator, node: Node) -> dict[str, Any]:
        checked_attrs(t.graph, node)
        return _one(node, t.emit(op(biased(t, node, t.values[node.inputs[0]], node.input(1)))))

    return rule


def _quick_gelu(t: Translator, node: Node) -> dict[str, Any]:
    attrs = checked_attrs(t.graph, node, alpha=1.702)
    return _one(node, quick_gelu(t, t.values[node.inputs[0]], float(attrs["alpha"])))


def quick_gelu(t: Translator, x: Any, alpha: float = 1.702) -> Any:
    """x * sigmoid(alpha * x), which has a name where alpha is 1."""
    if alpha == 1:
        return t.emit(relax.op.nn.silu(x))
    scaled = t.emit(relax.op.multiply(x, relax.const(np.float32(alpha))))
    return t.emit(relax.op.multiply(x, t.emit(relax.op.sigmoid(scaled))))


def _swish(t: Translator, node: Node) -> dict[str, Any]:
    attrs = checked_attrs(t.graph, node, alpha=1.0)
    return _one(node, quick_gelu(t, t.values[node.inputs[0]], float(attrs["alpha"])))


_RELAX = relax.op
OPS: dict[str, Rule] = {
    "Add": _elementwise(_RELAX.add),
    "Sub": _elementwise(_RELAX.subtract),
    "Mul": _elementwise(_RELAX.multiply),
    "Div": _divide,
    "Pow": _elementwise(_RELAX.power),
    "Neg": _elementwise(_RELAX.negative),
    "Sqrt": _elementwise(_RELAX.sqrt),
    "Reciprocal": _reciprocal,
    "Exp": _elementwise(_RELAX.exp),
    "Tanh": _elementwise(_RELAX.tanh),
    "Sigmoid": _elementwise(_RELAX.sigmoid),
    "Relu": _elementwise(_RELAX.nn.relu),
    "Erf": _elementwise(_RELAX.erf),
    "Swish": _swish,
    "Gelu": _gelu,
    "Identity": _same,
    "Dropout": _same,
    "Cast": _cast,
    "Reshape": _shaped,
    "Squeeze": _shaped,
    "Unsqueeze": _shaped,
    "Flatten": _shaped,
    "Expand": _shaped,
    "Transpose": _transpose,
    "Slice": _slice,
    "Split": _split,
    "Concat": _concat,
    "Gather": gather,
    "MatMul": matmul,
    "Gemm": gemm,
    "ReduceMean": mean,
    "LayerNormalization": layer_normalization,
    "RMSNormalization": rms_normalization,
    "SimplifiedLayerNormalization": rms_normalization,
    f"{MICROSOFT}::SimplifiedLayerNormalization": rms_normalization,
    f"{MICROSOFT}::SkipSimplifiedLayerNormalization": skip_rms_norm,
    f"{MICROSOFT}::SkipLayerNormalization": skip_layer_norm,
    f"{MICROSOFT}::MatMulNBits": matmul_nbits,
    f"{MICROSOFT}::GatherBlockQuantized": gather_blocks,
    f"{MICROSOFT}::Gelu": _with_bias(_RELAX.nn.gelu),
    f"{MICROSOFT}::BiasGelu": _with_bias(_RELAX.nn.gelu),
    f"{MICROSOFT}::FastGelu": _with_bias(_RELAX.nn.gelu_tanh),
    f"{MICROSOFT}::QuickGelu": _quick_gelu,
}
