"""An ONNX file as nodes and initializers: parsed, checked, and nothing of its data read."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import onnx
from google.protobuf.message import DecodeError
from onnx import inliner

from morendo.ir.errors import InputError

from .initializers import Initializers

MICROSOFT = "com.microsoft"
OTHER_EXPORT = "export the model without it, or compile the Hugging Face checkpoint"
"""What to do about an op that cannot be compiled."""
_VERSIONS = {"": onnx.defs.onnx_opset_version(), MICROSOFT: 1}
_SCOPES = "pkg.torch.onnx.name_scopes"


@dataclass(frozen=True, eq=False)
class Node:
    """One operation.

    Attributes:
        index: place in the graph, which is in topological order.
        domain: "" for ONNX's own ops.
        op: type, such as "MatMul".
        inputs, outputs: names of values, "" where one is left out.
        attrs: plain Python values.
        scope: the torch module that it comes from, where the exporter says so.
        proto: the node as it was read.
    """

    index: int
    domain: str
    op: str
    name: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attrs: dict[str, Any]
    scope: str
    proto: onnx.NodeProto = field(repr=False)

    @property
    def kind(self) -> str:
        """The op with its domain: "MatMul", "com.microsoft::MatMulNBits"."""
        return f"{self.domain}::{self.op}" if self.domain else self.op

    @property
    def label(self) -> str:
        """For messages: the node and its op."""
        return f"{self.name or self.outputs[0]} ({self.domain or 'ai.onnx'}::{self.op})"

    def input(self, index: int) -> str:
        """Name of an operand, "" when it is left out."""
        return self.inputs[index] if index < len(self.inputs) else ""

    def output(self, index: int) -> str:
        """Name of a result, "" when it is left out."""
        return self.outputs[index] if index < len(self.outputs) else ""


@dataclass
class OnnxGraph:
    """A model's graph.

    Attributes:
        path: the file.
        nodes: in topological order, without constants.
        inputs: name -> (element type, dimensions: numbers, or "" and names where they vary).
        outputs: names.
        initializers: stored tensors, constants of nodes among them.
        opsets: domain -> version.
    """

    path: Path
    nodes: list[Node]
    inputs: dict[str, tuple[int, list[int | str]]]
    outputs: list[str]
    initializers: Initializers
    opsets: dict[str, int]

    def __post_init__(self) -> None:
        self.producers = {out: node for node in self.nodes for out in node.outputs if out}

    def error(self, message: str, hint: str = "") -> InputError:
        """A one-line error about this file."""
        return InputError(message, where=str(self.path), hint=hint)

    def misfit(self, node: Node, shapes: Iterable[tuple[int, ...] | None]) -> InputError:
        """The error about a node whose operands have shapes that it cannot take.

        Args:
            shapes: of each operand, at some number of tokens; None for one that is left out.
        """
        operands = zip(node.inputs, shapes, strict=False)
        said = [f"{name}: {list(shape)}" for name, shape in operands if shape is not None]
        return self.error(
            f"{node.label} cannot take operands of these shapes ({', '.join(said)[:240]})",
            hint="the graph is damaged, or its exporter wrote what this importer does not know",
        )

    def needed(self, names: Iterable[str], known: Iterable[str] = ()) -> list[Node]:
        """The nodes that compute these values from `known` ones, in order."""
        stack, found, done = list(names), {}, set(known)
        while stack:
            name = stack.pop()
            node = self.producers.get(name)
            if name in done or node is None:
                continue
            done.add(name)
            found[node.index] = node
            stack.extend(node.inputs)
        return [found[index] for index in sorted(found)]


def read_graph(path: Path) -> OnnxGraph:
    """Parse a file and check what can be checked without its data.

    Raises:
        InputError: for a damaged file, an opset that is too new, and external data that is missing,
            too short or outside of the file's folder.
    """
    model = _parse(path)
    opsets = _opsets(model, path)
    constants: dict[str, onnx.TensorProto] = {}
    nodes: list[Node] = []
    for proto in model.graph.node:
        tensor = _constant(proto)
        if tensor is not None:
            constants[proto.output[0]] = tensor
        else:
            nodes.append(_node(len(nodes), proto))
    stored = {tensor.name: tensor for tensor in model.graph.initializer} | constants
    graph = OnnxGraph(
        path=path,
        nodes=nodes,
        inputs={i.name: _typed(i) for i in model.graph.input if i.name not in stored},
        outputs=[output.name for output in model.graph.output],
        initializers=Initializers(stored, path),
        opsets=opsets,
    )
    _check_order(graph)
    return graph


def _parse(path: Path) -> onnx.ModelProto:
    try:
        model = onnx.load_model(path, load_external_data=False)
        model = inliner.inline_local_functions(model) if model.functions else model
    except (DecodeError, OSError, RuntimeError, ValueError) as error:
        said = " ".join(str(error).split())[:120]
        raise InputError(
            f"not an ONNX model, or one that is cut off ({said})",
            where=str(path),
            hint="download or export it again",
        ) from None
    if not model.graph.node:
        raise InputError("the ONNX model has no nodes", where=str(path))
    return model


def _opsets(model: onnx.ModelProto, path: Path) -> dict[str, int]:
    found = {_domain(entry.domain): entry.version for entry in model.opset_import}
    for domain, newest in _VERSIONS.items():
        if found.get(domain, 0) > newest:
            raise InputError(
                f"opset {found[domain]} of {domain or 'ai.onnx'} is too new "
                f"(need at most {newest})",
                where=str(path),
                hint="export the model with an older opset",
            )
    for proto in model.graph.node:
        if _domain(proto.domain) not in found:
            raise InputError(
                f"the file states no opset of {proto.domain or 'ai.onnx'}, "
                f"which {proto.op_type} is of",
                where=str(path),
            )
    return found


def _domain(name: str) -> str:
    return "" if name == "ai.onnx" else name


def _constant(proto: onnx.NodeProto) -> onnx.TensorProto | None:
    """The tensor of a Constant node; None for others."""
    if proto.op_type != "Constant" or proto.domain not in ("", "ai.onnx"):
        return None
    attribute = proto.attribute[0]
    value = onnx.helper.get_attribute_value(attribute)
    if attribute.name == "value":
        return value
    kinds = {
        "value_float": onnx.TensorProto.FLOAT,
        "value_floats": onnx.TensorProto.FLOAT,
        "value_int": onnx.TensorProto.INT64,
        "value_ints": onnx.TensorProto.INT64,
    }
    if attribute.name not in kinds:
        return None
    dims = [len(value)] if attribute.name.endswith("s") else []
    values = list(value) if dims else [value]
    return onnx.helper.make_tensor(proto.output[0], kinds[attribute.name], dims, values)


def _node(index: int, proto: onnx.NodeProto) -> Node:
    attrs = {a.name: _plain(onnx.helper.get_attribute_value(a)) for a in proto.attribute}
    scopes = next((p.value for p in proto.metadata_props if p.key == _SCOPES), "")
    parts = [part.strip(" '\"") for part in scopes.strip("[]").split(",")]
    return Node(
        index=index,
        domain=_domain(proto.domain),
        op=proto.op_type,
        name=proto.name,
        inputs=tuple(proto.input),
        outputs=tuple(proto.output),
        attrs=attrs,
        scope=parts[-2] if len(parts) > 1 else "",
        proto=proto,
    )


def _plain(value: Any) -> Any:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else value


def _typed(value: onnx.ValueInfoProto) -> tuple[int, list[int | str]]:
    tensor = value.type.tensor_type
    dims = [d.dim_value if d.HasField("dim_value") else d.dim_param for d in tensor.shape.dim]
    return tensor.elem_type, dims


def _check_order(graph: OnnxGraph) -> None:
    known = {"", *graph.inputs, *graph.initializers.names()}
    for node in graph.nodes:
        missing = [name for name in node.inputs if name not in known]
        if missing:
            raise graph.error(
                f"{node.label} reads {missing[0]!r}, which nothing before it computes",
                hint="the file is damaged",
            )
        known.update(node.outputs)
