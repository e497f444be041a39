"""Levels read whole planes: of the small matrices the longest, within the parts that they may."""

from __future__ import annotations

import numpy as np
import pytest

from morendo.codegen.levels import LEVELS, NestedMatrix, groups_read

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


def test_the_head_keeps_its_planes_before_all() -> None:
    read = groups_read([ATTENTION, GATED, DOWN, HEAD])
    assert [read["head",][level] for level in (1, 3)] == [(18, 18), (18, 0)]
    assert read["gate", "up"][1] == (18, 0)


def test_a_matrix_alone_falls_by_whole_planes() -> None:
    assert groups_read([DOWN])["down",] == [(48, 20), (48, 0), (48, 0), (0, 0), (0, 0)]


def test_lower_planes_of_the_head_go_first() -> None:
    head = NestedMatrix(("head",), stored=(18,) * 4, sizes=(90,) * 4, head=True)
    read = groups_read([ATTENTION, GATED, DOWN, head])
    assert read["head",][:3] == [(18, 18, 18, 18), (18, 18, 0, 0), (18, 0, 0, 0)]
    assert read["q", "k", "v"][0] == (18, 18)


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
