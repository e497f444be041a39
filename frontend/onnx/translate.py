"""An ONNX graph as raw Relax: only what the logits need, attentions as one op each."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import tvm
from tvm import relax

from morendo.ir import dialect
from morendo.ir.errors import InputError, MorendoError

from .attention import Attention, AttentionFinder
from .graph import Node, OnnxGraph
from .lengths import IDS, PROBES, Lengths
from .names import readable_name
from .weights import Plain, Recipe

LOGITS = "logits"
_WALKED = ("Cast", "Expand", "Identity", "Reshape", "Squeeze", "Unsqueeze")


@dataclass(frozen=True)
class Step:
    """How one node's results are computed.

    Attributes:
        needs: activations that it reads.
        emit: writes it; gives the results by name.
    """

    needs: Sequence[str]
    emit: Callable[[Translator], dict[str, Any]]


@dataclass
class Translation:
    """A translated graph.

    Attributes:
        function: main(input_ids, position_ids, *weights) -> logits (1, n, V).
        recipes: how each weight is read.
        buffers: vectors that the importer worked out, such as rotary frequencies.
        longest: tokens up to which masks and tables hold.
    """

    function: relax.Function
    recipes: dict[str, Recipe]
    buffers: dict[str, np.ndarray]
    longest: int


@dataclass
class Translator:
    """Relax that is being written.

    Args:
        graph: what is translated.
        finder: of its attentions.
    """

    graph: OnnxGraph
    lengths: Lengths
    finder: AttentionFinder
    builder: relax.BlockBuilder = field(default_factory=relax.BlockBuilder)

    def __post_init__(self) -> None:
        self.tokens = tvm.tirx.Var("n", "int64")
        ids = relax.TensorType([1, self.tokens], "int64")
        self.ids, self.positions = relax.Var(IDS, ids), relax.Var("position_ids", ids)
        self.values: dict[str, Any] = {IDS: self.ids}
        self.recipes: dict[str, Recipe] = {}
        self.buffers: dict[str, np.ndarray] = {}
        self.longest = self.finder.longest
        self.layers = 0
        self._names: dict[Any, str] = {}  # recipe or bytes of a buffer -> name
        self._params: dict[str, relax.Var] = {}

    def run(self, steps: dict[Node, Step]) -> Translation:
        """Write the steps in the graph's order."""
        with self.builder.function("main"):
            with self.builder.dataflow():
                for node in sorted(steps, key=lambda n: n.index):
                    self.values.update(self._emitted(node, steps[node]))
                out = self.builder.emit_output(self.values[LOGITS])
            params = [self.ids, self.positions, *self._params.values()]
            self.builder.emit_func_output(out, params=params)
        function = self.builder.finalize()["main"].with_attrs(
            {"global_symbol": "main", "num_input": 2, "weight_names": list(self._params)}
        )
        return Translation(function, self.recipes, self.buffers, self.longest)

    def _emitted(self, node: Node, step: Step) -> dict[str, Any]:
        try:
            return step.emit(self)
        except MorendoError:
            raise
        except Exception as error:  # TVM's, of what a node's contract forbids
            raise self.misfit(node) from error

    # What rules of ops ask for.

    def misfit(self, node: Node) -> InputError:
        """The error about a node whose operands do not fit together."""
        at = self.lengths.at(PROBES[0])
        return self.graph.misfit(node, [at.shape(name) if name else None for name in node.inputs])

    def emit(self, expr: Any) -> Any:
        """Bind an expression."""
        return self.builder.emit(expr)

    def dims(self, name: str) -> list[Any]:
        """The dimensions of a value: numbers, and expressions of the number of tokens."""
        pairs = self.lengths.dims(name)
        return [self._extent(slope, start) for slope, start in pairs]

    def _extent(self, slope: int, start: int) -> Any:
        if slope == 0:
            return start
        product = self.tokens if slope == 1 else self.tokens * slope
        return product + start if start else product

    def token_axes(self, name: str) -> list[int]:
        """The axes whose extents depend on the number of tokens."""
        return [axis for axis, (slope, _) in enumerate(self.lengths.dims(name)) if slope]

    def tensor(self, name: str, node: Node, part: str = "weight") -> Any:
        """An operand: an activation, a scalar, a weight or the embedding of positions.

        Raises:
            InputError: for a value that depends on positions in another way.
        """
        if name in self.lengths.activations:
            return self.values[name]
        scalar = self.lengths.scalar(name)
        if scalar is not None:
            return relax.const(np.float32(scalar))
        if name in self.lengths.varying and self.lengths.constant(name) is None:
            return self._embedded_positions(name, node)
        rank = len([d for d in self.lengths.at(PROBES[0]).shape(name) if d != 1]) or 1
        return self.param(Plain(name, rank=rank), node, part)

    def param(self, recipe: Recipe, node: Node, part: str = "weight") -> relax.Var:
        """A weight as a variable."""
        name = self.weight(recipe, node, part)
        if name not in self._params:
            kind = relax.TensorType(list(recipe.shape(self.lengths)), "float32")
            self._params[name] = relax.Var(name.replace(".", "_"), kind)
        return self._params[name]

    def weight(self, recipe: Recipe, node: Node, part: str = "weight") -> str:
        """The name of a weight."""
        if recipe not in self._names:
            name = readable_name(node, recipe.origin, part, {*self.recipes, *self.buffers})
            self._names[recipe] = name
            self.recipes[name] = recipe
        return self._names[recipe]

    def buffer(self, name: str, values: np.ndarray) -> str:
        """The name of a small vector that the importer made; equal ones share it."""
        key = name, values.tobytes()
        if key not in self._names:
            number = sum(known.startswith(name) for known in self.buffers)
            self._names[key] = f"{name}_{number + 1}" if number else name
            self.buffers[self._names[key]] = values
        return self._names[key]

    def buffer_param(self, name: str, values: np.ndarray) -> relax.Var:
        """Such a vector as a variable."""
        name = self.buffer(name, values)
        if name not in self._params:
            kind = relax.TensorType(list(values.shape), "float32")
            self._params[name] = relax.Var(name.replace(".", "_"), kind)
        return self._params[name]

    def _embedded_positions(self, name: str, node: Node) -> Any:
        """Rows of a table by position (gpt2, opt)."""
        producer = self.graph.producers.get(name)
        while producer is not None and producer.op in _WALKED:
            producer = self.graph.producers.get(producer.inputs[0])
        if producer is None or producer.kind != "Gather" or producer.attrs.get("axis", 0) != 0:
            raise self._positional(name, node)
        table, rows = producer.inputs[:2]
        shape = self.lengths.at(PROBES[0]).shape(table)
        starts = {self._first_row(rows, tokens) for tokens in PROBES}
        if len(shape) != 2 or len(starts) != 1 or None in starts:
            raise self._positional(name, node)
        start = starts.pop() or 0
        self.longest = min(self.longest, shape[0] - start)
        ids: Any = self.positions
        if start:
            ids = self.emit(relax.op.add(ids, relax.const(start, "int64")))
        weight = self.weight(Plain(table), producer)
        found = dialect.call("embedding", ids, weight=weight, rows=shape[0], features=shape[1])
        return self.emit(relax.op.reshape(self.emit(found), self.dims(name)))

    def _first_row(self, name: str, tokens: int) -> int | None:
        """The first of rows that follow each other, one for a token; None for other rows."""
        rows = self.lengths.at(tokens).value(name).reshape(-1)
        follows = len(rows) == tokens and (np.diff(rows) == 1).all()
        return int(rows[0]) if follows else None

    def _positional(self, name: str, node: Node) -> Exception:
        return self.graph.error(
            f"{node.label} reads {name!r}, which depends on positions in an unknown way",
            hint="positions may rotate queries and keys, mask scores or pick rows of a table",
        )

    def attention(self, found: Attention) -> Any:
        """(1, n, heads, head_dim) of an attention.

        Raises:
            InputError: for heads whose sizes or numbers do not fit together.
        """
        self._check_heads(found)
        q, k, v = (self._heads(x) for x in (found.q, found.k, found.v))
        scale = found.scale * found.q.factor * found.k.factor
        alibi = ""
        if found.mask.slopes is not None:
            alibi = self.buffer("alibi_slopes", found.mask.slopes)
        tables = (x.longest for x in (found.q, found.k))
        self.longest = min(self.longest, found.mask.longest, *tables)
        attrs = {"window": found.mask.window, "softcap": found.softcap, "alibi": alibi}
        call = dialect.call(
            "attention", q, k, v, layer=self.layers, scale=float(f"{scale:.7g}"), **attrs
        )
        self.layers += 1
        out = self.emit(call)
        if abs(found.v.factor - 1) > 1e-6:
            out = self.emit(relax.op.multiply(out, relax.const(np.float32(found.v.factor))))
        return out

    def _check_heads(self, found: Attention) -> None:
        sizes = [x.size for x in (found.q, found.k, found.v)]
        if len(set(sizes)) != 1 or max(found.q.rotary_dim, found.k.rotary_dim) > sizes[0]:
            said = ", ".join(map(str, sizes))
            raise self.graph.error(
                f"{found.node.label}: heads of queries, keys and values have different sizes, or "
                f"rotate more channels than they have (got {said} channels, "
                f"{found.q.rotary_dim} rotated)",
                hint="export a causal language model, with its usual attention",
            )

    def _heads(self, found: Any) -> Any:
        """An attention's operand (1, n, heads, head_dim), rotated."""
        x = self.values[found.source]
        shape = self.dims(found.source)
        order = [i for i in range(len(shape)) if i != found.token_axis]
        if found.token_axis != next((i for i, d in enumerate(shape) if d != 1), 0):
            x = self.emit(relax.op.permute_dims(x, [found.token_axis, *order]))
        rows, _ = self.lengths.dims(found.source)[found.token_axis]
        features = rows * int(np.prod([shape[i] for i in order]))
        x = self.emit(relax.op.reshape(x, [1, self.tokens, features]))
        size, stop = found.size, found.start + found.heads * found.stride
        if found.stride == size:
            x = self.sliced(x, 2, found.start, stop)
        else:
            offset = found.start % found.stride
            x = self.sliced(x, 2, found.start - offset, stop - offset)
            x = self.emit(relax.op.reshape(x, [1, self.tokens, found.heads, found.stride]))
            x = self.sliced(x, 3, offset, offset + size)
        x = self.emit(relax.op.reshape(x, [1, self.tokens, found.heads, size]))
        if found.rotary is None:
            return x
        inv_freq = self.buffer("rotary.inv_freq", found.rotary.inv_freq)
        rope = dialect.call(
            "rope", x, self.positions, inv_freq=inv_freq, scaling=found.rotary.scaling,
            rotary_dim=found.rotary_dim, interleaved=found.interleaved,
        )  # fmt: skip
        return self.emit(rope)

    def sliced(self, x: Any, axis: int, start: int, stop: int) -> Any:
        """x[..., start:stop, ...]."""
        x = x if isinstance(x, relax.Var) else self.emit(x)
        return self.emit(relax.op.strided_slice(x, [axis], [start], [stop]))
