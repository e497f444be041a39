"""An instruction that kernels name: LLVM's name of it, its types, and what it means.

Everything else (shifts, masks, conversions, fused multiply-add) is plain TIR, for which LLVM picks
the instruction. The meanings are numpy functions that tests run against the instruction.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from numpy.typing import NDArray
from tvm.ir import Expr
from tvm.tirx.script.builder import ir as T


@dataclass(frozen=True)
class Intrinsic:
    """One instruction.

    Attributes:
        llvm: LLVM's name of it.
        result: dtype of the result, with lanes, as TVM spells it ("int32x16").
        operands: dtypes of the operands.
        meaning: the same function on numpy arrays.
        features: CPU features that it needs, one of which is enough (as LLVM spells them).
        immediates: bytes that the instruction holds, the last arguments of LLVM's function.
    """

    llvm: str
    result: str
    operands: tuple[str, ...]
    meaning: Callable[..., NDArray]
    features: tuple[str, ...]
    immediates: tuple[int, ...] = ()

    def __call__(self, *operands: Expr) -> Expr:
        """The call, with operands of any type of the right width."""
        typed = [
            value if str(value.ty) == dtype else T.reinterpret(dtype, value)
            for value, dtype in zip(operands, self.operands, strict=True)
        ]
        constants = [T.uint8(value) for value in self.immediates]
        return T.call_llvm_pure_intrin(self.result, self.llvm, *typed, *constants)
