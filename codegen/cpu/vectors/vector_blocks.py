"""Building blocks of row-wise kernels: the function around them, token loops, reductions.

Kernels are written with TVM's IR builder in plain Python: a Python loop unrolls, a `T.serial` loop
stays a loop. Vectors are explicit (`vector.py`), so every LLVM target lowers them to what it has;
nothing here names an instruction of one target.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from tvm import tirx
from tvm.ir import Expr
from tvm.script.ir_builder import IRBuilder
from tvm.tirx.script.builder import ir as T

from morendo.codegen.touched import USED

from .vector import Registers, load, splat, splat_float, vector_type

Element = Callable[[Any, int], Any]
"""Gives the vector (of so many lanes; 1 = scalar) of a row that starts at an index."""


@dataclass(frozen=True)
class Rows:
    """Where one token's elements lie in a float32 [M, stride] buffer.

    Attributes:
        stride: elements from one token to the next.
        offset: elements before the first one that is used.
    """

    stride: int
    offset: int = 0


class KernelBuilder:
    """A PrimFunc under construction; `function` is set when the `kernel` context ends."""

    function: tirx.PrimFunc

    def __init__(self) -> None:
        self.used: dict[str, int] = {}

    def buffer(
        self, name: str, shape: Sequence[int], dtype: str = "float32", used: int | None = None
    ) -> Any:
        """Declare the next parameter: a dense row-major buffer.

        Args:
            name: of the parameter.
            shape: of the buffer.
            dtype: of its elements.
            used: elements of a row that the kernel touches, if not all; for reports alone.
        """
        if used is not None:
            self.used[name] = used
        return T.arg(name, T.buffer(tuple(shape), dtype))

    def scalar(self, name: str) -> Any:
        """Declare the next parameter: an int32."""
        return T.arg(name, T.int32())


@contextmanager
def kernel(name: str) -> Iterator[KernelBuilder]:
    """Build a PrimFunc called `name` from the statements of the with block."""
    built = KernelBuilder()
    with IRBuilder() as builder:
        with T.prim_func():
            T.func_name(name)
            T.func_attr({"tirx.noalias": True})
            yield built
        built.function = builder.get()
    if built.used:
        built.function = built.function.with_attr(USED, built.used)


def kernel_name(op: str, **parameters: Any) -> str:
    """The symbol of a kernel: the op and each parameter that changes its code, never parsed.

    What a C identifier cannot hold is spelled out: 1e-05 is 1em05, 0.5 is 0p5.
    """
    parts = [op]
    for key, value in parameters.items():
        text = f"{value:g}" if isinstance(value, float) else str(value)
        text = text.replace("-", "m").replace(".", "p").replace("+", "")
        parts.append(f"{key}{text}")
    return "_".join(parts)


def token_loop(tokens: Any, max_tokens: int, work_per_token: int) -> Any:
    """Loop over the tokens, on all threads when a full chunk is worth starting them.

    Args:
        tokens: how many there are at run time.
        max_tokens: how many there can be.
        work_per_token: bytes or operations of one token; two tasks of 20000 pay for a start.
    """
    parallel = max_tokens > 1 and max_tokens * work_per_token >= 40000
    return (T.parallel if parallel else T.serial)(0, tokens)


def load_float(buffer: Any, index: Sequence[Any], lanes: int) -> Any:
    """`lanes` neighbours of a float16 or float32 buffer, as float32 in a variable."""
    return T.bind(T.cast(load(buffer, index, lanes), vector_type("float32", lanes)))


def load_ordered(buffer: Any, index: Sequence[Any], order: Any, lanes: int) -> Any:
    """Like `load_float`, the neighbours in an order: uint16 places by place, or None.

    Places beyond the row, which only a damaged file has, are its last.
    """
    if order is None:
        return load_float(buffer, index, lanes)
    *outer, last = index
    places = T.cast(load(order, [last], lanes), vector_type("int32", lanes))
    places = T.min(places, splat(T.int32(int(buffer.shape[-1]) - 1), lanes))
    return T.bind(T.cast(buffer[(*outer, places)], vector_type("float32", lanes)))


def common_lanes(extent: int, lanes: int) -> int:
    """The widest vector of at most `lanes` lanes (a power of two) that divides `extent`."""
    return math.gcd(extent, lanes)


def variable(value: Any, lanes: int, dtype: str = "float32") -> Any:
    """The value in a variable that is opaque to TVM's analysis, to be used many times.

    TVM's interval analysis expands each use of a `T.bind` variable, exponentially in a chain of
    variables used twice; a register is a load to it, and still a register to LLVM.
    """
    slot = Registers(1, dtype, lanes)
    slot[0] = value
    return slot[0]


def counting(first: Any, lanes: int) -> Any:
    """The int32 x lanes first, first + 1, ..., a sum of two vectors: TVM makes a ramp of anything
    but constants lane by lane.
    """
    return variable(
        variable(splat(first, lanes), lanes, "int32") + T.ramp(T.int32(0), 1, lanes), lanes, "int32"
    )


def index(value: Any) -> Any:
    """An int32 in a variable that is opaque to TVM's analysis."""
    return variable(value, 1, "int32")


def reduce_lanes(
    value: Any, lanes: int, combine: Callable[[Any, Any], Any], dtype: str = "float32"
) -> Expr:
    """Fold the lanes of a vector to one scalar by halves."""
    while lanes > 1:
        value = variable(value, lanes, dtype)
        lanes //= 2
        low = tirx.Shuffle([value], list(range(lanes)))
        high = tirx.Shuffle([value], list(range(lanes, 2 * lanes)))
        value = combine(low, high)
    return variable(value, 1, dtype)


def fold(values: Sequence[Any], combine: Callable[[Any, Any], Any]) -> Any:
    """Fold expressions as a balanced tree, so that the chain of dependences is short."""
    level = list(values)
    while len(level) > 1:
        pairs = [combine(a, b) for a, b in zip(level[::2], level[1::2], strict=False)]
        level = pairs + level[len(pairs) * 2 :]
    return level[0]


def row_sum(terms: Element, count: int, lanes: int) -> Expr:
    """Sum `terms(i, lanes)` over i = 0, lanes, 2*lanes, ... below `count`.

    Four accumulators hide the latency of the addition; what is left below a whole vector is added
    with one lane.
    """
    vectors = count // lanes
    unroll = min(4, max(vectors, 1))
    sums, rest = Registers(unroll, "float32", lanes), Registers(1, "float32", 1)
    for u in range(unroll):
        sums[u] = splat_float(0.0, lanes)
    rest[0] = T.float32(0.0)
    with T.serial(0, vectors // unroll) as step:
        for u in range(unroll):
            sums[u] = sums[u] + terms((step * unroll + u) * lanes, lanes)
    for vector in range(vectors - vectors % unroll, vectors):
        sums[vector % unroll] = sums[vector % unroll] + terms(vector * lanes, lanes)
    if count % lanes:
        with T.serial(vectors * lanes, count) as index:
            rest[0] = rest[0] + terms(index, 1)
    total = fold([sums[u] for u in range(unroll)], lambda a, b: a + b)
    return variable(reduce_lanes(total, lanes, lambda a, b: a + b) + rest[0], 1)


def for_each_vector(body: Callable[[Any, int], None], count: int, lanes: int) -> None:
    """Call `body(i, lanes)` for whole vectors, then `body(i, 1)` for the elements left over."""
    vectors = count // lanes
    if vectors:
        with T.serial(0, vectors) as vector:
            body(vector * lanes, lanes)
    if count % lanes:
        with T.serial(vectors * lanes, count) as index:
            body(index, 1)
