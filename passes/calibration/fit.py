"""Scale and zero of one group of columns, by search on the weighted error.

Every candidate is one that the format can store (scale in 255ths of the row's, zero in eighths of
a step), so what is compared is what the kernels will read. A grid over shrunken ranges, as in
arXiv 2206.01861 and others, then least squares on the codes found.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from morendo.ir.formats import SCALE_STEPS
from morendo.ir.reference import STEP

ROUNDS = 2  # of least squares
LARGEST_ZERO = 127  # of an int8


@dataclass(frozen=True)
class Grid:
    """The values that a group of one precision can hold: (spacing * code + middle - zero) * step.

    Attributes:
        bits: 8, or 4, 3, 2 for the nested codes; those of fewer bits are codes of 4 bits, every
            `spacing`-th of them, read in the `middle` of what is cut off.
    """

    bits: int

    @property
    def nested(self) -> bool:
        """Unsigned codes with a zero, else signed ones without."""
        return self.bits <= 4

    @property
    def limits(self) -> tuple[int, int]:
        """The least and the largest code."""
        return (0, (1 << self.bits) - 1) if self.nested else (-127, 127)

    @property
    def spacing(self) -> int:
        """Steps of the format between two codes."""
        return 1 << (4 - self.bits) if self.nested else 1

    @property
    def middle(self) -> float:
        """Steps between a code and the middle of the codes that it stands for."""
        return (self.spacing - 1) / 2

    @property
    def shrink(self) -> list[float]:
        """Parts of the range that are tried: few codes want more cut off."""
        part, count = (0.04, 13) if self.bits > 2 else (0.045, 16)
        return [1.0 - part * i for i in range(1, count)]

    def range(self, weight: torch.Tensor, dim: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
        """(step, low) of the min-max range along `dim`; the range always holds 0."""
        high, low = weight.amax(dim).clamp_min(0), weight.amin(dim).clamp_max(0)
        if not self.nested:
            return torch.maximum(high, -low) / 127, torch.zeros_like(low)
        return (high - low) / (self.limits[1] * self.spacing), low

    def fit(self, step: torch.Tensor, low: torch.Tensor, row_scale: torch.Tensor) -> GroupFit:
        """The storable scale and zero next to a step and a lower end, both [N]."""
        safe = torch.where(row_scale > 0, row_scale, 1.0)
        code = torch.round(step / safe * SCALE_STEPS).clamp_(1, SCALE_STEPS)
        exact = row_scale * (code / SCALE_STEPS)
        inverse = torch.where(exact > 0, 1 / exact, 0.0)
        zero = torch.round((self.middle - low * inverse) * STEP).clamp_(0, LARGEST_ZERO)
        return GroupFit(self, code, zero if self.nested else torch.zeros_like(zero), exact)


@dataclass
class GroupFit:
    """What one group's rows are rounded with.

    Attributes:
        grid: of the group's precision.
        code: float32 [N], whole numbers 1..255.
        zero: float32 [N], whole numbers of eighths of a step.
        step: float32 [N], row_scale * code / 255.
    """

    grid: Grid
    code: torch.Tensor
    zero: torch.Tensor
    step: torch.Tensor

    def round(self, values: torch.Tensor) -> torch.Tensor:
        """Codes of values [..., N]."""
        inverse = torch.where(self.step > 0, 1 / (self.step * self.grid.spacing), 0.0)
        shift = (self.zero / STEP - self.grid.middle) / self.grid.spacing
        return torch.round(values * inverse + shift).clamp_(*self.grid.limits)

    def value(self, codes: torch.Tensor) -> torch.Tensor:
        """What codes [..., N] stand for."""
        shift = self.zero / STEP - self.grid.middle
        return (codes * self.grid.spacing - shift) * self.step

    def where(self, mask: torch.Tensor, other: GroupFit) -> GroupFit:
        """This fit in the rows of the mask [N], the other elsewhere."""
        pairs = ((self.code, other.code), (self.zero, other.zero), (self.step, other.step))
        return GroupFit(self.grid, *(torch.where(mask, mine, old) for mine, old in pairs))


def fit_group(
    weight: torch.Tensor, importance: torch.Tensor, row_scale: torch.Tensor, grid: Grid
) -> GroupFit:
    """Search scale and zero of a group.

    Args:
        weight: float32 [g, N].
        importance: float32 [g] or [g, N], the weight of each squared error.
        row_scale: float32 [N].
        grid: of the precision in which the group is stored.
    """
    importance = importance[:, None] if importance.ndim == 1 else importance

    def error(fit: GroupFit) -> tuple[torch.Tensor, torch.Tensor]:
        codes = fit.round(weight)
        return ((fit.value(codes) - weight).square_() * importance).sum(0), codes

    step, low = grid.range(weight)
    best = grid.fit(step, low, row_scale)
    least, codes = error(best)

    def keep_better(fit: GroupFit) -> None:
        nonlocal best, least, codes
        new, new_codes = error(fit)
        better = new < least
        least = torch.where(better, new, least)
        codes = torch.where(better, new_codes, codes)
        best = fit.where(better, best)

    for shrink in grid.shrink:
        keep_better(grid.fit(step * shrink, low * shrink, row_scale))
    for _ in range(ROUNDS):
        keep_better(grid.fit(*_least_squares(weight, codes, importance, grid), row_scale))
    return best


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
