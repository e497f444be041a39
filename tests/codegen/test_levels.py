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


@pytest.mark.parametrize("seed", range(5))
def test_bytes_fall_and_stay_within_their_parts(seed: int) -> None:
    rng = np.random.default_rng(seed)
    matrices = []
    for i in range(20):
        plane3, size = rng.integers(0, 50), rng.integers(1, 1000)
        stored = int(plane3), int(rng.integers(0, plane3 + 1))
        sizes = int(stored[0] * size), int(stored[1] * size)
        matrices.append(NestedMatrix((str(i),), stored, sizes, head=False))
    read = groups_read(matrices)
    totals = [sum(m.sizes[plane] for m in matrices) for plane in range(2)]
    before = [float("inf")] * 2
    for level, parts in enumerate(LEVELS):
        bounds = [read[m.weights][level] for m in matrices]
        assert all(n4 <= n3 for n3, n4 in bounds)
        for plane, part in enumerate(parts):
            used = sum(
                m.sizes[plane] for m, n in zip(matrices, bounds, strict=True) if n[plane] > 0
            )
            largest = max(m.sizes[plane] for m in matrices)
            assert part * totals[plane] - largest < used <= part * totals[plane]
            assert used <= before[plane]
            before[plane] = used
