"""The vector unit of Hexagon processors: HVX with vectors of 128 bytes."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from tvm import tirx
from tvm.ir import Expr
from tvm.tirx.script.builder import ir as T

from morendo.codegen.cpu.vectors.isa import VectorISA
from morendo.codegen.cpu.vectors.vector import load, store
from morendo.codegen.cpu.vectors.vector_blocks import variable

from . import intrinsics as hvx
from .float_functions import PREFIX
from .pipeline import DEFAULT_PIPELINE, TilePipeline

_FIELDS = ((5, 0x60), (3, 0x60), (3, 0x18), (1, 0x18))
"""What is looked up instead of shifted and masked: (bits to the left, mask of the result).

Shifts go to one unit only, look-ups to another, and an instruction packet has one of each. These
are two bits of a nibble, moved to the base's place in a code or to that of the two planes below.
"""


@dataclass(frozen=True)
class HvxISA(VectorISA):
    """Vectors of 32 words; vrmpy multiplies unsigned with signed bytes, four to a lane.

    Attributes:
        on_chip_bytes: of the memory beside the vector units (VTCM).
    """

    pipeline: TilePipeline = DEFAULT_PIPELINE
    on_chip_bytes: int = 2 << 20

    def dot(self, acc: Expr, codes: Expr, x: Expr) -> Expr:
        if isinstance(x, tirx.Broadcast):  # the instruction spreads a scalar register itself
            return hvx.DOT_SCALAR(acc, codes, x.value)
        return hvx.DOT(acc, codes, x)

    def dot_signed(self, acc: Expr, codes: Expr, x: Expr) -> Expr:
        return self.dot(acc, codes, x)  # codes + 128 are unsigned

    def extract(self, words: Expr, left: int, mask: int) -> Expr:
        upper = (left + 4, mask) in _FIELDS
        field = (left + 4 * upper, mask)
        if field not in _FIELDS:
            return super().extract(words, left, mask)
        nibbles = hvx.RIGHT(words, T.int32(4)) if upper else words
        return T.reinterpret("uint32x32", look_up(nibbles, _field_tables(), _FIELDS.index(field)))

    def extract_lower(self, words: Expr, left: int, mask: int) -> Expr:
        return self.extract(words, left, mask)

    def fold_lanes(
        self,
        vectors: Sequence[Expr],
        lanes: int,
        combine: Callable[[Expr, Expr], Expr],
        dtype: str = "float32",
    ) -> list[Expr]:
        """Two vectors become one by a shuffle and one operation, until a lane of one is a fold of
        a whole vector: vectors of fewer lanes would be taken apart, lane by lane.
        """
        if lanes != self.lanes:
            return super().fold_lanes(vectors, lanes, combine, dtype)
        whole = f"{dtype}x{lanes}"
        level = [variable(vector, lanes, dtype) for vector in vectors]
        level += level[-1:] * ((1 << (len(level) - 1).bit_length()) - len(level))

        def combined(*words: Expr) -> Expr:
            return variable(combine(*(T.reinterpret(whole, x) for x in words)), lanes, dtype)

        count = len(level)
        while len(level) > 1:
            half = len(level) // 2
            pairs = [
                T.bind(hvx.ZIP(*x, T.int32(-4)))
                for x in zip(level[half:], level[:half], strict=True)
            ]
            level = [combined(hvx.LOW(pair), hvx.HIGH(pair)) for pair in pairs]
        for step in range(1, (lanes // count).bit_length()):
            turned = hvx.ROTATE(level[0], T.int32(4 * (lanes >> step)))
            level = [combined(level[0], turned)]
        kept = T.alloc_buffer((lanes,), dtype, layout=None)
        store(kept, (0,), level[0], lanes)
        return [variable(kept[i], 1, dtype) for i in range(len(vectors))]

    def of_each(self, function: Callable[[Expr, int], Expr], scalars: Sequence[Expr]) -> list[Expr]:
        """All of them in one vector: quotients and exponentials of scalars are library calls."""
        kept = T.alloc_buffer((self.lanes,), "float32", layout=None)
        for i, scalar in enumerate(scalars):
            T.buffer_store(kept, scalar, [i])
        together = variable(load(kept, (0,), self.lanes), self.lanes)
        store(kept, (0,), function(together, self.lanes), self.lanes)
        return [variable(kept[i], 1) for i in range(len(scalars))]

    def inverse_root(self, x: Expr) -> Expr:
        """In a vector, as `of_each`."""
        name = f"{PREFIX}inverse_root"
        return self.of_each(lambda v, _: T.call_pure_extern("float32x32", name, v), [x])[0]

    def exp(self, x: Expr, lanes: int) -> Expr:
        if lanes == 1:  # rounding a scalar would be a library call
            return self.of_each(self.exp, [x])[0]
        if lanes != self.lanes:
            return super().exp(x, lanes)
        return T.call_pure_extern("float32x32", f"{PREFIX}exponential", x)

    def gated(self, name: str, gate: Expr, up: Expr, lanes: int) -> Expr:
        if name != "silu" or lanes != self.lanes:
            return super().gated(name, gate, up, lanes)
        return T.call_pure_extern("float32x32", f"{PREFIX}silu_times", gate, up)

    def scaled(self, count: Expr, a: Expr, b: Expr, lanes: int) -> Expr:
        if lanes != self.lanes:
            return super().scaled(count, a, b, lanes)
        return T.call_pure_extern("float32x32", f"{PREFIX}scaled", count, a, b)

    def where_below(self, a: Expr, b: Expr, x: Expr, y: Expr, lanes: int) -> Expr:
        """By the instructions: LLVM takes apart a vector of 32 bits that it has to keep."""
        if lanes != self.lanes:
            return super().where_below(a, b, x, y, lanes)
        words = (T.reinterpret("int32x32", value) for value in (x, y))
        return T.reinterpret("float32x32", hvx.CHOOSE(hvx.GREATER(b, a), *words))


def look_up(words: Expr, tables: Sequence[int], number: int) -> Expr:
    """The entries of a table for the lower five bits of all bytes."""
    vector = tirx.Shuffle([T.int32(word) for word in tables], list(range(len(tables))))
    return hvx.LOOK_UP(words, vector, T.int32(number))


def tables_of(entries: Sequence[Sequence[int]]) -> tuple[int, ...]:
    """Four tables of 32 bytes as the words of a vector, as the instruction takes them."""
    by_half = np.array(entries, np.uint8).reshape(2, 2, 32)  # odd or even byte, half, entry
    return tuple(by_half.transpose(1, 2, 0).reshape(-1).view(np.int32).tolist())


@functools.cache
def _field_tables() -> tuple[int, ...]:
    return tables_of([[(i << left) & mask for i in range(32)] for left, mask in _FIELDS])


HVX = HvxISA("hvx", 32, 32, 1, 128, True, masked_stores=False, side_by_side=8)
