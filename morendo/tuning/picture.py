"""Quality against bytes as a picture: SVG text, without a library."""

from __future__ import annotations

import math
from collections.abc import Sequence
from xml.sax.saxutils import escape

from .compare import ScheduleRow

_WIDTH, _HEIGHT = 640, 400
_LEFT, _RIGHT, _TOP, _BOTTOM = 64, 150, 24, 52
_FIXED, _TUNED = "#57606a", "#0969da"
_STYLE = """\
  <style>
    text { fill: #1f2328; }
    .small { fill: #57606a; font-size: 11.5px; }
    .grid { stroke: #d0d7de; stroke-width: 1; }
    .line { stroke: #57606a; stroke-width: 1.4; fill: none; stroke-dasharray: 4 3; }
  </style>"""


def draw(rows: Sequence[ScheduleRow], title: str) -> str:
    """An SVG of ROUGE-L by megabytes a token: fixed levels on a line, schedules beside it."""
    x_ticks = _ticks([row.bytes / 1e6 for row in rows])
    y_ticks = _ticks([row.rouge_l for row in rows])

    def place(row: ScheduleRow) -> tuple[float, float]:
        return _x(row.bytes / 1e6, x_ticks), _y(row.rouge_l, y_ticks)

    fixed = [row for row in rows if _is_fixed(row)]
    line = " ".join(f"{x:.1f},{y:.1f}" for x, y in map(place, fixed))
    parts = [_head(title), _STYLE, f'  <rect width="{_WIDTH}" height="{_HEIGHT}" fill="#ffffff"/>']
    parts += [_x_tick(value, x_ticks) for value in x_ticks]
    parts += [_y_tick(value, y_ticks) for value in y_ticks]
    parts.append(f'  <polyline class="line" points="{line}"/>')
    for row in rows:
        x, y = place(row)
        color = _FIXED if _is_fixed(row) else _TUNED
        parts.append(f'  <circle cx="{x:.1f}" cy="{y:.1f}" r="4.5" fill="{color}"/>')
        parts.append(f'  <text x="{x + 8:.1f}" y="{y + 4:.1f}">{escape(row.name)}</text>')
    middle = (_LEFT + _WIDTH - _RIGHT) / 2
    parts.append(_label(middle, _HEIGHT - 14, "MB that a token reads, on average"))
    parts.append(_label(_LEFT, 14, "ROUGE-L against the precise answers", "start"))
    return "\n".join([*parts, "</svg>"]) + "\n"


def _is_fixed(row: ScheduleRow) -> bool:
    return row.name == "off" or row.name.startswith("fixed:")


def _head(title: str) -> str:
    label = escape(title, {'"': "&quot;"})
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_HEIGHT}" '
        'font-family="ui-sans-serif, Helvetica, Arial, sans-serif" font-size="13" role="img" '
        f'aria-label="{label}">'
    )


def _ticks(values: Sequence[float]) -> list[float]:
    """Four to eight round numbers around all values."""
    low, high = min(values), max(values)
    span = max(high - low, abs(high) * 1e-3, 1e-9)
    step = 10.0 ** math.floor(math.log10(span / 3))
    while span / step > 6:
        step *= 2.5 if math.isclose(step / 10 ** math.floor(math.log10(step)), 2) else 2
    first, last = math.floor(low / step), math.ceil(high / step)
    return [step * index for index in range(first, max(last, first + 1) + 1)]


def _x(value: float, ticks: Sequence[float]) -> float:
    return _LEFT + (value - ticks[0]) / (ticks[-1] - ticks[0]) * (_WIDTH - _LEFT - _RIGHT)


def _y(value: float, ticks: Sequence[float]) -> float:
    part = (value - ticks[0]) / (ticks[-1] - ticks[0])
    return _HEIGHT - _BOTTOM - part * (_HEIGHT - _TOP - _BOTTOM)


def _x_tick(value: float, ticks: Sequence[float]) -> str:
    x, low = _x(value, ticks), _HEIGHT - _BOTTOM
    line = f'  <line class="grid" x1="{x:.1f}" y1="{_TOP}" x2="{x:.1f}" y2="{low}"/>'
    return f"{line}\n{_label(x, low + 16, f'{value:.6g}')}"


def _y_tick(value: float, ticks: Sequence[float]) -> str:
    y, right = _y(value, ticks), _WIDTH - _RIGHT
    line = f'  <line class="grid" x1="{_LEFT}" y1="{y:.1f}" x2="{right}" y2="{y:.1f}"/>'
    return f"{line}\n{_label(_LEFT - 6, y + 4, f'{value:.6g}', 'end')}"


def _label(x: float, y: float, text: str, anchor: str = "middle") -> str:
    return f'  <text class="small" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{text}</text>'
