"""8-bit activations as linear kernels read them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tvm import tirx
from tvm.ir import Expr
from tvm.tirx.script.builder import ir as T

from morendo.codegen.cpu.vectors.isa import VectorISA
from morendo.codegen.cpu.vectors.vector import load, load_words, splat, vector_type

from .activation_layout import ActivationLayout
from .dequantize import BLOCK
from .linear_spec import tensor_argument


@dataclass(frozen=True)
class Activations:
    """int8 activations: codes i8, scales f32, sums i32, as their layout says."""

    isa: VectorISA
    group_size: int
    layout: ActivationLayout
    codes: Any
    scales: Any
    sums: Any

    @classmethod
    def declare(cls, isa: VectorISA, max_tokens: int, groups: int, group_size: int) -> Activations:
        """Declare them as the next parameters of a linear kernel."""
        layout = ActivationLayout.of(isa, max_tokens)
        return cls(
            isa,
            group_size,
            layout,
            tensor_argument("codes", layout.codes_shape(groups * group_size), "int8"),
            tensor_argument("scales", layout.groups_shape(groups), "float32"),
            tensor_argument("sums", layout.groups_shape(groups), "int32"),
        )

    def words(self, token: Expr | int, group: Expr, block: Expr | int, step: int) -> Expr:
        """What a multiply instruction takes of the tokens from `token` on: of one token, four
        channels in every lane, as int32.
        """
        channel = group * self.group_size + block * BLOCK + step * 4
        lanes = self.isa.lanes
        if self.layout.tokens > 1:
            return load_words(
                self.codes,
                (T.floordiv(token, self.layout.tokens), T.floordiv(channel, self.layout.depth), 0),
                lanes,
            )
        if self.isa.takes_lanes:
            whole = vector_type("int32", lanes)
            first = channel - step % lanes * 4
            words = T.reinterpret(whole, load(self.codes, (token, first), 4 * lanes))
            return tirx.Shuffle([words], [step % lanes] * lanes)
        four = T.reinterpret("int32", load(self.codes, (token, channel), 4))
        return splat(four, lanes)

    def scale(self, token, group) -> Expr:
        """The float32 scale of a token's group in every lane that belongs to the token."""
        return self._spread(self.scales, token, group)

    def sum(self, token, group) -> Expr:
        """The sum of a token's codes of a group in every lane that belongs to the token."""
        return self._spread(self.sums, token, group)

    def value(self, token: Expr | int, channel: Expr) -> Expr:
        """One channel of a token as float32."""
        group = T.floordiv(channel, self.group_size)
        scale = self.scales[tuple(self.layout.group_at(token, group))]
        return T.cast(self.codes[tuple(self.layout.code_at(token, channel))], "float32") * scale

    def _spread(self, buffer: Any, token, group) -> Expr:
        if self.layout.tokens == 1:
            return splat(buffer[token, group], self.isa.lanes)
        block = T.floordiv(token, self.layout.tokens)
        values = load(buffer, (block, group, 0), self.layout.tokens)
        return self.isa.block.spread_tokens(values)
