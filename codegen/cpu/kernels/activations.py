"""8-bit activations as linear kernels read them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tvm import tirx
from tvm.ir import Expr
from tvm.tirx.script.builder import ir as T

from morendo.codegen.cpu.vectors.isa import VectorISA
from morendo.codegen.cpu.vectors.vector import load, splat, vector_type

from .dequantize import BLOCK


@dataclass(frozen=True)
class Activations:
    """int8 activations: codes [M, Kp], scales f32 [M, G], sums i32 [M, G]."""

    isa: VectorISA
    group_size: int
    codes: Any
    scales: Any
    sums: Any

    def words(self, token: Expr | int, group: Expr, block: Expr | int, step: int) -> Expr:
        """Four channels of a token in every lane, as int32."""
        channel = group * self.group_size + block * BLOCK + step * 4
        if self.isa.takes_lanes:
            lanes = self.isa.lanes
            whole = vector_type("int32", lanes)
            first = channel - step % lanes * 4
            words = T.reinterpret(whole, load(self.codes, (token, first), 4 * lanes))
            return tirx.Shuffle([words], [step % lanes] * lanes)
        four = T.reinterpret("int32", load(self.codes, (token, channel), 4))
        return splat(four, self.isa.lanes)

    def scale(self, token, group) -> Expr:
        """The float32 scale of a token's group in every lane."""
        return splat(self.scales[token, group], self.isa.lanes)

    def sum(self, token, group) -> Expr:
        """The sum of a token's codes of a group in every lane."""
        return splat(self.sums[token, group], self.isa.lanes)

    def value(self, token: Expr | int, channel: Expr) -> Expr:
        """One channel of a token as float32."""
        scale = self.scales[token, T.floordiv(channel, self.group_size)]
        return T.cast(self.codes[token, channel], "float32") * scale
