"""What values are at a number of tokens, by running parts of the graph.

Most of what an exported graph computes beside its activations (shapes, masks, positions, rotary
tables) depends on nothing but the number of tokens: positions count from 0, every token is
attended to, and the cache is empty. Such values are called static here. They are not rewritten
symbolically: they are computed by ONNX's reference evaluator for as many lengths as a question
about them needs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import onnx
from onnx.reference import ReferenceEvaluator

from morendo.ir.errors import InputError

from .graph import MICROSOFT, OTHER_EXPORT, Node, OnnxGraph
from .shape_rules import SHAPE_RULES, Shapes, contrib_value

PROBES = (5, 7, 11)
"""Lengths that tell how a dimension depends on the number of tokens."""

_FLOATS = (np.float16, np.float32, np.float64)
_FLOAT_TYPES = {
    onnx.TensorProto.FLOAT,
    onnx.TensorProto.FLOAT16,
    onnx.TensorProto.BFLOAT16,
    onnx.TensorProto.DOUBLE,
}
IDS = "input_ids"
# What numpy and the evaluator raise for operands that do not fit together.
_MISFITS = (IndexError, RuntimeError, TypeError, ValueError)
_SMALL = 1024  # elements of what may be computed to be looked at
_KEEPS_SIZE = ("Cast", "DequantizeLinear", "Identity", "Transpose")


class Lengths:
    """Static values and all shapes of a graph, for any number of tokens.

    Attributes:
        graph: the graph.
        static: names of values that depend on the number of tokens only.
        varying: those of them whose computation reads that number at all.
        activations: values that depend on the tokens themselves.
        matrices: large stored tensors behind casts, transpositions and scales; their shapes are
            known without them.
    """

    def __init__(self, graph: OnnxGraph) -> None:
        self.graph = graph
        self._evaluators: dict[int, ReferenceEvaluator] = {}
        self._at: dict[int, AtLength] = {}
        self.static = {*graph.initializers.names(), *graph.inputs} - {IDS}
        self.varying = set(graph.inputs)
        for node in graph.nodes:
            inputs = [name for name in node.inputs if name]
            own = all(name in self.static for name in inputs) and not _has_subgraph(node)
            if own or node.op in ("Shape", "Size"):
                self.static.update(node.outputs)
            if not own or any(name in self.varying for name in inputs):
                self.varying.update(node.outputs)
        every = {name for node in graph.nodes for name in node.outputs} | {IDS}
        self.activations = every - self.static
        stored = graph.initializers
        self.matrices = {n for n in stored.names() if np.prod(stored.shape(n)) > _SMALL}
        for node in graph.nodes:
            if node.op in _KEEPS_SIZE and node.inputs[0] in self.matrices:
                self.matrices.update(node.outputs)
        self.matrices.difference_update(stored.names())

    def at(self, tokens: int) -> AtLength:
        """Values at this number of tokens, kept for the next question."""
        if tokens not in self._at:
            self._at[tokens] = AtLength(self, tokens)
        return self._at[tokens]

    def once(self, tokens: int) -> AtLength:
        """Values at this number of tokens that are not kept."""
        return AtLength(self, tokens)

    def dims(self, name: str) -> list[tuple[int, int]]:
        """Each dimension of a value as (a, b): a * tokens + b.

        Raises:
            InputError: when one is not of this form.
        """
        shapes = [self.at(n).shape(name) for n in PROBES]
        fits = [_line(column) for column in zip(*shapes, strict=True)]
        if any(fit is None for fit in fits) or len({len(s) for s in shapes}) != 1:
            raise self.graph.error(f"the shape of {name!r} cannot be followed (got {shapes[0]})")
        return [fit for fit in fits if fit is not None]

    def leaves(self, names: Iterable[str]) -> set[str]:
        """The stored tensors that static values are computed from."""
        names = list(names)
        nodes = self.graph.needed(names, self.activations)
        read = {name for node in nodes for name in node.inputs}.union(names)
        return {name for name in read if name in self.graph.initializers}

    def constant(self, name: str) -> np.ndarray | None:
        """A static value that is the same at every length, None for another."""
        if name not in self.static:
            return None
        if name not in self.varying:
            return self.at(PROBES[0]).value(name)
        first, *others = (self.at(n).value(name) for n in PROBES)
        same = all(o.shape == first.shape and np.array_equal(o, first) for o in others)
        return first if same else None

    def scalar(self, name: str) -> float | None:
        """A constant of one element as a float, None for anything else."""
        if name not in self.static or name in self.matrices:
            return None
        if name in self.graph.initializers and self.big(name):
            return None
        value = self.constant(name)
        return float(value.reshape(-1)[0]) if value is not None and value.size == 1 else None

    def big(self, name: str) -> bool:
        """Whether a stored tensor has more than one element."""
        return int(np.prod(self.graph.initializers.shape(name), dtype=np.int64)) != 1

    def run_node(self, node: Node, inputs: Sequence[Any]) -> list[Any]:
        """One node's results.

        Raises:
            InputError: when ONNX's reference evaluator does not know it or refuses its inputs.
        """
        shapes = [None if x is None else np.shape(x) for x in inputs]
        return self.guarded(node, shapes, lambda: self._results(node, inputs))

    def _results(self, node: Node, inputs: Sequence[Any]) -> list[Any]:
        if node.domain == MICROSOFT:
            return contrib_value(node, inputs)
        if node.kind == "Concat":  # an empty cache may not say how wide it would be
            filled = [x for x in inputs if x.size] or list(inputs)
            return [np.concatenate(filled, int(node.attrs["axis"]))]
        if node.index not in self._evaluators:
            self._evaluators[node.index] = ReferenceEvaluator(node.proto, self.graph.opsets)
        feeds = {name: x for name, x in zip(node.inputs, inputs, strict=True) if name}
        with np.errstate(all="ignore"):  # zeros stand for activations
            return list(self._evaluators[node.index].run(None, feeds))

    def guarded(self, node: Node, shapes: Shapes, compute: Callable[[], list[Any]]) -> list[Any]:
        """What is computed for a node with operands of these shapes; an error names it.

        Raises:
            InputError: for whatever numpy and the evaluator raise.
        """
        try:
            return compute()
        except NotImplementedError as error:
            if onnx.defs.has(node.op, node.domain):
                raise self._cannot_follow(node, error) from error
            raise self.graph.error(
                f"unknown op {node.op} of domain {node.domain or 'ai.onnx'} "
                f"(node {node.name or node.outputs[0]})",
                hint=OTHER_EXPORT,
            ) from None
        except _MISFITS as error:
            raise self.graph.misfit(node, shapes) from error
        except Exception as error:
            raise self._cannot_follow(node, error) from error

    def _cannot_follow(self, node: Node, error: Exception) -> InputError:
        said = " ".join(str(error).split())[:120]
        return self.graph.error(
            f"{node.label} cannot be followed ({type(error).__name__}: {said})",
            hint="the exporter wrote a graph that this importer does not know",
        )


class AtLength:
    """Values at one number of tokens."""

    def __init__(self, lengths: Lengths, tokens: int) -> None:
        self.lengths = lengths
        self.graph = lengths.graph
        self.tokens = tokens
        self._known: dict[str, Any] = {
            name: self._input(name, kind, dims) for name, (kind, dims) in self.graph.inputs.items()
        }

    def value(self, name: str) -> np.ndarray:
        """A static value."""
        assert name in self.lengths.static, name
        if name in self.graph.initializers:
            return self.graph.initializers.read(name)
        self._compute([name])
        return self._known[name]

    def shape(self, name: str) -> tuple[int, ...]:
        """The dimensions of any value."""
        if name in self.graph.initializers:
            return self.graph.initializers.shape(name)
        node = self.graph.producers.get(name)
        if node is not None and name in self.lengths.matrices:
            source = self.shape(node.inputs[0])
            axes = node.attrs.get("perm", range(len(source))[::-1])
            return tuple(source[a] for a in axes) if node.op == "Transpose" else source
        if name in self.lengths.activations and self.tokens not in PROBES:
            return tuple(a * self.tokens + b for a, b in self.lengths.dims(name))
        self._compute([name])
        return tuple(self._known[name].shape)

    def run(self, nodes: Iterable[Node], given: Mapping[str, np.ndarray], name: str) -> np.ndarray:
        """A value that these nodes compute from given ones and static ones."""
        values = dict(given)
        for node in nodes:
            inputs = [self._operand(i, values) for i in node.inputs]
            values.update(zip(node.outputs, self._run(node, inputs), strict=False))
        return values[name]

    def _operand(self, name: str, values: Mapping[str, np.ndarray]) -> Any:
        if not name:
            return None
        return values[name] if name in values else widened(self.value(name))

    def _compute(self, names: list[str]) -> None:
        known = self.lengths.matrices.difference(names).union(self._known)
        known |= set() if self.tokens in PROBES else self.lengths.activations
        for node in self.graph.needed(names, known):
            if node.op in ("Shape", "Size"):
                inputs = [_zeros(self.shape(node.inputs[0]))]
                results = self.lengths.run_node(node, inputs)
            elif all(i in self.lengths.static for i in node.inputs if i):
                inputs = [self._static(i) for i in node.inputs]
                results = self.lengths.run_node(node, inputs)
            else:
                results = self._shapes(node)
            self._known.update(zip(node.outputs, results, strict=False))

    def _static(self, name: str) -> Any:
        if not name:
            return None
        if name in self.lengths.matrices and name not in self._known:
            return self.lengths.once(self.tokens).value(name)
        return self._known[name] if name in self._known else self.graph.initializers.read(name)

    def _known_shape(self, name: str) -> tuple[int, ...]:
        if name in self.lengths.matrices:
            return self.shape(name)
        known = self._known.get(name)
        return self.graph.initializers.shape(name) if known is None else known.shape

    def _operand_shape(self, node: Node, name: str) -> tuple[int, ...]:
        """Dimensions of what a node reads; of codes, those that are packed in bytes apart."""
        shape = self._known_shape(name)
        if node.op == "GatherBlockQuantized" and name == node.inputs[0]:
            known = self._known.get(name)
            kind = self.graph.initializers.dtype(name) if known is None else known.dtype.name
            if kind == "uint8":
                return (*shape[:-1], shape[-1] * (8 // int(node.attrs.get("bits", 4))))
        return shape

    def _shapes(self, node: Node) -> list[Any]:
        """Zeros of the shapes of an activation's results."""
        rule = SHAPE_RULES.get(node.kind)
        shapes = [self._operand_shape(node, i) if i else None for i in node.inputs]
        if rule is not None:
            found = self.lengths.guarded(node, shapes, lambda: rule(node, shapes))
            return [None if s is None else _zeros(s) for s in found]
        inputs: list[Any] = []
        for name, shape in zip(node.inputs, shapes, strict=True):
            stored = name in self.graph.initializers
            is_float = stored and self.graph.initializers.is_float(name)
            is_float |= name in self.lengths.matrices
            if not name:
                inputs.append(None)
            elif is_float:  # its values do not matter for shapes
                inputs.append(_zeros(shape or ()))
            else:
                inputs.append(widened(self._static(name)))
        return [_zeros(r.shape, r.dtype) for r in self._run(node, inputs)]

    def _run(self, node: Node, inputs: Sequence[Any]) -> list[Any]:
        """An activation's node: all floats are float32, whatever the file has."""
        if node.kind == "Cast" and node.attrs.get("to") in _FLOAT_TYPES:
            return [np.asarray(inputs[0], np.float32)]
        if node.kind == "CastLike":
            return [inputs[0]]
        return [widened(r) for r in self.lengths.run_node(node, inputs)]

    def _input(self, name: str, kind: int, dims: list[int | str]) -> np.ndarray:
        dtype = onnx.helper.tensor_dtype_to_np_dtype(kind)
        if name == IDS:
            return np.zeros((1, self.tokens), dtype)
        if name in ("position_ids", "cache_position"):
            positions = np.arange(self.tokens, dtype=dtype)
            return positions[None] if len(dims) == 2 else positions
        if name == "attention_mask":
            return np.ones((1, self.tokens), dtype)
        # A cache: (1, heads, 0, head_dim), whatever the names of its dimensions are.
        extents = [d if isinstance(d, int) and d else 0 for d in dims]
        return np.zeros([1, *extents[1:]], dtype)


def widened(array: Any) -> Any:
    """Floats as float32, anything else as it is."""
    if array is None:
        return None
    array = np.asarray(array)
    is_float = array.dtype in _FLOATS or array.dtype.name == "bfloat16"
    return array.astype(np.float32) if is_float else array


def _zeros(shape: Sequence[int], dtype: Any = np.float32) -> np.ndarray:
    """Zeros that take no memory."""
    return np.broadcast_to(np.zeros((), dtype), tuple(shape))


def _line(points: Sequence[int]) -> tuple[int, int] | None:
    """(a, b) of a * n + b at the probed lengths."""
    first, second, _ = PROBES
    slope, rest = divmod(points[1] - points[0], second - first)
    start = points[0] - slope * first
    fits = all(slope * n + start == p for n, p in zip(PROBES, points, strict=True))
    return (slope, start) if fits and not rest else None


def _has_subgraph(node: Node) -> bool:
    return any(a.HasField("g") or a.graphs for a in node.proto.attribute)
