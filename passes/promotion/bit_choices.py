"""What a budget can choose bits for, and choosing: groups of the body's matrices, and heads."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import tvm

from morendo.ir.dialect import attrs_of
from morendo.ir.formats import WeightFormat
from morendo.ir.input_analysis import InputAnalysis
from morendo.ir.invariants import calls

from ..base import Report
from .limits import Heads, counted_bytes


class Choice(ABC):
    """Matrices that get bits together, in steps of two planes.

    Attributes:
        names: of their weights.
        weights: how many there are.
        kinds: of steps: planes that can be had, 0 to 2.
        groups: steps that each plane has.
        planes: how many steps of the upper and of the lower plane are taken.
    """

    names: tuple[str, ...]
    weights: int
    kinds: int
    groups: int
    planes: list[int]

    @property
    def order(self) -> str:
        """The name of the channels' order; "" when they stay in their places."""
        return ""

    @property
    @abstractmethod
    def format(self) -> WeightFormat:
        """The format with as many planes as were promoted."""

    @property
    def channels(self) -> np.ndarray:
        """The order: uint16 [K]."""
        raise AssertionError("the channels stay in their places")

    @abstractmethod
    def nbytes(self, upper: int, lower: int) -> int:
        """Bytes of the matrices with so many steps of each plane."""

    @abstractmethod
    def steps(self) -> list[tuple[float, int]]:
        """(loss removed per byte, which plane) of all steps, for both planes."""

    @abstractmethod
    def count(self, report: Report) -> None:
        """Say in a report what was chosen."""

    def even_steps(self) -> list[tuple[float, int]]:
        """Steps whose rank is the part of the groups that they complete, plane after plane."""
        parts = [(g + 1) / self.groups for g in range(self.groups)]
        return [(-plane - part, plane) for plane in range(self.kinds) for part in parts]


class HeadBits(Choice):
    """The head and its table: the fifth and the sixth bit of all of their codes."""

    def __init__(self, analysis: InputAnalysis, heads: Heads) -> None:
        self.analysis, self.heads, self.groups, self.planes = analysis, heads, 1, [0, 0]
        self.kinds = heads.format.bits - 4
        self.names, self.weights = tuple(heads.shapes), heads.weights

    @property
    def format(self) -> WeightFormat:
        return self.heads.with_bits(4 + sum(self.planes))

    def nbytes(self, upper: int, lower: int) -> int:
        return self.heads.nbytes(4 + upper + lower)

    def steps(self) -> list[tuple[float, int]]:
        losses = self.analysis.losses[2:].sum(1)  # with 4 bits, 5 and 6
        cost = self.heads.nbytes(5) - self.heads.nbytes(4)
        return [(gain / cost, plane) for plane, gain in enumerate(losses[:-1] - losses[1:])]

    def count(self, report: Report) -> None:
        report.count(f"heads of {self.format.bits} bit", len(self.names))


class GroupBits(Choice):
    """The planes of the matrices that read one input, as far as they are promoted.

    Args:
        outliers, stored: as of `counted_bytes`.
    """

    def __init__(
        self, analysis: InputAnalysis, outliers: float, stored: bool, module: tvm.IRModule
    ) -> None:
        self.analysis, self.outliers, self.stored = analysis, outliers, stored
        self.kinds = analysis.format.most_bits - 2  # of steps: 2 -> 3, and 3 -> 4 where it is read
        self.names = analysis.names
        self.groups = analysis.losses.shape[1]
        self.planes = [0, 0]
        self.sorted = not np.array_equal(analysis.order, np.arange(analysis.columns))
        self.rows = [
            attrs_of(c)["out_features"]
            for name, c in calls(module)
            if name == "linear" and attrs_of(c)["weight"] in analysis.names
        ]
        self.weights = analysis.rows * analysis.columns

    @property
    def format(self) -> WeightFormat:
        return self._format(*self.planes)

    @property
    def order(self) -> str:
        return f"{self.analysis.names[0]}.order" if self._ordered(*self.planes) else ""

    @property
    def channels(self) -> np.ndarray:
        """Among those of one precision, channels keep the model's order."""
        size, order = self.analysis.format.group_size, self.analysis.order
        parts = np.split(order, [plane * size for plane in reversed(self.planes)])
        return np.concatenate([np.sort(part) for part in parts]).astype(np.uint16)

    def _ordered(self, *planes: int) -> bool:
        """Whether there are several precisions, so that channels have to move."""
        return self.sorted and any(0 < count < self.groups for count in planes)

    def _format(self, plane3: int, plane4: int) -> WeightFormat:
        fmt = self.analysis.format
        whole = (plane3, plane4) == fmt.plane_groups(self.analysis.columns)
        return replace(fmt, planes=None if whole else (plane3, plane4))

    def nbytes(self, upper: int, lower: int) -> int:
        """Bytes of the matrices with so many planes, of their order and of outliers to come."""
        columns = self.analysis.columns
        fmt = self._format(upper, lower)
        total = sum(counted_bytes(fmt, n, columns, self.outliers, self.stored) for n in self.rows)
        return total + (2 * columns if self._ordered(upper, lower) else 0)

    def steps(self) -> list[tuple[float, int]]:
        """(loss removed per byte, which plane) of the groups in storage order, for both planes.

        A group stands for those behind it as well: gains never rise along the storage order, so
        that a ranking takes a prefix.
        """
        steps: list[tuple[float, int]] = []
        fmt = self.analysis.format
        cost = sum(map(fmt.tiles, self.rows)) * fmt.row_tile * fmt.group_size // 8  # of a group
        for plane in range(self.kinds):
            gains = self.analysis.losses[plane] - self.analysis.losses[plane + 1]
            steps += [(gain / cost, plane) for gain in np.maximum.accumulate(gains[::-1])[::-1]]
        return steps

    def count(self, report: Report) -> None:
        upper, lower = (count * len(self.names) for count in self.planes)
        report.count("groups", self.groups * len(self.names))
        report.count("groups promoted to 4 bit", lower)
        report.count("groups promoted to 3 bit", upper - lower)


def promote(inputs: Sequence[Choice], budget: float, ranked: bool = True) -> None:
    """Take steps of all inputs, the most useful for their bytes first, while bytes last."""
    spent = sum(each.nbytes(0, 0) for each in inputs)
    steps = [
        (-gain, index, plane)
        for index, each in enumerate(inputs)
        for gain, plane in (each.steps() if ranked else each.even_steps())
    ]
    for _, index, plane in sorted(steps):
        each = inputs[index]
        wanted = list(each.planes)
        wanted[plane] += 1
        wanted[0] = max(wanted)
        cost = each.nbytes(*wanted) - each.nbytes(*each.planes)
        if spent + cost <= budget and wanted[0] <= each.groups:
            each.planes = wanted
            spent += cost
