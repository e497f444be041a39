"""How 8-bit activations lie in memory for the kernels that multiply them.

Where one multiply instruction takes several tokens, these lie together, so that its operand is one
vector: codes [M / T, Kp / D, T, D], scales and sums [M / T, G, T] for blocks of T tokens and D
channels. M is rounded up; what lies there for tokens that are not is never looked at. A dot product
takes one token: codes [M, Kp], scales and sums [M, G].
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tvm.tirx.script.builder import ir as T

from morendo.codegen.cpu.vectors.isa import VectorISA
from morendo.ir.formats import ceil_div


@dataclass(frozen=True)
class ActivationLayout:
    """The activations of at most `max_tokens` tokens.

    Attributes:
        max_tokens: M.
        tokens: T, neighbours that lie together.
        depth: D, neighbouring channels of such a token.
    """

    max_tokens: int
    tokens: int
    depth: int

    @classmethod
    def of(cls, isa: VectorISA, max_tokens: int) -> ActivationLayout:
        """What the linear kernels of a vector unit read; those of one token multiply vectors."""
        block = isa.block
        return cls(max_tokens, block.tokens if max_tokens > 1 else 1, block.depth)

    @property
    def stored_tokens(self) -> int:
        """M rounded up to whole blocks."""
        return ceil_div(self.max_tokens, self.tokens) * self.tokens

    def codes_shape(self, columns: int) -> tuple[int, ...]:
        """The buffer of codes; `columns` are Kp."""
        if self.tokens == 1:
            return (self.max_tokens, columns)
        return (self.stored_tokens // self.tokens, columns // self.depth, self.tokens * self.depth)

    def groups_shape(self, groups: int) -> tuple[int, ...]:
        """The buffers of scales and sums."""
        if self.tokens == 1:
            return (self.max_tokens, groups)
        return (self.stored_tokens // self.tokens, groups, self.tokens)

    def code_at(self, token: Any, channel: Any) -> list[Any]:
        """Where the code of a token's channel is."""
        if self.tokens == 1:
            return [token, channel]
        place = T.floormod(token, self.tokens) * self.depth + T.floormod(channel, self.depth)
        return [T.floordiv(token, self.tokens), T.floordiv(channel, self.depth), place]

    def group_at(self, token: Any, group: Any) -> list[Any]:
        """Where the scale and the sum of a token's group are."""
        if self.tokens == 1:
            return [token, group]
        return [T.floordiv(token, self.tokens), group, T.floormod(token, self.tokens)]
