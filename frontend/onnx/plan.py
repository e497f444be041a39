"""Which rule each node of a graph is translated by, from the logits backwards."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from tvm import relax

from .activations import Normalized, activation_of, normalized_of
from .attention import Attention, AttentionFinder
from .attention_ops import ATTENTION_OPS
from .graph import OTHER_EXPORT, Node
from .lengths import Lengths
from .norms import layer_norm
from .ops import OPS, quick_gelu
from .translate import LOGITS, Step, Translator

_ACTIVATIONS = {
    "silu": relax.op.nn.silu,
    "gelu": relax.op.nn.gelu,
    "gelu_tanh": relax.op.nn.gelu_tanh,
}


def plan_steps(lengths: Lengths, finder: AttentionFinder) -> dict[Node, Step]:
    """A step for each node that the logits need.

    Raises:
        InputError: for an op that is not known, and an attention that is not.
    """
    graph = lengths.graph
    steps: dict[Node, Step] = {}
    wanted = [LOGITS]
    while wanted:
        node = graph.producers.get(wanted.pop())
        if node is not None and node not in steps:
            steps[node] = _step(lengths, finder, node)
            wanted.extend(steps[node].needs)
    return steps


def _step(lengths: Lengths, finder: AttentionFinder, node: Node) -> Step:
    active = [name for name in node.inputs if name in lengths.activations]
    if node.kind in ATTENTION_OPS:
        return _attention(ATTENTION_OPS[node.kind](finder, node))
    if node.kind == "MatMul" and len(active) == 2:
        return _attention(finder.product(node))
    found = next(_recognized(lengths, node), None)
    if found is not None:
        return found
    rule = OPS.get(node.kind)
    if rule is None:
        raise lengths.graph.error(
            f"the op {node.op} of {node.domain or 'ai.onnx'} is not supported "
            f"(node {node.name or node.outputs[0]})",
            hint=OTHER_EXPORT,
        )
    return Step(active, lambda t: rule(t, node))


def _attention(found: Attention) -> Step:
    def emit(t: Translator) -> dict[str, Any]:
        out = t.attention(found)
        name = found.node.outputs[0]
        shape = t.dims(name)
        if len(shape) != 3 or shape[0] != 1:  # head-major: (1, heads, n, head_dim) or (heads, n, ..
            out = t.emit(relax.op.permute_dims(out, [0, 2, 1, 3]))
        return {name: t.emit(relax.op.reshape(out, shape))}

    return Step([found.q.source, found.k.source, found.v.source], emit)


def _recognized(lengths: Lengths, node: Node) -> Iterator[Step]:
    """Steps for what a node computes together with nodes before it."""
    activation = activation_of(lengths, node)
    if activation is not None:
        yield _activation(node, *activation)
    affine = _affine_norm(lengths, node)
    if affine is not None:
        yield affine
    norm = normalized_of(lengths, node.outputs[0])
    if norm is not None:
        yield _norm(node, norm)


def _activation(node: Node, kind: str, source: str) -> Step:
    def emit(t: Translator) -> dict[str, Any]:
        x = t.values[source]
        y = quick_gelu(t, x) if kind == "quick_gelu" else t.emit(_ACTIVATIONS[kind](x))
        return {node.outputs[0]: y}

    return Step([source], emit)


def _affine_norm(lengths: Lengths, node: Node) -> Step | None:
    """Layer norm written out: normalized * weight + bias."""
    bias, product = _vector_operand(lengths, node, "Add")
    scaled = lengths.graph.producers.get(product)
    if not bias or scaled is None:
        return None
    weight, normal = _vector_operand(lengths, scaled, "Mul")
    norm = normalized_of(lengths, normal) if weight else None
    if norm is None or not norm.centered:
        return None

    def emit(t: Translator) -> dict[str, Any]:
        attrs = {"epsilon": norm.eps}
        return {node.outputs[0]: layer_norm(t, node, t.values[norm.source], weight, bias, attrs)}

    return Step([norm.source], emit)


def _vector_operand(lengths: Lengths, node: Node, kind: str) -> tuple[str, str]:
    """(static vector, activation) that a node of this kind reads, "" and "" for anything else."""
    if node.kind != kind:
        return "", ""
    for vector, active in (node.inputs, node.inputs[::-1]):
        own = vector in lengths.static and vector not in lengths.varying
        if own and active in lengths.activations and lengths.scalar(vector) is None:
            return vector, active
    return "", ""


def _norm(node: Node, norm: Normalized) -> Step:
    """A norm before its weight, in the spelling that the compiler's passes know."""

    def emit(t: Translator) -> dict[str, Any]:
        x = t.values[norm.source]
        if norm.centered:
            y = layer_norm(t, node, x, "", "", {"epsilon": norm.eps})
            return {node.outputs[0]: y}
        square = t.emit(relax.op.power(x, relax.const(np.float32(2))))
        mean = t.emit(relax.op.mean(square, [-1], True))
        inner = t.emit(relax.op.add(mean, relax.const(np.float32(norm.eps))))
        return {node.outputs[0]: t.emit(relax.op.multiply(x, t.emit(relax.op.rsqrt(inner))))}

    return Step([norm.source], emit)
