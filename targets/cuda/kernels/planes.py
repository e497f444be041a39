"""Dot products of a lane: four rows of a tile times one group of channels, in exact integers.

Four lanes share a group, so that every load of weights has 128 bits and the words of the
activations serve four rows. A group is read in blocks of 32 channels: 8 steps of 4, a word for
each row.
"""

from __future__ import annotations

from collections.abc import Iterator
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
_ODD_BITS = 0xAAAAAAAA
_BASE_BIT = 5  # lower one of the two bits of a code's byte that the base plane has
_BYTES = 0x01010101


@dataclass(frozen=True)
class Place:
    """Where a lane reads: `row` is the first of its rows in the tile."""

    tile: Expr
    group: Expr
    row: Expr


@dataclass(frozen=True)
class Zeros:
    """The zeros of a lane's rows: first + step * code, in the units of the codes' bytes."""

    codes: list[Expr]  # int32
    step: int
    first: int


class GroupReader(Protocol):
    """Reads the codes of one matrix in one precision."""

    def dots(self, at: Place, words: Any, block: int, totals: Any) -> None:
        """Add the products of a block's codes with the words of x to int32 totals[row].

        Args:
            words: uint32 [8], four int8 channels each.
        """
        ...

    def steps(self, at: Place, block: int) -> Iterator[list[Expr]]:
        """Of each step the codes, of each row as a word of four bytes."""
        ...

    def factors(self, at: Place) -> tuple[list[Expr], Zeros | None]:
        """Of each row the float32 scale code, and the zeros if there are any."""
        ...


def load_words(
    name: str, buffer: Any, index: tuple[Any, ...], count: int = 1, items: int = 16
) -> Any:
    """16 bytes, `count` times one after another, as uint32 registers.

    Args:
        items: of the buffer, in 16 bytes.
    """
    words = local(4 * count, T.uint32(0), "uint32")
    *outer, last = index
    for i in range(count):
        source = T.address_of(buffer[(*outer, last + items * i)])
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
        for step, codes in enumerate(self.steps(at, block)):
            for row in range(ROWS):
                _dot(DOT_SIGNED, totals, row, codes[row], words[step])

    def steps(self, at: Place, block: int) -> Iterator[list[Expr]]:
        codes = self.weights.arrays["codes"]  # int8 [T, G, g/4, R, 4]
        for step in range(STEPS):
            place = (at.tile, at.group, block * STEPS + step, at.row, 0)
            fetched = load_words(STREAM_WORDS, codes, place)
            yield [fetched[row] for row in range(ROWS)]

    def factors(self, at: Place) -> tuple[list[Expr], Zeros | None]:
        return _scale_codes(self.weights, at), None


@dataclass(frozen=True)
class PlaneReader:
    """Nested codes read with `bits` of their bits; bytes are `format.unit` times the code."""

    weights: Weights
    bits: int

    def dots(self, at: Place, words: Any, block: int, totals: Any) -> None:
        dots = self._placed_dots if self.bits <= 4 else self._byte_dots
        for row, (base, lower) in enumerate(self._words(at, block)):
            dots(base, lower, row, words, totals)

    def steps(self, at: Place, block: int) -> Iterator[list[Expr]]:
        rows = list(self._words(at, block))
        for step in range(STEPS):
            yield [T.bind(self._byte(base[step // 4], lower, step)) for base, lower in rows]

    def _words(self, at: Place, block: int) -> Iterator[tuple[list[Any], list[Any]]]:
        """Of each row the words of the base plane, and those of the others, paired."""
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
            yield [word[row] for word in base], _paired([plane[row] for plane in planes])

    def _placed_dots(
        self, base: list[Any], lower: list[Any], row: int, words: Any, to: Any
    ) -> None:
        """The base plane's bits stay where they are in their byte, lower ones come below them, and
        there is a sum for each place: few shifts, and bytes without a sign.
        """
        count, sums = self.bits - 2, {}
        for step in range(STEPS):
            up = 2 * (step % 4)
            place = up - count if up else 0  # of a code's lowest bit
            moved = shifted(base[step // 4], 0 if up else count)
            code = moved & T.uint32(3 * _BYTES << place + count)
            if lower:
                bits_at = step - step % count
                field = shifted(lower[step % count], place - bits_at)
                code = code | (field & T.uint32(((1 << count) - 1) * _BYTES << place))
            if place not in sums:
                sums[place] = local(1, T.int32(0), "int32")
            _dot(DOT_UNSIGNED, sums[place], 0, code, words[step])
        total: Any = to[row]
        for place, part in sums.items():
            up = _BASE_BIT - count - place
            total = total + (part[0] * (1 << up) if up >= 0 else part[0] >> -up)
        T.buffer_store(to, total, [row])

    def _byte_dots(self, base: list[Any], lower: list[Any], row: int, words: Any, to: Any) -> None:
        for step in range(STEPS):
            _dot(DOT_SIGNED, to, row, self._byte(base[step // 4], lower, step), words[step])

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

    def factors(self, at: Place) -> tuple[list[Expr], Zeros | None]:
        scales, fmt = _scale_codes(self.weights, at), self.weights.format
        if fmt.compact:
            bytes_ = _bytes(self.weights, "scale_zero", at)
            nibbles = [T.cast(byte >> T.uint32(4), "int32") for byte in bytes_]
            return scales, Zeros(nibbles, fmt.zeros.step, fmt.zeros.first - fmt.middle(self.bits))
        zeros = [T.cast(zero, "int32") for zero in _bytes(self.weights, "zero", at)]
        return scales, Zeros(zeros, 1, -fmt.middle(self.bits))


def _paired(planes: list[Expr]) -> list[Any]:
    """Planes with the bits of two lying together, for even steps and for odd steps."""
    odd = T.uint32(_ODD_BITS)
    lower: list[Any] = list(planes)
    for i in range(0, len(planes) - 1, 2):
        high, low = planes[i : i + 2]
        first, second = T.bind(shifted(high, 1)), T.bind(shifted(low, -1))
        # one or the other by a mask, as the one instruction that it is
        lower[i] = T.bind(low ^ ((first ^ low) & odd))
        lower[i + 1] = T.bind(second ^ ((high ^ second) & odd))
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
