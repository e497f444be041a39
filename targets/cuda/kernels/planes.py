"""Dot products of a lane: four rows of a tile times one group of channels, in exact integers.

Four lanes share a group, so that every load of weights has 128 bits and the words of the
activations serve four rows. A group is read in blocks of 32 channels: 8 steps of 4, a word for
each row.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

from tvm.ir import Expr
from tvm.tirx.script.builder import ir as T

from morendo.targets.cuda.blocks import local
from morendo.targets.cuda.intrinsics import (
    DOT_SIGNED,
    DOT_UNSIGNED,
    LOAD_WORD,
    LOAD_WORDS,
    STREAM_WORDS,
)

from .scales import Weights

ROWS = 4
"""Rows of a lane; 16 bytes of a plane hold a step's four channels of each."""

BLOCK, STEPS = 32, 8
_ODD_BITS, _EVEN_BITS = 0xAAAAAAAA, 0x55555555
_BASE_BIT = 5  # lower one of the two bits of a code's byte that the base plane has
_BYTES = 0x01010101


@dataclass(frozen=True)
class Place:
    """Where a lane reads: `row` is the first of its rows in the tile."""

    tile: Expr
    group: Expr
    row: Expr


class GroupReader(Protocol):
    """Reads the codes of one matrix in one precision."""

    def dots(self, at: Place, words: Any, block: int, totals: Any) -> None:
        """Add the products of a block's codes with the words of x to int32 totals[row].

        Args:
            words: uint32 [8], four int8 channels each.
        """
        ...

    def factors(self, at: Place) -> tuple[list[Expr], list[Expr] | None]:
        """Of each row the float32 scale code and the int32 zero; None without zeros."""
        ...


def load_words(name: str, buffer: Any, index: tuple[Any, ...], count: int = 1) -> Any:
    """16 bytes, `count` times one after another, as uint32 registers."""
    words = local(4 * count, T.uint32(0), "uint32")
    *outer, last = index
    for i in range(count):
        source = T.address_of(buffer[(*outer, last + 16 * i)])
        target = T.address_of(words[4 * i])
        T.evaluate(T.call_extern("void", name, target, source))
    return words


def activation_words(codes: Any, token: Expr, channel: Expr) -> Any:
    """32 channels of a token as 8 words."""
    return load_words(LOAD_WORDS, codes, (token, channel), 2)


def shifted(word: Expr, left: int) -> Expr:
    """A uint32 shifted to the left, or to the right where `left` is negative."""
    if left == 0:
        return word
    return word << T.uint32(left) if left > 0 else word >> T.uint32(-left)


def _dot(name: str, total: Any, row: int, codes: Expr, x: Expr) -> None:
    T.buffer_store(total, T.call_pure_extern("int32", name, codes, x, total[row]), [row])


@dataclass(frozen=True)
class ByteReader:
    """Signed 8-bit codes, one byte each, without zeros."""

    weights: Weights

    def dots(self, at: Place, words: Any, block: int, totals: Any) -> None:
        codes = self.weights.arrays["codes"]  # int8 [T, G, g/4, R, 4]
        for step in range(STEPS):
            place = (at.tile, at.group, block * STEPS + step, at.row, 0)
            fetched = load_words(STREAM_WORDS, codes, place)
            for row in range(ROWS):
                _dot(DOT_SIGNED, totals, row, fetched[row], words[step])

    def factors(self, at: Place) -> tuple[list[Expr], list[Expr] | None]:
        return _scale_codes(self.weights, at), None


@dataclass(frozen=True)
class PlaneReader:
    """Nested codes read with `bits` of their bits; bytes are `format.unit` times the code."""

    weights: Weights
    bits: int

    def dots(self, at: Place, words: Any, block: int, totals: Any) -> None:
        arrays, byte = self.weights.arrays, at.row * 4
        base = [
            load_words(STREAM_WORDS, arrays["base"], (at.tile, at.group, 2 * block + i, byte))
            for i in range(2)
        ]
        planes = [
            load_words(STREAM_WORDS, arrays[f"plane{bit}"], (at.tile, at.group, block, byte))
            for bit in range(3, self.bits + 1)
        ]
        for row in range(ROWS):
            if planes:
                lower = _paired([plane[row] for plane in planes])
                for step in range(STEPS):
                    code = self._byte(base[step // 4][row], lower, step)
                    _dot(DOT_SIGNED, totals, row, code, words[step])
            else:
                self._base_dots(base, row, words, totals)

    def _base_dots(self, base: list[Any], row: int, words: Any, totals: Any) -> None:
        """Bits stay where they are, one sum for each place: no shifts."""
        sums = local(4, T.int32(0), "int32")
        for step in range(STEPS):
            place = step % 4
            masked = base[step // 4][row] & T.uint32(3 * _BYTES << 2 * place)
            _dot(DOT_UNSIGNED, sums, place, masked, words[step])
        # 2 * place bits up in the sums, _BASE_BIT bits up in the byte of a code
        total = sums[0] * 32 + sums[1] * 8 + sums[2] * 2 + (sums[3] >> 1)
        T.buffer_store(totals, totals[row] + total, [row])

    def _byte(self, base: Expr, lower: list[Any], step: int) -> Expr:
        """A step's codes as bytes: base bits to 6 and 5, plane 3 to bit 4, and so on."""
        code = shifted(base, _BASE_BIT - 2 * (step % 4)) & T.uint32(3 * _BYTES << _BASE_BIT)
        count = self.bits - 2
        for i in range(0, count - 1, 2):
            low_bit, pair_at = 3 - i, step - step % 2
            field = shifted(lower[i + step % 2], low_bit - pair_at)
            code = code | (field & T.uint32(3 * _BYTES << low_bit))
        if count % 2:
            bit = _BASE_BIT - count
            code = code | (shifted(lower[-1], bit - step) & T.uint32(_BYTES << bit))
        return code

    def factors(self, at: Place) -> tuple[list[Expr], list[Expr] | None]:
        scales, fmt = _scale_codes(self.weights, at), self.weights.format
        if fmt.compact:
            nibbles = [(byte >> T.uint32(4)) for byte in _bytes(self.weights, "scale_zero", at)]
            first = fmt.zeros.first - fmt.middle(self.bits)
            return scales, [T.cast(n, "int32") * fmt.zeros.step + first for n in nibbles]
        zeros = _bytes(self.weights, "zero", at)  # never negative
        return scales, [T.cast(zero, "int32") - fmt.middle(self.bits) for zero in zeros]


def _paired(planes: list[Expr]) -> list[Any]:
    """Planes with the bits of two lying together, for even steps and for odd steps."""
    odd, even = T.uint32(_ODD_BITS), T.uint32(_EVEN_BITS)
    lower: list[Any] = list(planes)
    for i in range(0, len(planes) - 1, 2):
        high, low = planes[i : i + 2]
        lower[i] = T.bind((shifted(high, 1) & odd) | (low & even))
        lower[i + 1] = T.bind((high & odd) | (shifted(low, -1) & even))
    return lower


def _bytes(weights: Weights, name: str, at: Place) -> list[Expr]:
    """A byte of each row, as uint32."""
    source = T.address_of(weights.arrays[name][at.tile, at.group, at.row])
    word = T.bind(T.call_pure_extern("uint32", LOAD_WORD, source))
    return [T.bind(shifted(word, -8 * row) & T.uint32(255)) for row in range(ROWS)]


def _scale_codes(weights: Weights, at: Place) -> list[Expr]:
    """How many 255ths of the row's scale a step is, of each row: float32."""
    if not weights.format.compact:
        return [T.cast(byte, "float32") for byte in _bytes(weights, "scale", at)]
    ladder = weights.format.scales
    nibbles = [T.cast(byte & T.uint32(15), "int32") for byte in _bytes(weights, "scale_zero", at)]
    return [T.cast(nibble * ladder.step + ladder.first, "float32") for nibble in nibbles]
