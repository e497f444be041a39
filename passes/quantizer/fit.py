"""Scale and zero of one group of columns, by search on the weighted error.

Every candidate is one that the format can store (scale in 255ths of the row's, zero in parts of
a step), so what is compared is what the kernels will read. All pairs of a shrunken range, as in
arXiv 2206.01861 and others, and a moved middle are tried: the error as a function of both has many
valleys. Least squares on the codes found come last.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from morendo.ir.formats import BYTE_BITS
from morendo.ir.ladders import SCALE_STEPS, SCALES, ZEROS, Ladder

from .best_pairs import best_pairs

ROUNDS = 2  # of least squares
SHRINK = 0.05
"""Scales that are tried are this part of the range's, or one rung, below the last."""
MOVE = 3  # units of zeros, from one that is tried to the next: the same part of any range


@dataclass(frozen=True)
class Effort:
    """How many pairs of scale and zero are tried.

    Attributes:
        shrinks: scales below that of the range.
        moves: zeros on either side of the one that puts the range in the middle.
    """

    shrinks: int = 8
    moves: int = 4


THOROUGH = Effort()
QUICK = Effort(shrinks=4, moves=1)
"""Leaves a hundredth more of the error, and takes half to a fifth of the time."""


def nearest(values: torch.Tensor, ladder: Ladder) -> torch.Tensor:
    """The nearest number of a ladder to each of `values`, which are overwritten."""
    rungs = values.sub_(ladder.first).div_(ladder.step).round_().clamp_(0, ladder.count - 1)
    return rungs.mul_(ladder.step).add_(ladder.first)


@dataclass(frozen=True)
class Grid:
    """The values that a group of one precision can hold: (spacing * code + middle - zero) * step.

    Attributes:
        bits: 8, or 2 to 6 for nested codes; those of fewer bits than the format's are every
            `spacing`-th of its codes, read in the `middle` of what is cut off.
        scales, zeros: what can be stored of them.
        whole: bits of the format's nested codes.
    """

    bits: int
    scales: Ladder = SCALES
    zeros: Ladder = ZEROS
    whole: int = 4

    @property
    def nested(self) -> bool:
        """Unsigned codes with a zero, else signed ones without."""
        return self.bits <= self.whole

    @property
    def limits(self) -> tuple[int, int]:
        """The least and the largest code."""
        return (0, (1 << self.bits) - 1) if self.nested else (-127, 127)

    @property
    def spacing(self) -> int:
        """Steps of the format between two codes."""
        return 1 << (self.whole - self.bits) if self.nested else 1

    @property
    def unit(self) -> int:
        """What zeros count of a step, as `WeightFormat.unit`."""
        return 1 << (BYTE_BITS - self.whole)

    @property
    def middle(self) -> float:
        """Steps between a code and the middle of the codes that it stands for."""
        return (self.spacing - 1) / 2

    def range(self, weight: torch.Tensor, dim: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
        """(step, low) of the min-max range along `dim`; the range always holds 0.

        The step is larger where the zeros do not go far enough.
        """
        high, low = weight.amax(dim).clamp_min(0), weight.amin(dim).clamp_max(0)
        if not self.nested:
            return torch.maximum(high, -low) / 127, torch.zeros_like(low)
        top = self.limits[1] * self.spacing
        above = top + self.middle - self.zeros.first / self.unit
        below = self.zeros.last / self.unit - self.middle
        return torch.maximum((high - low) / top, torch.maximum(high / above, -low / below)), low

    @property
    def center(self) -> float:
        """Steps from the zero of the least code to the middle of all codes."""
        return self.limits[1] * self.spacing / 2 + self.middle

    def code_of(self, step: torch.Tensor, row_scale: torch.Tensor) -> torch.Tensor:
        """The storable scale codes next to steps, both [N]."""
        safe = torch.where(row_scale > 0, row_scale, 1.0)
        return nearest(step / safe * SCALE_STEPS, self.scales)

    def fit(self, step: torch.Tensor, low: torch.Tensor, row_scale: torch.Tensor) -> GroupFit:
        """The storable scale and zero next to a step and a lower end, both [N]."""
        code = self.code_of(step, row_scale)
        exact = row_scale * (code / SCALE_STEPS)
        inverse = torch.where(exact > 0, 1 / exact, 0.0)
        zero = nearest((self.middle - low * inverse) * self.unit, self.zeros)
        return GroupFit(self, code, zero if self.nested else torch.zeros_like(zero), exact)


@dataclass
class GroupFit:
    """What one group's rows are rounded with.

    Attributes:
        grid: of the group's precision.
        code: float32 [N], whole numbers of the grid's scales.
        zero: float32 [N], whole numbers of the grid's zeros, of which `unit` are a step.
        step: float32 [N], row_scale * code / 255.
    """

    grid: Grid
    code: torch.Tensor
    zero: torch.Tensor
    step: torch.Tensor

    @property
    def shift(self) -> torch.Tensor:
        """What is added to values in spacings of codes before they are rounded: float32 [N]."""
        return (self.zero / self.grid.unit - self.grid.middle) / self.grid.spacing

    def round(self, values: torch.Tensor) -> torch.Tensor:
        """Codes of values [..., N]."""
        inverse = torch.where(self.step > 0, 1 / (self.step * self.grid.spacing), 0.0)
        return torch.round(values * inverse + self.shift).clamp_(*self.grid.limits)

    def value(self, codes: torch.Tensor) -> torch.Tensor:
        """What codes [..., N] stand for."""
        shift = self.zero / self.grid.unit - self.grid.middle
        return (codes * self.grid.spacing - shift) * self.step

    def where(self, mask: torch.Tensor, other: GroupFit) -> GroupFit:
        """This fit in the rows of the mask [N], the other elsewhere."""
        pairs = ((self.code, other.code), (self.zero, other.zero), (self.step, other.step))
        return GroupFit(self.grid, *(torch.where(mask, mine, old) for mine, old in pairs))


def fit_group(
    weight: torch.Tensor,
    importance: torch.Tensor,
    row_scale: torch.Tensor,
    grid: Grid,
    effort: Effort = THOROUGH,
) -> GroupFit:
    """Search scale and zero of a group.

    Args:
        weight: float32 [g, N].
        importance: float32 [g] or [g, N], the weight of each squared error.
        row_scale: float32 [N].
        grid: of the precision in which the group is stored.
    """
    importance = importance[:, None] if importance.ndim == 1 else importance
    best = _tried_pairs(weight, importance, row_scale, grid, effort)

    def error(fit: GroupFit) -> tuple[torch.Tensor, torch.Tensor]:
        codes = fit.round(weight)
        return ((fit.value(codes) - weight).square_() * importance).sum(0), codes

    least, codes = error(best)
    for _ in range(ROUNDS):
        fit = grid.fit(*_least_squares(weight, codes, importance, grid), row_scale)
        new, new_codes = error(fit)
        better = new < least
        least = torch.where(better, new, least)
        codes = torch.where(better, new_codes, codes)
        best = fit.where(better, best)
    return best


def _tried_pairs(
    weight: torch.Tensor,
    importance: torch.Tensor,
    row_scale: torch.Tensor,
    grid: Grid,
    effort: Effort,
) -> GroupFit:
    """The best of all pairs of some scales and some zeros; `importance` is [g, 1] or [g, N]."""
    step, low = grid.range(weight)
    largest = grid.code_of(step, row_scale)
    stride = (largest * SHRINK).clamp_min_(grid.scales.step)
    high = weight.amax(0).clamp_min(0)
    shrinks = torch.arange(-1, effort.shrinks)[:, None]
    count = effort.moves if grid.nested else 0
    moves = torch.arange(-count, count + 1)[:, None] * MOVE
    codes = nearest(largest - shrinks * stride, grid.scales)
    exact = row_scale * (codes / SCALE_STEPS)
    inverse = torch.where(exact > 0, 1 / exact, 0.0)
    centered = nearest((grid.center - (high + low) / 2 * inverse) * grid.unit, grid.zeros)
    zeros = (centered[:, None] + moves).clamp_(grid.zeros.first, grid.zeros.last)
    zeros = zeros if grid.nested else torch.zeros_like(zeros)
    shift = (zeros / grid.unit - grid.middle) / grid.spacing
    parts = inverse / grid.spacing, shift, exact * grid.spacing
    place = best_pairs(weight, importance, *parts, grid.limits)[None]
    scale = place // len(moves)
    return GroupFit(
        grid,
        codes.gather(0, scale)[0],
        zeros.flatten(0, 1).gather(0, place)[0],
        exact.gather(0, scale)[0],
    )


def _least_squares(
    weight: torch.Tensor, codes: torch.Tensor, importance: torch.Tensor, grid: Grid
) -> tuple[torch.Tensor, torch.Tensor]:
    """(step, low) that fit weight = step * spacing * code + low best, each [N]."""
    codes = codes * grid.spacing
    if not grid.nested:
        square = (importance * codes * codes).sum(0)
        step = (importance * codes * weight).sum(0) / square.clamp_min(1e-12)
        return step, torch.zeros_like(step)
    total = importance.expand_as(weight).sum(0).clamp_min(1e-30)
    code_mean, mean = ((importance * x).sum(0) / total for x in (codes, weight))
    centered = codes - code_mean
    variance = (importance * centered.square()).sum(0)
    step = (importance * centered * (weight - mean)).sum(0) / variance.clamp_min(1e-30)
    return step, mean - step * code_mean
