"""The scales of activations as whole numbers, relative to the largest of each token."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tvm.ir import Expr
from tvm.tirx.script.builder import ir as T

from morendo.codegen.cpu.kernels.quantized_kernel import QuantizedKernel
from morendo.codegen.cpu.vectors.isa import VectorISA
from morendo.codegen.cpu.vectors.vector import splat, splat_float, store

from .fixed_point import RATIOS, SMALLEST, token_unit
from .scale_words import LANES


@dataclass(frozen=True)
class TokenScales:
    """What `fixed_point.token_ratios` says, of all tokens of a call.

    Attributes:
        ratios: int32 [M, G].
        units: float32 [M]: what a sum is multiplied with, but for the row's scale.
    """

    isa: VectorISA
    ratios: Any
    units: Any

    @classmethod
    def of(cls, kernel: QuantizedKernel) -> TokenScales:
        """Compute them, in scalars: one for each group of a token is little beside its products."""
        spec, scales = kernel.spec, kernel.x.scales
        ratios = T.alloc_buffer((spec.max_tokens, spec.groups), "int32", layout=None)
        units = T.alloc_buffer((spec.max_tokens,), "float32", layout=None)
        factor = T.alloc_buffer((LANES,), "float32", layout=None)
        columns = spec.groups * spec.format.group_size
        unit = float(token_unit(columns, kernel.weights.scale_unit))
        with T.serial(0, kernel.tokens if spec.max_tokens > 1 else 1) as token:
            T.buffer_store(units, T.float32(float(SMALLEST)), [token])
            with T.serial(0, spec.groups) as group:
                T.buffer_store(units, T.max(units[token], scales[token, group]), [token])
            # A quotient of scalars would be a library call.
            quotient = splat_float(2 * RATIOS, LANES) / splat(units[token], LANES)
            store(factor, (0,), quotient, LANES)
            with T.serial(0, spec.groups) as group:
                halves = T.cast(scales[token, group] * factor[0], "int32")
                T.buffer_store(ratios, (halves + 1) >> 1, [token, group])
            T.buffer_store(units, units[token] * T.float32(unit), [token])
        return cls(kernel.isa, ratios, units)

    def ratio(self, token: Expr | int, group: Expr) -> Expr:
        """A group's ratio in every lane."""
        return splat(self.ratios[token, group], LANES)

    def result(self, sums: Expr, token: Expr | int, row_scales: Expr) -> Expr:
        """Sums of rows as floats (`fixed_point.to_floats`)."""
        return self.isa.scaled(sums, splat(self.units[token], LANES), row_scales, LANES)


def minus_in_halves(value: Expr) -> Expr:
    """Minus a number of 16 bits, in both halves of a word."""
    minus = T.bind(T.int32(0) - value)
    return (minus << 16) | (minus & T.int32(0xFFFF))
