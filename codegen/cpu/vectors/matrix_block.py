"""What one multiply instruction of a matrix product does, and how vectors lie for it.

A vector has `lanes` words of four bytes. The instruction adds to `rows` x `tokens` int32 sums the
products of `rows` x `depth` codes with `tokens` x `depth` activations, all of them rows first:

    sums[r, t] += sum over the channels c of codes[r, c] * x[t, c]

A dot product of four bytes is `lanes` x 1 x 4; a matrix instruction such as 2 x 2 x 8 has fewer
rows and more tokens. Codes are unpacked as words of `lanes` rows and four channels. So many words
as the depth has fours hold as many operands of the instruction; `pack`, `spread_rows` and `gather`
say which lane goes where. For a dot product they change nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tvm import tirx
from tvm.ir import Expr

from .vector import splat


@dataclass(frozen=True)
class MatrixBlock:
    """The shape of one multiply instruction.

    Attributes:
        rows: output rows of the codes.
        tokens: rows of activations.
        depth: input channels, a multiple of 4. Codes and sums fill a vector: `tokens` is
            `depth / 4`, and `rows * tokens` are its lanes.
    """

    rows: int
    tokens: int
    depth: int

    @property
    def lanes(self) -> int:
        """32-bit lanes of a vector."""
        return self.rows * self.tokens

    @property
    def parts(self) -> int:
        """Instructions that cover `lanes` rows."""
        return self.tokens

    def pack(self, words: Sequence[Expr]) -> list[Expr]:
        """The codes of each part, from `depth / 4` words (uint32 x lanes, a lane a row)."""
        order = [
            [word * self.lanes + part * self.rows + row for row in range(self.rows)
             for word in range(len(words))]
            for part in range(self.parts)
        ]  # fmt: skip
        return [self._shuffled(words, places) for places in order]

    def spread_rows(self, values: Expr, part: int) -> Expr:
        """Values of `lanes` rows, each in all lanes of a part's sums that belong to its row."""
        first = part * self.rows
        rows = [first + row for row in range(self.rows) for _ in range(self.tokens)]
        return self._shuffled([values], rows)

    def spread_tokens(self, values: Expr) -> Expr:
        """The values of `tokens` tokens (a scalar of one) in all lanes that belong to them."""
        if self.tokens == 1:
            return splat(values, self.lanes)
        return tirx.Shuffle([values] * self.rows, list(range(self.lanes)))

    def gather(self, sums: Sequence[Expr], token: int) -> Expr:
        """The sums of `lanes` rows with one token, from those of all parts."""
        places = [
            part * self.lanes + row * self.tokens + token
            for part in range(self.parts)
            for row in range(self.rows)
        ]
        return self._shuffled(sums, places)

    def _shuffled(self, vectors: Sequence[Expr], places: list[int]) -> Expr:
        """The lanes at `places` of the vectors one after the other."""
        if len(vectors) == 1 and places == list(range(self.lanes)):
            return vectors[0]
        return tirx.Shuffle(list(vectors), places)
