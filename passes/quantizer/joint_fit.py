"""Scales and zeros of one group for several readings of the same codes.

The search begins once at each reading: scale and zero that are best for it alone (`fit.py`), those
of the others so that their cells lie on its own. Then codes are chosen for all readings and every
reading's scale and zero are fitted to them again, in turn. What is best over all readings is kept
for each row. Every candidate is one that the format can store.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from morendo.ir.ladders import SCALE_STEPS

from .fit import Grid, GroupFit, fit_group, nearest

ROUNDS = 2  # of codes chosen and scales fitted
RUNGS = 2
"""Scales that are tried on either side of the one that least squares find."""
_CACHED = 1 << 17  # numbers


@dataclass(frozen=True)
class Target:
    """What one reading should come close to in a group.

    Attributes:
        columns: float32 [g, N].
        importance: float32 [g], the weight of each squared error, the reading's own included.
        row_scale: float32 [N].
        grid: of the bits that the reading reads.
    """

    columns: torch.Tensor
    importance: torch.Tensor
    row_scale: torch.Tensor
    grid: Grid


class CodeTable:
    """What each code means in every reading.

    Args:
        fits: of the readings, the one with the most bits first.

    Attributes:
        spacing: steps of the format between two codes.
    """

    def __init__(self, fits: Sequence[GroupFit]) -> None:
        bits = [fit.grid.bits for fit in fits]
        self.spacing, self.cuts = fits[0].grid.spacing, [bits[0] - each for each in bits]
        every = torch.arange(1 << bits[0])
        self.tables = [
            fit.value((every >> cut)[:, None].float())
            for fit, cut in zip(fits, self.cuts, strict=True)
        ]  # [codes, N] each

    def choose(self, wanted: Sequence[torch.Tensor], weights: Sequence[float]) -> torch.Tensor:
        """The codes of least weighted error, int64 [N] for one column [N] in each reading."""
        return self._least(wanted, weights)[1]

    def choose_all(self, targets: Sequence[Target]) -> tuple[torch.Tensor, torch.Tensor]:
        """Codes float32 [g, N] of all columns as they are, and the error [N] that they leave.

        So many columns at once as fit a cache: a small operation costs more to start than to do.
        """
        count, rows = targets[0].columns.shape
        at_once = max(_CACHED // (len(self.tables[0]) * rows), 1)
        codes, total = torch.empty(count, rows), torch.zeros(rows)
        for start in range(0, count, at_once):
            part = slice(start, start + at_once)
            wanted = [target.columns[part] for target in targets]
            weights = [target.importance[part, None] for target in targets]
            costs, codes[part] = self._least(wanted, weights)
            total += costs.sum(0)
        return codes, total

    def _least(
        self, wanted: Sequence[torch.Tensor], weights: Sequence[Any]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The least weighted error and its code for each of [..., N] in each reading."""
        cost = torch.zeros(1)
        for table, columns, weight in zip(self.tables, wanted, weights, strict=True):
            values = table if columns.ndim == 1 else table[:, None]
            cost = (values - columns).square_().mul_(weight).add_(cost)
        return cost.min(0)

    def values(self, codes: torch.Tensor) -> list[torch.Tensor]:
        """What codes int64 [N] mean in each reading."""
        return [table.gather(0, codes[None])[0] for table in self.tables]

    def cut(self, codes: torch.Tensor) -> list[torch.Tensor]:
        """Codes float32 [g, N] as each reading sees them."""
        return [torch.floor(codes / (1 << cut)) if cut else codes for cut in self.cuts]


def fit_jointly(targets: Sequence[Target]) -> list[GroupFit]:
    """The fits of all readings, the one with the most bits first."""
    best: list[GroupFit] = []
    least = torch.zeros(1)
    for lead in _leads(targets):
        fits = _improved(_aligned(targets, lead), targets)
        _, error = CodeTable(fits).choose_all(targets)
        if best:
            better = error < least
            fits = [fit.where(better, old) for fit, old in zip(fits, best, strict=True)]
            error = torch.minimum(error, least)
        best, least = fits, error
    return best


def _leads(targets: Sequence[Target]) -> list[int]:
    """The first reading of each number of bits."""
    bits = [target.grid.bits for target in targets]
    return [bits.index(each) for each in dict.fromkeys(bits)]


def _aligned(targets: Sequence[Target], lead: int) -> list[GroupFit]:
    """The best fit of one reading, and fits of the others that cover the same range."""
    first = targets[lead]
    fit = fit_group(first.columns, first.importance, first.row_scale, first.grid)
    middle = (first.grid.center - fit.zero / fit.grid.unit) * fit.step
    fits = []
    for index, target in enumerate(targets):
        code = target.grid.code_of(fit.step.clone(), target.row_scale)
        fits.append(fit if index == lead else _with_middle(target, code, middle))
    return fits


def _with_middle(target: Target, code: torch.Tensor, middle: torch.Tensor) -> GroupFit:
    """The fit of a scale code whose range has its middle next to a value, all [N]."""
    step = target.row_scale * (code / SCALE_STEPS)
    inverse = torch.where(step > 0, 1 / step, 0.0)
    zero = nearest((target.grid.center - middle * inverse) * target.grid.unit, target.grid.zeros)
    return GroupFit(target.grid, code, zero, step)


def _improved(fits: list[GroupFit], targets: Sequence[Target]) -> list[GroupFit]:
    for _ in range(ROUNDS):
        table = CodeTable(fits)
        codes, _ = table.choose_all(targets)
        cut = table.cut(codes)
        fits = [refit(f, t, c) for f, t, c in zip(fits, targets, cut, strict=True)]
    return fits


def refit(fit: GroupFit, target: Target, codes: torch.Tensor) -> GroupFit:
    """The best storable scale and zero for given codes, or the ones there are.

    Args:
        codes: float32 [g, N] as the reading sees them.
    """
    sums = _Sums(codes * fit.grid.spacing + fit.grid.middle, target)
    best, least = fit, sums.error(fit)
    middle = fit.grid.code_of(sums.best_step(), target.row_scale)
    for rung in range(-RUNGS, RUNGS + 1):
        code = nearest(middle + rung * fit.grid.scales.step, fit.grid.scales)
        step = target.row_scale * (code / SCALE_STEPS)
        zero = nearest(sums.best_zero(step) * fit.grid.unit, fit.grid.zeros)
        tried = GroupFit(fit.grid, code, zero, step)
        error = sums.error(tried)
        best = tried.where(error < least, best)
        least = torch.minimum(error, least)
    return best


class _Sums:
    """The weighted squared error of step * (u - zero) as a function of step and zero, rows apart.

    Args:
        u: float32 [g, N], codes in steps of the format, at the middle of what they stand for.
    """

    def __init__(self, u: torch.Tensor, target: Target) -> None:
        weight = (target.importance / target.importance.sum().clamp_min(1e-30))[:, None]
        self.u_mean, self.mean = ((weight * x).sum(0) for x in (u, target.columns))
        u, w = u - self.u_mean, target.columns - self.mean
        self.uu, self.uw, self.ww = ((weight * a * b).sum(0) for a, b in ((u, u), (u, w), (w, w)))

    def best_step(self) -> torch.Tensor:
        """By least squares; 0 where all codes are the same."""
        return self.uw / self.uu.clamp_min(1e-30)

    def best_zero(self, step: torch.Tensor) -> torch.Tensor:
        """The zero for which the mean of a step's values is that of the columns."""
        return self.u_mean - self.mean * torch.where(step > 0, 1 / step, 0.0)

    def error(self, fit: GroupFit) -> torch.Tensor:
        """[N]."""
        off = fit.step * (self.u_mean - fit.zero / fit.grid.unit) - self.mean
        return fit.step.square() * self.uu - 2 * fit.step * self.uw + self.ww + off.square()
