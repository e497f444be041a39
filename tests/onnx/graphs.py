"""Tiny language models built op by op: an embedding, what is tested, and a head."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

VOCABULARY, WIDTH, HEADS = 24, 64, 4
MICROSOFT = "com.microsoft"
POSITIONS = 64


class Builder:
    """A graph that begins with `x`, the embedded tokens (1, n, WIDTH)."""

    def __init__(self, seed: int = 0) -> None:
        self.random = np.random.default_rng(seed)
        self.nodes: list[onnx.NodeProto] = []
        self.stored: list[onnx.TensorProto] = []
        self.inputs = [self.declare("input_ids", TensorProto.INT64, (1, "n"))]
        self.x = self.op("Gather", [self.weight(VOCABULARY, WIDTH), "input_ids"])

    @staticmethod
    def declare(name: str, kind: int, shape: Sequence[int | str]) -> onnx.ValueInfoProto:
        return helper.make_tensor_value_info(name, kind, shape)

    def add_input(self, name: str, kind: int, shape: Sequence[int | str]) -> str:
        self.inputs.append(self.declare(name, kind, shape))
        return name

    def store(self, array: Any, name: str = "") -> str:
        name = name or f"stored.{len(self.stored)}"
        self.stored.append(numpy_helper.from_array(np.asarray(array), name))
        return name

    def weight(self, *shape: int, name: str = "") -> str:
        return self.store(self.random.normal(0, 0.3, shape).astype(np.float32), name)

    def op(
        self, kind: str, inputs: Sequence[str], domain: str = "", outputs: int = 1, **attrs: Any
    ) -> Any:
        names = [f"{kind}.{len(self.nodes)}.{i}" for i in range(outputs)]
        self.nodes.append(
            helper.make_node(
                kind, inputs, names, f"node_{kind}_{len(self.nodes)}", domain=domain, **attrs
            )
        )
        return names[0] if outputs == 1 else names

    def ms(self, kind: str, inputs: Sequence[str], outputs: int = 1, **attrs: Any) -> Any:
        return self.op(kind, inputs, MICROSOFT, outputs, **attrs)

    def linear(self, x: str, rows: int = WIDTH, columns: int = WIDTH) -> str:
        return self.op("MatMul", [x, self.weight(columns, rows)])

    def heads(self, x: str, count: int = HEADS) -> str:
        """(1, n, count * D) as (1, count, n, D)."""
        shape = self.store(np.array([1, -1, count, WIDTH // HEADS]))
        return self.op("Transpose", [self.op("Reshape", [x, shape])], perm=[0, 2, 1, 3])

    def rows(self, x: str) -> str:
        """The other way round."""
        turned = self.op("Transpose", [x], perm=[0, 2, 1, 3])
        return self.op("Reshape", [turned, self.store(np.array([1, -1, WIDTH]))])

    def tokens(self) -> str:
        """The number of tokens, [1]."""
        shape = self.op("Shape", ["input_ids"])
        return self.op("Slice", [shape, self.store(np.array([1])), self.store(np.array([2]))])

    def range(self) -> str:
        """0, 1, ..., n - 1."""
        count = self.op("Squeeze", [self.tokens()])
        return self.op("Range", [self.store(np.array(0)), count, self.store(np.array(1))])

    def model(self, y: str, opset: int = 21, vocabulary: int = VOCABULARY) -> onnx.ModelProto:
        """The model whose head reads y (1, n, WIDTH)."""
        head = self.op("MatMul", [y, self.weight(WIDTH, vocabulary, name="lm_head.MatMul.weight")])
        self.nodes.append(helper.make_node("Identity", [head], ["logits"], "node_logits"))
        logits = self.declare("logits", TensorProto.FLOAT, (1, "n", vocabulary))
        graph = helper.make_graph(self.nodes, "tiny", self.inputs, [logits], self.stored)
        opsets = [helper.make_opsetid("", opset), helper.make_opsetid(MICROSOFT, 1)]
        return helper.make_model(graph, opset_imports=opsets, ir_version=10)

    def save(self, y: str, folder: Path, **options: Any) -> Path:
        path = folder / "model.onnx"
        onnx.save_model(self.model(y, **options), path)
        return path


def rotary_tables(width: int, theta: float = 100.0, factor: float = 1.0) -> tuple[Any, Any]:
    """cos and sin (POSITIONS, width / 2)."""
    frequencies = theta ** -(np.arange(0, width, 2) / width)
    angles = np.arange(POSITIONS)[:, None] * frequencies.astype(np.float32)
    tables = np.cos(angles) * factor, np.sin(angles) * factor
    return tables[0].astype(np.float32), tables[1].astype(np.float32)
