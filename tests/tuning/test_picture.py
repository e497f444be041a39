"""The picture of schedules: round numbers around all points, which lie inside."""

import re

import pytest

from morendo.tuning.compare import ScheduleRow
from morendo.tuning.picture import _ticks, draw


def row(name, quality, read):
    return ScheduleRow(name, quality, 1.0, 0.0, read, 4.0, 100.0)


@pytest.mark.parametrize(
    "values",
    [[0.2, 0.9], [1, 1], [89.9, 63.3], [0.9901, 0.9999], [614, 372.4, 500], [0, 0], [0.0005, 7e5]],
)
def test_ticks_are_few_and_around_all(values):
    ticks = _ticks(values)
    assert 2 <= len(ticks) <= 9
    assert ticks[0] <= min(values) + 1e-9
    assert ticks[-1] >= max(values) - 1e-9
    assert ticks == sorted(set(ticks))


def test_points_lie_inside():
    rows = [row("off", 1, 90e6), row("fixed:4", 0.2, 63e6), row("a <b>", 0.97, 75e6)]
    text = draw(rows, 'a "title"')
    assert "a &lt;b&gt;" in text
    assert 'aria-label="a &quot;title&quot;"' in text
    places = re.findall(r'<circle cx="([\d.]+)" cy="([\d.]+)"', text)
    assert len(places) == 3
    for x, y in places:
        assert 64 <= float(x) <= 490
        assert 24 <= float(y) <= 348


def test_one_point_is_enough():
    assert "<circle" in draw([row("off", 1, 1e6)], "one")
