"""Products with the bits of codes where they lie in the planes, without moving them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from tvm.ir import Expr
from tvm.tirx.script.builder import ir as T

from morendo.codegen.cpu.kernels.dequantize import PlaneReader
from morendo.codegen.cpu.vectors.vector import splat

from . import intrinsics as hvx
from .scale_words import LANES


class FieldSums:
    """The sums of one tile and group.

    Bits that have to move equally far are in one sum, and the sums are moved: a mask, which all
    four places of a packet can do, instead of a shift or a look-up for every step.
    """

    def __init__(self, reader: PlaneReader) -> None:
        self.reader = reader
        self.sums: dict[int, Expr] = {}  # by how far to the left

    def add(self, fetched: Sequence[Expr], step: int, x: Expr) -> None:
        """Add the products of a step of what `reader.fetch` gave."""
        for words, mask, left in self._fields(fetched, step):
            codes = hvx.AND(words, splat(T.int32(_in_all_bytes(mask)), LANES))
            found = self.sums.get(left)
            product = (
                hvx.PRODUCT_SCALAR(codes, x) if found is None else hvx.DOT_SCALAR(found, codes, x)
            )
            self.sums[left] = T.bind(product)

    def _fields(self, fetched: Sequence[Expr], step: int) -> Iterator[tuple[Expr, int, int]]:
        planes = len(self.reader.planes)
        yield self._field(fetched[step // 4], 2 * (step % 4), 3, 5)
        for i in range(0, planes - 1, 2):
            yield self._field(fetched[2 + i + step % 2], step - step % 2, 3, 3 - i)
        if planes % 2:
            yield self._field(fetched[-1], step, 1, 5 - planes)

    def _field(self, words: Expr, at: int, mask: int, to: int) -> tuple[Expr, int, int]:
        """Bits that lie at `at` and belong at `to`.

        A plane without a pair has bits at eight places, which are more sums than stay in registers.
        """
        if at >= 4 and len(self.reader.planes) % 2:
            words, at = hvx.RIGHT(words, T.int32(4)), at - 4
        return words, mask << at, to - at

    def total(self, start: Expr) -> Expr:
        """`start` and all sums, moved to where their bits belong; none are lost on the right."""
        total = start
        for left, each in self.sums.items():
            if left > 0:
                total = hvx.PLUS_LEFT(total, each, T.int32(left))
            elif left:
                total = hvx.PLUS_RIGHT_SIGNED(total, each, T.int32(-left))
            else:
                total = hvx.ADD(total, each)
        return total


def _in_all_bytes(mask: int) -> int:
    """A word with the mask in all four bytes, as a signed number."""
    return int.from_bytes(bytes([mask] * 4), "little", signed=True)
