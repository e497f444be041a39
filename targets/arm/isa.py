"""The vector units of 64-bit ARM processors, and which one a list of CPU features gives."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from tvm import tirx
from tvm.ir import Expr
from tvm.tirx.script.builder import ir as T

from morendo.codegen.cpu.vectors.isa import VectorISA
from morendo.codegen.cpu.vectors.matrix_block import MatrixBlock
from morendo.codegen.cpu.vectors.vector import Registers, lanes_of, settled, splat, vector_type

from . import intrinsics as arm


@dataclass(frozen=True)
class NeonISA(VectorISA):
    """What all have in common."""

    def widen(self, values: Expr, count: int) -> list[Expr]:
        """By way of 16 bits: one instruction for each vector of either width."""
        kind = str(values.ty).partition("x")[0].replace("8", "16")
        shorts = [
            T.bind(T.cast(lanes_of(values, first, 8), vector_type(kind, 8)))
            for first in range(0, count, 8)
        ]
        return [T.cast(lanes_of(s, i, 4), "int32x4") for s in shorts for i in (0, 4)]


@dataclass(frozen=True)
class DotISA(NeonISA):
    """Processors with sdot (signed bytes, four to a lane); codes below 128 are signed bytes too."""

    def dot(self, acc: Expr, codes: Expr, x: Expr) -> Expr:
        return arm.DOT(acc, codes, x)

    def dot_signed(self, acc: Expr, codes: Expr, x: Expr) -> Expr:
        return arm.DOT(acc, codes, x)


@dataclass(frozen=True)
class MatrixISA(DotISA):
    """Processors with smmla too: two rows times two tokens, eight channels deep."""

    @property
    def block(self) -> MatrixBlock:
        return MatrixBlock(2, 2, 8)

    def dot_small(self, acc: Expr, codes: Sequence[Expr], x: Sequence[Expr]) -> Expr:
        for words, activations in zip(codes, x, strict=True):
            acc = arm.MIXED_DOT(acc, words, activations)
        return acc

    def multiply(self, acc: Expr, codes: Expr, x: Expr) -> Expr:
        return arm.MULTIPLY_MATRICES(acc, codes, x)


def _in_all_lanes(x: Expr) -> Expr:
    """Activations as bytes; LLVM would take their upper half for the lower one, which is the same,
    and then move the codes that they are multiplied with there too.
    """
    return T.bind(settled(T.reinterpret("int8x16", x), 16))


class ShortSums:
    """Sums of products in 16 bits, which those of eight words of codes up to 15, and pairs of
    these, fit: 2 * 8 * 15 * 127 = 30480.

    Args:
        count: vectors of four rows.
    """

    def __init__(self, count: int) -> None:
        self._sums = Registers(2 * count, "int16", 8)
        for i in range(2 * count):
            self._sums[i] = splat(T.int16(0), 8)

    def add(self, i: int, codes: Expr, x: Expr) -> None:
        """Add the products of a word of each of the rows of vector i."""
        a, b = T.bind(T.reinterpret("int8x16", codes)), _in_all_lanes(x)
        for part in range(2):
            operands = (lanes_of(value, 8 * part, 8) for value in (a, b))
            self._sums[2 * i + part] = self._sums[2 * i + part] + arm.MULTIPLY(*operands)

    def total(self, i: int) -> Expr:
        """The sums of the rows of vector i: int32x4."""
        return arm.ADD_PAIRS_LONG(arm.ADD_PAIRS(self._sums[2 * i], self._sums[2 * i + 1]))


@dataclass(frozen=True)
class MultiplyISA(NeonISA):
    """Processors of armv8.0: products of 16 bits, added in pairs to 16 and then to 32 bits.

    Two products of 127 * 128 fit 16 bits with their sign.
    """

    def dot(self, acc: Expr, codes: Expr, x: Expr) -> Expr:
        a, b = T.bind(T.reinterpret("int8x16", codes)), _in_all_lanes(x)
        low, high = (
            arm.MULTIPLY(*(tirx.Shuffle([value], list(range(i, i + 8))) for value in (a, b)))
            for i in (0, 8)
        )
        return acc + arm.ADD_PAIRS_LONG(arm.ADD_PAIRS(low, high))

    def dot_small(self, acc: Expr, codes: Sequence[Expr], x: Sequence[Expr]) -> Expr:
        sums = ShortSums(1)
        for words, activations in zip(codes, x, strict=True):
            sums.add(0, words, activations)
        return acc + sums.total(0)

    def short_sums(self, count: int) -> ShortSums:
        return ShortSums(count)

    def dot_signed(self, acc: Expr, codes: Expr, x: Expr) -> Expr:
        return self.dot(acc, codes, x)


NEON = MultiplyISA(
    *("neon", 4, 32, 1, 0, True),
    adds_short=True,
    shifts_bytes=True,
    planes_to_nibbles=True,
    integer_scales=True,
    scales_by_lane=True,
    masked_stores=False,
)
NEON_DOT = DotISA(**{**vars(NEON), "name": "neon_dot", "takes_lanes": True, "adds_short": False})
NEON_I8MM = MatrixISA(**{**vars(NEON_DOT), "name": "neon_i8mm", "upper_in_place": True})

_BY_FEATURES = (
    (NEON_I8MM, frozenset({"neon", "dotprod", "i8mm"})),
    (NEON_DOT, frozenset({"neon", "dotprod"})),
    (NEON, frozenset({"neon"})),
)

ALL = tuple(isa for isa, _ in _BY_FEATURES)


def isa_for(features: Collection[str]) -> VectorISA | None:
    """The best vector unit that a CPU with these features (LLVM's names) has, or None."""
    return next((isa for isa, needed in _BY_FEATURES if needed <= set(features)), None)
