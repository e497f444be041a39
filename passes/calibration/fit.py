"""Scale and zero of one group of columns, by search on the weighted error.

Every candidate is one that the format can store (scale in 255ths of the row's, zero in eighths of
a step), so what is compared is what the kernels will read. A grid over shrunken ranges, as in
arXiv 2206.01861 and others, then least squares on the codes found.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from morendo.ir.formats import SCALE_STEPS, WeightFormat
from morendo.ir.reference import STEP

SHRINK = tuple(1.0 - 0.04 * i for i in range(13))
ROUNDS = 2  # of least squares


@dataclass
class GroupFit:
    """What one group's rows are rounded with.

    Attributes:
        code: float32 [N], whole numbers 1..255.
        zero: float32 [N], whole numbers of eighths of a step.
        step: float32 [N], row_scale * code / 255.
    """

    code: torch.Tensor
    zero: torch.Tensor
    step: torch.Tensor

    def round(self, values: torch.Tensor, limits: tuple[int, int]) -> torch.Tensor:
        """Codes of values [..., N]."""
        inverse = torch.where(self.step > 0, 1 / self.step, 0.0)
        return torch.round(values * inverse + self.zero / STEP).clamp_(*limits)

    def value(self, codes: torch.Tensor) -> torch.Tensor:
        """What codes [..., N] stand for."""
        return (codes - self.zero / STEP) * self.step


def limits_of(fmt: WeightFormat) -> tuple[int, int]:
    """The least and the largest code."""
    return (-127, 127) if fmt.kind == "q8" else (0, 15)


def make_fit(
    step: torch.Tensor, low: torch.Tensor, row_scale: torch.Tensor, fmt: WeightFormat
) -> GroupFit:
    """The storable scale and zero next to a step and a lower end, both [N]."""
    safe = torch.where(row_scale > 0, row_scale, 1.0)
    code = torch.round(step / safe * SCALE_STEPS).clamp_(1, SCALE_STEPS)
    exact = row_scale * (code / SCALE_STEPS)
    inverse = torch.where(exact > 0, 1 / exact, 0.0)
    zero = torch.round(-low * inverse * STEP).clamp_(0, 15 * STEP)
    return GroupFit(code, zero if fmt.kind == "q4" else torch.zeros_like(zero), exact)


def group_range(
    weight: torch.Tensor, fmt: WeightFormat, dim: int = 0
) -> tuple[torch.Tensor, torch.Tensor]:
    """(step, low) of the min-max range along `dim`; the range always holds 0."""
    high, low = weight.amax(dim).clamp_min(0), weight.amin(dim).clamp_max(0)
    if fmt.kind == "q8":
        return torch.maximum(high, -low) / 127, torch.zeros_like(low)
    return (high - low) / 15, low


def fit_group(
    weight: torch.Tensor, importance: torch.Tensor, row_scale: torch.Tensor, fmt: WeightFormat
) -> GroupFit:
    """Search scale and zero of a group.

    Args:
        weight: float32 [g, N].
        importance: float32 [g], the weight of each channel's squared error.
        row_scale: float32 [N].
    """
    limits, importance = limits_of(fmt), importance[:, None]

    def error(fit: GroupFit) -> tuple[torch.Tensor, torch.Tensor]:
        codes = fit.round(weight, limits)
        return ((fit.value(codes) - weight).square_() * importance).sum(0), codes

    step, low = group_range(weight, fmt)
    best = make_fit(step, low, row_scale, fmt)
    least, codes = error(best)

    def keep_better(fit: GroupFit) -> None:
        nonlocal best, least, codes
        new, new_codes = error(fit)
        better = new < least
        least = torch.where(better, new, least)
        codes = torch.where(better, new_codes, codes)
        pairs = zip(vars(fit).values(), vars(best).values(), strict=True)
        best = GroupFit(*(torch.where(better, mine, old) for mine, old in pairs))

    for shrink in SHRINK[1:]:
        keep_better(make_fit(step * shrink, low * shrink, row_scale, fmt))
    for _ in range(ROUNDS):
        keep_better(make_fit(*_least_squares(weight, codes, importance, fmt), row_scale, fmt))
    return best


def _least_squares(
    weight: torch.Tensor, codes: torch.Tensor, importance: torch.Tensor, fmt: WeightFormat
) -> tuple[torch.Tensor, torch.Tensor]:
    """(step, low) that fit weight = step * code + low best, each [N]."""
    total = importance.sum()
    if fmt.kind == "q8":
        square = (importance * codes * codes).sum(0)
        step = (importance * codes * weight).sum(0) / square.clamp_min(1e-12)
        return step, torch.zeros_like(step)
    code_mean, mean = ((importance * x).sum(0) / total for x in (codes, weight))
    centered = codes - code_mean
    variance = (importance * centered.square()).sum(0)
    step = (importance * centered * (weight - mean)).sum(0) / variance.clamp_min(1e-12)
    return step, mean - step * code_mean
