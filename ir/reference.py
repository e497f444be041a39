"""What packed weights mean: quantize, pack, unpack and dequantize in numpy.

This is the truth that every kernel is tested against. The format is that of `ir/formats.py`; the
two-level scales follow arXiv 2311.16442 (section 3.1, second-order quantization of scales).
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from .errors import CompileError
from .formats import BYTE_BITS, WeightFormat, at_reading
from .ladders import SCALE_STEPS, Ladder
from .outliers import Outliers, pack_outliers, unpack_outliers

Arrays = dict[str, NDArray]
ROWS = 4096
"""Rows of a matrix that are worked on at a time, in whole tiles: heads have a hundred thousand."""


class Scales(NamedTuple):
    """What one reading of W[N, K] has of its own, all as of `Quantized`: [N, G], [N, G], [N]."""

    scale: NDArray[np.uint8]
    zero: NDArray[np.int8]
    row_scale: NDArray[np.float32]


@dataclass(frozen=True)
class Quantized:
    """Integer codes of W[N, K] before packing; Kp is K padded to whole groups of g.

    Attributes:
        codes: int8 [N, Kp]; nested codes 0..15, 31 or 63, those of "q8" -127..127.
        scale: uint8 [N, G], 1..255; of `fmt.scales`.
        zero: int8 [N, G] in parts of a code step (`fmt.unit`), of `fmt.zeros`; all 0 for "q8".
        row_scale: float32 [N]; in compact formats the lower 16 bits are 0.
        outliers: what is added where groups are read at 2 bits (nested codes).
        lower: scales and zeros of the readings after the first.
    """

    codes: NDArray[np.int8]
    scale: NDArray[np.uint8]
    zero: NDArray[np.int8]
    row_scale: NDArray[np.float32]
    outliers: Outliers | None = None
    lower: tuple[Scales, ...] = ()

    @property
    def dense(self) -> tuple[NDArray, ...]:
        """The arrays that have a row for each row of W: codes, then the scales of each reading."""
        further = (array for scales in self.lower for array in scales)
        return self.codes, self.scale, self.zero, self.row_scale, *further

    @classmethod
    def of_dense(cls, arrays: Iterable[NDArray], outliers: Outliers | None = None) -> Quantized:
        """What has these arrays as `dense`."""
        codes, *scales = arrays
        first, *lower = (Scales(*scales[i : i + 3]) for i in range(0, len(scales), 3))
        return cls(codes, *first, outliers, tuple(lower))

    @property
    def readings(self) -> tuple[Scales, ...]:
        """The scales of every reading."""
        return Scales(self.scale, self.zero, self.row_scale), *self.lower

    def at(self, reading: int) -> Quantized:
        """The codes with the scales of one reading alone."""
        return Quantized(self.codes, *self.readings[reading], self.outliers)

    def with_reading(self, reading: int, scales: Scales) -> Quantized:
        """The same with other scales of one reading."""
        first, *lower = (scales if r == reading else s for r, s in enumerate(self.readings))
        return Quantized(self.codes, *first, self.outliers, tuple(lower))

    @classmethod
    def stacked(cls, parts: Sequence[Quantized]) -> Quantized:
        """The rows of all parts, in order; all parts have outliers or none has."""
        starts = np.cumsum([0, *(len(part.codes) for part in parts)])
        sparse = [
            part.outliers.below(int(start))
            for part, start in zip(parts, starts, strict=False)
            if part.outliers is not None
        ]
        dense = map(np.concatenate, zip(*(part.dense for part in parts), strict=True))
        return cls.of_dense(dense, Outliers.joined(sparse) if sparse else None)

    def dense_rows(self, rows: NDArray) -> Quantized:
        """Rows by index int [n], outliers left out."""
        return Quantized.of_dense(array[rows] for array in self.dense)

    def rows(self, start: int, stop: int) -> Quantized:
        """The rows start..stop."""
        sparse = self.outliers and self.outliers.rows(start, stop)
        return Quantized.of_dense((array[start:stop] for array in self.dense), sparse)


def pad_columns(weight: NDArray[np.float32], fmt: WeightFormat) -> NDArray[np.float32]:
    """W[N, K] with zero columns up to whole groups: float32 [N, Kp]."""
    missing = fmt.padded_features(weight.shape[1]) - weight.shape[1]
    return np.pad(weight, ((0, 0), (0, missing))) if missing else weight


def check_finite(weight: NDArray, name: str) -> None:
    """Refuse NaN and infinity, which would spread over a whole group silently.

    Args:
        weight: of any shape.

    Raises:
        CompileError: naming the place of the first bad number.
    """
    if np.isfinite(weight).all():
        return
    place = tuple(np.argwhere(~np.isfinite(weight))[0].tolist())
    named = f"row {place[0]}, column {place[1]}" if len(place) == 2 else f"place {place}"
    raise CompileError(
        f"weight is not finite (got {weight[place]} in {named})",
        where=name,
        hint="the checkpoint is damaged or was trained into overflow",
    )


def stored_row_scale(
    row_scale: NDArray[np.float32], fmt: WeightFormat, up: bool = True
) -> NDArray[np.float32]:
    """The row scales float32 [N] that a format can store: the next larger ones, or the nearest.

    Compact formats keep the upper 16 bits (bfloat16).
    """
    if not fmt.compact:
        return row_scale
    bits = np.ascontiguousarray(row_scale, np.float32).view(np.uint32)
    return ((bits + np.uint32(0xFFFF if up else 0x8000)) & np.uint32(0xFFFF0000)).view(np.float32)


def two_level_scale(
    step: NDArray[np.float32], fmt: WeightFormat
) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
    """Split steps float32 [N, G] into codes uint8 [N, G] and one float32 per row.

    The code is rounded up, so that the range of a group is never cut off.
    """
    row_scale = stored_row_scale(step.max(axis=1), fmt)
    safe = np.where(row_scale > 0, row_scale, 1.0)
    codes = _next_rung(step / safe[:, None] * SCALE_STEPS, fmt.scales)
    return codes.astype(np.uint8), row_scale.astype(np.float32)


def _next_rung(values: NDArray, ladder: Ladder) -> NDArray:
    """The numbers of a ladder that are not below `values`."""
    rungs = np.ceil((values - 1e-4 - ladder.first) / ladder.step)
    return ladder.first + ladder.step * np.clip(rungs, 0, ladder.count - 1)


def _nearest_rung(values: NDArray, ladder: Ladder) -> NDArray:
    rungs = np.rint((values - ladder.first) / ladder.step)
    return ladder.first + ladder.step * np.clip(rungs, 0, ladder.count - 1)


def group_scale(q: Quantized) -> NDArray[np.float32]:
    """The step of each row and group as the kernels see it: float32 [N, G]."""
    steps = q.scale.astype(np.float32) / np.float32(SCALE_STEPS)
    return (q.row_scale[:, None] * steps).astype(np.float32, copy=False)


def quantize(weight: NDArray[np.float32], fmt: WeightFormat) -> Quantized:
    """Round W[N, K] to the nearest code: by the range of nested codes, by the largest for "q8".

    All readings have the scales of the first: what they cut off is read as its middle.
    A few thousand rows at a time, so that tables and heads need little memory beside themselves.
    """
    starts = range(0, max(len(weight), 1), ROWS)
    return Quantized.stacked([_quantize_rows(weight[i : i + ROWS], fmt) for i in starts])


def _quantize_rows(weight: NDArray[np.float32], fmt: WeightFormat) -> Quantized:
    padded = pad_columns(np.asarray(weight, np.float32), fmt)
    rows, columns = padded.shape
    grouped = padded.reshape(rows, columns // fmt.group_size, fmt.group_size)
    low, high = np.minimum(grouped.min(-1), 0), np.maximum(grouped.max(-1), 0)
    last = (1 << fmt.bits) - 1 if fmt.nested else 127
    if fmt.nested:
        above, below = last - fmt.zeros.first / fmt.unit, fmt.zeros.last / fmt.unit
        step = np.maximum((high - low) / last, np.maximum(high / above, -low / below))
    else:
        step = np.maximum(high, -low) / last
    scale, row_scale = two_level_scale(step, fmt)
    exact = row_scale[:, None] * (scale.astype(np.float32) / SCALE_STEPS)
    inverse = np.divide(1.0, exact, out=np.zeros_like(exact), where=exact > 0)
    grouped, zero = grouped * inverse[:, :, None], np.zeros_like(low)
    if fmt.nested:
        zero = np.minimum(_nearest_rung(-low * inverse * fmt.unit, fmt.zeros), last * fmt.unit)
        grouped += zero[:, :, None] / fmt.unit
    codes = np.clip(np.rint(grouped, out=grouped), 0 if fmt.nested else -last, last)
    codes = codes.astype(np.int8).reshape(rows, columns)
    scales = Scales(scale, zero.astype(np.int8), row_scale)
    return Quantized(codes, *scales, lower=(scales,) * (fmt.reading_count - 1))


def reading(
    q: Quantized, fmt: WeightFormat, level: tuple[int, ...] | None
) -> tuple[NDArray, NDArray]:
    """Codes and zeros as the kernel reads them at a level (n3, n4, ...).

    Returns:
        int32 [N, G, g] (`fmt.unit` times the codes, with the bits that the level does not read cut
        off) and int32 [N, G].
    """
    rows, columns = q.codes.shape
    groups = columns // fmt.group_size
    codes = q.codes.reshape(rows, groups, fmt.group_size).astype(np.int32)
    zero = q.zero.astype(np.int32)
    if fmt.nested:
        codes, zero = codes * fmt.unit, zero.copy()
        ends = [groups, *(fmt.plane_groups(columns) if level is None else level), 0]
        for bits, (end, start) in enumerate(itertools.pairwise(ends), start=fmt.base_bits):
            codes[:, start:end] &= -1 << BYTE_BITS - bits
            zero[:, start:end] -= fmt.middle(bits)
    return codes, zero


def dequantize(
    q: Quantized,
    fmt: WeightFormat,
    in_features: int,
    level: tuple[int, ...] | None = None,
    at: int = 0,
) -> NDArray[np.float32]:
    """The float32 [N, K] matrix that the codes stand for at a level (n3, n4, ...).

    Args:
        level: by default all bits of the reading.
        at: which reading's scales are used.
    """
    q = q.at(at)
    level = fmt.bounds(in_features, at) if level is None else level
    codes, zero = reading(q, fmt, level)
    values = (codes - zero[:, :, None]) * (group_scale(q) / fmt.unit)[:, :, None]
    matrix: NDArray[np.float32] = values.reshape(q.codes.shape).astype(np.float32, copy=False)
    if q.outliers is not None:
        q.outliers.add_to(matrix, level[0] * fmt.group_size)
    return matrix[:, :in_features]


def _tiles(values: NDArray, fmt: WeightFormat) -> NDArray:
    """Cut the rows of [N, ...] into zero-padded tiles of R rows: [T, R, ...]."""
    tiles = fmt.tiles(values.shape[0])
    missing = tiles * fmt.row_tile - values.shape[0]
    if missing:
        values = np.pad(values, ((0, missing),) + ((0, 0),) * (values.ndim - 1))
    return values.reshape(tiles, fmt.row_tile, *values.shape[1:])


def _by_step(q: Quantized, fmt: WeightFormat) -> NDArray[np.uint8]:
    """Codes as [T, G, g/4, 4R]: a step is 4 channels of every row of a tile."""
    tiles = _tiles(q.codes, fmt)
    groups = q.codes.shape[1] // fmt.group_size
    split = tiles.reshape(tiles.shape[0], fmt.row_tile, groups, fmt.group_size // 4, 4)
    steps = split.transpose(0, 2, 3, 1, 4)
    return np.ascontiguousarray(steps).reshape(*steps.shape[:3], fmt.row_tile * 4).view(np.uint8)


def _plane(bits: NDArray[Any], width: int) -> NDArray[np.uint8]:
    """Pack fields of `width` bits of [T, P, steps, 64]: 8/width steps share a byte."""
    per_byte = 8 // width
    tiles, groups, steps, chunk = bits.shape
    fields = bits.reshape(tiles, groups, steps // per_byte, per_byte, chunk)
    packed = np.zeros((tiles, groups, steps // per_byte, chunk), np.uint8)
    for s in range(per_byte):
        packed |= fields[:, :, :, s] << np.uint8(s * width)
    return packed


def pack_quantized(q: Quantized, fmt: WeightFormat) -> Arrays:
    """Lay codes out as the kernels read them; shapes as `fmt.arrays(N, K)` says."""
    steps = _by_step(q, fmt)
    if fmt.kind == "q8":
        codes = steps.view(np.int8).reshape(*steps.shape[:3], fmt.row_tile, 4)
        return {"codes": codes, **_pack_scales(q, fmt)}
    rows, columns = q.codes.shape
    planes = {
        name: _plane((steps[:, :count] >> np.uint8(bit)) & 1, 1)
        for name, count, bit in _planes(fmt, columns)
    }
    return {
        "base": _plane(steps >> np.uint8(fmt.bits - fmt.base_bits), fmt.base_bits),
        **planes,
        **_pack_scales(q, fmt),
        **pack_outliers(q.outliers, fmt, rows, fmt.groups(columns)),
    }


def _planes(fmt: WeightFormat, columns: int) -> Iterator[tuple[str, int, int]]:
    """Name, groups and bit of the code of each plane."""
    bits = range(fmt.bits - fmt.base_bits - 1, -1, -1)
    return zip(fmt.plane_names, fmt.plane_groups(columns), bits, strict=True)


def _pack_scales(q: Quantized, fmt: WeightFormat) -> Arrays:
    """Scales and zeros as [T, G, R]; rows that fill up the last tile have row scale 0."""
    return {
        at_reading(name, index): array
        for index, scales in enumerate(q.readings)
        for name, array in _pack_reading(scales, fmt).items()
    }


def _pack_reading(scales: Scales, fmt: WeightFormat) -> Arrays:
    """The arrays of one reading, by their names in the first."""
    row_scale = _tiles(scales.row_scale, fmt).reshape(-1)
    if not fmt.compact:
        zeros = {"zero": _by_group(scales.zero, fmt)} if fmt.nested else {}
        return {"scale": _by_group(scales.scale, fmt), **zeros, "row_scale": row_scale}
    low, high = (
        ((x.astype(np.int32) - ladder.first) // ladder.step).astype(np.uint8)
        for x, ladder in ((scales.scale, fmt.scales), (scales.zero, fmt.zeros))
    )
    upper = (row_scale.view(np.uint32) >> np.uint32(16)).astype(np.uint16)
    both = _by_group(low | (high << np.uint8(4)), fmt)
    return {"scale_zero": both, "row_scale": upper}


def _by_group(values: NDArray, fmt: WeightFormat) -> NDArray:
    """[N, G] as [T, G, R]."""
    return np.ascontiguousarray(_tiles(values, fmt).transpose(0, 2, 1))


def _unplane(packed: NDArray[np.uint8], width: int) -> NDArray[np.uint8]:
    """The fields of `_plane` again: [T, P, steps, 64]."""
    per_byte, mask = 8 // width, np.uint8((1 << width) - 1)
    fields = [(packed >> np.uint8(s * width)) & mask for s in range(per_byte)]
    tiles, groups, chunks, chunk = packed.shape
    return np.stack(fields, axis=3).reshape(tiles, groups, chunks * per_byte, chunk)


def unpack_quantized(arrays: Arrays, fmt: WeightFormat, out_features: int) -> Quantized:
    """The inverse of `pack_quantized`; bits of planes that are not stored come back as 0."""
    if fmt.kind == "q8":
        codes = arrays["codes"].reshape(*arrays["codes"].shape[:3], fmt.row_tile * 4)
    else:
        codes = _unplane(arrays["base"], fmt.base_bits) << np.uint8(fmt.bits - fmt.base_bits)
        for bit, name in enumerate(reversed(fmt.plane_names)):
            plane = _unplane(arrays[name], 1)
            codes[:, : plane.shape[1]] |= plane << np.uint8(bit)
        codes = codes.view(np.int8)
    tiles, groups, steps = codes.shape[:3]
    by_row = codes.reshape(tiles, groups, steps, fmt.row_tile, 4).transpose(0, 3, 1, 2, 4)
    rows = tiles * fmt.row_tile
    flat = by_row.reshape(rows, groups * steps * 4)[:out_features]

    def untile(values: NDArray) -> NDArray:
        return values.transpose(0, 2, 1).reshape(rows, groups)[:out_features]

    sparse = unpack_outliers(arrays, fmt) if fmt.slots else None
    dense = [np.ascontiguousarray(flat)]
    for index in range(fmt.reading_count):
        own = {name: arrays[at_reading(name, index)] for name in fmt.scale_names()}
        scale, zero, row_scale = _unpack_scales(own, fmt)
        dense += [untile(scale), untile(zero), row_scale[:out_features]]
    return Quantized.of_dense(dense, sparse)


def _unpack_scales(arrays: Arrays, fmt: WeightFormat) -> tuple[NDArray, NDArray, NDArray]:
    """Scales uint8 and zeros int8 as [T, G, R], row scales float32, of one reading."""
    if not fmt.compact:
        scale = arrays["scale"]
        return scale, arrays.get("zero", np.zeros_like(scale, np.int8)), arrays["row_scale"]
    both, row_scale = arrays["scale_zero"], arrays["row_scale"].astype(np.uint32)
    scale = fmt.scales.first + fmt.scales.step * (both & np.uint8(15))
    zero = fmt.zeros.first + fmt.zeros.step * (both >> np.uint8(4))
    return scale, zero.astype(np.int8), (row_scale << np.uint32(16)).view(np.float32)


def pack(weight: NDArray[np.float32], fmt: WeightFormat) -> Arrays:
    """Round W[N, K] to the format and lay it out; arrays as `fmt.arrays(N, K)` names them."""
    if fmt.quantized:
        return pack_quantized(quantize(weight, fmt), fmt)
    dtype = np.float32 if fmt.kind == "f32" else np.float16
    return {"data": np.ascontiguousarray(_tiles(weight.astype(dtype), fmt).transpose(0, 2, 1))}


def unpack(arrays: Arrays, fmt: WeightFormat, out_features: int, in_features: int) -> NDArray:
    """The float32 [N, K] matrix that packed arrays stand for, all bits read."""
    if fmt.quantized:
        return dequantize(unpack_quantized(arrays, fmt, out_features), fmt, in_features)
    data = arrays["data"].transpose(0, 2, 1)
    return data.reshape(-1, in_features)[:out_features].astype(np.float32)
