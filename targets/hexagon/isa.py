"""The vector unit of Hexagon processors: HVX with vectors of 128 bytes."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from tvm import tirx
from tvm.ir import Expr
from tvm.tirx.script.builder import ir as T

from morendo.codegen.cpu.vectors.isa import VectorISA

from . import intrinsics as hvx
from .float_functions import PREFIX

_FIELDS = ((5, 0x60), (3, 0x60), (3, 0x18), (1, 0x18))
"""What is looked up instead of shifted and masked: (bits to the left, mask of the result).

Shifts go to one unit only, look-ups to another, and an instruction packet has one of each. These
are two bits of a nibble, moved to the base's place in a code or to that of the two planes below.
"""


@dataclass(frozen=True)
class HvxISA(VectorISA):
    """Vectors of 32 words; vrmpy multiplies unsigned with signed bytes, four to a lane."""

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

    def exp(self, x: Expr, lanes: int) -> Expr:
        if lanes != self.lanes:
            return super().exp(x, lanes)
        return T.call_pure_extern("float32x32", f"{PREFIX}exponential", x)


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


HVX = HvxISA("hvx", 32, 32, 1, 128, True, masked_stores=False)
