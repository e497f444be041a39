"""Shapes of results that are not computed to be known: products with weights, and contrib ops.

Rules take a node and the shapes of its operands (None for one that is left out) and give the shapes
of its results, None for those that nothing can read, such as a cache.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from .graph import MICROSOFT, Node

Shape = tuple[int, ...]
Shapes = Sequence[Shape | None]


def _of(shapes: Shapes, index: int) -> Shape:
    shape = shapes[index] if index < len(shapes) else None
    if shape is None:
        raise LookupError(f"operand {index} is missing")
    return shape


def _same(node: Node, shapes: Shapes) -> list[Shape | None]:
    return [_of(shapes, 0)]


def _skip_norm(node: Node, shapes: Shapes) -> list[Shape | None]:
    return [_of(shapes, 0), None, None, _of(shapes, 0)]


def _matmul(node: Node, shapes: Shapes) -> list[Shape | None]:
    a, b = _of(shapes, 0), _of(shapes, 1)
    _check_product(a, b)
    return [(*np.broadcast_shapes(a[:-2], b[:-2]), a[-2], b[-1])]


def _check_product(a: Shape, b: Shape) -> None:
    if len(a) < 2 or len(b) < 2 or a[-1] != b[-2]:
        raise ValueError(f"{a} and {b} cannot be multiplied")


def _gemm(node: Node, shapes: Shapes) -> list[Shape | None]:
    a, b = _of(shapes, 0), _of(shapes, 1)
    a = a[::-1] if node.attrs.get("transA") else a
    b = b[::-1] if node.attrs.get("transB") else b
    _check_product(a, b)
    return [(a[0], b[1])]


def _matmul_nbits(node: Node, shapes: Shapes) -> list[Shape | None]:
    return [(*_of(shapes, 0)[:-1], int(node.attrs["N"]))]


def _gather_blocks(node: Node, shapes: Shapes) -> list[Shape | None]:
    data, ids = _of(shapes, 0), _of(shapes, 1)
    return [(*ids, data[-1])]


def _grouped_attention(node: Node, shapes: Shapes) -> list[Shape | None]:
    q, heads = _of(shapes, 0), int(node.attrs["num_heads"])
    if len(shapes) > 1 and shapes[1] is not None:
        return [q, None, None]
    every = heads + 2 * int(node.attrs["kv_num_heads"])
    return [(*q[:-1], q[-1] // every * heads), None, None]


def _multi_head_attention(node: Node, shapes: Shapes) -> list[Shape | None]:
    q = _of(shapes, 0)
    v = shapes[2] if len(shapes) > 2 else None
    if v is None:  # q, k and v, or k and v, in one tensor
        return [(q[0], q[1], q[2] * q[-1] if len(q) == 5 else q[2])]
    return [(q[0], q[1], v[2] if len(v) == 3 else v[1] * v[3])]


def _attention(node: Node, shapes: Shapes) -> list[Shape | None]:
    q, v = _of(shapes, 0), _of(shapes, 2)
    if len(q) == 4:
        return [(*q[:3], v[3]), None, None, None]
    size = v[2] // int(node.attrs["kv_num_heads"])
    return [(q[0], q[1], int(node.attrs["q_num_heads"]) * size), None, None, None]


SHAPE_RULES: dict[str, Callable[[Node, Shapes], list[Shape | None]]] = {
    "MatMul": _matmul,
    "Gemm": _gemm,
    "Attention": _attention,
    "LayerNormalization": _same,
    "RMSNormalization": _same,
    "SimplifiedLayerNormalization": _same,
    "RotaryEmbedding": _same,
    "Softmax": _same,
    "Gelu": _same,
    "Swish": _same,
    **{
        f"{MICROSOFT}::{op}": _same
        for op in ("RotaryEmbedding", "Gelu", "BiasGelu", "FastGelu", "QuickGelu")
    },
    f"{MICROSOFT}::SimplifiedLayerNormalization": _same,
    f"{MICROSOFT}::SkipSimplifiedLayerNormalization": _skip_norm,
    f"{MICROSOFT}::SkipLayerNormalization": _skip_norm,
    f"{MICROSOFT}::MatMulNBits": _matmul_nbits,
    f"{MICROSOFT}::GatherBlockQuantized": _gather_blocks,
    f"{MICROSOFT}::GroupQueryAttention": _grouped_attention,
    f"{MICROSOFT}::MultiHeadAttention": _multi_head_attention,
}


def contrib_value(node: Node, inputs: Sequence[Any]) -> list[Any]:
    """The results of a contrib op that changes queries or keys.

    Raises:
        NotImplementedError: for any other.
    """
    if node.op != "RotaryEmbedding":
        raise NotImplementedError(f"no meaning for {node.kind}")
    x, positions, cos, sin = inputs[:4]
    heads = int(node.attrs.get("num_heads", 0))
    width = int(node.attrs.get("rotary_embedding_dim", 0)) or 2 * cos.shape[1]
    flat = x.ndim == 3
    size = x.shape[-1] // heads if flat and heads else 2 * cos.shape[1] if flat else x.shape[-1]
    # (1, n, heads, head_dim)
    split = x.reshape(*x.shape[:2], -1, size) if flat else x.transpose(0, 2, 1, 3)
    tokens = split.shape[1]
    where = np.asarray(positions).reshape(-1)
    where = where[0] + np.arange(tokens) if where.size == 1 else where
    turned = _rotated(split, cos[where], sin[where], width, bool(node.attrs.get("interleaved", 0)))
    return [turned.reshape(x.shape) if flat else turned.transpose(0, 2, 1, 3)]


def _rotated(x: Any, cos: Any, sin: Any, width: int, interleaved: bool) -> Any:
    """The first `width` channels of (1, n, heads, head_dim) turned by tables (n, width / 2)."""
    cos, sin = cos[None, :, None, :], sin[None, :, None, :]
    first, second = slice(0, width // 2), slice(width // 2, width)
    if interleaved:
        first, second = slice(0, width, 2), slice(1, width, 2)
    y = x.copy()
    y[..., first] = x[..., first] * cos - x[..., second] * sin
    y[..., second] = x[..., second] * cos + x[..., first] * sin
    return y
