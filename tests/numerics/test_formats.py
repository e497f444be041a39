"""Packing loses nothing: every format, odd sizes, every level, against plain loops."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from morendo.ir import reference
from morendo.ir.errors import CompileError, InputError
from morendo.ir.formats import WeightFormat, format_for_bits

SHAPES = [(16, 32), (1, 1), (17, 33), (100, 577), (48, 256)]
QUANTIZED = ["q8g32", "q4g32", "q4g64", "q4g128", "q4g32p1,0", "q4g32o3", "q4g32p1,1o28"]
QUANTIZED += ["q4g32c", "q4g64cp1,0", "q4g32cp1,1o28", "q4g32cr43", "q4g64r432p1,0", "q4g32cr32"]
QUANTIZED += ["q5g32", "q5g64cp1,1,0", "q6g32", "q6g128c", "q6g32p1,1,1,0o3", "q4g64n", "q4g32nc"]


def random_weight(shape: tuple[int, int]) -> np.ndarray:
    """Rows of very different sizes, one of them zero."""
    rng = np.random.default_rng()
    rows = 10.0 ** rng.uniform(-4, 1, size=(shape[0], 1))
    rows[-1] = 0
    return (rng.standard_normal(shape) * rows).astype(np.float32)


@pytest.mark.parametrize("name", ["f32", "f16", *QUANTIZED])
@pytest.mark.parametrize("shape", SHAPES)
def test_packed_arrays_have_the_described_shapes(name: str, shape: tuple[int, int]) -> None:
    fmt = WeightFormat.parse(name)
    arrays = reference.pack(random_weight(shape), fmt)
    described = {a.name: (a.shape, a.dtype) for a in fmt.arrays(*shape)}
    assert {k: (v.shape, str(v.dtype)) for k, v in arrays.items()} == described
    assert fmt.nbytes(*shape) == sum(v.nbytes for v in arrays.values())
    assert fmt.name == name


@pytest.mark.parametrize("name", QUANTIZED)
@pytest.mark.parametrize("shape", SHAPES)
def test_unpacking_gives_the_codes_again(name: str, shape: tuple[int, int]) -> None:
    fmt = WeightFormat.parse(name)
    packed = reference.quantize(random_weight(shape), fmt)
    again = reference.unpack_quantized(reference.pack_quantized(packed, fmt), fmt, shape[0])
    kept = packed.codes.reshape(shape[0], -1, fmt.group_size).copy()
    for lower, count in enumerate(reversed(fmt.plane_groups(shape[1]))):
        kept[:, count:] &= ~(1 << lower)
    assert np.array_equal(again.codes, kept.reshape(packed.codes.shape))
    assert len(again.readings) == fmt.reading_count
    for mine, its in zip(again.dense[1:], packed.dense[1:], strict=True):
        assert np.array_equal(mine, its)


@pytest.mark.parametrize("name", ["q4g32cr432", "q4g32r43", "q4g32cr432p2,1", "q4g32cr32p1,0"])
def test_each_reading_has_its_own_scales_and_the_bits_that_groups_have(name: str) -> None:
    fmt, shape = WeightFormat.parse(name), (37, 96)
    made = [reference.quantize(random_weight(shape), fmt) for _ in fmt.readings]
    first, *lower = (q.readings[0] for q in made)
    q = reference.Quantized(made[0].codes, *first, lower=tuple(lower))
    again = reference.unpack_quantized(reference.pack_quantized(q, fmt), fmt, shape[0])
    for index, most in enumerate(fmt.readings):
        plane3, plane4 = fmt.plane_groups(96)
        bits = [min(2 + (g < plane3) + (g < plane4), most) for g in range(3)]
        assert fmt.group_bits(96, index) == bits
        alone = replace(fmt, readings=(), planes=None)
        want = reference.dequantize(
            q.at(index), alone, 96, (bits.count(3) + bits.count(4), bits.count(4))
        )
        assert np.array_equal(reference.dequantize(again, fmt, 96, at=index), want)


def test_a_further_reading_costs_its_scales_and_is_read_alone() -> None:
    one, three = WeightFormat.parse("q4g32c"), WeightFormat.parse("q4g32cr432")
    scales = 18 * 576 + 2 * 576
    assert three.nbytes(576, 576) == one.nbytes(576, 576) + 2 * scales
    for bounds in ((18, 18), (18, 0), (0, 0)):
        assert three.bytes_read(576, 576, bounds) == one.bytes_read(576, 576, bounds)


@pytest.mark.parametrize(
    "name", ["q4g32r34", "q4g32r44", "q4g32r4", "q4g32r5432", "q4g32r21", "q4g32r4321"]
)
def test_readings_that_do_not_fall_from_4_to_2_are_refused(name: str) -> None:
    with pytest.raises(InputError, match="readings are two or three falling numbers of bits"):
        WeightFormat.parse(name)


@pytest.mark.parametrize("name", ["q8g32r43", "q4g32r43o3"])
def test_readings_of_what_is_not_nested_are_refused(name: str) -> None:
    with pytest.raises(InputError, match="only 4-bit codes without outliers have several"):
        WeightFormat.parse(name)


def test_a_fourth_bit_that_no_reading_reads_is_refused() -> None:
    assert WeightFormat.parse("q4g32r32").plane_groups(96) == (3, 0)
    with pytest.raises(InputError, match=r"no reading needs the fourth bit .*q4g32r32p3,1"):
        WeightFormat.parse("q4g32r32p3,1")


@pytest.mark.parametrize("name", ["q4g32", "q5g32", "q6g32"])
@pytest.mark.parametrize("shape", SHAPES)
def test_one_weight_at_its_documented_place(name: str, shape: tuple[int, int]) -> None:
    """The layout as docs/artifact_format.md tells it, bit by bit, for weights chosen at random."""
    fmt = WeightFormat.parse(name)
    q = reference.quantize(random_weight(shape), fmt)
    arrays = reference.pack_quantized(q, fmt)
    rng = np.random.default_rng()
    for row, column in zip(
        rng.integers(shape[0], size=20), rng.integers(q.codes.shape[1], size=20), strict=True
    ):
        tile, r = divmod(row, fmt.row_tile)
        group, channel = divmod(column, fmt.group_size)
        step, c = divmod(channel, 4)
        byte = r * 4 + c
        code = int(arrays["base"][tile, group, step // 4, byte] >> 2 * (step % 4) & 3)
        for bit in range(3, fmt.bits + 1):
            code = 2 * code + (arrays[f"plane{bit}"][tile, group, step // 8, byte] >> step % 8 & 1)
        assert code == q.codes[row, column]


@pytest.mark.parametrize(
    ("name", "level"),
    [
        *(("q4g32", level) for level in [(3, 3), (3, 1), (2, 0), (0, 0)]),
        *(("q5g32", level) for level in [(3, 3, 3), (3, 2, 1), (1, 1, 0), (0, 0, 0)]),
        *(("q6g32", level) for level in [(3, 3, 3, 3), (3, 2, 1, 0), (2, 2, 2, 1), (0, 0, 0, 0)]),
    ],
)
def test_levels_read_the_middle_of_what_they_cut_off(name: str, level: tuple[int, ...]) -> None:
    fmt = WeightFormat.parse(name)
    weight = random_weight((40, 96))
    q = reference.quantize(weight, fmt)
    got = reference.dequantize(q, fmt, 96, level).reshape(40, 3, 32)
    step = reference.group_scale(q)
    codes, zero = q.codes.reshape(40, 3, 32).astype(np.float64), q.zero / float(fmt.unit)
    for group in range(3):
        lost = (1 << sum(group >= end for end in level)) - 1
        read = (codes[:, group].astype(int) & ~lost) + lost / 2
        want = (read - zero[:, group, None]) * step[:, group, None]
        np.testing.assert_allclose(got[:, group], want, rtol=1e-5, atol=1e-9)


@pytest.mark.parametrize("name", ["q8g32", "q4g32", "q5g32", "q6g32"])
def test_rounding_error_is_below_half_a_step(name: str) -> None:
    """The step is the group's own, rounded up to the row's grid; the zero adds half its unit."""
    fmt = WeightFormat.parse(name)
    weight = random_weight((64, 320))
    q = reference.quantize(weight, fmt)
    error = np.abs(reference.dequantize(q, fmt, 320) - weight).reshape(64, 10, 32).max(-1)
    zero_error = 0.5 / fmt.unit if fmt.nested else 0
    assert (error <= reference.group_scale(q) * (0.5 + zero_error) * 1.001 + 1e-12).all()


def test_bytes_read_fall_with_the_level() -> None:
    fmt = WeightFormat.parse("q4g32")
    levels = [(18, 18), (18, 9), (18, 0), (9, 0), (0, 0)]
    read = [fmt.bytes_read(576, 576, level) for level in levels]
    assert read == sorted(read, reverse=True)
    assert read[0] == fmt.nbytes(576, 576)
    assert read[0] - read[2] == 576 * 576 // 8
    fmt = WeightFormat.parse("q6g32cp18,18,12,6")
    read = [fmt.bytes_read(576, 576, (18, n, n, min(n, 6))) for n in (12, 6, 0)]
    assert read[1] - read[2] == (12 + 6) * 576 * 32 // 8 and read[0] < fmt.nbytes(576, 576)


@pytest.mark.parametrize("name", ["q5g32", "q6g32", "q6g128c"])
def test_more_bits_leave_a_fraction_of_the_error(name: str) -> None:
    """Each bit of a code halves the step; scales of 4 bits leave a little more."""
    fmt = WeightFormat.parse(name)
    weight = random_weight((64, 320))
    errors = [
        np.abs(reference.dequantize(reference.quantize(weight, each), each, 320) - weight).mean()
        for each in (replace(fmt, kind="q4"), fmt)
    ]
    assert errors[1] < errors[0] * 1.1 * 0.5 ** (fmt.bits - 4)


UNKNOWN = ["q7g32", "q4", "q4g48", "q4g32p1,2", "q8g32p1,0", "q4g32p0.5,0", "q8g32o4", ""]
UNKNOWN += ["q6g32p3,2", "q4g32p3,2,1", "q5g32p2,1,2", "q8g32c"]


@pytest.mark.parametrize("name", UNKNOWN)
def test_unknown_formats_are_refused(name: str) -> None:
    with pytest.raises(
        InputError,
        match=r"unknown weight format|group size|bad planes|bad outliers|have compact sc",
    ):
        WeightFormat.parse(name)


def test_bad_planes_are_told_what_planes_there_are() -> None:
    with pytest.raises(
        InputError, match=r"\(got \(2, 1, 2\), need P3 >= P4 >= P5 >= 0 in a q5 format\)"
    ):
        WeightFormat.parse("q5g32p2,1,2")
    with pytest.raises(InputError, match=r"got \(1, 0\), need none in a q8 format"):
        WeightFormat.parse("q8g32p1,0")


def test_planes_of_more_groups_than_there_are_are_refused() -> None:
    fmt = WeightFormat.parse("q4g32p4,1")
    assert fmt.plane_groups(128) == (4, 1)
    with pytest.raises(InputError, match=r"too many planes \(got P3 = 4, need at most the 3 gr"):
        fmt.arrays(16, 96)


@pytest.mark.parametrize("name", ["q5g32n", "q4g32np1,0", "q4g32no3", "q4g32nr43"])
def test_nibbles_of_parts_of_codes_are_refused(name: str) -> None:
    with pytest.raises(InputError, match="only whole 4-bit codes of one reading lie in nibbles"):
        WeightFormat.parse(name)


def test_nibbles_are_read_with_all_bits() -> None:
    fmt = WeightFormat.parse("q4g32n")
    assert (fmt.plane_groups(96), fmt.group_bits(96)) == ((), [4, 4, 4])
    assert fmt.nbytes(40, 96) == WeightFormat.parse("q4g32").nbytes(40, 96)
    q = reference.quantize(random_weight((3, 96)), fmt)
    planes = reference.dequantize(q, WeightFormat.parse("q4g32"), 96)
    assert np.array_equal(reference.dequantize(q, fmt, 96), planes)


def test_unknown_bits_are_refused() -> None:
    with pytest.raises(
        InputError, match=r"unknown bits \(got '3', need one of f32, f16, 8, 6, 5, 4\)"
    ):
        format_for_bits("3")


def test_bad_weights_are_named() -> None:
    weight = np.zeros((3, 4), np.float32)
    weight[2, 1] = np.nan
    with pytest.raises(CompileError, match=r"not finite \(got nan in row 2, column 1\) at up_proj"):
        reference.check_finite(weight, "up_proj")
