"""Weight formats: what the arrays of a packed matrix are, and how many bytes they take.

A matrix W[N, K] (N output features, K input features) is cut into row tiles (`ir/layout.py`)
and column groups of `group_size` channels. `docs/artifact_format.md` draws the layouts.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import ClassVar

from .errors import InputError
from .ladders import COMPACT_SCALES, COMPACT_ZEROS, SCALES, ZEROS, Ladder
from .layout import DEFAULT_LAYOUT, TileLayout

BYTE_BITS = 7
"""Nested codes of B bits are multiplied as bytes whose highest bit is free: a code q of 4, 5 or 6
bits is the byte 8q, 4q or 2q. Unsigned * signed pairs of 2 * 126 * 127 fit 16 bits, and the byte is
a good signed operand too. Zero points are in units of that byte, eighths, quarters or halves of a
step."""

NESTED = ("q4", "q5", "q6")
"""Kinds of formats with nested codes, which can be read with fewer bits than are stored."""

GROUP_SIZES = (32, 64, 128)

OUTLIER_ARRAYS = ("value", "channel", "row", "start")
"""The arrays of outliers, in the order in which kernels take them, after "outlier_"."""

OUTLIER_CHANNELS = 1 << 16  # what 16 bits can number

BITS = (4, 3, 2)
"""What readings with scales of their own can read of 4-bit codes, the most first."""

WHOLE = (4,)
"""The readings of 4-bit codes of which all bits are always read."""


def ceil_div(a: int, b: int) -> int:
    """The least integer that is not below a / b."""
    return -(-a // b)


@dataclass(frozen=True)
class Array:
    """One stored array of a packed matrix, dense and row-major."""

    name: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        return int(re.sub(r"\D", "", self.dtype)) // 8 * math.prod(self.shape)


@dataclass(frozen=True)
class WeightFormat:
    """How the weights of one matrix are stored.

    Attributes:
        kind: "f32" | "f16" (plain), "q8" (8-bit codes) or "q4" | "q5" | "q6" (nested codes: two
            bits of every weight and planes of one bit each below them).
        group_size: input channels that share a scale; 0 for plain kinds.
        planes: of nested codes, the numbers of groups (P3, P4, ...) that have the third, the
            fourth, ... bit stored; None is all of them.
        slots: of nested codes, sparse entries ("outliers", `ir/outliers.py`) for each tile of rows.
        compact: of nested codes, scale and zero of a row and group share a byte, and row scales
            have 16 bits: half of what they take otherwise.
        readings: for "q4", the most bits of a code that each reading of the matrix reads, falling;
            each has scales, zeros and row scales of its own. () is one reading of all bits.
        row_tile: rows of a tile, as the target's layout has it.
        nibbles: for "q4", whole codes lie two in a byte; there are no planes, so all bits of them
            are always read.
    """

    kind: str
    group_size: int = 0
    planes: tuple[int, ...] | None = None
    slots: int = 0
    compact: bool = False
    row_tile: int = DEFAULT_LAYOUT.row_tile
    readings: tuple[int, ...] = ()
    nibbles: bool = False

    KINDS: ClassVar[tuple[str, ...]] = ("f32", "f16", "q8", *reversed(NESTED))

    def __post_init__(self) -> None:
        if self.kind not in self.KINDS:
            raise InputError(
                f"unknown weight format (got {self.kind!r}, need one of {', '.join(self.KINDS)})"
            )
        if self.quantized and self.group_size not in GROUP_SIZES:
            raise InputError(
                f"unsupported group size (got {self.group_size}, need one of {GROUP_SIZES})"
            )
        if self.nibbles and (self.kind != "q4" or self.planes or self.slots or self.readings):
            raise InputError(f"only whole 4-bit codes of one reading lie in nibbles ({self.name})")
        self._check_planes()
        if self.slots and not (self.nested and 0 <= self.slots < 1 << 16):
            raise InputError(f"bad outliers (got {self.slots}, need 0 to 65535 in a q4 format)")
        if self.compact and not self.nested:
            raise InputError(f"only nested codes have compact scales (got {self.kind})")
        if self.readings:
            self._check_readings()
        TileLayout(row_tile=self.row_tile)  # refuses what is no tile

    def _check_planes(self) -> None:
        if self.planes is None:
            return
        falling = list(self.planes) == sorted(self.planes, reverse=True) and min(self.planes) >= 0
        if not self.nested or len(self.planes) != len(self.plane_names) or not falling:
            need = " >= ".join(f"P{name.removeprefix('plane')}" for name in self.plane_names)
            raise InputError(
                f"bad planes (got {self.planes}, need {need or 'none'}{' >= 0' * self.nested} in a "
                f"{self.kind} format)"
            )

    def _check_readings(self) -> None:
        check_readings(self.readings)
        if self.kind != "q4" or self.slots:
            raise InputError(
                f"only 4-bit codes without outliers have several readings (got {self.name})"
            )
        if self.planes and self.planes[1] and self.most_bits < 4:
            raise InputError(
                f"no reading needs the fourth bit (got readings {self.readings}, {self.name})"
            )

    @property
    def quantized(self) -> bool:
        """Whether weights are integer codes with scales."""
        return self.kind.startswith("q")

    @property
    def nested(self) -> bool:
        """Whether codes count steps from a zero point, most in planes: fewer bits can be read."""
        return self.kind in NESTED

    @property
    def base_bits(self) -> int:
        """Upper bits of a nested code that lie together, in the array "base"."""
        return 4 if self.nibbles else 2

    @property
    def bits(self) -> int:
        """Bits of a code, or of a float."""
        return int(self.kind[1:])

    @property
    def unit(self) -> int:
        """A step of codes in the integers that kernels multiply with, and that zeros count."""
        return 1 << (BYTE_BITS - self.bits) if self.nested else 1

    @property
    def plane_names(self) -> tuple[str, ...]:
        """The arrays of bits below those of the base, of each as many groups as `planes` says."""
        bits = range(self.base_bits + 1, self.bits + 1) if self.nested else ()
        return tuple(f"plane{bit}" for bit in bits)

    def middle(self, bits: int) -> int:
        """Where a code lies among those that have the same upper `bits`, in units of zeros: what
        zeros are lowered by where only these bits are read.
        """
        return (1 << BYTE_BITS - 1 >> bits) - (1 << BYTE_BITS - 1 >> self.bits)

    @property
    def name(self) -> str:
        """The spelling used in the IR, such as "q4g32" or "q4g32cp12,5o28"; t32 are 32 rows a tile,
        n are nibbles, r43 are readings of 4 and of 3 bits.
        """
        suffix = f"t{self.row_tile}" if self.row_tile != DEFAULT_LAYOUT.row_tile else ""
        if not self.quantized:
            return self.kind + suffix
        suffix += "n" * self.nibbles + "c" * self.compact
        suffix += "r" + "".join(map(str, self.readings)) if self.readings else ""
        suffix += f"p{','.join(map(str, self.planes))}" if self.planes else ""
        suffix += f"o{self.slots}" if self.slots else ""
        return f"{self.kind}g{self.group_size}{suffix}"

    @classmethod
    def parse(cls, name: str) -> WeightFormat:
        """Read what `name` spells.

        Raises:
            InputError: when the text is no format.
        """
        parts = rf"({'|'.join(cls.KINDS)})(?:g(\d+))?(?:t(\d+))?(n)?(c)?(?:r(\d+))?"
        parts += r"(?:p(\d+(?:,\d+)*))?(?:o(\d+))?"
        match = re.fullmatch(parts, name)
        if not match:
            raise InputError(f"unknown weight format (got {name!r}, need one such as f16 or q4g32)")
        kind, group, tile, nibbles, compact, readings, counts, slots = match.groups()
        planes = tuple(map(int, counts.split(","))) if counts else None
        tile, caps = int(tile or DEFAULT_LAYOUT.row_tile), tuple(map(int, readings or ""))
        more = int(slots or 0), bool(compact), tile, caps, bool(nibbles)
        return cls(kind, int(group or 0), planes, *more)

    @property
    def scales(self) -> Ladder:
        """The scale codes that can be stored."""
        return COMPACT_SCALES if self.compact else SCALES

    @property
    def zeros(self) -> Ladder:
        """The zeros of nested codes that can be stored, in parts of a step (`unit`)."""
        return COMPACT_ZEROS if self.compact else ZEROS

    @property
    def without_counts(self) -> WeightFormat:
        """The same with whole planes and no slots for outliers."""
        return replace(self, planes=None, slots=0)

    @property
    def of_one_reading(self) -> WeightFormat:
        """What a kernel reads at a time: one set of scales."""
        return replace(self, readings=())

    def alone(self, in_features: int, reading: int) -> WeightFormat:
        """One reading as the format of a matrix with no other."""
        planes = self.bounds(in_features, reading) if self.nested else None
        return replace(self, readings=(), planes=planes) if self.readings else self

    @property
    def of_kernel(self) -> WeightFormat:
        """What the code of a kernel depends on: counts and readings are run-time arguments."""
        return self.without_counts.of_one_reading

    @property
    def most_bits(self) -> int:
        """Of a code of a nested format: those of the first reading."""
        return self.readings[0] if self.readings else self.bits

    @property
    def reading_count(self) -> int:
        """Sets of scales: 1 or more."""
        return max(len(self.readings), 1)

    def groups(self, in_features: int) -> int:
        """Column groups G of a matrix with K = `in_features`; the last one may be padded."""
        return ceil_div(in_features, self.group_size)

    def padded_features(self, in_features: int) -> int:
        """Kp: the input channels with the padding of the last group."""
        return self.groups(in_features) * self.group_size if self.quantized else in_features

    def plane_groups(self, in_features: int) -> tuple[int, ...]:
        """(P3, P4, ...): how many leading groups have the third, fourth, ... bit stored.

        Raises:
            InputError: when the matrix has fewer groups.
        """
        groups = self.groups(in_features)
        bits = range(self.base_bits + 1, self.bits + 1) if self.nested else ()
        planes = self.planes or tuple(groups * (bit <= self.most_bits) for bit in bits)
        if planes and planes[0] > groups:
            raise InputError(
                f"format {self.name} has too many planes "
                f"(got P3 = {planes[0]}, need at most the {groups} groups of K = {in_features})"
            )
        return planes

    def bounds(self, in_features: int, reading: int = 0) -> tuple[int, ...]:
        """(n3, n4, ...): how many leading groups a reading reads the third, fourth, ... bit of."""
        most = self.readings[reading] if self.readings else self.bits
        counts = self.plane_groups(in_features)
        return tuple(count * (bit <= most) for bit, count in enumerate(counts, start=3))

    def group_bits(self, in_features: int, reading: int = 0) -> list[int]:
        """Bits that a reading reads of the codes of each group of a nested format, in order."""
        bounds = self.bounds(in_features, reading)
        lowest = self.base_bits
        return [lowest + sum(g < n for n in bounds) for g in range(self.groups(in_features))]

    def tiles(self, rows: int) -> int:
        """Row tiles T of a matrix with N = `rows`; the last one may be padded."""
        return ceil_div(rows, self.row_tile)

    def arrays(self, out_features: int, in_features: int) -> tuple[Array, ...]:
        """The arrays of a packed W[N, K], in the order in which kernels take them.

        Scales of further readings come last, as `at_reading` names them.
        """
        tiles = self.tiles(out_features)
        if not self.quantized:
            dtype = {"f32": "float32", "f16": "float16"}[self.kind]
            return (Array("data", dtype, (tiles, in_features, self.row_tile)),)
        size, groups = self.group_size, self.groups(in_features)
        if self.kind == "q8":
            codes = Array("codes", "int8", (tiles, groups, size // 4, self.row_tile, 4))
            return (codes, *self._scale_arrays(tiles, groups))
        chunk = self.row_tile * 4  # bytes: 4 channels of every row of the tile
        stored = zip(self.plane_names, self.plane_groups(in_features), strict=True)
        return (
            Array("base", "uint8", (tiles, groups, size * self.base_bits // 32, chunk)),
            *(Array(name, "uint8", (tiles, count, size // 32, chunk)) for name, count in stored),
            *self._scale_arrays(tiles, groups),
            *self._outlier_arrays(tiles, in_features),
            *(
                replace(array, name=at_reading(array.name, reading))
                for reading in range(1, self.reading_count)
                for array in self._scale_arrays(tiles, groups)
            ),
        )

    def scale_names(self) -> tuple[str, ...]:
        """Which arrays there are of each reading, by their names in the first."""
        return tuple(array.name for array in self._scale_arrays(0, 0))

    def _scale_arrays(self, tiles: int, groups: int) -> tuple[Array, ...]:
        shape = (tiles, groups, self.row_tile)
        if self.compact:
            row_scale = Array("row_scale", "uint16", (tiles * self.row_tile,))
            return Array("scale_zero", "uint8", shape), row_scale
        zero = [Array("zero", "int8", shape)] if self.nested else []
        row_scale = Array("row_scale", "float32", (tiles * self.row_tile,))
        return (Array("scale", "uint8", shape), *zero, row_scale)

    def _outlier_arrays(self, tiles: int, in_features: int) -> tuple[Array, ...]:
        if not self.slots:
            return ()
        if self.padded_features(in_features) > OUTLIER_CHANNELS:
            raise InputError(
                f"a matrix with outliers is too wide (got {in_features} input channels, "
                f"need at most {OUTLIER_CHANNELS})"
            )
        per_tile = (tiles, self.slots)
        return (
            Array("outlier_value", "float16", per_tile),
            Array("outlier_channel", "uint16", per_tile),
            Array("outlier_row", "uint8", per_tile),
            Array("outlier_start", "uint16", (tiles, self.groups(in_features))),
        )

    def nbytes(self, out_features: int, in_features: int) -> int:
        """Bytes of all arrays of a packed W[N, K]."""
        return sum(array.nbytes for array in self.arrays(out_features, in_features))

    def first_reading_bytes(self, out_features: int, in_features: int) -> int:
        """Bytes of a packed W[N, K] without the scales of further readings."""
        if not self.readings:
            return self.nbytes(out_features, in_features)
        return self.bytes_read(out_features, in_features, self.bounds(in_features))

    def bytes_read(self, out_features: int, in_features: int, level: tuple[int, ...]) -> int:
        """Bytes that one pass over the matrix reads at the level (n3, n4, ...), in any reading.

        Outliers count as a whole, or not at all where nothing is read at 2 bits.
        """
        total, read = 0, dict(zip(self.plane_names, level, strict=True))
        for array in self.of_one_reading.arrays(out_features, in_features):
            if array.name.startswith("outlier") and level[0] == self.groups(in_features):
                continue
            if array.name in read:
                total += array.nbytes // max(array.shape[1], 1) * read[array.name]
            else:
                total += array.nbytes
        return total


def at_reading(name: str, reading: int) -> str:
    """What an array of scales is called at a reading: "scale_zero", "scale_zero_1", ..."""
    return f"{name}_{reading}" if reading else name


def check_readings(readings: Sequence[int]) -> None:
    """Refuse what are no readings of nested codes.

    Raises:
        InputError: when they are not two or three falling numbers of bits.
    """
    falling = all(a > b for a, b in pairwise(readings))
    if len(readings) < 2 or not falling or not set(readings) <= set(BITS):
        spelled = ",".join(map(str, readings))
        raise InputError(
            f"readings are two or three falling numbers of bits from 4 to 2 (got {spelled})",
            hint="such as 4,3 or 4,3,2 or 3,2",
        )


def format_for_bits(
    bits: str | int, group_size: int = 32, layout: TileLayout = DEFAULT_LAYOUT
) -> WeightFormat:
    """The format that so many bits mean: f32, f16, 8, 6, 5 or 4.

    Raises:
        InputError: for any other value.
    """
    kinds = {kind.removeprefix("q"): kind for kind in WeightFormat.KINDS}
    kind = kinds.get(str(bits))
    if kind is None:
        raise InputError(f"unknown bits (got {bits!r}, need one of {', '.join(kinds)})")
    group = group_size if kind.startswith("q") else 0
    return WeightFormat(kind, group, row_tile=layout.row_tile)
