"""The vector units of 64-bit ARM processors, and which one a list of CPU features gives."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from tvm import tirx
from tvm.ir import Expr
from tvm.tirx.script.builder import ir as T

from morendo.codegen.cpu.vectors.isa import VectorISA
from morendo.codegen.cpu.vectors.matrix_block import MatrixBlock

from . import intrinsics as arm


@dataclass(frozen=True)
class DotISA(VectorISA):
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

    def multiply(self, acc: Expr, codes: Expr, x: Expr) -> Expr:
        return arm.MULTIPLY_MATRICES(acc, codes, x)


@dataclass(frozen=True)
class MultiplyISA(VectorISA):
    """Processors of armv8.0: products of 16 bits, added in pairs to 16 and then to 32 bits.

    Two products of 127 * 128 fit 16 bits with their sign.
    """

    def dot(self, acc: Expr, codes: Expr, x: Expr) -> Expr:
        a, b = (T.bind(T.reinterpret("int8x16", value)) for value in (codes, x))
        low, high = (
            arm.MULTIPLY(*(tirx.Shuffle([value], list(range(i, i + 8))) for value in (a, b)))
            for i in (0, 8)
        )
        return acc + arm.ADD_PAIRS_LONG(arm.ADD_PAIRS(low, high))

    def dot_signed(self, acc: Expr, codes: Expr, x: Expr) -> Expr:
        return self.dot(acc, codes, x)


NEON_I8MM = MatrixISA("neon_i8mm", 4, 32, 1, 0, True, takes_lanes=True, masked_stores=False)
NEON_DOT = DotISA("neon_dot", 4, 32, 1, 0, True, takes_lanes=True, masked_stores=False)
NEON = MultiplyISA("neon", 4, 32, 1, 0, True, masked_stores=False)

_BY_FEATURES = (
    (NEON_I8MM, frozenset({"neon", "dotprod", "i8mm"})),
    (NEON_DOT, frozenset({"neon", "dotprod"})),
    (NEON, frozenset({"neon"})),
)

ALL = tuple(isa for isa, _ in _BY_FEATURES)


def isa_for(features: Collection[str]) -> VectorISA | None:
    """The best vector unit that a CPU with these features (LLVM's names) has, or None."""
    return next((isa for isa, needed in _BY_FEATURES if needed <= set(features)), None)
