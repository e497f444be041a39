"""Readable names for weights: as Hugging Face has them, however the exporter spelled them."""

from __future__ import annotations

import re
from collections.abc import Container

from .graph import Node

_OPS = r"\.?(MatMul|Gemm|Add|Gather|Transpose|DequantizeLinear|MatMulNBits|GatherBlockQuantized)"
_QUANTIZED = r"_(DQ_)?(Q\d+|Q4G\d+|scales|quantized)(_output)?$"
_NO_NAME = re.compile(r"(onnx::.*|val_\d+|.*_output_\d+|/.*|\d*)")


def readable_name(node: Node, stored: str, part: str, taken: Container[str]) -> str:
    """The name of a weight.

    Args:
        node: what reads it.
        stored: name in the file, which may be "onnx::MatMul_123" or "val_7".
        part: "weight" or "bias".
        taken: names that other weights have.
    """
    name = re.sub(_QUANTIZED, "", stored)
    if _NO_NAME.fullmatch(name):
        name = f"{node.scope or _path(node)}.{part}"
    name = re.sub(r"[^\w.]", "_", name)
    name = re.sub(rf"{_OPS}(?=\.(weight|bias)$)", "", name)
    name = re.sub(r"(\.\d+)\.attn\.(?=[qkvo]\w*_proj)", r"\1.self_attn.", name)
    name = re.sub(r"(\.\d+)\.attn\.(?=[qk]_norm)", r"\1.self_attn.", name)
    name = name.replace(".layernorm.", ".")
    unique, number = name, 1
    while unique in taken:
        number += 1
        unique = f"{name}_{number}"
    return unique


def _path(node: Node) -> str:
    """The module path in a node's name such as /model/layers.0/attn/q_proj/MatMul_Q4."""
    parts = [part for part in node.name.split("/") if part]
    return ".".join(parts[:-1]) if len(parts) > 1 else node.name or node.outputs[0]
