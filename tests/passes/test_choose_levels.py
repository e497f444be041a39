"""Levels read whole planes: of the small matrices the longest, within the parts that they may."""

from __future__ import annotations

import re
from dataclasses import replace

import numpy as np
import pytest

from morendo.ir.formats import WeightFormat
from morendo.ir.invariants import wrong_levels
from morendo.passes.choose_levels import HEAD_BITS, LEVELS, NestedMatrix, groups_read, levels_of

ATTENTION = NestedMatrix(("q", "k", "v"), stored=(18, 18), sizes=(60, 60), head=False)
GATED = NestedMatrix(("gate", "up"), stored=(18, 18), sizes=(100, 100), head=False)
DOWN = NestedMatrix(("down",), stored=(48, 20), sizes=(96, 40), head=False)
HEAD = NestedMatrix(("head",), stored=(18, 18), sizes=(90, 90), head=True)


def test_a_layer_gives_up_its_largest_planes_first() -> None:
    assert groups_read([ATTENTION, GATED, DOWN]) == {
        ("q", "k", "v"): [(18, 18), (18, 18), (18, 0), (18, 0), (0, 0)],
        ("gate", "up"): [(18, 18), (18, 0), (18, 0), (0, 0), (0, 0)],
        ("down",): [(48, 20), (48, 20), (48, 0), (0, 0), (0, 0)],
    }


def test_a_head_has_its_own_share() -> None:
    read = groups_read([ATTENTION, GATED, DOWN, HEAD])
    without = groups_read([ATTENTION, GATED, DOWN])
    assert read["head",] == [(18, 18), (18, 18), (18, 0), (18, 0), (0, 0)]
    assert {name: read[name] for name in without} == without


def test_a_matrix_alone_falls_by_whole_planes() -> None:
    assert groups_read([DOWN])["down",] == [(48, 20), (48, 0), (48, 0), (0, 0), (0, 0)]


@pytest.mark.parametrize("bits", HEAD_BITS)
def test_a_head_falls_to_half_of_its_bits(bits: int) -> None:
    planes = bits - 2
    head = NestedMatrix(("head",), stored=(18,) * planes, sizes=(90,) * planes, head=True)
    read = [2 + sum(n > 0 for n in bounds) for bounds in groups_read([GATED, head])["head",]]
    assert read == list(HEAD_BITS[bits]) and read[-1] == bits // 2
    assert sorted(read, reverse=True) == read


@pytest.mark.parametrize(
    ("readings", "bits"), [((4, 3), [6, 5, 4]), ((4, 3, 2), [6, 5, 4, 4, 3]), ((3, 2), [6, 5, 4])]
)
def test_a_head_of_one_reading_falls_with_the_others(readings: tuple[int, ...], bits) -> None:
    body = replace(DOWN, readings=readings)
    head = NestedMatrix(("head",), stored=(18,) * 4, sizes=(90,) * 4, head=True)
    levels = levels_of([body, head])
    assert [2 + sum(n > 0 for n in bounds) for bounds in levels.groups["head",]] == bits
    assert ("head",) not in levels.readings and levels.count == len(bits)


def test_the_lowest_level_reads_about_half() -> None:
    """SmolLM2's body of 4.27 bits and its head: at most 55 %."""
    body, rows = 106_168_320, 49152
    for name in ("q4g32c", "q5g32c", "q6g32c"):
        fmt = WeightFormat.parse(name)
        head = NestedMatrix(("head",), fmt.plane_groups(576), (1,) * (fmt.bits - 2), head=True)
        low = groups_read([GATED, head])["head",][-1]
        lowest = body * 2.27 / 8 + fmt.bytes_read(rows, 576, low)
        assert lowest < 0.55 * (body * 4.27 / 8 + fmt.nbytes(rows, 576))


@pytest.mark.parametrize("seed", range(5))
def test_bytes_fall_and_stay_within_their_parts(seed: int) -> None:
    rng = np.random.default_rng(seed)
    matrices = []
    for i in range(20):
        size = int(rng.integers(1, 1000))
        stored = tuple(sorted(map(int, rng.integers(0, 50, 2 + i % 3)), reverse=True))
        sizes = tuple(count * size for count in stored)
        matrices.append(NestedMatrix((str(i),), stored, sizes, head=False))
    read = groups_read(matrices)
    having = [[m for m in matrices if plane < len(m.sizes)] for plane in range(4)]
    before = [float("inf")] * 4
    for level, parts in enumerate(LEVELS):
        bounds = {m.weights: read[m.weights][level] for m in matrices}
        assert all(list(each) == sorted(each, reverse=True) for each in bounds.values())
        for plane, part in enumerate(parts):
            sizes = {m.weights: m.sizes[plane] for m in having[plane]}
            used = sum(size for name, size in sizes.items() if bounds[name][plane] > 0)
            total, largest = sum(sizes.values()), max(sizes.values())
            assert part * total - largest < used <= part * total
            assert used <= before[plane]
            before[plane] = used


READ_AT = {  # bits of the attention's, gate and up's, and a six-bit head's codes at every level
    (4, 3): [(4, 4, 6), (4, 3, 5), (3, 3, 4)],
    (4, 3, 2): [(4, 4, 6), (4, 3, 5), (3, 3, 4), (3, 2, 4), (2, 2, 3)],
    (3, 2): [(3, 3, 6), (3, 2, 5), (2, 2, 4)],
    (4, 2): [(4, 4, 6), (4, 2, 5), (2, 2, 3)],
}


@pytest.mark.parametrize("readings", READ_AT)
def test_levels_of_readings_are_they_and_one_between_each_two(readings: tuple[int, ...]) -> None:
    planes = 18 if readings[0] == 4 else 0
    attention, gated = (
        replace(m, stored=(18, planes), sizes=(m.sizes[0], m.sizes[1] * (planes > 0)))
        for m in (ATTENTION, GATED)
    )
    attention, gated = (replace(m, readings=readings) for m in (attention, gated))
    head = NestedMatrix(("head",), (18, 18, 18, 18), (90, 90, 90, 90), head=True)
    levels = levels_of([attention, gated, head])
    assert levels.count == len(READ_AT[readings]) == len(levels.norms)
    for level, bits in enumerate(READ_AT[readings]):
        for m, want in zip((attention, gated, head), bits, strict=True):
            assert 2 + sum(n > 0 for n in levels.groups[m.weights][level]) == want
            if m.readings:
                assert readings[levels.readings[m.weights][level]] == want
    assert levels.norms == (0, 0, 1, 1, 2)[: levels.count]


def test_a_matrix_of_one_reading_is_read_whole_beside_readings() -> None:
    levels = levels_of([replace(ATTENTION, readings=(4, 3)), GATED])
    assert levels.groups[GATED.weights] == [GATED.stored] * 3
    assert GATED.weights not in levels.readings


@pytest.mark.parametrize(
    ("levels", "match"),
    [
        (["18,18", "18,19"], r"has the level 18,19, stored is \(18, 18\)"),
        (["18"], "has the level 18, stored is"),
        (["0,18"], "has the level 0,18"),
        (["18,18@1"], "has the level 18,18@1"),
        (["18;18"], "no bounds of a level .got '18;18'"),
    ],
)
def test_levels_that_read_what_is_not_stored_are_refused(levels: list[str], match: str) -> None:
    linear = {"weights": ["w"], "out_features": [8], "in_features": 576, "format": "q4g32"}
    assert re.search(match, wrong_levels({**linear, "levels": levels}))
    assert not wrong_levels({**linear, "levels": ["18,18", "18,0"]})
    for fmt in ("q8g32", "q4g32n"):
        assert "no planes" in wrong_levels({**linear, "format": fmt, "levels": ["18,18"]})
    norm = {"weight": "n", "lower_weights": ["n1"], "levels": [0, 1, 2]}
    assert "weights 0 to 1" in wrong_levels(norm)


def test_a_model_without_nested_codes_has_one_level() -> None:
    assert levels_of([]).count == 1
