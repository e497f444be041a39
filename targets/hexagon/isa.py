"""The vector unit of Hexagon processors: HVX with vectors of 128 bytes."""

from __future__ import annotations

from dataclasses import dataclass

from tvm import tirx
from tvm.ir import Expr

from morendo.codegen.cpu.vectors.isa import VectorISA

from . import intrinsics as hvx


@dataclass(frozen=True)
class HvxISA(VectorISA):
    """Vectors of 32 words; vrmpy multiplies unsigned with signed bytes, four to a lane."""

    def dot(self, acc: Expr, codes: Expr, x: Expr) -> Expr:
        if isinstance(x, tirx.Broadcast):  # the instruction spreads a scalar register itself
            return hvx.DOT_SCALAR(acc, codes, x.value)
        return hvx.DOT(acc, codes, x)

    def dot_signed(self, acc: Expr, codes: Expr, x: Expr) -> Expr:
        return self.dot(acc, codes, x)  # codes + 128 are unsigned


HVX = HvxISA("hvx", 32, 32, 1, 128, True, masked_stores=False)
